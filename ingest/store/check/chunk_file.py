"""Layout tree for the tools, which look at a pack's worth of tickets at a time: `docs/format.md`, "Layout tree"."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ingest import sharding, ticket
from ingest.limits import CHECKSUM_SIZE, DATA_SIZE, FRAME_SIZE, TICKET_SIZE
from ingest.runtime.durable_files import make_directory, replacing
from ingest.store.check.pack_check import SlotState
from ingest.store.layouts.tree_file import TreeFile


def read_tree_file(path: Path) -> TreeFile:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return TreeFile.read(fd)
    finally:
        os.close(fd)


def read_chunks(data_dir: Path, pack: int, slots: Iterable[int], put_keys: Iterable[bytes]) -> SlotState:
    """The chunks of one pack's tickets, from their files. ``slots``: those that have one.

    A file without any attribute counts as present and bad: a crash leaves one only where the log will write it again.
    """
    frames = np.zeros((sharding.pack_slots(pack), FRAME_SIZE), np.uint8)
    present: list[int] = []
    deleted: list[int] = []
    for slot in slots:
        name = ticket.format(sharding.slot_ticket(pack, slot))
        file = read_tree_file(data_dir / ticket.tree_path(name))
        frames[slot] = np.frombuffer(_frame(file, name), np.uint8)
        (deleted if file.deleted else present).append(slot)
    state = SlotState(pack, frames, put_keys)
    state.present[present] = True
    state.deleted[deleted] = True
    return state


def _frame(file: TreeFile, name: str) -> bytes:
    """The frame that a file makes: of 1474 bytes, wrong where the file is, and zero only if that holds nothing."""
    checksum = file.checksum or b""
    if len(file.data) != DATA_SIZE or len(checksum) != CHECKSUM_SIZE:
        checksum = bytes(CHECKSUM_SIZE)  # no data have this one but by a chance of 2⁻⁶⁴
    holds = file.data or file.checksum is not None
    head = ticket.to_wire(name) if holds else bytes(TICKET_SIZE)
    return (head + checksum + file.data[:DATA_SIZE]).ljust(FRAME_SIZE, b"\0")


def write_chunk_file(path: Path, frame: bytes | None, staging: Path, *, sync: bool = True) -> None:
    """Puts a chunk, or with None a tombstone, in the place of whatever is there: whole new or whole old."""
    data = b"" if frame is None else frame[TICKET_SIZE + CHECKSUM_SIZE :]
    checksum = None if frame is None else frame[TICKET_SIZE : TICKET_SIZE + CHECKSUM_SIZE]
    make_directory(path.parent)
    with replacing(path, staging, sync=sync) as fd:
        TreeFile(data, checksum, frame is None).write(fd)
