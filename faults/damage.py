"""Damages one file of a copy of a small store: which file, which fault, where; all of it drawn from a seed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults.damaged_store import Template
from ingest import sharding
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.store.data_dir import META


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
