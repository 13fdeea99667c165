"""Layout tree: new frames over one pipelined connection, against a bare loop that makes the same directories, files and
attributes (`ingest.loadgen._bare_tree`), in turns.

The server's clock runs until the last frame is acked: then all files are there, and the log has made them durable. The
loop's clock runs until the last file is there; it syncs nothing. What each takes until all of it is on the disk is in
the details. Nothing is deleted before the last round is over: for a minute ext4 does not use inodes again that were freed,
and searches past all of them for each new one.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from bench import load
from bench.conftest import Take
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes
from ingest import limits, mac, ticket
from ingest.loadgen import _bare_tree, loopback
from ingest.loadgen._load_content import Content
from ingest.loadgen.loopback import LoopbackResult
from ingest.store.layouts.tree_file import TreeFile

CHECKED = 256  # files that are read afterwards


def test_tree(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    row = Row(
        "tree",
        f"layout tree, one connection, window {sizes.window:,}, {sizes.tree:,} frames in sequence, against a bare loop "
        "that makes the same directories, files and attributes",
        RATIO,
        0.6,
        0.85,
    )
    directory = scratch.directory / "tree"
    directory.mkdir(mode=0o700)
    try:
        for number in range(sizes.tree_rounds):
            bare, bare_synced = _make(directory / f"bare-{number}", sizes.tree)
            ours, ours_synced = _serve(directory / f"server-{number}", sizes)
            row.rounds.append(
                Round.ratio(
                    ours,
                    bare,
                    synced_frames_per_s=round(ours_synced),
                    synced_bare_per_s=round(bare_synced),
                    synced_ratio=round(ours_synced / bare_synced, 3),
                )
            )
    finally:
        shutil.rmtree(directory)
        sync(scratch.directory)
    return [row]


def _make(directory: Path, count: int) -> tuple[float, float]:
    """Files per second of the loop, and with a sync of them all behind it."""
    directory.mkdir(mode=0o700)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(directory)
        began = time.perf_counter()
        _bare_tree.make(fd, load.FIRST, count, os.urandom(limits.DATA_SIZE))
        made = time.perf_counter() - began
        sync(directory)
        return count / made, count / (time.perf_counter() - began)
    finally:
        os.close(fd)


def _serve(directory: Path, sizes: Sizes) -> tuple[float, float]:
    """Frames per second until all are acked, and until the server has synced them and ended."""
    with Server(directory, "--layout", "tree", "--sync", "disk") as server:
        how = load.options(
            server.put_address, server.shared_key, connections=1, window=sizes.window, frames=sizes.tree
        )
        sync(directory)
        began = time.perf_counter()
        result = load.put(how)
        acked = time.perf_counter() - began
        server.stop()
        seconds = time.perf_counter() - began
        _check(directory, how, result, server)
    return sizes.tree / acked, sizes.tree / seconds


def _check(data_dir: Path, how: loopback.LoopbackOptions, result: LoopbackResult, server: Server) -> None:
    """Files at random places hold what was sent."""
    content = Content(load.SEED)
    key = mac.derive(server.shared_key).put
    (first,) = [first for share in loopback.plan(how) for first in share.firsts]
    draw = random.Random(load.SEED)
    for _ in range(CHECKED):
        index = first + draw.randrange(result.frames)
        name = ticket.format(index)
        with open(data_dir / ticket.tree_path(name), "rb") as file:
            stored = TreeFile.read(file.fileno()).frame(name)
        assert stored == bytes(content.frames(key, index, 1)), f"{name}: other bytes than were SAVED"
