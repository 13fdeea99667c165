import itertools
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_server import (
    BUSY,
    CONFLICT,
    DATA,
    FRAME,
    NO_SPACE,
    Faults,
    ReferenceServer,
    build_frame,
    checksum,
    index_of,
    subkey,
)

from bench import raw_sink
from ingest import errors, ticket
from ingest.errors import ConnectionLostError, KeyFileError, ProtocolError, UsageError
from ingest.loadgen import load_share, loopback
from ingest.loadgen._load_content import Content
from ingest.loadgen._load_engine import Engine
from ingest.loadgen._load_latency import BUCKETS, bucket_of, bucket_value
from ingest.loadgen.load_share import Report, Share
from ingest.loadgen.loopback import LoopbackOptions, LoopbackResult, Progress, percentile_ms, plan

KEY = bytes(range(32))
PUT_KEY = subkey(KEY, "put frame")
LAST = ticket.LAST


@pytest.fixture
def server() -> Iterator[ReferenceServer]:
    with ReferenceServer([KEY]) as running:
        yield running


def options(server: ReferenceServer, **more: Any) -> LoopbackOptions:
    if "duration" not in more:
        more.setdefault("frames", 100)
    return LoopbackOptions(server.put_address, KEY, server.get_address, **{"timeout": 20.0, **more})


def load(server: ReferenceServer, **more: Any) -> LoopbackResult:
    return loopback.run(options(server, **more))


class TestContent:
    @given(st.integers(0, LAST), st.integers(0, 2**64 - 1))
    def test_data(self, index: int, seed: int) -> None:
        content = Content(seed)
        data = content.data(index)
        assert len(data) == DATA
        assert data == Content(seed).data(index)
        assert data != content.data(index ^ 1)

    def test_every_frame_differs(self) -> None:
        content = Content(1)
        assert len({content.data(index)[-10:] for index in range(5000)}) == 5000

    @given(st.integers(0, LAST - 20), st.integers(0, 20))
    def test_frames_are_signed(self, first: int, n: int) -> None:
        content = Content(5)
        frames = bytes(content.frames(PUT_KEY, first, n))
        assert len(frames) == n * FRAME
        for i in range(n):
            frame = frames[i * FRAME : (i + 1) * FRAME]
            assert index_of(frame[:8]) == first + i
            assert frame[16:] == content.data(first + i)
            assert frame[8:16] == checksum(PUT_KEY, frame[:8] + frame[16:])

    @pytest.mark.parametrize("first", [25, 1331 - 10, 47987 - 3, LAST - 29])
    def test_tickets_count_over_every_border(self, first: int) -> None:
        frames = bytes(Content(0).frames(PUT_KEY, first, 30))
        assert [index_of(frames[i * FRAME : i * FRAME + 8]) for i in range(30)] == list(
            range(first, first + 30)
        )

    @pytest.mark.parametrize("bit", [0, 7 * 8, 8 * 8, 15 * 8 + 7, 16 * 8, 1000 * 8 + 3, FRAME * 8 - 1])
    def test_check_finds_any_bit(self, bit: int) -> None:
        content = Content(5)
        frames = content.frames(PUT_KEY, 99, 20)
        assert content.check((PUT_KEY,), frames, 99) == b"\1" * 20
        frames[3 * FRAME + bit // 8] ^= 1 << bit % 8
        assert content.check((PUT_KEY,), frames, 99) == b"\1" * 3 + b"\0" + b"\1" * 16

    def test_check_finds_what_is_well_signed_but_wrong(self) -> None:
        content = Content(5)
        assert content.check((PUT_KEY,), content.frames(PUT_KEY, 100, 2), 99) == b"\0\0"  # other places
        assert content.check((PUT_KEY,), Content(6).frames(PUT_KEY, 99, 2), 99) == b"\0\0"  # other data
        assert content.check((bytes(32),), content.frames(PUT_KEY, 99, 2), 99) == b"\0\0"  # other key
        assert content.check((bytes(32), PUT_KEY), content.frames(PUT_KEY, 99, 2), 99) == b"\1\1"
        assert content.check((PUT_KEY,), b"", 99) == b""

    def test_bad_arguments(self) -> None:
        content = Content(5)
        for first, n in ((-1, 1), (LAST, 2), (0, -1)):
            with pytest.raises(UsageError):
                content.frames(PUT_KEY, first, n)
        with pytest.raises(UsageError):
            content.frames(PUT_KEY[:-1], 0, 1)
        with pytest.raises(UsageError):
            content.check((PUT_KEY,), bytes(FRAME + 1), 0)
        with pytest.raises(UsageError):
            content.check((b"",), bytes(FRAME), 0)


class TestLatencies:
    @given(st.integers(0, 2**40 - 1))
    def test_a_bucket_is_within_a_percent(self, ns: int) -> None:
        assert abs(bucket_value(bucket_of(ns)) - ns) <= max(0.5, ns * 0.008)

    @given(st.integers(0, 2**41), st.integers(0, 2**41))
    def test_buckets_keep_the_order(self, a: int, b: int) -> None:
        if a <= b:
            assert 0 <= bucket_of(a) <= bucket_of(b) < BUCKETS

    def test_bounds(self) -> None:
        assert bucket_of(2**64 - 1) == BUCKETS - 1
        for bucket in (-1, BUCKETS):
            with pytest.raises(UsageError):
                bucket_value(bucket)

    def test_percentiles(self) -> None:
        latencies = {bucket_of(1_000_000): 90, bucket_of(50_000_000): 9, bucket_of(10**9): 1}
        assert percentile_ms(latencies, 0.5) == pytest.approx(1, rel=0.01)
        assert percentile_ms(latencies, 0.9) == pytest.approx(1, rel=0.01)
        assert percentile_ms(latencies, 0.99) == pytest.approx(50, rel=0.01)
        assert percentile_ms(latencies, 0.999) == pytest.approx(1000, rel=0.01)
        assert percentile_ms({}, 0.5) == 0


class TestPlan:
    def shares(self, **more: Any) -> list[Share]:
        return plan(LoopbackOptions(("127.0.0.1", 1), KEY, **more))

    @given(st.integers(1, 100_000), st.integers(1, 300), st.integers(1, 8))
    def test_shares_add_up(self, frames: int, connections: int, processes: int) -> None:
        shares = self.shares(frames=frames, connections=connections, processes=processes)
        ranges = [pair for share in shares for pair in zip(share.firsts, share.counts, strict=True)]
        assert len(shares) == min(processes, connections)
        assert len(ranges) == connections
        assert sum(count for _, count in ranges) == frames
        assert max(count for _, count in ranges) - min(count for _, count in ranges) <= 1
        for (first, count), (following, _) in itertools.pairwise(ranges):
            assert first + count <= following
        assert all((first - 36) % 1296 == 0 for first, _ in ranges)
        assert [share.offset for share in shares] == sorted({share.offset for share in shares})
        assert len(ticket.format(ranges[0][0])) == len(ticket.format(ranges[-1][0] + ranges[-1][1])) == 7

    @given(st.floats(0.1, 600), st.integers(1, 2000))
    def test_a_duration_has_tickets_enough(self, duration: float, connections: int) -> None:
        (share,) = self.shares(duration=duration, connections=connections)
        assert sum(share.counts) >= duration * 1_000_000
        assert (
            len(ticket.format(share.firsts[0]))
            == len(ticket.format(share.firsts[-1] + share.counts[-1] - 1))
            == 7
        )
        assert share.duration_ns > 0

    def test_a_rate_makes_a_duration_a_number_of_frames(self) -> None:
        (share,) = self.shares(duration=2.0, rate=100.0, connections=3)
        assert sum(share.counts) == 200
        assert share.duration_ns == 0
        assert share.interval_ns == 1e7

    def test_first(self) -> None:
        (share,) = self.shares(frames=5, connections=2, first="AB")
        assert share.firsts == (ticket.parse("AB"), ticket.parse("AB") + 1296)
        assert self.shares(frames=5)[0].firsts != self.shares(frames=5)[0].firsts
        with pytest.raises(UsageError, match="left"):
            self.shares(frames=5, connections=1, first="ZZZZZZZX")
        self.shares(frames=3, connections=1, first="ZZZZZZZX")
        with pytest.raises(UsageError, match="7 characters"):
            self.shares(frames=10**11)

    @pytest.mark.parametrize(
        "bad",
        [
            {},
            {"frames": 1, "duration": 1.0},
            {"frames": 0},
            {"duration": 0.0},
            {"duration": float("inf")},
            {"duration": float("nan")},
            {"frames": 1, "rate": -1.0},
            {"frames": 1, "connections": 0},
            {"frames": 1, "window": 0},
            {"frames": 1, "window": 65_537},
            {"frames": 1, "processes": 0},
            {"frames": 1, "timeout": 0.0},
            {"frames": 1, "first": "a"},
            {"frames": 1, "seed": -1},
            {"frames": 1, "verify": True},
        ],
    )
    def test_bad_options(self, bad: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            LoopbackOptions(("127.0.0.1", 1), KEY, **bad)

    def test_keys_are_never_shown(self, tmp_path: Path) -> None:
        (share,) = self.shares(frames=1)
        assert KEY.hex() not in repr(share) + repr(LoopbackOptions(("127.0.0.1", 1), KEY, frames=1))
        with pytest.raises(KeyFileError):
            plan(LoopbackOptions(("127.0.0.1", 1), tmp_path / "none", frames=1))

    def test_what_processes_say_comes_back_the_same(self) -> None:
        (share,) = self.shares(frames=7, connections=3)
        assert Share.from_json(share.to_json()) == share
        report = Report(3, {1: 2, 5: 1}, {4: 3}, [(3, 3, 0.5)], 0.1, 0.2, 2, 1, ["A: MISSING"])
        assert Report.from_content(json.loads(report.to_json())) == report
        error = load_share.error_from_content(["ConnectionLostError", "gone"])
        assert type(error) is ConnectionLostError
        assert type(load_share.error_from_content(["ZeroDivisionError", "x"])) is ProtocolError
        assert isinstance(load_share.error_from_content(["RefusedError", "x"]), errors.PeerError)


class TestPutting:
    @pytest.mark.parametrize(
        "more",
        [
            {"frames": 1, "connections": 1, "window": 1},
            {"frames": 1, "connections": 5},  # four of them have nothing to do
            {"frames": 3000, "connections": 3, "window": 64},
            {"frames": 200, "connections": 20, "window": 1},
            {"frames": 3000, "connections": 2, "window": 65_536},
            {"frames": 500, "connections": 7, "window": 3, "processes": 3},
            {"frames": 300, "connections": 3, "rate": 100_000.0},
            {"frames": 50, "connections": 4, "processes": 2, "rate": 5000.0},
            {"duration": 0.05, "rate": 2000.0},
        ],
    )
    def test_everything_is_saved_and_verified(self, server: ReferenceServer, more: dict[str, Any]) -> None:
        result = load(server, verify=True, **more)
        frames = more.get("frames", 100)
        assert result.ok
        assert (result.frames, result.saved, result.failed, result.verified) == (frames, frames, 0, frames)
        assert result.statuses == {"SAVED": frames}
        assert len(server.model.frames) == frames
        assert sum(result.connection_frames) == sum(result.latencies.values()) == frames
        assert len(result.connection_frames) == more.get("connections", 4)

    def test_the_object_that_is_printed(self, server: ReferenceServer) -> None:
        result = load(server)
        assert list(result.as_json()) == [
            *("frames", "saved", "failed", "statuses", "seconds", "frames_per_s", "mb_per_s"),
            *("p50_ms", "p99_ms", "p999_ms", "verified"),
        ]
        assert result.frames_per_s == pytest.approx(100 / result.seconds)
        assert result.mb_per_s == pytest.approx(100 * FRAME / result.seconds / 1e6)
        assert 0 < result.p50_ms <= result.p99_ms <= result.p999_ms
        assert 0 < result.fairness <= 1

    @pytest.mark.parametrize("processes", [1, 2])
    def test_duration(self, server: ReferenceServer, processes: int) -> None:
        for duration in (0.1, 1.0, 10.0):  # a machine may be busy for as long
            result = load(server, duration=duration, window=10, processes=processes, verify=True)
            assert result.ok
            assert result.frames == len(server.model.frames) == result.verified
            if result.frames:
                return
        pytest.fail("no frame in 10 s")

    def test_first_and_seed_make_a_run_again(self, server: ReferenceServer) -> None:
        assert load(server, first="ABC", seed=3).ok
        assert load(server, first="ABC", seed=3).ok  # the same frames: idempotent
        result = load(server, first="ABC", seed=4)
        assert result.statuses == {"CONFLICT": 100}
        assert not result.ok
        assert result.first == "ABC"

    def test_window_bounds_what_is_in_flight(self) -> None:
        # The second number: how many the server keeps waiting. Large windows are refilled a quarter at a time.
        for window, kept in ((1, 1), (7, 7), (64, 49)):
            with ReferenceServer([KEY], Faults(hold=(kept, 700))) as server:
                assert load(server, frames=700, connections=1, window=window).ok
                assert server.in_flight_max == window

    def test_acks_in_any_order(self) -> None:
        with ReferenceServer([KEY], Faults(reorder=random.Random(3))) as server:
            assert load(server, frames=4000, window=300, verify=True).ok

    def test_statuses_are_counted(self) -> None:
        wanted = {0: BUSY, 1: CONFLICT, 2: NO_SPACE}
        with ReferenceServer([KEY], Faults(answer=lambda index, seen: wanted.get(index % 10))) as server:
            result = load(server, connections=1, verify=True)
        assert result.statuses == {"SAVED": 70, "BUSY": 10, "CONFLICT": 10, "NO_SPACE": 10}
        assert (result.saved, result.failed, result.verified, result.wrong) == (70, 30, 70, 30)
        assert not result.ok

    def test_progress(self) -> None:
        gate = threading.Event()
        seen: list[Progress] = []

        def watch(progress: Progress) -> None:
            seen.append(progress)
            gate.set()

        with ReferenceServer([KEY], Faults(gate=gate, gate_after=10)) as server:
            result = loopback.run(options(server, window=1), watch)
        assert result.ok
        assert seen[0].phase == "put"
        assert seen[0].done < seen[0].total == 100


class TestRate:
    """The latency of a frame counts from when it was due, so one stall is seen by all frames that were due in it."""

    def stall(self, rate: float | None) -> LoopbackResult:
        gate = threading.Event()
        seen = 0

        def open_later(progress: Progress) -> None:
            nonlocal seen
            seen += 1
            if seen == 3:  # at least 0.2 s after the server stopped
                gate.set()

        with ReferenceServer([KEY], Faults(gate=gate, gate_after=20)) as server:
            chosen = options(server, frames=300, connections=1, window=1, rate=rate)
            return loopback.run(chosen, open_later)

    def test_all_that_waited_are_counted(self) -> None:
        slow = bucket_of(50_000_000)
        closed = self.stall(None)
        assert (
            1 <= sum(n for bucket, n in closed.latencies.items() if bucket >= slow) <= 5
        )  # the one in flight
        open_loop = self.stall(1000.0)
        # 1000 a second were due while nothing moved for 0.1 s and more: those of all but its last 50 ms are slow.
        assert sum(n for bucket, n in open_loop.latencies.items() if bucket >= slow) >= 50
        assert open_loop.p99_ms >= 50

    def test_nothing_is_sent_before_it_is_due(self, server: ReferenceServer) -> None:
        result = load(server, frames=50, rate=500.0, connections=3)
        assert result.ok
        assert result.seconds >= 49 / 500


class TestServerMisbehaves:
    @pytest.mark.parametrize("processes", [1, 2])
    def test_nobody_there(self, processes: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()[:2]
        with pytest.raises(ConnectionLostError, match=str(address[1])):
            loopback.run(LoopbackOptions(address, KEY, frames=10, processes=processes))

    @pytest.mark.parametrize("processes", [1, 2])
    def test_it_goes_away(self, processes: int) -> None:
        with (
            ReferenceServer([KEY], Faults(cut_put_after=[50, 50, 50, 50])) as server,
            pytest.raises(ConnectionLostError, match="not acked"),
        ):
            load(server, frames=1000, processes=processes)

    def test_it_never_acks(self) -> None:
        with (
            ReferenceServer([KEY], Faults(silent=True)) as server,
            pytest.raises(ConnectionLostError, match="no ack"),
        ):
            load(server, timeout=0.2)

    def test_a_wrong_key(self) -> None:
        with ReferenceServer([bytes(32)]) as server, pytest.raises(ConnectionLostError, match="3: 3"):
            load(server, connections=1)

    @pytest.mark.parametrize("ack", [b"ZZZ\0\0\0\0\0\1", bytes(9), b"ABC\0\0\0\0\0\1"])
    @pytest.mark.parametrize("window", [1, 20])
    def test_an_ack_of_nothing(self, ack: bytes, window: int) -> None:
        with (
            ReferenceServer([KEY], Faults(extra_ack=ack)) as server,
            pytest.raises(ProtocolError, match="does not wait"),
        ):
            load(server, first="ABC", connections=1, window=window)

    @pytest.mark.parametrize("status", [0, 10])
    def test_an_ack_without_a_status(self, status: int) -> None:
        with (
            ReferenceServer([KEY], Faults(answer=lambda index, seen: status)) as server,
            pytest.raises(ProtocolError, match=f"status {status}"),
        ):
            load(server)


class TestVerify:
    def after_put(self, server: ReferenceServer, change: Any, **more: Any) -> LoopbackResult:
        """A run in which the store changes between the puts and the reads."""
        real = server.model.request
        changed = False

        def request(message: bytes) -> tuple[bytes, bool]:
            nonlocal changed
            if not changed:
                changed = True
                change(server.model.frames)
            return real(message)

        server.model.request = request  # type: ignore[method-assign]
        return load(server, verify=True, first="A00", connections=1, **more)

    @pytest.mark.parametrize("at", [0, 8, 16, 800, FRAME - 1])
    def test_one_byte_altered(self, server: ReferenceServer, at: int) -> None:
        def change(frames: dict[int, bytes]) -> None:
            index = ticket.parse("A07")
            frame = bytearray(frames[index])
            frame[at] ^= 1
            frames[index] = bytes(frame)

        result = self.after_put(server, change)
        assert (result.saved, result.verified, result.wrong, result.ok) == (100, 99, 1, False)
        assert result.problems == ("A07: not what was put",)

    def test_one_lost(self, server: ReferenceServer) -> None:
        result = self.after_put(server, lambda frames: frames.pop(ticket.parse("A07")))
        assert (result.verified, result.wrong, result.ok) == (99, 1, False)
        assert result.problems == ("A07: MISSING",)

    def test_exchanged_for_another_that_is_well_signed(self, server: ReferenceServer) -> None:
        def change(frames: dict[int, bytes]) -> None:
            index = ticket.parse("A07")
            frames[index] = build_frame(KEY, index, b"something else")

        assert self.after_put(server, change).problems == ("A07: not what was put",)

    def test_a_frame_that_is_bad_once_is_asked_for_again(self) -> None:
        with ReferenceServer([KEY], Faults(corrupt=[0])) as server:
            result = load(server, verify=True)
            assert result.ok
            assert result.verified == 100

    def test_a_get_port_that_does_not_answer(self, server: ReferenceServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()[:2]
            silent = LoopbackOptions(server.put_address, KEY, address, frames=10, verify=True, timeout=0.2)
            with pytest.raises(ConnectionLostError, match="timed out"):
                loopback.run(silent)
        with pytest.raises(ConnectionLostError, match=str(address[1])):
            loopback.run(silent)

    @pytest.mark.parametrize("after", [0, 3, 16, 100, 30_000])
    def test_a_reply_that_is_cut(self, after: int) -> None:
        with (
            ReferenceServer([KEY], Faults(cut_get_after=[after])) as server,
            pytest.raises((ConnectionLostError, ProtocolError), match=r"reading back|refused"),
        ):
            load(server, verify=True)


class TestEngine:
    def engine(self, **more: Any) -> Engine:
        a, b = socket.socketpair()
        with a, b:
            arguments = {"sockets": [a.fileno()], "firsts": [0], "counts": [1], "window": 1, **more}
            return Engine(Content(0), PUT_KEY, **arguments)

    @pytest.mark.parametrize(
        "bad",
        [
            {"window": 0},
            {"window": 65_537},
            {"sockets": []},
            {"firsts": [0, 1]},
            {"firsts": [-1]},
            {"counts": [-1]},
            {"firsts": [LAST], "counts": [2]},
        ],
    )
    def test_bad_arguments(self, bad: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            self.engine(**bad)

    def test_bad_descriptor(self) -> None:
        with pytest.raises(OSError, match="Bad file"):
            self.engine(sockets=[1_000_000])

    def test_acks_one_byte_at_a_time(self) -> None:
        """The peer takes and answers in pieces of any size."""
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that sends are partial
        ours.setblocking(False)
        with ours, theirs:
            engine = Engine(Content(0), PUT_KEY, [ours.fileno()], [36], [40], 7)
            engine.start(0)
            received = bytearray()
            acked = 0
            while not engine.run(0 if acked % 3 else 10_000_000):
                engine.run(10_000_000)
                theirs.setblocking(False)
                try:
                    received += theirs.recv(1000)
                except BlockingIOError:
                    pass
                assert engine.outstanding <= 7
                while acked // 9 < len(received) // FRAME:
                    ack = bytes(received[acked // 9 * FRAME :][:8]) + b"\1"
                    theirs.send(ack[acked % 9 : acked % 9 + 1])
                    acked += 1
            assert len(received) == 40 * FRAME
            assert bytes(received) == bytes(Content(0).frames(PUT_KEY, 36, 40))
            assert engine.status_counts() == {1: 40}

    def test_many_connections_with_large_windows_need_little_memory(self) -> None:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        pairs = [socket.socketpair() for _ in range(200)]
        try:
            for ours, _ in pairs:
                ours.setblocking(False)
            before = resident()
            engine = Engine(
                Content(0),
                PUT_KEY,
                [ours.fileno() for ours, _ in pairs],
                [i * 100_000 for i in range(200)],
                [100_000] * 200,
                65_536,
            )
            engine.start(0)
            engine.run(300_000_000)  # nobody reads: every connection is left with a part that was not taken
            assert engine.outstanding > 200
            assert resident() - before < 150 << 20
        finally:
            for pair in pairs:
                for sock in pair:
                    sock.close()


class TestRawSink:
    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("window", [1, 4096])
    def test_it_acks_everything(self, workers: int, window: int) -> None:
        port, stop = raw_sink.start(workers)
        try:
            chosen = LoopbackOptions(("127.0.0.1", port), KEY, frames=20_000, window=window, timeout=20)
            result = loopback.run(chosen)
            assert result.statuses == {"SAVED": 20_000}
        finally:
            stop()

    def test_frames_in_pieces(self) -> None:
        port, stop = raw_sink.start(1)
        try:
            frames = bytes(Content(0).frames(PUT_KEY, 36, 3))
            with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as acks:
                for at in (0, 3, 8, 9, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME):
                    sock.sendall(frames[:at])
                    frames = frames[at:]
                assert acks.read(27) == b"".join(
                    b"%2.2s\0\0\0\0\0\0\1" % name for name in (b"00", b"01", b"02")
                )
        finally:
            stop()

    def test_its_port_is_free_after_it_stopped(self) -> None:
        port, stop = raw_sink.start(2)
        stop()
        with pytest.raises(ConnectionLostError):
            loopback.run(LoopbackOptions(("127.0.0.1", port), KEY, frames=1))
