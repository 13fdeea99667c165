"""Clients that mean harm, or know no better, against a real server that others use meanwhile.

In each case the hostile connections are closed by their deadline, a metric and a log line say why, no process of the server
takes more memory than a fixed amount for them, and an honest client's frames are SAVED all the while. The deadlines are
those of `ingest.limits`, made short (`short_limits`). Hostile clients come from other addresses of 127.0.0.0/8.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import resource
import select
import shutil
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from node_rig import NodeRig, get_range, put_frames, read_exactly, running_node
from small_disk import small_disk
from test_metrics import Samples, scrape_node, total, wait_for

from ingest import limits, mac, ticket
from ingest.limits import ACK_SIZE, FRAME_SIZE, REQUEST_SIZE, RUN_HEADER_SIZE
from ingest.mac import build_request
from ingest.status import Status

PATIENCE_S = 60.0
MEMORY_MAX = (
    64 << 20
)  # bytes that a process may have more than before, of its own: the shared arenas do not grow
STORED = 36 + 1296  # the first ticket of what readers ask for
STORED_COUNT = 4 * 1296
BAD_PEER = "127.0.0.66"
SHORT = {
    "PARTIAL_FRAME_TIMEOUT_S": 2,
    "UNREAD_ACKS_TIMEOUT_S": 2,
    "IDLE_TIMEOUT_S": 6,
    "LINGER_S": 0.5,
    "PEER_LINES_MAX": 5,
    "PEER_LINES_INTERVAL_S": 1,
}


def with_limits(**values: float) -> list[str]:
    """A wrapper for `running_node`."""
    program = Path(__file__).with_name("short_limits.py")
    return [sys.executable, str(program), *(f"{name}={value}" for name, value in values.items()), "--"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRig]:
    data = tmp_path_factory.mktemp("hostile") / "data"
    flags = ("--workers=2", "--bad-peer-delay=3600")
    with running_node(data, *flags, wrapper=with_limits(**SHORT)) as node:
        with node.connect() as connection:
            answers = connection.put(range(STORED, STORED + STORED_COUNT))
            assert set(answers.values()) == {Status.SAVED}
        yield node
        assert node.stop() == 0, node.log()


def whole_log(node: NodeRig) -> str:
    return node.log_path.read_text(errors="replace")


def connect(address: tuple[str, int], source: str = "127.0.0.2", receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(PATIENCE_S)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.bind((source, 0))
    sock.connect(address)
    return sock


def is_closed(sock: socket.socket) -> bool:
    """Whether the server has ended this connection; bytes that it sent before are read and dropped."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(sock, select.POLLIN)
    try:
        while poll.poll(0):
            if not sock.recv(1 << 16):
                return True
    except ConnectionError:
        return True
    return False


def wait_until_closed(socks: list[socket.socket]) -> None:
    for sock in socks:
        with contextlib.suppress(ConnectionError):
            while sock.recv(1 << 16):  # raises TimeoutError when the server lets it live
                pass


def private_memory(node: NodeRig) -> dict[int, int]:
    """Bytes of memory that each process of the server has for itself."""
    found = {}
    for pid in (node.pid, *node.children()):
        status = Path(f"/proc/{pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
        found[pid] = int(line.split()[1]) << 10
    return found


class Honest(threading.Thread):
    """Puts 64 new frames at a time and reads them back, until it is told to end."""

    first = 5_000_000  # of the next one: tickets are written once

    def __init__(self, node: NodeRig) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.rounds = 0
        self.error: BaseException | None = None
        self._end = threading.Event()
        self._moved = threading.Condition()

    def run(self) -> None:
        try:
            with self.node.connect() as puts, socket.create_connection(self.node.get_address, 30) as gets:
                while not self._end.is_set():
                    indices = range(Honest.first, Honest.first + 64)
                    Honest.first += 64
                    assert set(puts.put(indices).values()) == {Status.SAVED}
                    found = get_range(gets, self.node.keys, indices[0], 64)
                    assert {status for status, _ in found} == {Status.SAVED}
                    with self._moved:
                        self.rounds += 1
                        self._moved.notify_all()
        except BaseException as error:
            self.error = error
            with self._moved:
                self._moved.notify_all()

    def wait_for_round(self) -> None:
        """Until a round that began now is over."""
        with self._moved:
            wanted = self.rounds + 2
            assert self._moved.wait_for(lambda: self.rounds >= wanted or self.error, PATIENCE_S)
        if self.error:
            raise self.error

    def finish(self) -> None:
        self._end.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error:
            raise self.error


def every_process_runs(samples: Samples) -> bool:
    """Also a worker that was started last: the others serve before it does."""
    rows = {dict(labels).get("process") for _, labels in samples} - {None}
    return rows == {dict(labels)["process"] for name, labels in samples if name == "ingest_process_open_fds"}


@contextmanager
def attack(node: NodeRig, memory_max: int = MEMORY_MAX) -> Iterator[Callable[[], None]]:
    """Around what is hostile. Gives a function that looks at the server while the attack is on: its memory, and
    whether an honest client is served; at the end it is called once more."""
    wait_for(node, every_process_runs)
    processes = set(node.children())
    before = private_memory(node)
    honest = Honest(node)
    honest.start()
    try:
        honest.wait_for_round()

        def look() -> None:
            honest.wait_for_round()
            for pid, memory in private_memory(node).items():
                assert memory - before[pid] < memory_max, f"{pid}: {before[pid]} bytes became {memory}"

        yield look
        look()
    finally:
        honest.finish()
    assert set(node.children()) == processes, "a process died of it"


def more(node: NodeRig, before: Samples, name: str, **labels: str) -> Callable[[float], None]:
    """A function that waits until a metric has grown by so much since `before`."""

    def wait(number: float) -> None:
        wanted = total(before, name, **labels) + number
        found = wait_for(node, lambda samples: total(samples, name, **labels) >= wanted)
        assert total(found, name, **labels) == wanted

    return wait


def closed(node: NodeRig, before: Samples, port: str, reason: str) -> Callable[[float], None]:
    return more(node, before, "ingest_connections_closed_total", port=port, reason=reason)


def bad_frames(count: int, seed: int = 1) -> bytes:
    """Frames with good tickets and random checksums."""
    source = random.Random(seed)
    return b"".join(
        ticket.index_to_wire(source.randrange(10**6)) + source.randbytes(FRAME_SIZE - 8) for _ in range(count)
    )


def get_request(keys: mac.SubKeys, first: int, count: int) -> bytes:
    return bytes(build_request(keys.get, ticket.index_to_wire(first), count))


# --- those that are slow


def test_slow_senders(node: NodeRig) -> None:
    before = scrape_node(node)
    with attack(node) as look, ExitStack() as stack:
        putters = [stack.enter_context(connect(node.put_address)) for _ in range(200)]
        getters = [stack.enter_context(connect(node.get_address)) for _ in range(50)]
        left = [*putters, *getters]
        frame, request = put_frames(node.keys, [1]), get_request(node.keys, STORED, 1)
        for sent in range(FRAME_SIZE - 1):
            for sock in list(left):
                source = frame if sock in putters else request
                with contextlib.suppress(ConnectionError):
                    # Never the last byte: it is to be late, not wrong.
                    sock.sendall(
                        source[sent : sent + 1] if sent < REQUEST_SIZE - 1 or source is frame else b""
                    )
            if sent == 0:
                look()
            select.select(left, [], [], 0.1)
            left = [sock for sock in left if not is_closed(sock)]
            if not left:
                break
        assert not left
        closed(node, before, "put", "partial_frame")(200)
        closed(node, before, "get", "partial_request")(50)
        more(node, before, "ingest_partial_frames_total")(200)
    assert "put connection closed: partial frame (" in whole_log(node)


def send_for_ever(sock: socket.socket, data: bytes) -> None:
    """Until the other end breaks the connection."""
    with contextlib.suppress(ConnectionError):
        while True:
            sock.sendall(data)


def test_clients_that_never_read(node: NodeRig) -> None:
    before = scrape_node(node)
    # Of the put port: the same few frames for ever, no ack read. Of the get port: all that is stored, again and again.
    frames = bytes(put_frames(node.keys, range(STORED, STORED + 100))) * 5
    requests = get_request(node.keys, STORED, limits.RANGE_COUNT_MAX) * 100
    with attack(node) as look, ExitStack() as stack:
        threads = []
        for address, data, count in ((node.put_address, frames, 4), (node.get_address, requests, 16)):
            for _ in range(count):
                sock = stack.enter_context(connect(address, receive_buffer=4096))
                threads.append(threading.Thread(target=send_for_ever, args=(sock, data), daemon=True))
        for thread in threads:
            thread.start()
        look()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the server lets it live"
        closed(node, before, "put", "unread_acks")(4)
        closed(node, before, "get", "unread_replies")(16)
    log = whole_log(node)
    assert "put connection closed: unread acks (" in log and "get connection closed: unread replies (" in log


def test_half_open_connections(node: NodeRig) -> None:
    before = scrape_node(node)
    with attack(node) as look, ExitStack() as stack:
        silent = [
            stack.enter_context(connect(address))
            for address in (node.put_address, node.get_address)
            for _ in range(100)
        ]
        finished = []
        for i in range(100):
            sock = stack.enter_context(connect(node.put_address))
            sock.sendall(bad_frames(1, i)[:700] if i % 2 else b"")
            sock.shutdown(socket.SHUT_WR)  # and is never closed
            finished.append(sock)
        for i in range(100):
            sock = connect((node.put_address, node.get_address)[i % 2])
            sock.sendall(bad_frames(1)[:20])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()  # a reset
        look()
        wait_until_closed(finished)
        wait_until_closed(silent)
        closed(node, before, "put", "idle")(100)
        closed(node, before, "get", "idle")(100)
        wait_for(node, lambda samples: total(samples, "ingest_connections") == 2)  # the honest ones
    assert "get connection closed: idle (" in whole_log(node)


# --- floods


def test_a_bad_peer_that_comes_back(node: NodeRig) -> None:
    before = scrape_node(node)
    with attack(node):
        with connect(node.put_address, BAD_PEER) as sock:
            sock.sendall(bad_frames(3))
            wait_until_closed([sock])
        refused = 0
        for _ in range(2000):
            # Also the other worker hears of it, a moment later.
            with connect((node.put_address, node.get_address)[refused % 2], BAD_PEER) as sock:
                sock.settimeout(0.2)
                try:
                    refused = 0 if sock.recv(1) else refused + 1
                except ConnectionError:
                    refused += 1
                except TimeoutError:
                    refused = 0
            if refused == 20:
                break
        assert refused == 20
        samples = scrape_node(node)
        for port in ("put", "get"):
            name, labels = "ingest_connections_refused_total", {"port": port, "reason": "bad_peer"}
            assert total(samples, name, **labels) >= total(before, name, **labels) + 8
    assert f"{BAD_PEER} refused for 3600 s" in whole_log(node)


def test_floods_of_bad_checksums(node: NodeRig) -> None:
    before = scrape_node(node)
    count = 600
    frames = bad_frames(64)
    with attack(node) as look:
        for i in range(count):
            with connect(node.put_address, f"127.0.{1 + i // 200}.{1 + i % 200}") as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(frames)
                acks = read_exactly(sock, 3 * ACK_SIZE)
                assert [acks[j + 8] for j in (0, 9, 18)] == [Status.BAD_CHECKSUM] * 3
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""
            if i == count // 2:
                look()
        closed(node, before, "put", "bad_frames")(count)
        more(node, before, "ingest_acks_total", status="bad_checksum")(3 * count)
    # The log has some of them and says how many more there were.
    left_out = "ingest_log_lines_suppressed_total"
    assert total(scrape_node(node), left_out) > total(before, left_out)
    wait_for_log(node, "more lines about peers were left out: bad frames")
    assert whole_log(node).count("closed after 3 bad frames") < count


def wait_for_log(node: NodeRig, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in whole_log(node):
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)  # between two looks


def test_floods_of_whole_ranges(node: NodeRig) -> None:
    """Readers that do read: they cost time, not memory, and the others have their turn."""
    request = get_request(node.keys, STORED, limits.RANGE_COUNT_MAX)

    def flood(sock: socket.socket, requests: int) -> None:
        sock.sendall(request * requests)
        left = requests * limits.RANGE_COUNT_MAX
        while left:
            head = read_exactly(sock, RUN_HEADER_SIZE)
            tickets = int.from_bytes(head[12:], "big")
            if head[8] == Status.SAVED:
                read_exactly(sock, tickets * FRAME_SIZE)
            left -= tickets

    before = scrape_node(node)
    with attack(node) as look, ExitStack() as stack:
        socks = [stack.enter_context(connect(node.get_address)) for _ in range(8)]
        threads = [threading.Thread(target=flood, args=(sock, 4), daemon=True) for sock in socks]
        for thread in threads:
            thread.start()
        look()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    sent = total(scrape_node(node), "ingest_get_frames_total") - total(before, "ingest_get_frames_total")
    assert sent >= 8 * 4 * STORED_COUNT


# --- those that speak something else


def test_garbage(node: NodeRig) -> None:
    before = scrape_node(node)
    source = random.Random(7)
    with attack(node) as look:
        for i in range(20):
            for address, network in ((node.put_address, 7), (node.get_address, 8)):
                with connect(address, f"127.0.{network}.{1 + i}") as sock:
                    with contextlib.suppress(ConnectionError):
                        sock.sendall(source.randbytes(200_000))
                    wait_until_closed([sock])
        look()
        closed(node, before, "put", "bad_frames")(20)
        closed(node, before, "get", "bad_request")(20)


def test_tls_on_a_plain_port(node: NodeRig) -> None:
    before = scrape_node(node)
    context = ssl.create_default_context()
    with attack(node):
        for address in (node.put_address, node.get_address):
            with connect(address, "127.0.9.1") as sock, pytest.raises((OSError, ssl.SSLError)):
                context.wrap_socket(sock, server_hostname="localhost")
        more(node, before, "ingest_foreign_protocol_connections_total", protocol="tls")(2)
    wait_for_log(node, "the peer speaks TLS on the put port: this port speaks plain frames, not TLS")
    wait_for_log(node, "the peer speaks TLS on the get port")


def test_http_on_a_frame_port(node: NodeRig) -> None:
    before = scrape_node(node)
    with attack(node):
        for address, source in ((node.put_address, "127.0.9.2"), (node.get_address, "127.0.9.3")):
            browser = http.client.HTTPConnection(*address, timeout=PATIENCE_S, source_address=(source, 0))
            browser.request("GET", "/metrics", headers={"Cookie": "c" * 4 * FRAME_SIZE})
            with browser.getresponse() as answer:
                assert answer.status == 400 and b"--admin-listen" in answer.read()
            browser.close()
        more(node, before, "ingest_foreign_protocol_connections_total", protocol="http")(2)
    wait_for_log(
        node,
        "the peer speaks HTTP on the put port: this port speaks frames (docs/protocol.md), not HTTP."
        " HTTP is on the port of the gateway (--http-listen) and on the admin port (--admin-listen)",
    )


# --- very many


@contextmanager
def open_files(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this test opens {count} files, and {hard} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_five_thousand_connections(tmp_path: Path) -> None:
    limit = 2600  # of each of two workers
    wrapper = with_limits(CONNECTIONS_MAX=limit)
    with (
        open_files(8000),
        running_node(tmp_path / "data", "--workers=2", wrapper=wrapper) as node,
        attack(node) as look,
        ExitStack() as stack,
    ):
        socks = [stack.enter_context(connect(node.put_address, f"127.0.4.{1 + i % 50}")) for i in range(5000)]
        frames = put_frames(node.keys, range(36, 36 + 5000))
        for i, sock in enumerate(socks):
            sock.sendall(frames[i * FRAME_SIZE : (i + 1) * FRAME_SIZE] + frames[:1000])
        for i, sock in enumerate(socks):
            assert read_exactly(sock, ACK_SIZE) == ticket.index_to_wire(36 + i) + bytes([Status.SAVED])
        wait_for(node, lambda samples: total(samples, "ingest_connections", port="put") == 5001)
        look()
        # Beyond the limit those that have shown no key give way to each other: whoever was there before goes on.
        beyond = [stack.enter_context(connect(node.put_address, f"127.0.5.{1 + i % 50}")) for i in range(600)]
        closed(node, {}, "put", "idle")(401)
        assert sum(is_closed(sock) for sock in beyond) == 401
        look()
        for sock in socks:
            sock.sendall(frames[1000:FRAME_SIZE])
        for sock in socks:
            assert read_exactly(sock, ACK_SIZE) == ticket.index_to_wire(36) + bytes([Status.SAVED])


# --- random tickets


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 256 MiB with 16,384 inodes, in memory where there is a tmpfs: it is no disk that is tested here."""
    memory = Path("/dev/shm")
    has_memory = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 128 << 20
    with small_disk(tmp_path, "disk", 256, inodes=16_384, image_root=memory if has_memory else None) as mount:
        yield mount


def test_a_flood_of_random_tickets(few_inodes: Path, tmp_path: Path) -> None:
    """Each makes a pack and directories of its own: inodes run out long before bytes do."""
    source = random.Random(3)
    flags = ("--workers=1", f"--wal-dir={tmp_path / 'wal'}", "--wal-size=96MiB", "--reserve=1MiB")
    with running_node(few_inodes / "data", *flags) as node:
        with node.connect() as connection:
            assert set(connection.put(range(36, 136)).values()) == {Status.SAVED}
            saved: list[int] = []
            refused: list[int] = []
            while not refused:
                indices = [source.randrange(36**7) for _ in range(500)]
                for index, status in connection.put(indices).items():
                    {Status.SAVED: saved, Status.NO_SPACE: refused}[status].append(index)
            # Stopped at the reserve, a batch or two later at most: the disk did not run out.
            left = os.statvfs(few_inodes).f_favail
            assert 0 < left < limits.RESERVE_INODES
            assert total(scrape_node(node), "ingest_disk_free_inodes", file_system="data") == left
            assert total(scrape_node(node), "ingest_ready") == 0
            assert " inodes are free, the reserve is 8192" in whole_log(node)
            # Nothing new, not even where a pack is there; what is stored is answered, read and deleted.
            assert set(connection.put(range(136, 140)).values()) == {Status.NO_SPACE}
            assert set(connection.put([*range(36, 40), saved[-1]]).values()) == {Status.SAVED}
            assert set(connection.put([36], version=1).values()) == {Status.CONFLICT}
            assert connection.delete(36, 2) is Status.DELETED
            for index in saved[::50]:
                ((status, _),) = node.get(index, 1)
                assert status is Status.SAVED
            assert [status for status, _ in node.get(refused[0], 1)] == [Status.MISSING]
        # The free inodes are looked at every 50 ms: what is made meanwhile comes out of the reserve, for which it is there.
        assert os.statvfs(few_inodes).f_favail > limits.RESERVE_INODES // 2
        assert node.stop() == 0
