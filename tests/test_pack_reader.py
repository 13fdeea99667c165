"""Reading packs: every state of a slot, header and file, and files that have no business there."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import A0, KEYS, OTHER_KEYS, STORE_ID, Packs, flat, frame

from ingest import sharding, ticket
from ingest.errors import TicketError, UsageError
from ingest.limits import FRAME_SIZE, PACK_SLOTS, RANGE_COUNT_MAX, READ_PACKS_MAX
from ingest.status import Status
from ingest.store.layouts import _pack_reader
from ingest.store.layouts._pack_reader import PackReader
from ingest.store.layouts._pack_table import PackTable


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Packs]:
    with Packs(tmp_path) as made:
        yield made


def reader(packs: Packs, packs_max: int | None = None) -> PackReader:
    return PackReader(packs.fd, [KEYS], STORE_ID, packs_max=packs_max)


def status_of(r: PackReader, index: int) -> Status:
    """Of one ticket, as a range and as a chunk, which agree."""
    ((_, status, _, _),) = r.read_range(index, 1)
    assert r.read_chunk(index)[0] == status
    return status


def test_nothing_is_stored_where_nothing_is(packs: Packs) -> None:
    assert flat(reader(packs).read_range(0, 3), 0) == [(Status.MISSING, b"")] * 3
    assert reader(packs).read_chunk(A0) == (Status.MISSING, b"")


def test_a_pack_that_is_being_made_holds_nothing(packs: Packs) -> None:
    packs.write(A0, 0, b"")
    assert status_of(reader(packs), A0) is Status.MISSING
    assert packs.path(A0).stat().st_size == 0


def test_each_state_of_a_slot(packs: Packs) -> None:
    packs.put([A0, A0 + 1, A0 + 3])
    packs.delete([A0 + 1])
    runs = reader(packs).read_range(A0, 4)
    assert runs == [
        (A0, Status.SAVED, 1, frame(A0)),
        (A0 + 1, Status.DELETED, 1, b""),
        (A0 + 2, Status.MISSING, 1, b""),
        (A0 + 3, Status.SAVED, 1, frame(A0 + 3)),
    ]


def test_a_slot_whose_bit_is_not_set_is_missing_whatever_lies_in_it(packs: Packs) -> None:
    packs.put([A0])
    packs.write_slot(A0 + 1, frame(A0 + 1))
    assert status_of(reader(packs), A0 + 1) == Status.MISSING


def test_the_deleted_bit_wins(packs: Packs) -> None:
    packs.put([A0])
    header = packs.header(A0)
    header.deleted[0] |= 1
    packs.write_header(A0, header)
    assert status_of(reader(packs), A0) == Status.DELETED


def test_the_root_pack_holds_one_and_two_characters(packs: Packs) -> None:
    packs.put(range(34, 40))
    assert flat(reader(packs).read_range(30, 20), 30) == packs.expected(30, 20)
    assert os.path.getsize(packs.path(0)) == sharding.slot_offset(1332)


def test_a_range_over_packs(packs: Packs) -> None:
    last = A0 + 1295
    packs.put([last - 1, last, last + 1, last + 3])
    assert flat(reader(packs).read_range(last - 5, 15), last - 5) == packs.expected(last - 5, 15)


def test_the_last_ticket(packs: Packs) -> None:
    packs.put([ticket.LAST])
    assert reader(packs).read_range(ticket.LAST, 1)[0][1] == Status.SAVED


def test_what_is_written_later_is_seen(packs: Packs) -> None:
    r = reader(packs)
    assert status_of(r, A0) == Status.MISSING
    packs.put([A0])
    assert status_of(r, A0) == Status.SAVED
    packs.put([A0 + 1])
    assert status_of(r, A0 + 1) == Status.SAVED
    packs.delete([A0])
    assert status_of(r, A0) == Status.DELETED


@pytest.mark.parametrize("size", [0, 1, 511])
def test_a_pack_without_a_whole_header_holds_nothing_yet(packs: Packs, size: int) -> None:
    packs.put([A0])
    whole = packs.path(A0).read_bytes()
    packs.path(A0).write_bytes(whole[:size])
    r = reader(packs)
    assert status_of(r, A0) == Status.MISSING
    packs.write(A0, 0, whole)
    assert status_of(r, A0) == Status.SAVED


def test_a_corrupt_header_is_an_error_of_its_pack_alone(packs: Packs) -> None:
    packs.put([A0, A0 + 1296])
    packs.write(A0, 70, b"\xff")
    r = reader(packs)
    assert [run[1:3] for run in r.read_range(A0 + 1290, 10)] == [
        (Status.ERROR, 6),
        (Status.SAVED, 1),
        (Status.MISSING, 3),
    ]
    assert status_of(r, A0) == Status.ERROR


def test_a_header_that_was_bad_heals(packs: Packs) -> None:
    packs.put([A0])
    good = packs.path(A0).read_bytes()[:512]
    r = reader(packs)
    for _ in range(3):
        packs.write(A0, 0, good[:300] + bytes(212))
        assert status_of(r, A0) == Status.ERROR
        assert status_of(r, A0) == Status.ERROR  # judged before
        packs.write(A0, 0, good)
        assert status_of(r, A0) == Status.SAVED


def test_a_header_that_was_judged_is_judged_again_whichever_byte_of_it_changes(packs: Packs) -> None:
    packs.put([A0])
    good = packs.path(A0).read_bytes()[:512]
    r = reader(packs)
    passed = []
    for at in range(512):
        assert status_of(r, A0) == Status.SAVED
        packs.write(A0, at, bytes([good[at] ^ 1]))
        if status_of(r, A0) != Status.ERROR:
            passed.append(at)
        packs.write(A0, at, good[at : at + 1])
    assert passed == []


def test_a_header_that_is_torn_while_it_is_written_is_never_shown(packs: Packs) -> None:
    packs.put([A0])
    old = packs.path(A0).read_bytes()[:512]
    packs.put([A0 + 1])
    new = packs.path(A0).read_bytes()[:512]
    fd = os.open(packs.path(A0), os.O_WRONLY)
    r = reader(packs)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.pwrite(fd, old, 0)
            os.pwrite(fd, new, 0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {r.read_range(A0, 2)[0][2] for _ in range(3000)}
        statuses = {r.read_range(A0, 2)[0][1] for _ in range(3000)}
    finally:
        stop.set()
        writer.join()
        os.close(fd)
    assert seen <= {1, 2} and statuses == {Status.SAVED}


def test_a_header_of_another_pack_or_store_is_bad(packs: Packs) -> None:
    packs.put([A0, A0 + 1296])
    packs.write(A0, 0, packs.path(A0 + 1296).read_bytes()[:4096])
    assert status_of(reader(packs), A0) == Status.ERROR
    assert status_of(PackReader(packs.fd, [KEYS], bytes(16)), A0 + 1296) == Status.ERROR
    assert status_of(PackReader(packs.fd, [KEYS]), A0 + 1296) == Status.SAVED


def test_a_pack_cut_inside_its_slots_reads_as_zeros_and_no_chunk(packs: Packs) -> None:
    packs.put([A0, A0 + 1])
    os.truncate(packs.path(A0), sharding.slot_offset(1) + 700)
    r = reader(packs)
    ((_, status, n, frames),) = r.read_range(A0, 2)
    assert (status, n) == (Status.SAVED, 2)
    assert frames == frame(A0) + frame(A0 + 1)[:700] + bytes(FRAME_SIZE - 700)
    assert r.read_chunk(A0) == (Status.SAVED, frame(A0))
    assert r.read_chunk(A0 + 1) == (Status.ERROR, b"")


@pytest.mark.parametrize("offset", [0, 7, 8, 15, 16, 800, 1473])
def test_a_chunk_that_fails_its_checksum_is_an_error(packs: Packs, offset: int) -> None:
    packs.put([A0])
    damaged = bytearray(frame(A0))
    damaged[offset] ^= 4
    packs.write_slot(A0, bytes(damaged))
    assert reader(packs).read_chunk(A0) == (Status.ERROR, b"")


def test_a_whole_frame_of_another_ticket_is_no_chunk(packs: Packs) -> None:
    packs.put([A0])
    packs.write_slot(A0, frame(A0 + 1))
    assert reader(packs).read_chunk(A0) == (Status.ERROR, b"")


def test_every_key_that_ever_signed_verifies(packs: Packs) -> None:
    packs.put([A0])
    assert PackReader(packs.fd, [OTHER_KEYS, KEYS]).read_chunk(A0) == (Status.SAVED, frame(A0))
    assert PackReader(packs.fd, [OTHER_KEYS]).read_chunk(A0) == (Status.ERROR, b"")
    assert PackReader(packs.fd).read_chunk(A0) == (Status.ERROR, b"")


# --- what is no pack


def test_a_symbolic_link_in_the_place_of_a_pack(
    packs: Packs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    packs.put([A0])
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "obj"
    packs.path(A0).rename(elsewhere)
    packs.path(A0).symlink_to(elsewhere)
    assert status_of(reader(packs), A0) == Status.ERROR


def test_a_symbolic_link_on_the_way_to_a_pack(packs: Packs) -> None:
    index = ticket.parse("AABB00")
    packs.put([index])
    (packs.root / "AA").rename(packs.root / "moved")
    for target in ("moved", str(packs.root / "moved"), "."):
        (packs.root / "AA").symlink_to(target)
        assert status_of(reader(packs), index) == Status.ERROR
        (packs.root / "AA").unlink()
    assert status_of(reader(packs), index) == Status.MISSING


def test_a_directory_in_the_place_of_a_pack(packs: Packs) -> None:
    packs.path(A0).mkdir(parents=True)
    assert status_of(reader(packs), A0) == Status.ERROR


def test_a_fifo_does_not_block(packs: Packs) -> None:
    packs.path(A0).parent.mkdir(parents=True)
    os.mkfifo(packs.path(A0))
    assert status_of(reader(packs), A0) == Status.ERROR


def test_a_socket_in_the_place_of_a_pack(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    packs.path(A0).parent.mkdir(parents=True)
    monkeypatch.chdir(packs.path(A0).parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("obj")
        assert status_of(reader(packs), A0) == Status.ERROR


def test_a_file_in_the_place_of_a_directory(packs: Packs) -> None:
    (packs.root / "A").write_bytes(b"")
    assert status_of(reader(packs), A0) == Status.ERROR


# --- descriptors


def test_descriptors_are_bounded_and_reused(packs: Packs) -> None:
    firsts = [A0 + 1296 * i for i in range(6)]
    packs.put(firsts)
    r = reader(packs, packs_max=3)
    before = len(os.listdir("/proc/self/fd"))
    for index in firsts + firsts[::-1] + firsts[::2]:
        assert r.read_chunk(index) == (Status.SAVED, frame(index))
        assert len(r) <= 3
    assert len(os.listdir("/proc/self/fd")) == before + 3
    r.close()
    assert len(r) == 0 and len(os.listdir("/proc/self/fd")) == before
    assert r.read_chunk(A0) == (Status.SAVED, frame(A0))


@pytest.mark.parametrize("packs_max", [1, 2, 3, 20])
def test_what_is_opened_in_the_place_of_another_is_read_for_itself(packs: Packs, packs_max: int) -> None:
    """More packs in one range than are kept open: nothing that was known of the one before holds for the next."""
    firsts = [A0 + 1296 * i for i in range(12)]
    for i, first in enumerate(firsts):
        packs.put(range(first, first + 1 + i % 4))
        packs.delete([first + 1295 - i % 3])
    good = [packs.path(first).read_bytes() for first in firsts]
    statuses = [Status.SAVED] * 12
    # Nothing, the one of the pack in whose place it is opened, half of one.
    headers = {4: bytes(512), 7: good[7 - min(packs_max, 3)][:512], 9: good[8][:500] + bytes(12)}
    for bad, header in headers.items():
        packs.write(firsts[bad], 0, header)
        statuses[bad] = Status.ERROR
    for short in (5, 10):
        packs.path(firsts[short]).write_bytes(good[short][:100])
        statuses[short] = Status.MISSING
    r = reader(packs, packs_max)
    for _ in range(2):
        found = flat(r.read_range(A0, 12 * 1296), A0)
        for i, status in enumerate(statuses):
            good_one = status is Status.SAVED
            expected = packs.expected(firsts[i], 1296) if good_one else [(status, b"")] * 1296
            assert found[i * 1296 : (i + 1) * 1296] == expected, i
    packs.write(firsts[4], 0, good[4])
    packs.put([firsts[0] + 9])
    assert r.read_range(firsts[0], 12 * 1296)[1][0] == firsts[0] + 1
    assert status_of(r, firsts[0] + 9) is status_of(r, firsts[4]) is Status.SAVED


def test_the_pack_that_was_used_last_stays_open(packs: Packs) -> None:
    packs.put([A0, A0 + 1296, A0 + 2 * 1296])
    r = reader(packs, packs_max=2)
    for index in (A0, A0 + 1296, A0, A0 + 2 * 1296):
        r.read_chunk(index)
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    assert str(packs.path(A0)) in links and str(packs.path(A0 + 1296)) not in links


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_reader_that_goes_closes_its_packs(packs: Packs) -> None:
    packs.put([A0])
    before = len(os.listdir("/proc/self/fd"))
    r = reader(packs)
    r.read_chunk(A0)
    del r
    assert len(os.listdir("/proc/self/fd")) == before


def test_missing_packs_and_wrong_files_keep_no_descriptor(packs: Packs) -> None:
    packs.path(A0).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    r = reader(packs)
    r.read_range(A0, 20 * 1296)
    assert len(os.listdir("/proc/self/fd")) == before and len(r) == 0


def test_out_of_descriptors_it_makes_do_with_fewer(packs: Packs) -> None:
    firsts = [A0 + 1296 * i for i in range(4)]
    packs.put(firsts)
    r = reader(packs)
    r.read_chunk(firsts[0])
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        while True:
            try:
                taken.append(os.dup(packs.fd))
            except OSError:
                break
        for index in firsts:
            assert r.read_chunk(index)[0] == Status.SAVED
        assert len(r) == 1
        assert _pack_reader.open_max() == min(limit // 8, READ_PACKS_MAX)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- arguments


@pytest.mark.parametrize(
    ("first", "count"),
    [(-1, 1), (0, 0), (0, -1), (ticket.LAST + 1, 1), (ticket.LAST, 2), (0, RANGE_COUNT_MAX + 1), (1, 2**62)],
)
def test_what_is_no_range(packs: Packs, first: int, count: int) -> None:
    with pytest.raises(TicketError):
        reader(packs).read_range(first, count)


def test_what_is_no_reader(packs: Packs) -> None:
    with pytest.raises(UsageError):
        PackReader(packs.fd, [], b"short")
    with pytest.raises(UsageError):
        PackReader(packs.fd, [], None, packs_max=0)
    with pytest.raises(TicketError):
        reader(packs).read_chunk(ticket.LAST + 1)


def test_the_largest_missing_range_is_cheap_in_runs(packs: Packs) -> None:
    runs = reader(packs).read_range(A0, RANGE_COUNT_MAX)
    assert len(runs) == 51 and sum(run[2] for run in runs) == RANGE_COUNT_MAX


# --- any content

INDICES = (
    st.integers(0, 90)
    | st.integers(1320, 1345)
    | st.integers(A0 + 1280, A0 + 1310)
    | st.integers(A0 + 2 * PACK_SLOTS, A0 + 2 * PACK_SLOTS + 9)
)


@settings(max_examples=30, deadline=None)
@given(
    st.sets(INDICES, max_size=40),
    st.sets(INDICES, max_size=15),
    st.lists(st.tuples(INDICES, st.integers(1, 60) | st.just(3 * PACK_SLOTS)), max_size=5),
    st.integers(1, 4),
)
def test_any_content_comes_back(
    stored: set[int], deleted: set[int], asked: list[tuple[int, int]], packs_max: int
) -> None:
    with tempfile.TemporaryDirectory() as root, Packs(Path(root)) as packs:
        packs.put(stored)
        packs.delete(sorted(deleted))
        r = reader(packs, packs_max)
        for first, count in asked:
            runs = r.read_range(first, count)
            assert flat(runs, first) == packs.expected(first, count)


def test_what_the_committer_writes_is_read(packs: Packs) -> None:
    table = PackTable(packs.fd, STORE_ID, 10)
    table.replay_puts(b"".join(frame(index) for index in (0, 40, A0, A0 + 1)))
    table.write_headers()
    r = reader(packs)
    for index in (0, 40, A0, A0 + 1):
        assert r.read_chunk(index) == (Status.SAVED, frame(index))
    table.replay_delete(sharding.ticket_pack(A0), sharding.ticket_slot(A0), 1)
    table.write_headers()
    assert [status_of(r, A0 + i) for i in range(3)] == [Status.DELETED, Status.SAVED, Status.MISSING]
    table.replay_delete(sharding.ticket_pack(A0), sharding.ticket_slot(A0 + 1), 1)
    table.write_headers()
    assert [status_of(r, A0 + i) for i in range(3)] == [Status.DELETED, Status.DELETED, Status.MISSING]
    table.close()
