"""Verification of frames on one thread: the lanes of our kernel against PyPI `blake3`, one call for each frame."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from blake3 import blake3

from bench.conftest import Take
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch
from bench.sizes import Sizes
from ingest import _hmac, limits

TARGETS = {"avx512": (6.0, 8.0), "avx2": (3.0, 5.0)}


def test_verify(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    """One row for each of the paths that this CPU has; `portable` is only reported."""
    key = os.urandom(32)
    frames = bytearray(os.urandom(sizes.verify_frames * limits.FRAME_SIZE))
    _hmac.sign(key, frames)
    # What the library is given is laid out for it beforehand: ticket and data together, and the checksum to compare.
    messages, tags = [], []
    for at in range(0, len(frames), limits.FRAME_SIZE):
        frame = bytes(frames[at : at + limits.FRAME_SIZE])
        messages.append(frame[:8] + frame[16:])
        tags.append(frame[8:16])

    def library() -> bool:
        return [blake3(message, key=key).digest(8) for message in messages] == tags

    def kernel() -> bool:
        return 0 not in _hmac.verify(key, frames)

    rows = []
    usual = _hmac.path()
    try:
        for path in _hmac.paths():
            _hmac.force_path(path)
            must, reach = TARGETS.get(path, (None, None))
            row = Row(
                f"verify-{path}", f"verify, {path}, one thread, against PyPI blake3", RATIO, must, reach
            )
            for _ in range(sizes.rounds):
                peer, ours = _rates(library, kernel, sizes)
                row.rounds.append(
                    Round.ratio(ours, peer, ns_a_frame=1e9 / ours, library_ns_a_frame=1e9 / peer)
                )
            rows.append(row)
    finally:
        _hmac.force_path(usual)
    return rows


def _rates(library: Callable[[], bool], kernel: Callable[[], bool], sizes: Sizes) -> tuple[float, float]:
    """Frames per second of CPU time of each, in turns: what else the machine does then falls on both.

    What is timed is the second call in a row: the frames are in the cache then, as they are behind a recv.
    """
    spent = [0.0, 0.0]
    done = 0
    while done == 0 or min(spent) < sizes.verify_s:
        for which, verify in enumerate((library, kernel)):
            verify()
            began = time.thread_time()
            good = verify()
            spent[which] += time.thread_time() - began
            assert good, "a frame that was signed does not verify"
        done += sizes.verify_frames
    return done / spent[0], done / spent[1]
