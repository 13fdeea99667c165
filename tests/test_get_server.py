"""The get port: what it answers, in which order, and to whom it answers nothing."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import get_rig
import pytest
from get_rig import Rig, header, parse_runs, request
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import A0, KEYS, OTHER_KEYS, Packs, flat, frame

from ingest import limits, sharding, ticket
from ingest.disk_wait import DiskWait
from ingest.engine._queue import Queue
from ingest.engine.ports._get_server import (
    BAD_REQUEST,
    IDLE,
    PARTIAL_REQUEST,
    SPEAKS_HTTP,
    UNREAD_REPLIES,
    GetServer,
)
from ingest.limits import FRAME_SIZE, PACK_SLOTS, RANGE_COUNT_MAX
from ingest.runtime import heartbeat
from ingest.status import Status
from ingest.store.layouts._pack_reader import PackReader


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as made:
        yield made


def saved(index: int) -> bytes:
    """The reply for one stored ticket."""
    return header(index, Status.SAVED, 1) + frame(index)


def finished(rig: Rig, client: socket.socket, data: bytes) -> bytes:
    """Sends all of `data` and a FIN, and reads to the end."""
    rig.send(client, data)
    client.shutdown(socket.SHUT_WR)
    return rig.receive_all(client)


# --- bytes


def test_golden_requests_are_understood(rig: Rig, contract: dict[str, Any]) -> None:
    client = rig.connect()
    for case in contract["get_requests"]:
        rig.send(client, bytes.fromhex(case["request_hex"]))
        first = ticket.parse(case["ticket"])
        assert rig.answer(client, first, case["count"]) == [(first, Status.MISSING, case["count"], b"")]
    for case in contract["inventory_requests"]:
        rig.send(client, bytes.fromhex(case["request_hex"]))
        first = ticket.parse(case["ticket"])
        assert rig.answer(client, first, case["count"], True) == [(first, Status.MISSING, case["count"], b"")]


def test_golden_run_headers_are_what_is_sent(rig: Rig, contract: dict[str, Any]) -> None:
    zz, missing, deleted = (bytes.fromhex(case["hex"]) for case in contract["run_headers"])
    first = ticket.parse("ZZ")
    rig.packs.put([first])
    client = rig.connect()
    assert finished(rig, client, request(first, 1296)) == zz + frame(first) + missing
    assert deleted == header(ticket.parse("AABBCCDD"), Status.DELETED, 65_536)


def test_frames_come_back_verbatim(rig: Rig) -> None:
    rig.packs.put([A0])
    other = frame(A0 + 1, b"signed with an older key", OTHER_KEYS.put)
    rig.packs.put([A0 + 1])
    rig.packs.write_slot(A0 + 1, other)
    client = rig.connect()
    assert finished(rig, client, request(A0, 2)) == header(A0, Status.SAVED, 2) + frame(A0) + other


def test_it_says_that_it_waits_for_the_disk_while_it_reads(rig: Rig) -> None:
    """And since when, by its clock; afterwards it waits for nothing."""
    heart, count = heartbeat.own(), 36
    rig.packs.put(range(A0, A0 + count))
    rig.tick(12.0)
    client, seen, ended = rig.connect(), threading.Event(), threading.Event()

    def listen() -> None:
        while not ended.is_set():
            if heart.waiting(13_000_000_000) == (DiskWait.STORED_READS, 1.0):
                seen.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        deadline = time.monotonic() + 20
        while not seen.is_set():
            assert time.monotonic() < deadline, "it never said so"
            rig.send(client, request(A0, count))
            assert len(rig.receive(client, 16 + FRAME_SIZE * count)) == 16 + FRAME_SIZE * count
            assert heart.waiting(0)[0] is DiskWait.NOTHING
    finally:
        ended.set()
        listener.join()


def test_a_request_cut_at_each_byte(rig: Rig) -> None:
    rig.packs.put([A0])
    client = rig.connect()
    raw = request(A0)
    for cut in range(1, len(raw)):
        rig.send(client, raw[:cut])
        rig.settle()
        with pytest.raises(BlockingIOError):
            client.recv(1)
        rig.send(client, raw[cut:])
        assert rig.receive(client, 1490) == saved(A0)


def test_requests_one_byte_at_a_time(rig: Rig) -> None:
    rig.packs.put([A0, A0 + 1])
    client = rig.connect()
    for byte in request(A0) + request(A0 + 1):
        rig.send(client, bytes([byte]))
        rig.settle()
    assert rig.receive(client, 2980) == saved(A0) + saved(A0 + 1)


def test_a_partial_request_at_the_end_is_not_answered(rig: Rig) -> None:
    rig.packs.put([A0])
    assert finished(rig, rig.connect(), request(A0) + request(A0)[:23]) == saved(A0)
    rig.until(lambda: rig.server.connections == 0)


# --- what is stored


def test_every_state_in_one_range(rig: Rig) -> None:
    rig.packs.put([A0, A0 + 1, A0 + 4])
    rig.packs.delete([A0 + 1])
    runs = rig.ask(rig.connect(), A0, 6)
    assert [run[1:3] for run in runs] == [
        (Status.SAVED, 1),
        (Status.DELETED, 1),
        (Status.MISSING, 2),
        (Status.SAVED, 1),
        (Status.MISSING, 1),
    ]
    assert flat(runs, A0) == rig.packs.expected(A0, 6)


def test_ranges_over_pack_borders(rig: Rig) -> None:
    first = A0 + 1200
    rig.packs.put(range(first, first + 200))
    rig.packs.delete([first + 150])
    client = rig.connect()
    assert flat(rig.ask(client, first - 10, 300), first - 10) == rig.packs.expected(first - 10, 300)


def test_the_root_pack_in_ticket_order(rig: Rig) -> None:
    rig.packs.put([*range(30, 40), 1331, 1332])
    client = rig.connect()
    assert flat(rig.ask(client, 0, 1400), 0) == rig.packs.expected(0, 1400)


def test_the_last_ticket(rig: Rig) -> None:
    rig.packs.put([ticket.LAST])
    assert finished(rig, rig.connect(), request(ticket.LAST)) == saved(ticket.LAST)


def test_the_largest_missing_range_is_one_run(rig: Rig) -> None:
    assert rig.ask(rig.connect(), A0, RANGE_COUNT_MAX) == [(A0, Status.MISSING, RANGE_COUNT_MAX, b"")]
    assert rig.turns <= 2


def test_neighbouring_runs_without_frames_are_one(rig: Rig) -> None:
    rig.packs.put([A0 + 1296 * 2])
    rig.packs.write(A0 + 1296, 0, b"no header at all".ljust(4096, b"!"))
    rig.packs.write(A0 + 1296 * 3, 0, b"no header at all".ljust(4096, b"!"))
    rig.packs.write(A0 + 1296 * 4, 0, b"no header at all".ljust(4096, b"!"))
    runs = rig.ask(rig.connect(), A0, 1296 * 5)
    assert [run[1:3] for run in runs] == [
        (Status.MISSING, 1296),
        (Status.ERROR, 1296),
        (Status.SAVED, 1),
        (Status.MISSING, 1295),
        (Status.ERROR, 2592),
    ]
    assert rig.counter(get_rig.ERRORS) == 2


def test_inventory_has_the_same_runs_and_no_frames(rig: Rig) -> None:
    rig.packs.put([*range(A0, A0 + 100), *range(A0 + 1290, A0 + 1300)])
    rig.packs.delete([A0 + 50])
    client = rig.connect()
    runs = rig.ask(client, A0, 1400, inventory=True)
    assert [run[1:3] for run in runs] == [
        (Status.SAVED, 50),
        (Status.DELETED, 1),
        (Status.SAVED, 49),
        (Status.MISSING, 1190),
        (Status.SAVED, 10),
        (Status.MISSING, 100),
    ]
    assert rig.counter(get_rig.FRAMES) == 0


def test_what_is_stored_between_two_requests_is_seen(rig: Rig) -> None:
    client = rig.connect()
    assert rig.ask(client, A0)[0][1] == Status.MISSING
    rig.packs.put([A0])
    assert rig.ask(client, A0)[0][1] == Status.SAVED
    rig.packs.delete([A0])
    assert rig.ask(client, A0)[0][1] == Status.DELETED


# --- many requests


def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    rig.packs.put(range(A0, A0 + 300))
    client = rig.connect()
    order = [(A0 + i * 37 % 300, 1 + i % 90) for i in range(120)]
    rig.send(client, b"".join(request(first, count) for first, count in order))
    for first, count in order:
        assert flat(rig.answer(client, first, count), first) == rig.packs.expected(first, count)


def test_gets_and_inventories_and_both_keys_mixed(tmp_path: Path) -> None:
    with Rig(tmp_path, keys=(KEYS, OTHER_KEYS)) as rig:
        rig.packs.put([A0, A0 + 1])
        client = rig.connect()
        keys = [KEYS.get, OTHER_KEYS.inventory, OTHER_KEYS.get, KEYS.inventory, KEYS.get, OTHER_KEYS.get]
        rig.send(client, b"".join(request(A0, 2, key) for key in keys))
        for key in keys:
            inventory = key in (KEYS.inventory, OTHER_KEYS.inventory)
            ((_, status, n, frames),) = rig.answer(client, A0, 2, inventory)
            assert (status, n, bool(frames)) == (Status.SAVED, 2, not inventory)


@pytest.mark.parametrize("first_kind", ["get", "inventory"])
@pytest.mark.parametrize("second_kind", ["get", "inventory"])
def test_requests_for_neighbouring_ranges_have_runs_of_their_own(
    rig: Rig, first_kind: str, second_kind: str
) -> None:
    """Wherever one ends and the next begins: also where one reply would have one run for both."""
    first, count = A0 + 1284, 16
    rig.packs.put(range(A0 + 1284, A0 + 1290))
    rig.packs.delete(range(A0 + 1287, A0 + 1290))
    rig.packs.write(A0 + 1296, 0, b"no header at all".ljust(4096, b"!"))
    expected = [Status.SAVED] * 3 + [Status.DELETED] * 3 + [Status.MISSING] * 6 + [Status.ERROR] * 4
    client = rig.connect()
    for borders in [*([at] for at in range(1, count)), *([at, at + 1] for at in range(1, count - 1))]:
        ranges = list(itertools.pairwise([0, *borders, count]))
        kinds = [first_kind, second_kind, first_kind]
        asked = [(first + at, end - at, kind) for (at, end), kind in zip(ranges, kinds, strict=False)]
        client.send(b"".join(request(at, n, getattr(KEYS, kind)) for at, n, kind in asked))
        for at, n, kind in asked:
            runs = rig.answer(client, at, n, kind == "inventory")
            statuses = [status for _, status, length, _ in runs for _ in range(length)]
            assert statuses == expected[at - first :][:n]


def test_a_key_that_was_taken_away_is_not_accepted(rig: Rig) -> None:
    client = rig.connect()
    rig.ask(client, A0)
    rig.server.set_keys([OTHER_KEYS])
    rig.send(client, request(A0, 1, OTHER_KEYS.get))
    rig.answer(client, A0, 1)
    rig.send(client, request(A0))
    assert rig.receive_all(client) == header(A0, Status.BAD_CHECKSUM, 0)


def test_more_requests_than_may_wait(tmp_path: Path) -> None:
    with Rig(tmp_path, pipelined_max=8, turn_requests_max=5) as rig:
        rig.packs.put([A0])
        client = rig.connect()
        assert finished(rig, client, request(A0) * 100) == saved(A0) * 100


@pytest.mark.parametrize("turns", [1, 5, 31])
@pytest.mark.parametrize("bursts", [(30, 40), (32, 32, 32), (20, 25, 60, 200), (33, 1, 70)])
def test_requests_that_come_while_others_wait_keep_their_order(
    tmp_path: Path, bursts: tuple[int, ...], turns: int
) -> None:
    """However far the first of them have been answered when room is made for more."""
    with Rig(tmp_path, turn_bytes_max=1, turn_looks_max=1) as rig:
        rig.packs.put(range(A0, A0 + 400, 2))
        client = rig.connect()
        asked = iter(range(A0, A0 + 400))
        expected = []
        for burst in bursts:
            firsts = list(itertools.islice(asked, burst))
            client.send(b"".join(request(first) for first in firsts))
            expected += firsts
            for _ in range(turns):
                rig.turn()
        for first in expected:
            assert flat(rig.answer(client, first, 1), first) == rig.packs.expected(first, 1)


@pytest.mark.parametrize("packs_max", [1, 2, 3, 100])
@pytest.mark.parametrize("turn_requests_max", [7, 100])
@pytest.mark.parametrize("step", [1, 1296])
def test_requests_of_many_connections_in_one_turn(
    tmp_path: Path, packs_max: int, turn_requests_max: int, step: int
) -> None:
    """For one pack, or for more than are kept open."""
    with Rig(tmp_path, packs_max=packs_max, turn_requests_max=turn_requests_max) as rig:
        asked = range(A0, A0 + 20 * step, step)
        rig.packs.put(asked)
        clients = [rig.connect() for _ in range(20)]
        for one, other, client in zip(asked, reversed(asked), clients, strict=True):
            client.send(request(one) + request(other))
        for one, other, client in zip(asked, reversed(asked), clients, strict=True):
            assert rig.receive(client, 2980) == saved(one) + saved(other)


def test_a_small_share_of_a_turn_leaves_room_for_others(tmp_path: Path) -> None:
    with Rig(tmp_path, turn_bytes_max=1000, turn_looks_max=1) as rig:
        rig.packs.put(range(A0, A0 + 1296))
        greedy, modest = rig.connect(), rig.connect()
        rig.send(greedy, request(A0, 1296) * 3)
        rig.turn()
        rig.send(modest, request(A0))
        before = rig.turns
        assert rig.receive(modest, 1490) == saved(A0)
        assert rig.turns - before <= 4
        for _ in range(3):
            assert flat(rig.answer(greedy, A0, 1296), A0) == rig.packs.expected(A0, 1296)


@pytest.mark.parametrize("collect_size", [1490, 1491, 3000, 10_000])
def test_a_small_collecting_buffer(tmp_path: Path, collect_size: int) -> None:
    with Rig(tmp_path, collect_size=collect_size) as rig:
        rig.packs.put([*range(A0, A0 + 40), *range(A0 + 50, A0 + 200)])
        client = rig.connect()
        assert flat(rig.ask(client, A0, 300), A0) == rig.packs.expected(A0, 300)


# --- bad requests


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


@pytest.mark.parametrize("bit", range(0, 192, 5))
def test_any_flipped_bit_is_refused_and_what_came_before_answered(rig: Rig, bit: int) -> None:
    rig.packs.put([A0])
    client = rig.connect()
    bad = flipped(request(A0, 3), bit)
    rig.send(client, request(A0) + bad + request(A0))
    reply = rig.receive_all(client)
    try:
        ticket.from_wire(bad[:8])
        status = Status.BAD_CHECKSUM
    except ticket.TicketError:
        status = Status.BAD_TICKET
    assert reply == saved(A0) + bad[:8] + bytes([status]) + bytes(7)
    assert [event[0] for event in rig.events] == [BAD_REQUEST]
    assert rig.counter(get_rig.REQUESTS_BAD) == 1
    client.close()
    rig.until(lambda: rig.server.connections == 0)


def test_malformed_tickets(rig: Rig, contract: dict[str, Any]) -> None:
    for case in contract["malformed_tickets_hex"]:
        raw = bytes.fromhex(case)
        for signed in (get_rig.build_request(KEYS.get, raw, 1), raw + (1).to_bytes(8, "big") + bytes(8)):
            client = rig.connect()
            rig.send(client, signed)
            assert rig.receive_all(client) == raw + bytes([Status.BAD_TICKET]) + bytes(7)


def signed(first: int, count: int) -> bytes:
    from ingest import _hmac

    head = ticket.index_to_wire(first) + count.to_bytes(8, "big")
    return head + _hmac.request_tags(KEYS.get, head, 16)


@pytest.mark.parametrize(
    ("first", "count"),
    [
        (A0, 0),
        (A0, RANGE_COUNT_MAX + 1),
        (A0, (1 << 32) + 1),
        (A0, (1 << 64) - 1),
        (A0, 1 << 63),
        (ticket.LAST, 2),
        (ticket.LAST - 65_534, 65_536),
    ],
)
def test_ranges_out_of_bounds(rig: Rig, first: int, count: int) -> None:
    client = rig.connect()
    rig.send(client, signed(first, count))
    assert rig.receive_all(client) == header(first, Status.BAD_TICKET, 0)


def test_the_largest_ranges_in_bounds(rig: Rig) -> None:
    client = rig.connect()
    first = ticket.LAST - RANGE_COUNT_MAX + 1
    assert rig.ask(client, first, RANGE_COUNT_MAX) == [(first, Status.MISSING, RANGE_COUNT_MAX, b"")]


def test_a_put_or_delete_key_asks_for_nothing(rig: Rig) -> None:
    for key in (KEYS.put, KEYS.delete, OTHER_KEYS.get):
        client = rig.connect()
        rig.send(client, request(A0, 1, key))
        assert rig.receive_all(client) == header(A0, Status.BAD_CHECKSUM, 0)


def test_a_refused_connection_lingers_so_that_no_reset_eats_the_reply(rig: Rig) -> None:
    rig.packs.put(range(A0, A0 + 40))
    client = rig.connect()
    rig.send(client, request(A0, 40) + bytes(24) + b"and more " * 100_000)
    reply = rig.receive_all(client)
    assert flat(parse_runs(reply[:-16]), A0) == rig.packs.expected(A0, 40)
    assert reply[-16:] == bytes(8) + bytes([Status.BAD_TICKET]) + bytes(7)
    assert rig.server.connections == 1
    client.close()
    rig.until(lambda: rig.server.connections == 0)


def test_a_refused_connection_that_stays_is_closed_after_the_linger_time(rig: Rig) -> None:
    client = rig.connect()
    rig.send(client, bytes(24))
    rig.receive_all(client)
    rig.tick(100.0)
    rig.tick(100.0 + limits.LINGER_S / 2)
    assert rig.server.connections == 1
    rig.tick(100.0 + limits.LINGER_S)
    assert rig.server.connections == 0


# --- disks that misbehave


def test_a_symbolic_link_is_not_followed(rig: Rig) -> None:
    rig.packs.put([A0])
    rig.packs.path(A0).rename(rig.packs.root / "real")
    rig.packs.path(A0).symlink_to(rig.packs.root / "real")
    assert rig.ask(rig.connect(), A0, 2) == [(A0, Status.ERROR, 2, b"")]


def test_a_corrupt_header_answers_error_until_it_is_whole_again(rig: Rig) -> None:
    rig.packs.put([A0])
    good = rig.packs.path(A0).read_bytes()[:512]
    client = rig.connect()
    rig.packs.write(A0, 0, good[:511] + b"!")
    assert rig.ask(client, A0, 2) == [(A0, Status.ERROR, 2, b"")]
    rig.packs.write(A0, 0, good)
    assert rig.ask(client, A0)[0][1] == Status.SAVED


@pytest.mark.parametrize("looks", [1, 1000])
def test_a_truncated_pack_gives_what_is_left_and_errors(tmp_path: Path, looks: int) -> None:
    with Rig(tmp_path, turn_looks_max=looks) as rig:
        rig.packs.put(range(A0, A0 + 300))
        os.truncate(rig.packs.path(A0), sharding.slot_offset(3))
        runs = rig.ask(rig.connect(), A0, 301)
        lost = [(Status.ERROR, b"")] * 297
        assert flat(runs, A0) == [*rig.packs.expected(A0, 3), *lost, (Status.MISSING, b"")]


@pytest.mark.parametrize("looks", [1, 1000])
def test_good_frames_between_lost_ones(tmp_path: Path, looks: int) -> None:
    with Rig(tmp_path, turn_looks_max=looks) as rig:
        rig.packs.put(range(A0, A0 + 200))
        lost = {A0, A0 + 1, A0 + 7, A0 + 8, A0 + 60, A0 + 199}
        for index in lost:
            rig.packs.write_slot(index, bytes(FRAME_SIZE))
        runs = rig.ask(rig.connect(), A0, 200)
        expected = rig.packs.expected(A0, 200)
        assert flat(runs, A0) == [(Status.ERROR, b"") if A0 + i in lost else expected[i] for i in range(200)]


def test_a_lost_slot_is_an_error_until_the_header_says_deleted(rig: Rig) -> None:
    rig.packs.put(range(A0, A0 + 5))
    client = rig.connect()
    rig.ask(client, A0, 5)
    rig.packs.write_slot(A0 + 3, bytes(FRAME_SIZE))
    assert [run[1] for run in rig.ask(client, A0 + 3, 1)] == [Status.ERROR]
    rig.packs.delete([A0 + 3])
    assert [run[1] for run in rig.ask(client, A0 + 3, 1)] == [Status.DELETED]


def test_a_slot_with_another_tickets_frame_is_an_error(rig: Rig) -> None:
    rig.packs.put(range(A0, A0 + 5))
    rig.packs.write_slot(A0 + 2, frame(A0 + 7))
    runs = rig.ask(rig.connect(), A0, 5)
    expected = rig.packs.expected(A0, 5)
    assert flat(runs, A0) == [*expected[:2], (Status.ERROR, b""), *expected[3:]]


def start_long_run(rig: Rig) -> tuple[socket.socket, bytes]:
    """A reply of a whole pack that is stuck somewhere inside; the client and all its frames."""
    rig.packs.put(range(A0, A0 + 1296))
    whole = b"".join(frame(A0 + i) for i in range(1296))
    client = rig.connect(buffer=16 << 10)
    rig.send(client, request(A0, 1296) + request(A0 + 5))
    rig.settle()
    return client, whole


@pytest.mark.parametrize("slots", [0, 1, 5, 700])
def test_a_pack_that_shrinks_under_a_run(rig: Rig, slots: int) -> None:
    """What was announced comes, as zeros if it is lost; what was not is an error."""
    client, whole = start_long_run(rig)
    size = slots * FRAME_SIZE
    os.truncate(rig.packs.path(A0), 4096 + size)
    answers = flat(rig.answer(client, A0, 1296), A0)
    for i, (status, got) in enumerate(answers):
        sent = whole[i * FRAME_SIZE : (i + 1) * FRAME_SIZE]
        if i < slots:
            assert (status, got) == (Status.SAVED, sent)
        elif status == Status.SAVED:
            kept = next((at for at in range(FRAME_SIZE) if got[at] != sent[at]), FRAME_SIZE)
            assert got[kept:].strip(b"\0") == b""
        else:
            assert status == Status.ERROR
    assert answers[-1] == (Status.ERROR, b"")
    ((_, status, n, _),) = rig.answer(client, A0 + 5, 1)
    assert (status, n) == (Status.SAVED if slots > 5 else Status.ERROR, 1)


def test_a_run_that_cannot_be_read_any_more_is_filled_with_zeros(rig: Rig) -> None:
    rig.packs.put(range(A0, A0 + 80))
    client = rig.connect(buffer=4096)
    rig.send(client, request(A0, 80))
    rig.settle()
    rig.reader.close()
    rig.packs.path(A0).unlink()
    answers = flat(rig.answer(client, A0, 80), A0)
    assert [status for status, _ in answers] == [Status.SAVED] * 80
    assert answers[0][1] == frame(A0) and answers[-1][1] == bytes(FRAME_SIZE)
    assert rig.counter(get_rig.ERRORS) == 1


@pytest.mark.parametrize("replies", [2, 3])
def test_each_run_that_cannot_be_read_any_more_counts(rig: Rig, replies: int) -> None:
    """Once for itself, though one before it on the same connection failed too."""
    client = rig.connect(buffer=4096)
    for reply in range(replies):
        first = A0 + PACK_SLOTS * reply
        rig.packs.put(range(first, first + 80))
        rig.send(client, request(first, 80))
        rig.settle()
        rig.packs.path(first).unlink()
        rig.reader.close()
        answers = flat(rig.answer(client, first, 80), first)
        assert answers[-1] == (Status.SAVED, bytes(FRAME_SIZE))
        assert rig.counter(get_rig.ERRORS) == reply + 1


# --- peers that misbehave


@pytest.mark.parametrize("collect_size", [1490, 20_000, limits.GET_COLLECT_SIZE])
def test_a_slow_reader_gets_every_byte(tmp_path: Path, collect_size: int) -> None:
    with Rig(tmp_path, collect_size=collect_size) as rig:
        rig.packs.put([*range(A0, A0 + 100), *range(A0 + 110, A0 + 300)])
        client = rig.connect(buffer=4096)
        for first, count in [(A0, 400), (A0 + 99, 20), (A0 + 250, 3)] * 2:
            rig.send(client, request(first, count))
        for first, count in [(A0, 400), (A0 + 99, 20), (A0 + 250, 3)] * 2:
            assert flat(rig.answer(client, first, count), first) == rig.packs.expected(first, count)


def test_a_reader_that_does_not_read_stops_being_read_and_harms_nobody(tmp_path: Path) -> None:
    with Rig(tmp_path, pipelined_max=16) as rig:
        rig.packs.put(range(A0, A0 + 1296))
        deaf, other = rig.connect(buffer=4096), rig.connect()
        with pytest.raises(BlockingIOError):
            while True:
                deaf.send(request(A0, 1296) * 50)
                rig.step(0.01)
        assert rig.counter(get_rig.REQUESTS) <= 17
        assert rig.ask(other, A0)[0][1] == Status.SAVED
        rig.tick(1000.0)
        rig.tick(1000.0 + limits.UNREAD_ACKS_TIMEOUT_S)
        assert rig.server.connections == 1
        assert [event[0] for event in rig.events] == [UNREAD_REPLIES]
        assert rig.ask(other, A0)[0][1] == Status.SAVED


def test_a_reader_that_goes_away_in_the_middle(rig: Rig) -> None:
    client, _ = start_long_run(rig)
    client.close()
    rig.until(lambda: rig.server.connections == 0)
    assert rig.queue.connections(0) == (0, 0)
    assert rig.ask(rig.connect(), A0)[0][1] == Status.SAVED


def test_a_request_that_is_not_whole_in_time(rig: Rig) -> None:
    client = rig.connect()
    rig.tick(10.0)
    rig.send(client, request(A0)[:9])
    rig.settle()
    rig.tick(10.0 + limits.PARTIAL_FRAME_TIMEOUT_S - 1)
    assert rig.server.connections == 1
    rig.send(client, request(A0)[9:10])
    rig.settle()
    rig.tick(10.0 + limits.PARTIAL_FRAME_TIMEOUT_S)
    assert rig.server.connections == 0
    assert [(event[0], event[2]) for event in rig.events] == [(PARTIAL_REQUEST, 10)]
    assert rig.counter(get_rig.CLOSED_PARTIAL) == 1
    assert rig.receive_all(client) == b""


@pytest.mark.parametrize("whole", [1, 2, 7])
@pytest.mark.parametrize("cut", [1, 9, 23])
def test_each_request_has_its_own_time(rig: Rig, whole: int, cut: int) -> None:
    """What comes in part behind whole ones is late only when its own time is over."""
    client = rig.connect()
    data = request(A0) * whole
    at = 10.0
    rig.tick(at)
    rig.send(client, data[:cut])
    for _ in range(3):
        rig.settle()
        at += limits.PARTIAL_FRAME_TIMEOUT_S - 1
        rig.tick(at)
        assert rig.server.connections == 1
        rig.send(client, data[cut:] + data[:cut])
        for _ in range(whole):
            rig.answer(client, A0, 1)


def test_an_idle_connection_ends(rig: Rig) -> None:
    client = rig.connect()
    rig.tick(10.0)
    rig.ask(client, A0)
    rig.tick(10.0 + limits.IDLE_TIMEOUT_S - 1)
    assert rig.server.connections == 1
    rig.tick(10.0 + limits.IDLE_TIMEOUT_S)
    assert rig.server.connections == 0 and [event[0] for event in rig.events] == [IDLE]


def test_connections_over_the_limit(tmp_path: Path) -> None:
    with Rig(tmp_path, connections_max=1) as rig:
        first = rig.connect()
        second = rig.connect()
        assert rig.receive_all(second) == b""
        assert rig.counter(get_rig.REFUSED) == 1 and rig.queue.connections(0) == (0, 1)
        rig.ask(first, A0)
        first.close()
        rig.until(lambda: rig.server.connections == 0)
        rig.ask(rig.connect(), A0)


# --- draining


def test_drain_closes_idle_connections_at_once(rig: Rig) -> None:
    clients = [rig.connect() for _ in range(3)]
    rig.ask(clients[0], A0)
    rig.server.begin_drain()
    for client in clients:
        assert rig.receive_all(client) == b""
        client.close()
    rig.until(lambda: rig.server.drained)


def test_drain_answers_what_came_whole(rig: Rig) -> None:
    client, whole = start_long_run(rig)
    rig.send(client, request(A0 + 9)[:20])
    rig.settle()
    rig.server.begin_drain()
    rig.send(client, b"too late" * 10)
    assert not rig.server.drained
    runs = parse_runs(rig.receive_all(client))
    assert b"".join(run[3] for run in runs[:-1]) == whole
    assert runs[-1] == (A0 + 5, Status.SAVED, 1, frame(A0 + 5))
    client.close()
    rig.until(lambda: rig.server.drained)


def test_no_connection_is_adopted_while_draining(rig: Rig) -> None:
    rig.server.begin_drain()
    assert rig.receive_all(rig.connect()) == b""
    assert rig.server.drained and rig.queue.connections(0) == (0, 0)


# --- the object


def test_close_ends_all_connections(rig: Rig) -> None:
    client = rig.connect()
    rig.server.close()
    rig.server.close()
    client.setblocking(True)
    assert client.recv(1) == b""
    for call in (rig.server.turn, rig.server.fileno, rig.server.begin_drain, lambda: rig.server.tick(1.0)):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_what_is_no_server(tmp_path: Path) -> None:
    queue = Queue(1, 1)
    with Packs(tmp_path) as packs:
        reader = PackReader(packs.fd)
        for arguments in [(queue, 1, reader, [KEYS]), (queue, 0, reader, []), (queue, 0, reader, [KEYS] * 3)]:
            with pytest.raises(ValueError):
                GetServer(*arguments)
        with pytest.raises(ValueError):
            GetServer(queue, 0, reader, [KEYS], collect_size=1489)
        with pytest.raises(ValueError):
            GetServer(queue, 0, reader, [KEYS], turn_looks_max=0)
    queue.close()


def test_http_is_named(rig: Rig) -> None:
    client = rig.connect()
    rig.send(client, b"GET / HTTP/1.1\r\nHost: 127.0.0.1:5005\r\n\r\n")
    assert rig.receive_all(client).startswith(b"HTTP/1.1 400 ")
    assert [event[0] for event in rig.events] == [SPEAKS_HTTP]
    assert rig.counter(get_rig.HTTP) == 1


def test_counters(rig: Rig) -> None:
    rig.packs.put(range(A0, A0 + 100))
    client = rig.connect()
    runs = [*rig.ask(client, A0, 100), *rig.ask(client, A0, 3)]
    assert rig.counter(get_rig.ACCEPTED) == 1
    assert rig.counter(get_rig.REQUESTS) == 2
    assert rig.counter(get_rig.FRAMES) == 103
    assert rig.counter(get_rig.BYTES) == 103 * FRAME_SIZE + 16 * len(runs)


# --- any content, any requests, any limits

INDICES = st.integers(0, 90) | st.integers(1320, 1345) | st.integers(A0 + 1280, A0 + 1310)


@settings(max_examples=30, deadline=None)
@given(
    stored=st.sets(INDICES, max_size=40),
    deleted=st.sets(INDICES, max_size=15),
    asked=st.lists(st.tuples(INDICES, st.integers(1, 60), st.booleans()), min_size=1, max_size=8),
    collect_size=st.sampled_from([1490, 4000, 1 << 18]),
    turn_bytes_max=st.sampled_from([1, 5000, 1 << 20]),
    buffer=st.sampled_from([0, 4096]),
    packs_max=st.integers(1, 4),
)
def test_replies_equal_a_model(
    stored: set[int],
    deleted: set[int],
    asked: list[tuple[int, int, bool]],
    collect_size: int,
    turn_bytes_max: int,
    buffer: int,
    packs_max: int,
) -> None:
    limited = {"collect_size": collect_size, "turn_bytes_max": turn_bytes_max, "packs_max": packs_max}
    with (
        tempfile.TemporaryDirectory() as root,
        Rig(Path(root), **limited) as rig,
    ):
        rig.packs.put(stored)
        rig.packs.delete(sorted(deleted))
        client = rig.connect(buffer)
        for first, count, inventory in asked:
            rig.send(client, request(first, count, KEYS.inventory if inventory else KEYS.get))
        for first, count, inventory in asked:
            runs = rig.answer(client, first, count, inventory)
            expected = rig.packs.expected(first, count)
            if inventory:
                assert [s for _, status, n, _ in runs for s in [status] * n] == [s for s, _ in expected]
            else:
                assert flat(runs, first) == expected
