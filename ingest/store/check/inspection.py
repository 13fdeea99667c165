"""What one file of a store says, for people and for scripts. Reads only, also under a running server. Never a key's bytes.

Which kind a file is, its bytes say; where they can't (a lost header), its name and place do.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ingest import limits, sharding, ticket
from ingest.errors import CorruptionError, DiskError, IngestError, StoreFormatError, UsageError
from ingest.mac import derive, parse_keys
from ingest.runtime.key_file import read_keys
from ingest.store.layouts import pack_file
from ingest.store.layouts.pack_file import PackHeader, bits_of
from ingest.store.layouts.tree_file import CHECKSUM, DELETED
from ingest.store.log.log_format import (
    BATCH_MAGIC,
    BLOCK_SIZE,
    SEGMENT_MAGIC,
    BatchHeader,
    SegmentHeader,
    padded,
    parse_batch,
)
from ingest.store.store_json import load_store_json


def inspect(path: Path) -> dict[str, Any]:
    """What ``path`` is: ``kind`` (pack, chunk, tombstone, segment, store, log, lock, key, quarantine) and its fields;
    ``problem`` says what is wrong with it. UsageError for a file of no kind, DiskError when it can't be read."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is {_what(status.st_mode)}, not a file of a store")
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    kind = _kind(path, head, status.st_size)
    common = {
        "file": str(path),
        "kind": kind,
        "size": status.st_size,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
    }
    return common | _KINDS[kind](path, head)


def _what(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a symbolic link" if stat.S_ISLNK(mode) else "a special file"


def _attributes(path: Path) -> set[str]:
    try:
        return set(os.listxattr(path, follow_symlinks=False))
    except OSError:  # a file system without them has none
        return set()


def _kind(path: Path, head: bytes, size: int) -> str:
    attributes = _attributes(path)
    if DELETED in attributes:
        return "tombstone"
    if CHECKSUM in attributes:
        return "chunk"
    if head.startswith(pack_file.MAGIC):
        return "pack"
    if head.startswith(SEGMENT_MAGIC) or (path.suffix == ".log" and path.stem.isdigit()):
        return "segment"
    by_name = {"lock": "lock", "key": "key", "store.json": "store", "log.json": "log"}.get(path.name)
    if by_name is not None:
        return by_name
    record = _json(head)
    for member, kind in (("store_id", "store"), ("log_id", "log"), ("pid", "lock"), ("pieces", "quarantine")):
        if isinstance(record, dict) and member in record:
            return kind
    try:
        parse_keys(head.decode("ascii"))
        return "key"
    except (IngestError, UnicodeDecodeError):
        pass
    if path.name == "obj":
        return "chunk" if size == limits.DATA_SIZE else "pack"
    raise UsageError(
        f"{path} is no file that ingest writes: packs and chunks (…/obj), log segments (0000.log), "
        "store.json, log.json, lock and key files are"
    )


def _json(head: bytes) -> Any:
    try:
        return json.loads(head)
    except (ValueError, RecursionError):
        return None


# --- packs and chunks


def _pack(path: Path, head: bytes) -> dict[str, Any]:
    for attempt in range(limits.HEADER_READS_MAX):
        try:
            header = PackHeader.parse(head)
            break
        except CorruptionError as error:
            problem = str(error)
        if attempt:
            time.sleep(limits.HEADER_READ_PAUSE_US / 1e6)
        head = path.read_bytes()[: pack_file.SECTOR_SIZE]  # it may have been read while it was being written
    else:
        return {"problem": problem}
    present, deleted = list(bits_of(header.present)), list(bits_of(header.deleted))
    found: dict[str, Any] = {
        "prefix": header.prefix,
        "path": sharding.pack_path(header.pack),
        "store_id": header.store_id.hex(),
        "generation": header.generation,
        "slots": header.slots,
        "present": len(present),
        "deleted": len(deleted),
        "free": header.slots - len(set(present) | set(deleted)),
        "present_tickets": _ticket_ranges(header.pack, present),
        "deleted_tickets": _ticket_ranges(header.pack, deleted),
        "allocated": path.stat().st_blocks * 512,
    }
    inside = "/".join(path.resolve().parts[-found["path"].count("/") - 1 :])
    if inside != found["path"]:
        found["problem"] = f"its place is {found['path']}"
    return found


def _ticket_ranges(pack: int, slots: list[int]) -> list[list[str]]:
    """First and last ticket of each run of consecutive slots."""
    ranges: list[list[int]] = []
    for slot in slots:
        if ranges and slot == ranges[-1][1] + 1 and slot != limits.PACK_SLOTS:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    return [[ticket.format(sharding.slot_ticket(pack, slot)) for slot in pair] for pair in ranges]


def _ticket_of_place(path: Path) -> str | None:
    """The longest ticket that the directories above an obj spell."""
    pieces: list[str] = []
    parts = path.resolve().parts[:-1]
    for part in reversed(parts[-4:]):
        if len(part) != 2 and pieces:
            break
        if not ticket._TEXT.fullmatch(part) or len(part) > 2:
            break
        pieces.insert(0, part)
    return "".join(pieces) or None


def _chunk(path: Path, head: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"ticket": _ticket_of_place(path)}
    try:
        found["checksum"] = os.getxattr(path, CHECKSUM, follow_symlinks=False).hex()
    except OSError:
        found["problem"] = f"it has no attribute {CHECKSUM}"
    if len(head) != limits.DATA_SIZE:
        found["problem"] = f"a chunk has {limits.DATA_SIZE} bytes, this one {path.stat().st_size}"
    return found


def _tombstone(path: Path, head: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"ticket": _ticket_of_place(path)}
    if head:
        found["problem"] = "it is marked deleted and not empty"
    return found


# --- the log


def _segment(path: Path, head: bytes) -> dict[str, Any]:
    try:
        header = SegmentHeader.parse(head[:BLOCK_SIZE])
    except (CorruptionError, StoreFormatError) as error:
        return {"problem": str(error)}
    if header is None:
        return {"used": False}
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as view,
    ):
        for _ in range(2):  # a server may be writing: what looks bad is read once more
            batches = list(_batches(view, header))
            end = batches[-1]["offset"] + padded(batches[-1]["length"]) if batches else BLOCK_SIZE
            reason = parse_batch(view[end:], header.seed) if end < len(view) else "the segment is full"
            later = _later_batch(view, end, header)
            if later is None:
                break
    found: dict[str, Any] = {
        "used": True,
        "log_id": header.log_id.hex(),
        "use": header.use,
        "first_batch": header.first_batch,
        "synced_to": header.synced_to,
        "batches": batches,
        "puts": sum(batch["puts"] for batch in batches),
        "deletes": sum(batch["deletes"] for batch in batches),
        "notes": sum(batch["notes"] for batch in batches),
        "end": end,
        "end_reason": reason if isinstance(reason, str) else f"batch {reason.number} follows out of order",
    }
    if later is not None:
        found["problem"] = f"the batch at {end} is bad, and a whole one lies behind it at {later}: corruption"
    return found


def _batches(view: memoryview, header: SegmentHeader) -> Iterator[dict[str, Any]]:
    offset, expected = BLOCK_SIZE, header.first_batch
    while offset < len(view):
        batch = parse_batch(view[offset:], header.seed)
        if isinstance(batch, str) or batch.number != expected:
            return
        yield {
            "offset": offset,
            "number": batch.number,
            "length": batch.length,
            "puts": batch.puts,
            "deletes": batch.deletes,
            "notes": batch.notes,
            "synced_to": batch.synced_to,
        }
        offset += padded(batch.length)
        expected += 1


def _later_batch(view: memoryview, end: int, header: SegmentHeader) -> int | None:
    for at in range(end + BLOCK_SIZE, len(view), BLOCK_SIZE):
        if view[at : at + 8] == BATCH_MAGIC and isinstance(parse_batch(view[at:], header.seed), BatchHeader):
            return at
    return None


# --- JSON and keys


def _record(_: Path, head: bytes) -> dict[str, Any]:
    record = _json(head)
    if not isinstance(record, dict):
        return {"problem": "it holds no JSON object"} if head.strip(b"\0 \n") else {"record": {}}
    return {"record": record}


def _store(path: Path, head: bytes) -> dict[str, Any]:
    found = _record(path, head)
    try:
        _, damage = load_store_json(path)
    except StoreFormatError as error:
        return found | {"problem": str(error).removeprefix(f"{path}: ")}
    return found | ({"problem": damage} if damage else {})


def _key(path: Path, _: bytes) -> dict[str, Any]:
    try:
        keys = read_keys(path, own=True)
    except IngestError as error:
        return {"problem": str(error)}
    ids = [derive(key).id for key in keys]
    return {"keys": [{"id": name, "use": _use(i)} for i, name in enumerate(ids)]}


def _use(place: int) -> str:
    return ("signs and is accepted", "is accepted")[place] if place < 2 else "verifies what is stored"


_KINDS: dict[str, Callable[[Path, bytes], dict[str, Any]]] = {
    "pack": _pack,
    "chunk": _chunk,
    "tombstone": _tombstone,
    "segment": _segment,
    "store": _store,
    "log": _record,
    "lock": _record,
    "quarantine": _record,
    "key": _key,
}
