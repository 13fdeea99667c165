"""The thread that writes a batch's slots beside the log: whether it can be had or not, each frame lies in its own slot."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import PATIENCE_S, frame

from ingest.limits import FRAME_SIZE, PACK_SLOTS
from ingest.status import Status

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
MARGIN = 1 << 20  # bytes of address space that are left: less than a thread's stack


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def address_space() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def no_thread_to_be_had() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    end, held, before = threading.Event(), [], threads()
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MARGIN, hard))
    try:
        for _ in range(200):  # the C library keeps stacks of threads that ended
            held.append(threading.Thread(target=end.wait, daemon=True))
            try:
                held[-1].start()
            except RuntimeError:
                held.pop()
                break
        else:
            pytest.skip("a limit of the address space does not keep threads from being made here")
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        end.set()
        deadline = time.monotonic() + PATIENCE_S
        while threads() > before and time.monotonic() < deadline:  # a join ends before its thread does
            time.sleep(0.001)


def durable_packs(rig: CommitterRig, count: int) -> list[int]:
    """Packs behind whose headers slots may be written before the log has them: the first ticket behind what they hold."""
    firsts = [FIRST + i * PACK_SLOTS for i in range(count)]
    for first in firsts:
        rig.put(first)
    rig.commit()
    rig.flush()
    return [first + 1 for first in firsts]


def put_and_commit(rig: CommitterRig, stored: dict[int, bytes], indices: list[int], text: str) -> None:
    for index in indices:
        stored[index] = frame(index, f"{text} {index}".encode())
        rig.submit(index, stored[index])
    rig.commit()
    assert {rig.answer(cookie) for cookie in rig.answers} == {Status.SAVED}


@pytest.mark.parametrize(
    "had", ["-+", "--+", "-++", "-"], ids=lambda had: had.replace("+", "1").replace("-", "0")
)
@pytest.mark.parametrize("packs", [1, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_batches_for_which_no_thread_is_to_be_had(tmp_path: Path, had: str, packs: int, step: int) -> None:
    """One such batch after the other, then some with it; `step` 1: runs, 2: slots that are no neighbours."""
    with CommitterRig(tmp_path) as rig:
        firsts = durable_packs(rig, packs)
        stored: dict[int, bytes] = {}
        for batch, has in enumerate(had):
            indices = [first + (20 * batch + i) * step for first in firsts for i in range(20)]
            before = threads()
            if has == "+":
                put_and_commit(rig, stored, indices, f"batch {batch}")
                assert threads() == before + (had[:batch].count("+") == 0)
            else:
                with no_thread_to_be_had():
                    before = threads()
                    put_and_commit(rig, stored, indices, f"batch {batch}")
                    assert threads() == before
            assert {index: rig.stored(index) for index in stored} == stored
        rig.flush()
        rig.crash()
        assert {index: rig.stored(index) for index in stored} == stored


@pytest.mark.parametrize("sizes", [(20, 8), (8, 20), (20, 7, 20), (300, 20)], ids=str)
def test_batches_that_are_not_of_one_size(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Nothing of a batch is written with the one behind it."""
    with CommitterRig(tmp_path) as rig:
        (first,) = durable_packs(rig, 1)
        stored: dict[int, bytes] = {}
        for batch, size in enumerate(sizes):
            put_and_commit(rig, stored, list(range(first, first + size)), f"batch {batch}")
            first += size
            assert {index: rig.stored(index) for index in stored} == stored


@pytest.mark.parametrize("durable", [False, True], ids=["new", "durable"])
@pytest.mark.parametrize("counts", [(1, 1), (2, 1, 3), (9, 4), (4, 20, 1)], ids=str)
def test_a_slot_that_follows_in_another_pack_is_no_neighbour(
    tmp_path: Path, layout: str, durable: bool, counts: tuple[int, ...]
) -> None:
    """In the batch the frames of each pack lie behind those of the one before, and here in the slot that follows, too."""
    with CommitterRig(tmp_path, layout=layout) as rig:
        if durable:
            durable_packs(rig, len(counts))
        stored, slot = {}, 1
        for pack, count in enumerate(counts):
            first = FIRST + pack * PACK_SLOTS + slot
            for index in range(first, first + count):
                stored[index] = frame(index, b"%d" % index)
            rig.submit(first, b"".join(stored[first + i] for i in range(count)))
            slot += count
        rig.commit()
        assert {rig.answer(cookie) for cookie in rig.answers} == {Status.SAVED}
        everywhere = [FIRST + pack * PACK_SLOTS + at for pack in range(len(counts)) for at in range(1, slot)]
        expected = {index: stored.get(index, Status.MISSING) for index in everywhere}
        assert {index: rig.stored(index) for index in everywhere} == expected
        rig.flush()
        rig.crash()
        assert {index: rig.stored(index) for index in everywhere} == expected


@pytest.mark.layout("pack")
@pytest.mark.parametrize(
    ("told", "durable"),
    [
        ([], False),
        (["begins"], False),
        (["begins", "done"], True),
        (["begins", "new", "done"], False),
        (["begins", "new", "done", "begins", "done"], True),
        (["begins", "done", "crash"], False),
        (["begins", "done", "crash", "begins", "done"], True),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, list) else "",
)
@pytest.mark.parametrize("each_file", [False, True])
def test_slots_are_ahead_of_the_log_only_behind_a_durable_header(
    tmp_path: Path, layout: str, told: list[str], durable: bool, each_file: bool
) -> None:
    """`told`: what comes behind the making of a pack, or with "new" before it. Its header counts as durable when a flush
    that began behind it has ended; of one that another process made, nobody knows."""
    with CommitterRig(tmp_path) as rig:

        def make() -> None:
            rig.put(FIRST)
            rig.commit()

        if each_file:
            rig.packs.sync_each_file()
        if "new" not in told:
            make()
        for step in told:
            if step == "crash":
                rig.crash()
                rig.put(FIRST)  # a duplicate: the pack is open
                rig.commit()
            elif step == "new":
                make()
            elif step == "begins":
                rig.packs.flush_begins()
                rig.packs.sync()
            else:
                rig.packs.flush_done()
        rig.put_run(FIRST + 1, 20)
        rig.plan()
        rig.core.round.begin_slots()
        rig.core.round.answer(failed=True)  # waits for the thread
        assert any(slots_of(rig)) == durable


def slots_of(rig: CommitterRig) -> bytes:
    """What lies in slots 1 to 20 of pack 5, whatever its header says."""
    return rig.path(FIRST).read_bytes()[4096 + FRAME_SIZE : 4096 + 21 * FRAME_SIZE]
