"""Memory that is freed and taken again all the time stays with the process: a page of the system is cleared, and faults."""

import subprocess
import sys

import pytest

from ingest import limits

PIECES = """
import resource, sys
from ingest.runtime import heap
size, pieces = int(sys.argv[2]), int(sys.argv[3])
if sys.argv[1] == "kept":
    heap.keep(2 * pieces * size, 2 * size)
def turn():
    held = [bytearray(size) for _ in range(pieces)]
for _ in range(5):
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="faults are counted as Linux does")
def test_pieces_of_downloads_are_not_taken_from_the_system_each_time() -> None:
    size = limits.PIECE_CHUNKS * limits.DATA_SIZE
    faults = {}
    for kind in ("kept", "left"):
        command = [sys.executable, "-c", PIECES, kind, str(size), "6"]
        faults[kind] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pages = 20 * 6 * size // 4096
    assert faults["kept"] < pages / 20 < faults["left"]
