"""How fast one thread verifies frames: each path of ``ingest._hmac`` against PyPI ``blake3``.

    python bench/bench_verify.py [--frames N] [--rounds N] [--json]     the ratios
    pytest bench/bench_verify.py --benchmark-only                       the same through pytest-benchmark

The limit is the library's call as a server without the lanes would make it, once for each frame:
``blake3(ticket + data, key=key).digest(8)`` and a comparison, ticket and data sliced beforehand.
``pypi_joined`` spares it even the concatenation. Rounds are interleaved, so that all see the same weather,
and each contestant is timed on its second call in a row: its frames are in the cache then, as they are
behind a recv. Figures are medians. ``INGEST_BENCH_TINY=1`` makes it a smoke test.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3

from ingest import _hmac
from ingest.limits import BLOCK_PLACES, FRAME_SIZE

TINY = os.environ.get("INGEST_BENCH_TINY") == "1"
FRAMES = 20 if TINY else BLOCK_PLACES  # a receive block: what one turn of a worker verifies at most
ROUNDS = 2 if TINY else 31
KEY = bytes(range(32))


def signed_frames(n: int) -> bytearray:
    """``n`` frames of random data (n · 1474 bytes) with right checksums."""
    frames = bytearray(os.urandom(n * FRAME_SIZE))
    _hmac.sign(KEY, frames)
    return frames


def pypi_verifier(frames: bytearray, joined: bool) -> Callable[[], int]:
    """Verifies ``frames`` with one call of PyPI ``blake3`` each; returns how many are good."""
    view = bytes(frames)
    starts = range(0, len(view), FRAME_SIZE)
    tags = [view[i + 8 : i + 16] for i in starts]
    parts = [
        (view[i : i + 8], view[i + 16 : i + FRAME_SIZE], tag) for i, tag in zip(starts, tags, strict=True)
    ]
    messages = [(ticket + data, tag) for ticket, data, tag in parts]

    def verify_parts() -> int:
        good = 0
        for ticket, data, tag in parts:
            good += hmac.compare_digest(blake3(ticket + data, key=KEY).digest(8), tag)
        return good

    def verify_messages() -> int:
        good = 0
        for message, tag in messages:
            good += hmac.compare_digest(blake3(message, key=KEY).digest(8), tag)
        return good

    return verify_messages if joined else verify_parts


def lanes_verifier(frames: bytearray, path: str) -> Callable[[], int]:
    """Verifies ``frames`` in one call on ``path``; returns how many are good."""

    def verify() -> int:
        _hmac.force_path(path)
        return _hmac.verify(KEY, frames).count(b"\1")

    return verify


def measure(frames: int = FRAMES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Nanoseconds a frame and ratios to PyPI ``blake3`` (over 1: faster), from ``rounds`` interleaved rounds.

    ``{"frames", "rounds", "pypi_ns", "pypi_joined_ns", "paths": {name: {"ns", "ratio", "ratio_joined"}}}``"""
    batch = signed_frames(frames)
    before = _hmac.path()
    contestants = {"pypi": pypi_verifier(batch, False), "pypi_joined": pypi_verifier(batch, True)}
    contestants |= {path: lanes_verifier(batch, path) for path in _hmac.paths()}
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    try:
        for _ in range(rounds):
            for name, verify in contestants.items():
                verify()
                start = time.perf_counter_ns()
                good = verify()
                spent[name].append((time.perf_counter_ns() - start) / frames)
                assert good == frames, f"{name} refused {frames - good} good frames"
    finally:
        _hmac.force_path(before)
    ns = {name: statistics.median(samples) for name, samples in spent.items()}
    return {
        "frames": frames,
        "rounds": rounds,
        "pypi_ns": ns["pypi"],
        "pypi_joined_ns": ns["pypi_joined"],
        "paths": {
            path: {
                "ns": ns[path],
                "ratio": ns["pypi"] / ns[path],
                "ratio_joined": ns["pypi_joined"] / ns[path],
            }
            for path in _hmac.paths()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result of ``measure`` for people."""
    lines = [
        f"{result['frames']} frames, median of {result['rounds']} interleaved rounds, one thread",
        f"  pypi blake3(ticket + data) {result['pypi_ns']:7.0f} ns a frame",
        f"  pypi blake3(message)       {result['pypi_joined_ns']:7.0f} ns a frame",
    ]
    lines += [
        f"  {path:10}                 {row['ns']:7.0f} ns a frame   {row['ratio']:5.2f} x"
        f"   ({row['ratio_joined']:.2f} x of blake3(message))"
        for path, row in result["paths"].items()
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["pypi", "pypi_joined", *_hmac.paths()])
def test_verify(benchmark: Any, name: str) -> None:
    batch = signed_frames(FRAMES)
    before = _hmac.path()
    verify = (
        pypi_verifier(batch, name == "pypi_joined")
        if name.startswith("pypi")
        else lanes_verifier(batch, name)
    )
    benchmark.extra_info["frames"] = FRAMES
    try:
        assert benchmark.pedantic(verify, rounds=ROUNDS, warmup_rounds=1) == FRAMES
    finally:
        _hmac.force_path(before)


def test_ratios(benchmark: Any, capsys: Any) -> None:
    result = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(result)
    with capsys.disabled():
        print("\n" + table(result))
    assert set(result["paths"]) == set(_hmac.paths())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Verify frames: each path against PyPI blake3, one call a frame."
    )
    parser.add_argument(
        "--frames", type=int, default=FRAMES, help="frames of one batch (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    result = measure(options.frames, options.rounds)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
