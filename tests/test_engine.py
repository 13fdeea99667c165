"""The protocol against a real server, from socket to disk and back: bad input, rivals, restarts, a failing disk."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import independent_client
import pytest
from attached_strace import STRACE, attach_strace
from node_rig import (
    START_TIMEOUT_S,
    Connection,
    NodeRig,
    data_of,
    delete_frame,
    put_frames,
    read_exactly,
    running_node,
)

from ingest import ticket
from ingest.limits import FRAME_SIZE, PACK_SLOTS
from ingest.status import Status
from ingest.store.check.fsck import fsck
from ingest.store.store_json import write_store_json

FIRST = ticket.parse("ENGINE0")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, layout: str) -> Iterator[NodeRig]:
    """A server of each layout that the tests of this module share; each uses tickets of its own."""
    with running_node(tmp_path_factory.mktemp("engine") / "data", "--workers=2", f"--layout={layout}") as rig:
        yield rig
        assert rig.stop() == 0, rig.log()


@pytest.fixture
def own(request: pytest.FixtureRequest) -> int:
    """The first of 100 packs' worth of tickets that no other test uses."""
    number = sum(ord(c) * 31**i for i, c in enumerate(request.node.name)) % 100_000
    return FIRST + number * 100 * PACK_SLOTS


def statuses(found: list[tuple[Status, bytes]]) -> list[Status]:
    return [status for status, _ in found]


def http(rig: NodeRig, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            f"http://{rig.admin_address[0]}:{rig.admin_address[1]}{path}", timeout=10
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# --- puts and gets ---------------------------------------------------------------------------------


def test_what_is_saved_comes_back_from_every_port_at_once(node: NodeRig, own: int) -> None:
    with node.connect() as connection:
        assert connection.put([own]) == {own: Status.SAVED}
        assert node.get(own, 1) == [(Status.SAVED, data_of(own))]
        code, body = http(node, f"/{ticket.tree_path(ticket.format(own))}")
        assert (code, body) == (200, data_of(own))


@pytest.mark.parametrize("count", [2, 300, 1296, 1297, 20_000])
def test_ranges_come_back_whole(node: NodeRig, own: int, count: int) -> None:
    first = own + 700  # not aligned with packs: the bulk path writes parts of packs too
    with node.connect() as connection:
        assert Counter(connection.put(range(first, first + count)).values()) == {Status.SAVED: count}
    found = node.get(first - 1, count + 2)
    assert statuses([found[0], found[-1]]) == [Status.MISSING, Status.MISSING]
    assert [data for _, data in found[1:-1]] == [data_of(index) for index in range(first, first + count)]


def test_every_length_of_ticket(node: NodeRig) -> None:
    names = ["0", "Z", "00", "ZZ", "000", "AB1", "ABC1", "ABCD1", "ABCDE1", "ABCDEF1", "ABCDEFG1", "ZZZZZZZZ"]
    with node.connect() as connection:
        for name in names:
            index = ticket.parse(name)
            assert connection.put([index]) == {index: Status.SAVED}
            assert node.get(index, 1) == [(Status.SAVED, data_of(index))]


def test_a_stream_cut_anywhere_is_the_same_stream(node: NodeRig, own: int) -> None:
    frames = put_frames(node.keys, range(own, own + 3))
    with node.connect() as connection:
        for start in range(0, len(frames), 97):
            connection.send(frames[start : start + 97])
        assert [status for _, status in connection.acks(3)] == [Status.SAVED] * 3


def test_half_a_frame_at_the_end_is_dropped(node: NodeRig, own: int) -> None:
    frames = put_frames(node.keys, [own, own + 1])
    with node.connect() as connection:
        connection.send(frames[:-1])
        connection.sock.shutdown(socket.SHUT_WR)
        assert [status for _, status in connection.acks(1)] == [Status.SAVED]
        assert connection.sock.recv(1) == b""
    assert statuses(node.get(own, 2)) == [Status.SAVED, Status.MISSING]


def test_a_client_written_from_the_document_alone(node: NodeRig, own: int) -> None:
    shared_key = bytes.fromhex((node.data_dir / ".ingest" / "key").read_text().split()[0])
    client = independent_client.Client(node.put_address, node.get_address, shared_key)
    name = ticket.format(own)
    assert client.put(name, data_of(own)) == Status.SAVED
    assert client.get(name) == (Status.SAVED, data_of(own))
    assert client.put(name, data_of(own, 1)) == Status.CONFLICT


# --- bad frames -------------------------------------------------------------------------------------


def test_any_flipped_bit_is_refused_and_stores_nothing(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--bad-frame-limit=20000", "--workers=1") as rig:
        index = ticket.parse("FLIPPED")
        good = put_frames(rig.keys, [index])
        with rig.connect() as connection:
            for byte in range(FRAME_SIZE):
                flipped = bytearray()
                for bit in range(8):
                    frame = bytearray(good)
                    frame[byte] ^= 1 << bit
                    flipped += frame
                connection.send(flipped)
                for _, status in connection.acks(8):
                    assert status in (Status.BAD_CHECKSUM, Status.BAD_TICKET), f"byte {byte}"
            assert rig.get(index, 1) == [(Status.MISSING, b"")]
            assert connection.put([index]) == {index: Status.SAVED}
        assert list(rig.data_dir.rglob("obj")) == [rig.data_dir / "FL" / "IP" / "P" / "obj"]
        assert rig.stop() == 0


def test_malformed_tickets(node: NodeRig, contract: dict[str, Any]) -> None:
    for raw in contract["malformed_tickets_hex"]:
        with node.connect() as connection:
            connection.send(bytes.fromhex(raw) + bytes(FRAME_SIZE - 8))
            assert connection.acks(1) == [(bytes.fromhex(raw), Status.BAD_TICKET)]


def test_nothing_behind_the_third_bad_frame_counts(node: NodeRig, own: int) -> None:
    good = put_frames(node.keys, range(own, own + 4))
    bad = bytearray(good[:FRAME_SIZE])
    bad[-1] ^= 1
    parts = [good[i * FRAME_SIZE : (i + 1) * FRAME_SIZE] for i in range(4)]
    with node.connect() as connection:
        connection.send(parts[0] + bad + parts[1] + bad + parts[2] + bad + parts[3] * 50)
        answers = connection.acks(6)
        assert sorted(status for _, status in answers) == [Status.SAVED] * 3 + [Status.BAD_CHECKSUM] * 3
        assert connection.sock.recv(1) == b""
    assert statuses(node.get(own, 4)) == [Status.SAVED] * 3 + [Status.MISSING]


# --- write once -------------------------------------------------------------------------------------


def test_other_bytes_are_a_conflict_from_anywhere(node: NodeRig, own: int) -> None:
    with node.connect() as connection:
        assert connection.put([own]) == {own: Status.SAVED}
        assert connection.put([own], version=1) == {own: Status.CONFLICT}
    for _ in range(4):  # both workers
        with node.connect() as other:
            assert other.put([own], version=1) == {own: Status.CONFLICT}
            assert other.put([own]) == {own: Status.SAVED}
    assert node.get(own, 1) == [(Status.SAVED, data_of(own))]


@pytest.mark.parametrize("count", [1, 2000])
def test_rivals_at_the_same_moment(node: NodeRig, own: int, count: int) -> None:
    """Of two that put other bytes under the same tickets at once, each ticket has one winner, whose bytes stay."""
    own += count * 10_000
    start = threading.Barrier(4)
    answers: dict[int, dict[int, Status]] = {}

    def put(version: int) -> None:
        with node.connect() as connection:
            frames = put_frames(node.keys, range(own, own + count), version)
            start.wait()
            connection.send(frames)
            answers[version] = {
                ticket.index_from_wire(name): status for name, status in connection.acks(count)
            }

    rivals = [threading.Thread(target=put, args=(version,)) for version in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    stored = node.get(own, count)
    for i in range(count):
        given = [answers[version][own + i] for version in range(4)]
        assert sorted(given) == [Status.SAVED] + [Status.CONFLICT] * 3
        assert stored[i] == (Status.SAVED, data_of(own + i, given.index(Status.SAVED)))


def test_the_same_frame_in_flight_twice_is_saved_twice_and_stored_once(node: NodeRig, own: int) -> None:
    frame = put_frames(node.keys, [own])
    with node.connect() as one, node.connect() as two:
        one.send(frame * 20)
        two.send(frame * 20)
        assert [status for _, status in one.acks(20) + two.acks(20)] == [Status.SAVED] * 40
    assert statuses(node.get(own - 1, 3)) == [Status.MISSING, Status.SAVED, Status.MISSING]


def test_deletes_stay(node: NodeRig, own: int) -> None:
    with node.connect() as connection:
        connection.put(range(own, own + 3000))
        assert connection.delete(own + 100, 2500) is Status.DELETED
        assert connection.delete(own + 100, 1) is Status.DELETED
        found = statuses(node.get(own, 3000))
        assert found == [Status.SAVED] * 100 + [Status.DELETED] * 2500 + [Status.SAVED] * 400
        assert connection.put([own + 100, own + 101]) == {
            own + 100: Status.DELETED,
            own + 101: Status.DELETED,
        }
        assert connection.delete(own + 5 * PACK_SLOTS, 10) is Status.DELETED  # never stored
        assert connection.put([own + 5 * PACK_SLOTS]) == {own + 5 * PACK_SLOTS: Status.DELETED}


def test_a_restart_changes_nothing(tmp_path: Path, layout: str) -> None:
    first = ticket.parse("RESTART")
    with running_node(tmp_path / "data", f"--layout={layout}") as rig:
        for how in ("stop", "kill"):
            with rig.connect() as connection:
                connection.put(range(first, first + 5000))
                connection.delete(first + 10, 5)
            assert rig.stop() == 0 if how == "stop" else rig.kill_all() is None
            rig.start()
            with rig.connect() as connection:
                again = connection.put(range(first, first + 5000))
                assert Counter(again.values()) == {Status.SAVED: 4995, Status.DELETED: 5}
                assert connection.put([first], version=1) == {first: Status.CONFLICT}
            found = rig.get(first, 5000)
            assert [data for status, data in found if status is Status.SAVED] == [
                data_of(first + i) for i in range(5000) if not 10 <= i < 15
            ]
            first += 10_000
        assert rig.stop() == 0


# --- clients that behave badly -----------------------------------------------------------------------


def test_a_client_that_never_reads_does_not_hinder_others(node: NodeRig, own: int) -> None:
    frames = put_frames(node.keys, range(own, own + 2000))
    with node.connect() as deaf, node.connect() as honest:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sock.settimeout(0.2)
        try:
            for _ in range(200):  # 400,000 frames are far more acks than the server keeps
                deaf.send(frames)
        except TimeoutError:
            pass
        mine = range(own + 50_000, own + 50_100)
        assert set(honest.put(mine).values()) == {Status.SAVED}
        memory = [
            int(line.split()[1])
            for pid in node.children("ingest-worker")
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("RssAnon")
        ]
        assert max(memory) < 100_000  # KiB


def put_connections(node: NodeRig) -> list[float]:
    """How many connections each worker has on the put port."""
    return [
        float(line.rsplit(" ", 1)[1])
        for line in http(node, "/metrics")[1].decode().splitlines()
        if line.startswith("ingest_connections{") and 'port="put"' in line
    ]


def test_four_connections_on_two_workers_are_two_and_two(node: NodeRig) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while put_connections(node) != [0, 0]:  # the workers still let go of those of the tests before
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held = [node.connect() for _ in range(4)]
    try:
        for i, connection in enumerate(
            held
        ):  # a put that is answered: the connection has arrived where it stays
            connection.put([FIRST - 1 - i])
        assert put_connections(node) == [2, 2]
    finally:
        for connection in held:
            connection.sock.close()


# --- the disk ----------------------------------------------------------------------------------------


def test_below_the_reserve_nothing_new_is_stored(tmp_path: Path, layout: str) -> None:
    index = ticket.parse("NOSPACE")
    with running_node(tmp_path / "data", f"--layout={layout}") as rig:
        with rig.connect() as connection:
            assert connection.put([index]) == {index: Status.SAVED}
        assert rig.stop() == 0
    with running_node(tmp_path / "data", f"--layout={layout}", "--reserve=1000000GiB") as rig:
        with rig.connect() as connection:
            assert connection.put([index + 1]) == {index + 1: Status.NO_SPACE}
            assert connection.put([index]) == {index: Status.SAVED}  # stored already
            assert connection.delete(index, 1) is Status.DELETED  # gives space back
        assert rig.get(index, 2) == [(Status.DELETED, b""), (Status.MISSING, b"")]
        code, body = http(rig, "/readyz")
        assert code == 503 and b"space" in body
        assert rig.says("reserve")
        assert rig.stop() == 0


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_a_failed_sync_is_an_error_and_then_recovery(tmp_path: Path, layout: str) -> None:
    first = ticket.parse("EIO0000")
    with running_node(tmp_path / "data", f"--layout={layout}") as rig:
        with rig.connect() as connection:
            assert set(connection.put(range(first, first + 10)).values()) == {Status.SAVED}
            (committer,) = rig.children("ingest-committer")
            tracer = attach_strace(committer, "-e", "inject=fdatasync:error=EIO")
            try:
                answers = connection.put(range(first + 10, first + 20))
                # One committer failed and said so; each frame is answered by it, or by its successor after recovery.
                assert set(answers.values()) <= {Status.ERROR, Status.SAVED}
                assert Status.ERROR in answers.values()
            finally:
                tracer.terminate()
                tracer.wait()
            again = connection.put(range(first + 10, first + 20))
            assert set(again.values()) == {Status.SAVED}
        assert [data for _, data in rig.get(first, 20)] == [data_of(first + i) for i in range(20)]
        assert rig.says("saving stops until recovery")
        assert rig.children("ingest-committer") != [committer]
        assert rig.stop() == 0


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_a_failed_sync_of_packs_keeps_the_log_that_covers_them(tmp_path: Path, layout: str) -> None:
    first = ticket.parse("SYNCFS0")
    with running_node(tmp_path / "data", f"--layout={layout}") as rig:
        (committer,) = rig.children("ingest-committer")
        tracer = attach_strace(committer, "-e", "inject=syncfs:error=EIO")
        try:
            with rig.connect() as connection:
                assert set(connection.put(range(first, first + 50)).values()) == {Status.SAVED}
            rig.wait_for_another("ingest-committer", committer)
        finally:
            tracer.terminate()
            tracer.wait()
        assert rig.says("the log keeps them")
        assert [data for _, data in rig.get(first, 50)] == [data_of(first + i) for i in range(50)]
        rig.kill_all()
        rig.start()
        assert [data for _, data in rig.get(first, 50)] == [data_of(first + i) for i in range(50)]
        assert rig.stop() == 0


# --- processes --------------------------------------------------------------------------------------


def test_gets_go_on_and_puts_wait_while_there_is_no_committer(node: NodeRig, own: int) -> None:
    with node.connect() as connection:
        connection.put([own])
        (committer,) = node.children("ingest-committer")
        os.kill(committer, signal.SIGSTOP)
        connection.send(put_frames(node.keys, [own + 1]))
        assert node.get(own, 1) == [(Status.SAVED, data_of(own))]
        os.kill(committer, signal.SIGKILL)
        assert connection.acks(1) == [(ticket.index_to_wire(own + 1), Status.SAVED)]
    assert statuses(node.get(own, 2)) == [Status.SAVED, Status.SAVED]


def test_all_processes_end_with_their_parent(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as rig:
        with rig.connect() as connection:
            connection.put([FIRST])
        children = rig.children()
        assert len(children) >= 3  # admin, committer, and the worker that answered
        os.kill(rig.pid, signal.SIGKILL)
        deadline = (
            time.monotonic() + 1.0 + 4.0
        )  # the second of docs/architecture.md, "Processes", and time for a loaded machine to show it
        while True:
            alive = [pid for pid in children if is_alive(pid)]
            if not alive:
                break
            assert time.monotonic() < deadline, f"{alive} outlived the parent"
            time.sleep(0.01)


def test_a_server_that_is_told_to_end_while_it_starts_ends_cleanly(tmp_path: Path) -> None:
    rig = NodeRig(tmp_path / "data")
    try:
        for _ in range(10):
            rig.start()  # the ports answer; the workers may just have been forked
            assert rig.stop() == 0, rig.log()
    finally:
        rig.close()


def is_alive(pid: int) -> bool:
    """A zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_drain_acks_what_was_received(tmp_path: Path, layout: str) -> None:
    first = ticket.parse("DRAIN00")
    with running_node(tmp_path / "data", f"--layout={layout}") as rig:
        with rig.connect() as busy, rig.connect() as idle:
            idle.put([first])
            busy.send(put_frames(rig.keys, range(first + 1, first + 2001)))
            acks = busy.acks(1)
            os.kill(rig.pid, signal.SIGTERM)
            rest = bytearray()
            while part := busy.sock.recv(1 << 16):
                rest += part
            assert len(rest) % 9 == 0
            saved = [name for name, _ in acks] + [
                bytes(rest[i : i + 8]) for i in range(0, len(rest), 9) if rest[i + 8] == 1
            ]
            assert idle.sock.recv(1) == b""
        assert rig.process is not None and rig.process.wait(20) == 0, rig.log()
        rig.start()
        for name in saved:
            index = ticket.index_from_wire(name)
            assert rig.get(index, 1) == [(Status.SAVED, data_of(index))]
        assert rig.stop() == 0


# --- what does not start ------------------------------------------------------------------------------


def refused(data_dir: Path, *flags: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what stands on stderr of a server that must not start."""
    ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
    given = [flag.partition("=")[0] for flag in flags]
    command = [sys.executable, "-m", "ingest", "server", f"--data-dir={data_dir}"]
    command += [port for port in ports if port.partition("=")[0] not in given] + list(flags)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ingest: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return done.returncode, errors[0]


def test_a_second_server_on_the_same_data(node: NodeRig) -> None:
    code, error = refused(node.data_dir)
    assert code == 75 and str(node.pid) in error and str(node.data_dir) in error


def test_a_taken_port(node: NodeRig, tmp_path: Path) -> None:
    host, port = node.put_address
    code, error = refused(tmp_path / "other", f"--listen={host}:{port}")
    assert code == 75 and f"{host}:{port}" in error


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("00" * 32 + "\n")
    key.chmod(0o644)
    code, error = refused(tmp_path / "data", f"--key-file={key}")
    assert code == 78 and str(key) in error


def test_a_store_that_lacks_a_key(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as rig:
        assert rig.stop() == 0
    other = tmp_path / "other"
    other.touch(mode=0o600)
    other.write_text("11" * 32 + "\n")
    code, error = refused(tmp_path / "data", f"--key-file={other}")
    assert code == 78 and "lacks" in error


def test_an_unknown_key_in_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "ingest.toml"
    config.write_text('data_dirr = "x"\n')
    code, error = refused(tmp_path / "data", f"--config={config}")
    assert code == 78 and "data_dirr" in error


def test_an_unknown_format_version(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as rig:
        assert rig.stop() == 0
    path = tmp_path / "data" / ".ingest" / "store.json"
    write_store_json(path, json.loads(path.read_text()) | {"format": 2})
    code, error = refused(tmp_path / "data")
    assert code == 78 and "version 2" in error


def test_a_forgotten_wal_dir(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", f"--wal-dir={tmp_path / 'wal'}") as rig:
        assert rig.stop() == 0
    code, error = refused(tmp_path / "data")
    assert code == 78 and "--wal-dir" in error
    with running_node(tmp_path / "data", f"--wal-dir={tmp_path / 'wal'}") as rig:
        assert rig.stop() == 0


@pytest.mark.parametrize("sync", ["disk", "os"])
def test_a_corrupt_log_stops_the_server_which_says_why_and_what_to_do(tmp_path: Path, sync: str) -> None:
    """As a power cut leaves it with --sync os: a later batch is on the disk, an earlier one is not."""
    first = ticket.parse("CORRUPT")
    with running_node(tmp_path / "data", f"--sync={sync}") as rig:
        with rig.connect() as connection:
            for i in range(5):
                connection.put([first + i])
        rig.kill_all()
    segment = tmp_path / "data" / ".ingest" / "wal" / "0000.log"
    with segment.open("r+b") as log:
        log.seek(4096 + 4096 + 100)  # in the second of five batches
        log.write(b"\xff\xff")
    rig.start(wait=False)
    assert rig.process is not None
    assert rig.process.wait(30) == 1
    assert segment.name in rig.log() and "batch 2" in rig.log()
    assert f"`ingest fsck {tmp_path / 'data'}` says what is wrong, with --repair it mends that" in rig.log()
    assert ("with --sync os a power cut can leave a store so" in rig.log()) == (sync == "os")
    assert fsck(tmp_path / "data", repair=True).problems
    try:
        rig.start()
        assert [status for status, _ in rig.get(first, 5)] == [Status.SAVED] * 5
        assert rig.stop() == 0
    finally:
        rig.close()


def test_reads_need_the_key(node: NodeRig) -> None:
    with socket.create_connection(node.get_address, 10) as sock:
        sock.sendall(b"ENGINE0\0" + (1).to_bytes(8, "big") + bytes(8))
        assert read_exactly(sock, 16) == b"ENGINE0\0" + bytes([Status.BAD_CHECKSUM, 0, 0, 0]) + bytes(4)
        assert sock.recv(1) == b""


def test_a_delete_frame_is_not_a_put(node: NodeRig, own: int) -> None:
    with node.connect() as connection:
        connection.send(delete_frame(node.keys, own, 1))
        assert connection.acks(1) == [(ticket.index_to_wire(own), Status.DELETED)]
        assert connection.put([own]) == {own: Status.DELETED}


def test_connections_are_accepted_by_a_stranger_without_a_key_but_nothing_is_stored(
    node: NodeRig, own: int
) -> None:
    from ingest import mac

    stranger = mac.derive(bytes(31) + b"\x01")
    with Connection(node.put_address, stranger) as connection:
        assert connection.put([own]) == {own: Status.BAD_CHECKSUM}
    assert statuses(node.get(own, 1)) == [Status.MISSING]
