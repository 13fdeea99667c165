"""The put port: bytes in, acks out, over loopback TCP, with a committer that each test steers."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from put_rig import (
    DELETE,
    KEYS,
    OTHER_KEYS,
    PUT,
    Rig,
    ack,
    acks,
    delete_frame,
    frame,
    frames,
    raw_frame,
    split_acks,
)

from ingest import limits
from ingest.engine._queue import Queue
from ingest.engine.ports._put_server import (
    BAD_FRAMES,
    IDLE,
    PARTIAL_FRAME,
    STRAY_OUTCOME,
    UNREAD_ACKS,
    PutServer,
)
from ingest.limits import FRAME_SIZE, PACK_SLOTS
from ingest.mac import SubKeys
from ingest.status import Status
from ingest.ticket import index_from_wire

LAST_TICKET = 2_901_713_047_667


def reset(client: socket.socket) -> None:
    """Closes with a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def send_until_stuck(rig: Rig, client: socket.socket, data: bytes) -> memoryview:
    """Sends until the server, left alone with its work, does not read any more; returns what is left."""
    view = memoryview(data)
    while view:
        try:
            view = view[client.send(view) :]
        except BlockingIOError:
            rig.settle()
            if not select.select([], [client], [], 0.02)[1]:
                break
    return view


class TestReceiving:
    def test_one_byte_at_a_time(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            for byte in frames(1000, 3):
                client.send(bytes([byte]))
                rig.turn()
                rig.commit()
            assert rig.receive(client, 27) == acks(1000, 3)
            assert rig.counter("frames") == 3
            assert rig.counter("bytes") == 3 * FRAME_SIZE

    def test_a_stream_cut_at_every_byte_of_its_second_frame(self) -> None:
        two = frames(500, 2)
        with Rig() as rig:
            for cut in range(FRAME_SIZE):
                client = rig.connect()
                rig.send(client, two[: FRAME_SIZE + cut])
                client.shutdown(socket.SHUT_WR)
                assert rig.receive_all(client) == ack(500)
                client.close()
                rig.clients.clear()
            assert set(rig.stored) == {500}
            assert rig.counter("partial") == FRAME_SIZE - 1
            assert rig.server.connections == 0

    def test_a_connection_that_sends_nothing(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            client.shutdown(socket.SHUT_WR)
            assert rig.receive_all(client) == b""
            assert rig.counter("partial") == 0

    def test_many_frames_in_one_send_arrive_as_they_were_sent(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            sent = frames(2000, 300)
            rig.send(client, sent)
            assert Counter(split_acks(rig.receive(client, 9 * 300))) == Counter(split_acks(acks(2000, 300)))
            for i in range(300):
                assert rig.stored[2000 + i] == (PUT, sent[i * FRAME_SIZE : (i + 1) * FRAME_SIZE])

    def test_runs_end_at_packs_and_blocks(self) -> None:
        first = 36 + 7 * PACK_SLOTS - 5
        with Rig(places=64, block_places=16) as rig:
            client = rig.connect()
            rig.send(client, frames(first, 40))
            rig.receive(client, 9 * 40)
            assert sum(count for _, _, _, count, _ in rig.runs) == 40
            for ticket, _, place, count, _ in rig.runs:
                assert place // 16 == (place + count - 1) // 16
                assert (ticket - 36) // PACK_SLOTS == (ticket + count - 1 - 36) // PACK_SLOTS

    def test_a_run_is_as_long_as_it_can_be(self) -> None:
        with Rig(places=64, block_places=32) as rig:
            client = rig.connect()
            rig.send(client, frames(3000, 20) + frames(9000, 10) + frame(77))
            rig.commit()
            assert rig.runs == []  # nothing before the turn
            rig.turn()
            rig.commit()
            assert [(first, count) for first, _, _, count, _ in rig.runs] == [(3000, 20), (9000, 10), (77, 1)]

    def test_64_connections_fill_one_stretch_of_one_block(self) -> None:
        with Rig(places=256, block_places=64) as rig:
            clients = [rig.connect() for _ in range(64)]
            rig.settle()
            for i, client in enumerate(clients):
                client.send(frame(100 + 2 * i))
            rig.turn()
            rig.commit()
            assert sorted(place for _, _, place, _, _ in rig.runs) == list(range(64))
            for i, client in enumerate(clients):
                assert rig.receive(client, 9) == ack(100 + 2 * i)

    def test_at_low_load_the_same_places_are_used_again(self) -> None:
        with Rig(places=64, block_places=16) as rig:
            client = rig.connect()
            for i in range(40):
                client.send(frame(i))
                assert rig.receive(client, 9) == ack(i)
            assert {place for _, _, place, _, _ in rig.runs} == {0}

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4000)), min_size=1, max_size=60),
        st.lists(st.integers(0, 12), min_size=5, max_size=5),
    )
    def test_any_interleaving_answers_each_connection_its_own_frames(
        self, cuts: list[tuple[int, int]], counts: list[int]
    ) -> None:
        streams = [frames(10_000 * (i + 1), count) for i, count in enumerate(counts)]
        with Rig(places=32, block_places=8) as rig:
            clients = [rig.connect() for _ in counts]
            left = [memoryview(stream) for stream in streams]
            for i, size in cuts:
                rig.send(clients[i], left[i][:size])
                left[i] = left[i][size:]
                rig.turn()
                rig.commit()
            for client, rest in zip(clients, left, strict=True):
                rig.send(client, rest)
                client.shutdown(socket.SHUT_WR)
            for i, client in enumerate(clients):
                expected = acks(10_000 * (i + 1), counts[i])
                assert Counter(split_acks(rig.receive_all(client))) == Counter(split_acks(expected))
            assert len(rig.stored) == sum(counts)
            assert rig.server.outstanding == 0
            assert rig.counter("partial") == 0

    @pytest.mark.parametrize("status", [status for status in Status if status not in (3, 4)])
    def test_the_status_of_the_committer_is_passed_on(self, status: Status) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(40, 5))
            rig.until(lambda: len(rig.unanswered) == 1)
            rig.answer_all(status)
            assert rig.receive(client, 45) == acks(40, 5, status)

    def test_a_half_open_client_gets_all_its_acks_and_then_the_end(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(40, 5))
            client.shutdown(socket.SHUT_WR)
            rig.until(lambda: len(rig.unanswered) == 1)
            rig.settle()
            assert rig.server.connections == 1
            rig.answer_all()
            assert rig.receive_all(client) == acks(40, 5)
            assert rig.server.connections == 0
            assert rig.queue.connections(0) == (0, 0)

    def test_1000_connections(self) -> None:
        with Rig(places=256, block_places=64) as rig:
            clients = [rig.connect() for _ in range(1000)]
            assert rig.server.connections == 1000
            for i, client in enumerate(clients):
                client.send(frames(50_000 + 10 * i, 3))
            for i, client in enumerate(clients):
                got = rig.receive(client, 27)
                assert Counter(split_acks(got)) == Counter(split_acks(acks(50_000 + 10 * i, 3)))
            assert rig.counter("saved") == 3000
            for client in clients:
                client.close()
            rig.clients.clear()
            rig.until(lambda: rig.server.connections == 0)


class TestBadFrames:
    @pytest.mark.parametrize("byte", [*range(18), 700, FRAME_SIZE - 1])
    def test_every_flipped_bit_of_a_byte(self, byte: int) -> None:
        good = frame(123_456, b"some data")
        with Rig(bad_frame_limit=100) as rig:
            client = rig.connect()
            for bit in range(8):
                bad = bytearray(good)
                bad[byte] ^= 1 << bit
                client.send(bad)
                try:
                    index_from_wire(bytes(bad[:8]))
                    status = Status.BAD_CHECKSUM
                except ValueError:
                    status = Status.BAD_TICKET
                assert rig.receive(client, 9) == bytes(bad[:8]) + bytes([status])
            assert rig.stored == {}
            assert rig.counter("bad_checksum") + rig.counter("bad_ticket") == 8

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 8 * FRAME_SIZE - 1), st.integers(0, 9))
    def test_any_flipped_bit_between_good_frames(self, bit: int, where: int) -> None:
        sent = bytearray(frames(777, 10))
        sent[where * FRAME_SIZE + bit // 8] ^= 1 << bit % 8
        with Rig() as rig:
            client = rig.connect()
            client.send(sent)
            got = split_acks(rig.receive(client, 90))
            assert set(rig.stored) == {777 + i for i in range(10)} - {777 + where}
            bad = [one for one in got if one[8] != Status.SAVED]
            assert len(bad) == 1
            assert bad[0][:8] == sent[where * FRAME_SIZE : where * FRAME_SIZE + 8]
            assert bad[0][8] in (Status.BAD_CHECKSUM, Status.BAD_TICKET)

    @pytest.mark.parametrize(
        "ticket", [b"", b"abc", b"../../et", b"A\0B", b"\0A", b"A ", b"a", b"/", b"\xff" * 8, b"ABCDEFG\n"]
    )
    @pytest.mark.parametrize("key", [KEYS.put, KEYS.delete, KEYS.get, OTHER_KEYS.put])
    def test_a_malformed_ticket_is_that_whoever_signed_it(self, ticket: bytes, key: bytes) -> None:
        with Rig() as rig:
            client = rig.connect()
            client.send(raw_frame(ticket, b"", key))
            assert rig.receive(client, 9) == ticket.ljust(8, b"\0") + bytes([Status.BAD_TICKET])
            assert rig.runs == []

    @pytest.mark.parametrize("key", [KEYS.get, KEYS.inventory, OTHER_KEYS.put, OTHER_KEYS.delete])
    def test_a_key_that_is_not_accepted(self, key: bytes) -> None:
        with Rig() as rig:
            client = rig.connect()
            client.send(frame(55, b"", key))
            assert rig.receive(client, 9) == ack(55, Status.BAD_CHECKSUM)
            assert rig.runs == []

    @pytest.mark.parametrize("limit", [1, 3, 7])
    def test_nothing_behind_the_last_bad_frame_is_stored_or_answered(self, limit: int) -> None:
        bad = frame(5, b"", OTHER_KEYS.put)
        with Rig(bad_frame_limit=limit) as rig:
            client = rig.connect()
            sent = b"".join(frame(100 + i) + bad for i in range(limit)) + frames(200, 5) + bad
            client.send(sent)
            got = split_acks(rig.receive_all(client))
            expected = [ack(100 + i) for i in range(limit)] + [ack(5, Status.BAD_CHECKSUM)] * limit
            assert Counter(got) == Counter(expected)
            assert set(rig.stored) == {100 + i for i in range(limit)}
            assert [(what, number) for what, _, number in rig.events] == [(BAD_FRAMES, limit)]
            assert rig.counter("closed_bad") == 1

    def test_bad_frames_are_counted_over_receives_and_per_connection(self) -> None:
        bad = frame(5, b"", OTHER_KEYS.put)
        with Rig() as rig:
            one, two = rig.connect(), rig.connect()
            for client in (one, two):
                for _ in range(2):
                    client.send(bad)
                    assert rig.receive(client, 9) == ack(5, Status.BAD_CHECKSUM)
            one.send(bad)
            assert rig.receive_all(one) == ack(5, Status.BAD_CHECKSUM)
            two.send(frame(6))
            assert rig.receive(two, 9) == ack(6)

    def test_acks_of_frames_in_flight_come_before_the_end(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 4) + 3 * frame(5, b"", OTHER_KEYS.put) + frames(200, 4))
            rig.until(lambda: len(rig.unanswered) == 1)
            assert rig.receive(client, 27) == 3 * ack(5, Status.BAD_CHECKSUM)
            rig.settle()
            rig.answer_all()
            assert rig.receive_all(client) == acks(100, 4)

    def test_no_reset_destroys_acks(self) -> None:
        """The client goes on sending behind its last bad frame, and reads only then."""
        with Rig() as rig:
            client = rig.connect()
            rig.send(client, frames(100, 4) + 3 * frame(5, b"", OTHER_KEYS.put))
            rig.send(client, frames(200, 1) * 3000)
            client.shutdown(socket.SHUT_WR)
            rig.settle()
            assert len(rig.receive_all(client)) == 7 * 9
            assert set(rig.stored) == {100, 101, 102, 103}
            rig.until(lambda: rig.server.connections == 0)

    def test_a_refused_peer_that_never_closes_is_closed_after_a_second(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            client.send(3 * frame(5, b"", OTHER_KEYS.put))
            assert len(rig.receive_all(client)) == 27
            rig.tick(1000.0)
            assert rig.server.connections == 1
            rig.tick(1000.0 + limits.LINGER_S - 0.01)
            assert rig.server.connections == 1
            rig.tick(1000.0 + limits.LINGER_S)
            assert rig.server.connections == 0

    def test_a_block_of_bad_frames_only_is_free_again(self) -> None:
        with Rig(places=16, block_places=16, bad_frame_limit=1000) as rig:
            client = rig.connect()
            rig.send(client, 100 * frame(5, b"", OTHER_KEYS.put) + frame(6))
            got = rig.receive(client, 909)
            assert got == 100 * ack(5, Status.BAD_CHECKSUM) + ack(6)


class TestKeys:
    def test_the_second_key_is_accepted_in_the_middle_of_others(self) -> None:
        with Rig(keys=(KEYS, OTHER_KEYS)) as rig:
            client = rig.connect()
            client.send(
                frames(10, 3)
                + b"".join(frame(13 + i, b"x", OTHER_KEYS.put) for i in range(20))
                + frames(33, 3)
            )
            got = rig.receive(client, 26 * 9)
            assert Counter(split_acks(got)) == Counter(split_acks(acks(10, 26)))

    def test_a_delete_under_the_second_key(self) -> None:
        with Rig(keys=(KEYS, OTHER_KEYS)) as rig:
            client = rig.connect()
            client.send(frame(10, (3).to_bytes(8, "big"), OTHER_KEYS.delete))
            assert rig.receive(client, 9) == ack(10, Status.DELETED)

    def test_keys_can_be_changed(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            rig.server.set_keys([OTHER_KEYS])
            client.send(frame(10) + frame(11, b"", OTHER_KEYS.put))
            assert Counter(split_acks(rig.receive(client, 18))) == Counter(
                [ack(10, Status.BAD_CHECKSUM), ack(11)]
            )

    @pytest.mark.parametrize("keys", [[], [KEYS] * 3])
    def test_the_wrong_number_of_keys(self, keys: list[SubKeys]) -> None:
        with Rig() as rig, pytest.raises(ValueError, match="one or two keys"):
            rig.server.set_keys(keys)

    def test_a_key_of_the_wrong_size_changes_nothing(self) -> None:
        with Rig() as rig:
            with pytest.raises(ValueError, match="32 bytes"):
                rig.server.set_keys([SubKeys(bytes(31), bytes(32), bytes(32), bytes(32), "")])
            client = rig.connect()
            client.send(frame(10))
            assert rig.receive(client, 9) == ack(10)


class TestDeletes:
    @pytest.mark.parametrize(
        ("first", "count"), [(0, 1), (50, 65_536), (LAST_TICKET, 1), (LAST_TICKET - 65_535, 65_536)]
    )
    def test_good_forms(self, first: int, count: int) -> None:
        sent = delete_frame(first, count)
        with Rig() as rig:
            client = rig.connect()
            client.send(sent)
            assert rig.receive(client, 9) == ack(first, Status.DELETED)
            assert rig.stored == {first: (DELETE, sent)}
            assert rig.counter("deleted") == 1

    @pytest.mark.parametrize(
        ("first", "count", "padding"),
        [
            (5, 0, b""),
            (5, 65_537, b""),
            (5, 1 << 63, b""),
            (5, (1 << 64) - 1, b""),
            (LAST_TICKET, 2, b""),
            (LAST_TICKET - 65_534, 65_536, b""),
            (5, 1, b"\x01"),
            (5, 1, bytes(1449) + b"\x80"),
        ],
    )
    def test_bad_forms(self, first: int, count: int, padding: bytes) -> None:
        with Rig() as rig:
            client = rig.connect()
            client.send(delete_frame(first, count, padding))
            assert rig.receive(client, 9) == ack(first, Status.BAD_TICKET)
            assert rig.runs == []

    def test_deletes_between_puts_keep_their_order_and_are_never_joined(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            client.send(frames(10, 2) + delete_frame(12, 1) + delete_frame(13, 1) + frames(14, 2))
            rig.receive(client, 54)
            assert [(first, count, kind) for first, _, _, count, kind in rig.runs] == [
                (10, 2, PUT),
                (12, 1, DELETE),
                (13, 1, DELETE),
                (14, 2, PUT),
            ]


class TestBackPressure:
    def test_a_full_arena_stops_reading_without_spinning_and_goes_on(self) -> None:
        with Rig(places=64, block_places=16) as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(1000, 200))
            rig.until(lambda: rig.server.outstanding == 64)
            rig.settle()
            assert not select.select([rig.server.fileno()], [], [], 0)[0]
            assert rig.server.outstanding == 64
            assert [run[0] for run in rig.runs] == [1000, 1016, 1032, 1048]
            rig.answer(rig.unanswered[2])
            rig.until(lambda: rig.server.outstanding == 64 and len(rig.runs) == 5)
            assert rig.runs[4][2] == rig.runs[2][2]  # into the block that became free
            rig.answering = True
            rig.answer_all()
            got = rig.receive(client, 9 * 200)
            assert Counter(split_acks(got)) == Counter(split_acks(acks(1000, 200)))

    def test_a_full_arena_serves_all_connections_in_turn(self) -> None:
        with Rig(places=8, block_places=4) as rig:
            clients = [rig.connect() for _ in range(20)]
            for i, client in enumerate(clients):
                client.send(frames(1000 * (i + 1), 10))
            for i, client in enumerate(clients):
                assert Counter(split_acks(rig.receive(client, 90))) == Counter(
                    split_acks(acks(1000 * (i + 1), 10))
                )

    def test_a_blaster_does_not_starve_a_single_frame(self) -> None:
        with Rig(places=64, block_places=16) as rig:
            blaster, modest = rig.connect(), rig.connect()
            block = frames(1000, 100)
            modest.send(frame(5))
            for _ in range(3):
                blaster.send(block)
            for _ in range(20):
                rig.turn()
                rig.commit()
                if 5 in rig.stored:
                    break
            assert 5 in rig.stored
            assert len(rig.runs) < 20

    def test_acks_that_nobody_reads_are_bounded_and_end_the_connection(self) -> None:
        with Rig(unread_acks_max=2000) as rig:
            rig.tick(0.0)
            client = rig.connect(receive_buffer=2048)
            honest = rig.connect()
            assert send_until_stuck(rig, client, frame(9) * 3000)
            answered = rig.counter("saved")
            rig.tick(limits.UNREAD_ACKS_TIMEOUT_S - 0.1)
            assert rig.server.connections == 2
            rig.settle()
            assert rig.counter("saved") == answered  # it is not read
            honest.send(frame(10))
            assert rig.receive(honest, 9) == ack(10)
            rig.tick(limits.UNREAD_ACKS_TIMEOUT_S)
            assert rig.server.connections == 1
            assert [what for what, _, _ in rig.events] == [UNREAD_ACKS]
            assert 2000 < rig.events[0][2] <= 2000 + 9 * 64

    def test_all_connections_together_have_a_limit_of_unread_acks(self) -> None:
        with Rig(unread_acks_total_max=20_000) as rig:
            rig.tick(0.0)
            greedy = [rig.connect(receive_buffer=2048) for _ in range(4)]
            honest = rig.connect()
            for client in greedy:
                assert send_until_stuck(
                    rig, client, frame(9) * 10_000
                )  # 90,000 bytes of acks: not near its own limit
            honest.send(frame(10))
            assert rig.receive(honest, 9) == ack(10)
            # Each one that is closed makes room for others, which are read again until they have to wait, too.
            for i in range(1, 9):
                rig.tick(i * limits.UNREAD_ACKS_TIMEOUT_S)
                rig.settle()
            assert [what for what, _, _ in rig.events] == [UNREAD_ACKS] * 4
            # What was closed does not count any more.
            again = rig.connect()
            rig.send(again, frame(9) * 10_000)
            assert rig.receive(again, 90_000) == ack(9) * 10_000

    def test_it_is_read_again_when_it_reads_its_acks(self) -> None:
        with Rig(unread_acks_max=2000) as rig:
            client = rig.connect(receive_buffer=2048)
            view = send_until_stuck(rig, client, frame(9) * 3000)
            received = 0
            assert view
            while view or received < 9 * 3000:
                if view and select.select([], [client], [], 0)[1]:
                    view = view[client.send(view) :]
                if select.select([client], [], [], 0)[0]:
                    received += len(client.recv(1 << 16))
                rig.step(0.001)
            assert received == 9 * 3000


class TestCommitter:
    def test_a_new_one_gets_exactly_what_was_not_answered(self) -> None:
        with Rig(places=64, block_places=16) as rig:
            rig.answering = False
            client = rig.connect()
            sent = frames(100, 20) + delete_frame(500, 7) + frames(120, 5)
            client.send(sent)
            rig.until(lambda: sum(run[3] for run in rig.unanswered) == 26)
            first_run, old = rig.unanswered[0], list(rig.unanswered[1:])
            rig.answer(first_run)  # its outcome is in the ring when the committer dies
            rig.queue.committer_gone()
            rig.unanswered.clear()
            rig.stored.clear()
            assert rig.queue.take_runs(0) == []
            rig.queue.committer_ready()
            assert rig.queue.take_runs(0) == []  # the worker did not submit to this one yet
            rig.until(lambda: bool(rig.unanswered))
            assert rig.unanswered == old
            assert rig.queue.worker_epoch(0) == rig.queue.epoch
            assert set(rig.stored) == set(range(116, 125)) | {500}
            rig.answer_all()
            got = rig.receive(client, 26 * 9)
            expected = [*split_acks(acks(100, 25)), ack(500, Status.DELETED)]
            assert Counter(split_acks(got)) == Counter(expected)
            rig.settle()
            assert rig.server.outstanding == 0
            assert rig.events == []

    def test_frames_received_while_there_is_none_are_kept(self) -> None:
        with Rig(places=64, block_places=16) as rig:
            client = rig.connect()
            rig.queue.committer_gone()
            client.send(frames(100, 100))
            while select.select([rig.server.fileno()], [], [], 0.01)[0]:
                rig.turn()
            assert rig.server.outstanding == 64
            rig.queue.committer_ready()
            got = rig.receive(client, 900)
            assert Counter(split_acks(got)) == Counter(split_acks(acks(100, 100)))

    def test_several_in_a_row(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 10))
            rig.until(lambda: len(rig.unanswered) == 1)
            for _ in range(5):
                rig.queue.committer_gone()
                rig.unanswered.clear()
                rig.queue.committer_ready()
                rig.until(lambda: bool(rig.unanswered))
                assert [(run[0], run[3]) for run in rig.unanswered] == [(100, 10)]
            rig.answer_all()
            assert rig.receive(client, 90) == acks(100, 10)

    def test_one_that_was_there_and_gone_between_two_turns(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 10))
            rig.until(lambda: len(rig.unanswered) == 1)
            rig.queue.committer_gone()
            rig.queue.committer_ready()
            rig.queue.committer_gone()
            rig.queue.committer_ready()
            rig.unanswered.clear()
            rig.until(lambda: bool(rig.unanswered))
            rig.answer_all()
            assert rig.receive(client, 90) == acks(100, 10)

    def test_a_connection_that_is_gone_only_frees_its_places(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 10))
            rig.until(lambda: len(rig.unanswered) == 1)
            reset(client)
            rig.until(lambda: rig.server.connections == 0)
            assert rig.server.outstanding == 10
            follower = rig.connect()  # in the same slot
            follower.send(frame(7))
            rig.until(lambda: len(rig.unanswered) == 2)
            rig.answer_all()
            assert rig.receive(follower, 9) == ack(7)
            rig.settle()
            assert rig.server.outstanding == 0
            with pytest.raises(BlockingIOError):
                follower.recv(1)

    def test_frames_of_a_connection_that_is_gone_are_submitted_again_too(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 10))
            rig.until(lambda: len(rig.unanswered) == 1)
            reset(client)
            rig.until(lambda: rig.server.connections == 0)
            rig.queue.committer_gone()
            rig.unanswered.clear()
            rig.queue.committer_ready()
            rig.until(lambda: bool(rig.unanswered))
            rig.answer_all()
            rig.settle()
            assert rig.server.outstanding == 0

    def test_outcomes_that_nobody_waits_for_change_nothing(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 4))
            rig.until(lambda: len(rig.unanswered) == 1)
            _, cookie, place, _, _ = rig.unanswered[0]
            for stray in (
                (cookie + 1, place, 4, 1),
                (cookie, place + 4, 1, 1),
                (cookie, place, 5, 1),
                (cookie, place, 0, 1),
                (cookie, 1 << 31, 1, 1),
                (cookie, 63, (1 << 32) - 1, 1),
                (0, 20, 1, 1),
                (cookie, place, 4, 0),
                (cookie, place, 4, 10),
            ):
                rig.queue.answer(0, *stray)
            rig.settle()
            assert sum(number for what, _, number in rig.events if what == STRAY_OUTCOME) == 9
            assert rig.server.outstanding == 4
            rig.answer_all()
            assert rig.receive(client, 36) == acks(100, 4)

    def test_it_is_rung_only_when_it_sleeps(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            doorbell = rig.queue.committer_doorbell
            while select.select([doorbell], [], [], 0)[0]:
                os.eventfd_read(doorbell)
            client.send(frame(1))
            assert rig.receive(client, 9) == ack(1)
            assert not select.select([doorbell], [], [], 0)[0]
            rig.queue.set_committer_sleeping(True)
            client.send(frame(2))
            rig.until(lambda: 2 in rig.stored)
            assert select.select([doorbell], [], [], 0)[0]


class TestDeadlines:
    def test_a_frame_that_is_not_whole_in_time_however_it_grows(self) -> None:
        with Rig() as rig:
            rig.tick(0.0)
            client = rig.connect()
            client.send(frame(1)[:700])
            rig.settle()
            rig.tick(limits.PARTIAL_FRAME_TIMEOUT_S - 1)
            client.send(frame(1)[700:900])
            rig.settle()
            assert rig.server.connections == 1
            rig.tick(limits.PARTIAL_FRAME_TIMEOUT_S)
            assert rig.server.connections == 0
            assert [(what, number) for what, _, number in rig.events] == [(PARTIAL_FRAME, 900)]
            assert rig.counter("closed_partial") == 1
            assert rig.counter("partial") == 1

    def test_each_frame_has_its_own_time(self) -> None:
        with Rig() as rig:
            rig.tick(0.0)
            client = rig.connect()
            client.send(frame(1)[:700])
            rig.settle()
            rig.tick(limits.PARTIAL_FRAME_TIMEOUT_S - 1)
            client.send(frame(1)[700:] + frame(2)[:100])
            rig.until(lambda: rig.counter("bytes") == FRAME_SIZE + 100)
            rig.tick(2 * limits.PARTIAL_FRAME_TIMEOUT_S - 2)
            assert rig.server.connections == 1
            client.send(frame(2)[100:])
            assert rig.receive(client, 18) == ack(1) + ack(2)

    def test_a_frame_that_is_late_behind_acks_that_nobody_reads(self) -> None:
        """The growing of the frame does not count as reading, nor the other way round."""
        with Rig() as rig:
            rig.tick(0.0)
            client = rig.connect(receive_buffer=1)
            rig.until(lambda: self._send_until_acks_wait(rig, client))
            received = rig.counter("bytes")
            client.send(b"0")
            rig.until(lambda: rig.counter("bytes") == received + 1)
            rig.tick(limits.PARTIAL_FRAME_TIMEOUT_S - 1)
            assert rig.server.connections == 1
            client.send(b"\0")
            rig.until(lambda: rig.counter("bytes") == received + 2)
            rig.tick(limits.PARTIAL_FRAME_TIMEOUT_S)
            assert [(what, number) for what, _, number in rig.events] == [(PARTIAL_FRAME, 2)]

    @staticmethod
    def _send_until_acks_wait(rig: Rig, client: socket.socket) -> bool:
        rig.send(client, frames(0, 64))
        rig.settle()
        return rig.counter("saved") * 9 > 40_000

    def test_an_idle_connection(self) -> None:
        with Rig() as rig:
            rig.tick(0.0)
            client = rig.connect()
            client.send(frame(1))
            assert rig.receive(client, 9) == ack(1)
            rig.tick(limits.IDLE_TIMEOUT_S - 1)
            assert rig.server.connections == 1
            client.send(frame(2))
            assert rig.receive(client, 9) == ack(2)
            rig.tick(limits.IDLE_TIMEOUT_S)
            assert rig.server.connections == 1
            rig.tick(2 * limits.IDLE_TIMEOUT_S - 1)
            assert rig.receive_all(client) == b""
            assert [what for what, _, _ in rig.events] == [IDLE]

    def test_who_waits_for_the_committer_is_not_idle(self) -> None:
        with Rig() as rig:
            rig.tick(0.0)
            rig.answering = False
            client = rig.connect()
            client.send(frame(1))
            rig.until(lambda: len(rig.unanswered) == 1)
            rig.tick(10 * limits.IDLE_TIMEOUT_S)
            rig.answer_all()
            assert rig.receive(client, 9) == ack(1)

    def test_who_waits_for_a_place_is_not_late(self) -> None:
        with Rig(places=4, block_places=4) as rig:
            rig.tick(0.0)
            rig.answering = False
            first, second = rig.connect(), rig.connect()
            second.send(frame(50)[:100])
            rig.settle()
            first.send(frames(1, 4))
            rig.until(lambda: rig.server.outstanding == 4)
            second.send(frame(50)[100:])
            rig.settle()
            rig.tick(10 * limits.PARTIAL_FRAME_TIMEOUT_S)
            rig.answering = True
            rig.answer_all()
            assert rig.receive(second, 9) == ack(50)

    def test_the_clock_may_start_anywhere(self) -> None:
        with Rig() as rig:
            rig.connect()
            rig.tick(1e9)
            assert rig.server.connections == 1
            assert rig.events == []


class TestDrain:
    def test_an_idle_server_is_drained_at_once(self) -> None:
        with Rig() as rig:
            assert not rig.server.drained
            rig.server.begin_drain()
            assert rig.server.drained

    def test_an_idle_connection_ends_at_once(self) -> None:
        with Rig() as rig:
            client = rig.connect()
            rig.server.begin_drain()
            assert rig.receive_all(client) == b""
            client.close()
            rig.until(lambda: rig.server.drained)

    def test_what_was_received_whole_is_answered_first(self) -> None:
        with Rig() as rig:
            rig.answering = False
            client = rig.connect()
            client.send(frames(100, 3) + frame(200)[:50])
            rig.until(lambda: len(rig.unanswered) == 1)
            rig.server.begin_drain()
            client.send(frame(200)[50:] + frames(300, 3))  # too late
            rig.settle()
            assert not rig.server.drained
            rig.answering = True
            rig.answer_all()
            assert rig.receive_all(client) == acks(100, 3)
            assert set(rig.stored) == {100, 101, 102}
            client.close()
            rig.until(lambda: rig.server.drained)

    def test_a_peer_that_stays_is_closed_by_the_clock(self) -> None:
        with Rig() as rig:
            rig.connect()
            rig.server.begin_drain()
            rig.tick(5.0)
            assert not rig.server.drained
            rig.tick(5.0 + limits.LINGER_S)
            assert rig.server.drained

    def test_new_connections_are_refused(self) -> None:
        with Rig() as rig:
            rig.server.begin_drain()
            assert rig.receive_all(rig.connect()) == b""
            assert rig.counter("refused") == 1
            assert rig.queue.connections(0) == (0, 0)


class TestLimits:
    def test_one_connection_too_many(self) -> None:
        with Rig(connections_max=2) as rig:
            one, two = rig.connect(), rig.connect()
            assert rig.receive_all(rig.connect()) == b""
            assert rig.counter("refused") == 1
            assert rig.queue.connections(0) == (2, 0)
            one.close()
            rig.until(lambda: rig.server.connections == 1)
            three = rig.connect()
            for client in (two, three):
                client.send(frame(1))
                assert rig.receive(client, 9) == ack(1)

    def test_slots_are_used_again(self) -> None:
        with Rig(connections_max=1) as rig:
            for i in range(50):
                client = rig.connect()
                client.send(frame(i))
                assert rig.receive(client, 9) == ack(i)
                client.close()
                rig.until(lambda: rig.server.connections == 0)

    def test_a_closed_server_says_so(self) -> None:
        rig = Rig()
        with rig:
            client = rig.connect()
            rig.server.close()
            rig.server.close()
            with pytest.raises((ConnectionResetError, ValueError)):
                assert client.recv(1) == b""
                rig.server.turn()
            for call in (rig.server.fileno, rig.server.begin_drain):
                with pytest.raises(ValueError, match="closed"):
                    call()

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"bad_frame_limit": 0}, "needs a slot"),
            ({"connections_max": 0}, "needs a slot"),
            ({"block_places": 0}, "whole blocks"),
            ({"block_places": 7}, "whole blocks"),
        ],
    )
    def test_arguments_that_make_no_sense(self, options: dict[str, int], why: str) -> None:
        with pytest.raises(ValueError, match=why):
            PutServer(Queue(1, 64), 0, [KEYS], **options)

    @pytest.mark.parametrize("slot", [-1, 1])
    def test_a_slot_that_is_not_there(self, slot: int) -> None:
        with pytest.raises(ValueError, match="worker"):
            PutServer(Queue(1, 64), slot, [KEYS], block_places=64)

    def test_a_descriptor_that_cannot_be_watched(self) -> None:
        with Rig() as rig:
            rig.queue.count_connection(0, True, 1)
            with open(__file__) as file, pytest.raises(PermissionError):
                rig.server.adopt(os.dup(file.fileno()), "a file")
            assert rig.server.connections == 0
            assert rig.queue.connections(0) == (0, 0)
