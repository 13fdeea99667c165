"""Part 6: bytes that decay. A copy of a small store is damaged in one file, and three things must hold.

1. Nothing wrong is ever served: whatever a server that starts on it shows, and a client that checks takes, is what
was stored. 2. `fsck` finds it, unless nobody interprets the bytes, or nobody can tell them from those of a crash. 3.
After `fsck --repair` the store is clean, a server starts, and all that was not damaged is there; no ticket that was
used is free.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import socket
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from node_rig import NodeRig, get_frames

from faults import progress
from faults.damage import Damage, damage, restore
from faults.damage_effects import harmless, like_a_crash, recovery_rewrites, touched
from faults.damaged_store import Template, build, checked, read_all, started, tickets
from faults.outcome import Outcome
from ingest import limits, ticket
from ingest.errors import ConfigError, IngestError
from ingest.mac import KeyRing, SubKeys
from ingest.runtime.key_file import read_keys
from ingest.status import Status
from ingest.store.check.fsck import fsck
from ingest.store.data_dir import META
from ingest.store.layouts import tree_file

NUMBER = 6
TITLE = "corruption of every kind of file"
CASES = 10_000
SERVER_EVERY = 100  # one case in so many is read through a server in processes of its own

Read = dict[int, tuple[Status, bytes]]


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
        tree_file.check_file_system(directory)
    except ConfigError:
        return ("pack",)
    return ("pack", "tree")
