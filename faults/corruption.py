"""Part 6: bytes that decay. A copy of a small store is damaged in one file, and three things must hold.

1. Nothing wrong is ever served: whatever a server that starts on it shows, and a client that checks takes, is what
was stored. 2. `fsck` finds it, unless nobody interprets the bytes, or nobody can tell them from those of a crash. 3.
After `fsck --repair` the store is clean, a server starts, and all that was not damaged is there; no ticket that was
used is free.

Bytes that nobody interprets, counted as harmless: free slots of a pack; of a segment what lies behind its last batch,
the padding of batches and the header block behind its digest; what the lock says; white space and the case of digits
in the key file and the JSON files, and the path in log.json. Like a crash: the last batch of the log, which is cut if
it does not check. Slots that the next start writes anew from the log, which need not be looked at, are counted apart
too.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from node_rig import NodeRig, get_frames

from faults import progress
from faults.damaged_store import Template, build, checked, read_all, started, tickets
from faults.outcome import Outcome
from ingest import limits, mac, sharding, ticket
from ingest.errors import ConfigError, IngestError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.mac import KeyRing, SubKeys
from ingest.status import Status
from ingest.store import tree
from ingest.store.fsck import fsck
from ingest.store.key_file import read_keys
from ingest.store.pack import PackHeader, bit
from ingest.store.store import META

NUMBER = 6
TITLE = "corruption of every kind of file"
CASES = 10_000
SERVER_EVERY = 100  # one case in so many is read through a server in processes of its own

Read = dict[int, tuple[Status, bytes]]


@dataclass
class Damage:
    """One change of one file. ``changed``: the byte ranges (from, to) that differ now, in the longer of the two files."""

    kind: str
    path: Path  # from DATA on
    how: str
    before: bytes
    after: bytes
    attributes_changed: bool = False
    changed: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = differences(self.before, self.after)

    def touches(self, start: int, end: int) -> bool:
        return any(a < end and b > start for a, b in self.changed)


def differences(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """Where two contents differ, in pieces of 64 bytes at most apart: exact at their ends."""
    size = max(len(before), len(after))
    short = min(len(before), len(after))
    found: list[tuple[int, int]] = []
    for at in range(0, short, 64):
        a, b = before[at : at + 64], after[at : at + 64]
        if a != b:
            places = [i for i in range(min(len(a), len(b))) if a[i] != b[i]]
            found += [(at + i, at + i + 1) for i in places]
    if short < size:
        found.append((short, size))
    return found


# --- the faults


def flip(random_: random.Random, content: bytearray) -> str:
    count = random_.choice((1, 1, 1, 2, 8))
    places = [random_.randrange(len(content) * 8) for _ in range(count)]
    for place in places:
        content[place // 8] ^= 1 << place % 8
    return f"bits {places} flipped"


def _region(random_: random.Random, content: bytearray) -> tuple[int, int]:
    size = min(len(content), random_.choice((1, 8, 64, 512, FRAME_SIZE, 4096)))
    return random_.randrange(len(content) - size + 1), size


def zero(random_: random.Random, content: bytearray) -> str:
    at, size = _region(random_, content)
    content[at : at + size] = bytes(size)
    return f"{size} bytes from {at} on zeroed"


def noise(random_: random.Random, content: bytearray) -> str:
    at, size = _region(random_, content)
    content[at : at + size] = random_.randbytes(size)
    return f"{size} bytes from {at} on overwritten"


def swap(random_: random.Random, content: bytearray) -> str:
    at, size = _region(random_, content)
    other = random_.randrange(len(content) - size + 1)
    a, b = bytes(content[at : at + size]), bytes(content[other : other + size])
    content[at : at + size] = b
    content[other : other + size] = a
    return f"{size} bytes at {at} and {other} swapped"


def duplicate(random_: random.Random, content: bytearray) -> str:
    at, size = _region(random_, content)
    other = random_.randrange(len(content) - size + 1)
    content[other : other + size] = bytes(content[at : at + size])
    return f"{size} bytes from {at} on also written to {other}"


def truncate(random_: random.Random, content: bytearray) -> str:
    size = random_.randrange(len(content))
    del content[size:]
    return f"cut to {size} bytes"


def swap_slots(random_: random.Random, content: bytearray) -> str:
    """Whole slots of a pack change places: each is authentic, and in the wrong one."""
    slots = (len(content) - PACK_HEADER_SIZE) // FRAME_SIZE
    a, b = (sharding.slot_offset(random_.randrange(slots)) for _ in range(2))
    content[a : a + FRAME_SIZE], content[b : b + FRAME_SIZE] = (
        content[b : b + FRAME_SIZE],
        content[a : a + FRAME_SIZE],
    )
    return f"the slots at {a} and {b} swapped"


FAULTS: tuple[Callable[[random.Random, bytearray], str], ...] = (
    flip,
    flip,
    zero,
    noise,
    swap,
    duplicate,
    truncate,
)


def targets(template: Template) -> dict[str, list[Path]]:
    """The files of each kind, from DATA on."""
    root = template.directory
    objects = sorted(p.relative_to(root) for p in root.rglob("obj") if p.stat().st_size)
    return {
        "pack header": objects if template.layout == "pack" else [],
        "pack": objects if template.layout == "pack" else [],
        "chunk": objects if template.layout == "tree" else [],
        "attribute": sorted(p.relative_to(root) for p in root.rglob("obj"))
        if template.layout == "tree"
        else [],
        "stale pack": [Path(name) for name in sorted(template.stale)],
        "segment": sorted(p.relative_to(root) for p in root.glob(f"{META}/wal/*.log")),
        "batch": sorted({batch.segment for batch in template.batches}),
        "log.json": [Path(META, "wal", "log.json")],
        "store.json": [Path(META, "store.json")],
        "key": [Path(META, "key")],
        "lock": [Path(META, "lock")],
    }


# What a case damages, and how often: mostly what holds chunks.
WEIGHTS = {
    "pack header": 5, "pack": 8, "chunk": 8, "attribute": 4, "stale pack": 1, "segment": 3, "batch": 7, "log.json": 1,
    "store.json": 1, "key": 1, "lock": 1,
}  # fmt: skip


def damage(random_: random.Random, template: Template, directory: Path) -> Damage:
    """Damages one file of the copy in ``directory``."""
    files = {kind: paths for kind, paths in targets(template).items() if paths}
    kinds = sorted(files)
    (kind,) = random_.choices(kinds, [WEIGHTS[name] for name in kinds])
    path = random_.choice(files[kind])
    if kind == "attribute":
        return damage_attribute(random_, path, directory)
    before = (directory / path).read_bytes()
    if kind == "stale pack":
        after = template.stale[str(path)]
        how = "the whole file is older than its log"
    else:
        content = bytearray(before or b"{}")
        fault = random_.choice(FAULTS)
        if kind == "pack" and random_.randrange(8) == 0:
            fault = swap_slots
        part = window(random_, kind, template, path, content, fault)
        piece = bytearray(content[part])
        how = fault(random_, piece)
        if part.start:
            how += f" (from {part.start} on)"
        if fault is truncate:
            after = bytes(content[: part.start] + piece)
        else:
            after = bytes(content[: part.start] + piece + content[part.stop :])
    (directory / path).write_bytes(after)
    return Damage(kind, path, how, before, after)


def window(
    random_: random.Random,
    kind: str,
    template: Template,
    path: Path,
    content: bytearray,
    fault: Callable[[random.Random, bytearray], str],
) -> slice:
    """The part of a file that a fault is looked for in: faults that hit empty space show little."""
    if kind == "pack header":
        return slice(0, min(len(content), random_.choice((512, PACK_HEADER_SIZE))))
    if kind == "batch":
        batch = random_.choice([batch for batch in template.batches if batch.segment == path])
        return slice(batch.offset, batch.offset + batch.length)
    if kind == "segment" and random_.randrange(2):
        return slice(0, 512)
    return slice(0, len(content))


def damage_attribute(random_: random.Random, path: Path, directory: Path) -> Damage:
    file = directory / path
    name = random_.choice(os.listxattr(file) or ["user.ingest.checksum"])
    before = os.getxattr(file, name)
    how = random_.choice(("removed", "flipped", "flipped", "cut", "deleted set"))
    if how == "removed" or (how == "flipped" and not before):
        os.removexattr(file, name)
        after = b""
    elif how == "deleted set":
        os.setxattr(file, "user.ingest.deleted", b"")
        after = before
    else:
        content = bytearray(before)
        if how == "flipped":
            flip(random_, content)
        else:
            del content[random_.randrange(len(content) + 1) :]
        after = bytes(content)
        os.setxattr(file, name, after)
    already = how == "deleted set" and name == "user.ingest.deleted"
    same_meaning = name == "user.ingest.deleted" and how in ("flipped", "cut") and before != b""
    changed = not already and not same_meaning and (how in ("removed", "deleted set") or before != after)
    return Damage(
        "attribute", path, f"{name} {how}", before, after, changed or (how == "flipped" and not before)
    )


# --- what a change may do


def same_meaning(damaged: Damage) -> bool:
    """Whether a JSON or key file says what it said."""
    try:
        if damaged.kind == "key":
            return mac.parse_keys(damaged.before.decode()) == mac.parse_keys(damaged.after.decode("ascii"))
        before, after = (json.loads(raw) for raw in (damaged.before, damaged.after))
    except (ValueError, IngestError, RecursionError):
        return False
    if damaged.kind == "log.json":
        return isinstance(after, dict) and before["log_id"] == after.get("log_id")
    return bool(before == after)


def harmless(template: Template, damaged: Damage) -> bool:
    """Whether only bytes changed that nobody interprets."""
    if damaged.kind == "attribute":
        return not damaged.attributes_changed
    if not damaged.changed or damaged.kind == "lock":
        return True
    if damaged.kind in ("key", "store.json", "log.json"):
        return same_meaning(damaged)
    if damaged.kind in ("pack", "pack header"):
        header = PackHeader.parse(damaged.before)
        free = [s for s in range(header.slots) if not bit(header.present, s) and not bit(header.deleted, s)]
        spaces = [(sharding.slot_offset(s), sharding.slot_offset(s + 1)) for s in free]
        # Deleted slots are zero: behind the end of the file they still are.
        size = len(damaged.before)
        dead = [s for s in range(header.slots) if bit(header.deleted, s)]
        if len(damaged.after) < size:
            spaces += [(sharding.slot_offset(s), sharding.slot_offset(s + 1)) for s in dead]
        return within(damaged.changed, spaces)
    if damaged.kind in ("segment", "batch"):
        if not any(damaged.before) and not any(damaged.after):
            return True  # never used, and of any length
        return len(damaged.after) == len(damaged.before) and within(
            damaged.changed, free_of_segment(template, damaged)
        )
    return False


def free_of_segment(template: Template, damaged: Damage) -> list[tuple[int, int]]:
    spaces = [(512, 4096)]
    batches = [batch for batch in template.batches if batch.segment == damaged.path]
    end = 4096
    for batch in batches:
        end = batch.offset + -(-batch.length // 4096) * 4096
        spaces.append((batch.offset + batch.length, end))
    return [*spaces, (end, len(damaged.before))]


def within(changed: list[tuple[int, int]], spaces: list[tuple[int, int]]) -> bool:
    merged: list[list[int]] = []
    for start, end in sorted(spaces):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return all(any(start <= a and b <= end for start, end in merged) for a, b in changed)


def recovery_rewrites(template: Template, damaged: Damage) -> bool:
    """Whether only slots changed that the next start writes anew from the log, whatever lies in them."""
    if damaged.kind not in ("pack", "chunk", "attribute"):
        return False
    pending = {
        index
        for batch in template.batches
        if batch.number > template.settled
        for indices in batch.frames.values()
        for index in indices
    }
    if damaged.kind != "pack":
        return ticket.parse(ticket.from_tree_path(str(damaged.path))) in pending
    pack = sharding.pack_of_path(str(damaged.path))
    header = PackHeader.parse(damaged.before)
    spaces = []
    for slot in range(header.slots):
        free = not bit(header.present, slot) and not bit(header.deleted, slot)
        if free or sharding.slot_ticket(pack, slot) in pending:
            spaces.append((sharding.slot_offset(slot), sharding.slot_offset(slot + 1)))
    return within(damaged.changed, spaces)


def like_a_crash(template: Template, damaged: Damage) -> bool:
    """Whether nothing but the last batch of the log changed: nobody can tell it from one that was being written."""
    if damaged.kind not in ("segment", "batch") or not template.batches:
        return False
    last = template.batches[-1]
    space = [*free_of_segment(template, damaged), (last.offset, last.offset + last.length)]
    return (
        last.segment == damaged.path
        and len(damaged.after) == len(damaged.before)
        and within(damaged.changed, space)
    )


def touched(template: Template, damaged: Damage) -> set[int]:
    """The tickets whose own bytes changed, somewhere: what they held may be lost."""
    found: set[int] = set()
    if damaged.kind in ("pack", "pack header"):
        pack = sharding.pack_of_path(str(damaged.path))
        for slot in range(sharding.pack_slots(pack)):
            if damaged.touches(sharding.slot_offset(slot), sharding.slot_offset(slot + 1)):
                found.add(sharding.slot_ticket(pack, slot))
    elif damaged.kind in ("chunk", "attribute"):
        found.add(ticket.parse(ticket.from_tree_path(str(damaged.path))))
    elif damaged.kind in ("segment", "batch"):
        for batch in template.batches:
            if batch.segment != damaged.path or batch.number <= template.settled:
                continue
            whole = damaged.touches(batch.offset, batch.offset + 64) or batch is template.batches[-1]
            for place, indices in batch.frames.items():
                if whole or damaged.touches(place, place + FRAME_SIZE):
                    found.update(indices)
    return found


# --- one case


@dataclass
class Case:
    """What came of one: losses, and what it counts as."""

    losses: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def served_wrong(template: Template, damaged: Damage, read: Read, repaired: bool) -> list[str]:
    """Frames that verify and are not what was stored.

    Where a delete was lost, what it deleted may show up once more: with a batch of the log that is gone, and, before the
    repair, in a pack that is older than the log.
    """
    wrong = []
    lost = touched(template, damaged) if damaged.kind in ("segment", "batch") else set()
    if damaged.kind == "stale pack" and not repaired:
        lost = set(template.former)
    for index, (status, data) in read.items():
        if status is not Status.SAVED or template.truth.get(index) == data:
            continue
        if index in lost and template.truth.get(index) is None and template.former.get(index) == data:
            continue
        truth = (
            "nothing"
            if index not in template.truth
            else "a tombstone"
            if template.truth[index] is None
            else "other bytes"
        )
        wrong.append(f"ticket {ticket.format(index)}: expected {truth}, found bytes that verify")
    return wrong


def not_there(template: Template, damaged: Damage, read: Read) -> list[str]:
    """After the repair: what is missing although its bytes were not damaged, and tickets that became free."""
    wrong = []
    may_be_lost = touched(template, damaged)
    log_only = damaged.kind in ("segment", "batch")
    for index, data in template.truth.items():
        status, found = read[index]
        name = ticket.format(index)
        if data is None:
            right = status is Status.DELETED or (index in may_be_lost and log_only)
        elif index in may_be_lost:
            right = (
                (status is Status.SAVED and found == data)
                or status is Status.DELETED
                or (log_only and status is Status.MISSING)
            )
        else:
            right = status is Status.SAVED and found == data
        if not right:
            held = "a tombstone" if data is None else "its bytes"
            wrong.append(f"ticket {name}: expected {held}, found {status.name} after the repair")
    return wrong


def one_case(
    templates: list[Template], seed: int, number: int, directory: Path, through_server: bool
) -> Case:
    """Damages, serves, checks, mends, checks, serves. ``templates``: the last one has segments of the real size, for
    the server."""
    random_ = random.Random(f"{seed} {number}")
    case = Case()
    # A tree has a file for each of its chunks, and takes ten times as long to copy.
    weights = [6 if template.layout == "pack" else 1 for template in templates[:-1]]
    (template,) = templates[-1:] if through_server else random_.choices(templates[:-1], weights)
    copy = directory / f"case-{number}"
    template.copy(copy)
    damaged = damage(random_, template, copy)
    label = f"case {number} ({template.name}, {damaged.path}, {damaged.how})"
    keys = KeyRing(read_keys(template.directory / META / "key")).signing
    try:
        for line in _case(case, template, damaged, copy, keys, through_server, directory):
            case.losses.append(f"{label}: {line}; repeat with the seed {seed}")
    except Exception as error:  # a traceback would end all the other cases, and is as bad as a loss
        case.losses.append(f"{label}: {type(error).__name__}: {error}; repeat with the seed {seed}")
    shutil.rmtree(copy)
    case.counts[damaged.kind.replace(" ", "_")] += 1
    return case


def _case(
    case: Case,
    template: Template,
    damaged: Damage,
    copy: Path,
    keys: SubKeys,
    through_server: bool,
    directory: Path,
) -> list[str]:
    losses: list[str] = []
    read = serve(template, copy, keys, directory, through_server)
    case.counts["refused_to_start" if read is None else "served"] += 1
    losses += served_wrong(template, damaged, read or {}, False)
    # A server may have mended something: the check is made on what was found.
    shutil.rmtree(copy)
    template.copy(copy)
    restore(copy, damaged)
    found = check(copy, template.segment_size, repair=False)
    if found:
        case.counts["found"] += 1
    elif harmless(template, damaged):
        case.counts["harmless"] += 1
    elif like_a_crash(template, damaged):
        case.counts["like_a_crash"] += 1
    elif recovery_rewrites(template, damaged):
        case.counts["rewritten_from_the_log"] += 1
    else:
        losses.append("fsck found nothing")
    mended = check(copy, template.segment_size, repair=True)
    if any("operator" in line for line in mended):
        case.counts["named_for_the_operator"] += 1
        (copy / damaged.path).write_bytes(damaged.before)
        check(copy, template.segment_size, repair=True)
    left = check(copy, template.segment_size, repair=False)
    if left:
        losses.append(f"not clean after the repair: {left[0]}")
    after = serve(template, copy, keys, directory, through_server)
    if after is None:
        losses.append("no server starts after the repair")
    else:
        losses += served_wrong(template, damaged, after, True) + not_there(template, damaged, after)
    return losses


def restore(copy: Path, damaged: Damage) -> None:
    """Does the same damage once more."""
    if damaged.kind != "attribute":
        (copy / damaged.path).write_bytes(damaged.after)
        return
    name, _, how = damaged.how.partition(" ")
    if how == "deleted set":
        os.setxattr(copy / damaged.path, "user.ingest.deleted", b"")
    elif how == "removed" or (how == "flipped" and not damaged.before):
        os.removexattr(copy / damaged.path, name)
    else:
        os.setxattr(copy / damaged.path, name, damaged.after)


def check(directory: Path, segment_size: int, repair: bool) -> list[str]:
    """The lines of problems; one with "operator" when only a person can go on (the key file, an unknown version)."""
    try:
        report = fsck(directory, repair=repair, segment_size=segment_size)
    except IngestError as error:
        return [f"operator: {error}"]
    return [("" if problem.repair else "operator: ") + str(problem) for problem in report.problems]


def serve(
    template: Template, directory: Path, keys: SubKeys, scratch: Path, through_server: bool
) -> Read | None:
    """What a server shows of every ticket; None when none starts."""
    if through_server:
        return serve_for_real(directory, keys)
    try:
        with started(directory, template.segment_size) as reader:
            return read_all(reader, keys)
    except IngestError:
        return None
    except OSError as error:
        if error.errno in (errno.EIO, errno.EBADMSG):
            return None
        raise


def serve_for_real(directory: Path, keys: SubKeys) -> Read | None:
    rig = NodeRig(directory, "--workers=1", "--wal-size=96MiB", "--reserve=0")
    try:
        try:
            rig.start()
        except AssertionError:
            return None  # it ended, and said why
        found: Read = {}
        with socket.create_connection(rig.get_address, 30) as sock:
            for first, count in tickets():
                for attempt in range(2):
                    answers = get_frames(sock, keys, first, count)
                    if all(good for _, _, good in answers) or attempt:
                        break
                for i, (status, frame, _) in enumerate(answers):
                    found[first + i] = checked(first + i, status, frame, keys)
        rig.stop()
        return found
    finally:
        rig.close()
        rig.log_path.unlink(missing_ok=True)


def run(seed: int, cases: int, directory: Path, processes: int | None = None) -> Outcome:
    """``cases`` damaged copies, spread over the cores."""
    templates = [
        build(directory / f"template-{layout}-{end}", layout, end, seed)
        for layout in layouts(directory)
        for end in ("clean", "killed", "cut", "begun")
    ]
    templates.append(build(directory / "template-server", "pack", "killed", seed, limits.LOG_SEGMENT_SIZE))
    losses: list[str] = []
    counts: Counter[str] = Counter()
    job = partial(_job, templates, seed, directory)
    workers = processes or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, initializer=_quiet) as pool:
        for case in pool.map(job, range(cases), chunksize=8):
            losses += case.losses
            counts += case.counts
            progress.done(1, case.losses)
    return Outcome(seed, cases, losses, dict(sorted(counts.items())))


def _quiet() -> None:
    """What recovery mends it logs: here that is every other case."""
    logging.disable(logging.ERROR)


def _job(templates: list[Template], seed: int, directory: Path, number: int) -> Case:
    return one_case(templates, seed, number, directory, number % SERVER_EVERY == SERVER_EVERY - 1)


def layouts(directory: Path) -> tuple[str, ...]:
    """Those that this file system can hold."""
    try:
        tree.check_file_system(directory)
    except ConfigError:
        return ("pack",)
    return ("pack", "tree")
