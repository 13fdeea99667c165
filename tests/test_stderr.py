"""Lines to a stderr that nobody reads, that is full, closed or not ours alone: nobody waits, and what is lost is told."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from gateway_rig import NodeGateway
from node_rig import running_node

from ingest import limits
from ingest.runtime.stderr import LineStream, LineWriter
from ingest.status import Status

TIMEOUT_S = 30.0
ROOT = Path(__file__).parent.parent


def tell(count: int, reason: str) -> str:
    return f"lost {count}: {reason}"


class Pipe:
    """A small pipe with a name, which is full soon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.reads = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.reads, True)
        self.writes = os.open(path, os.O_WRONLY)
        fcntl.fcntl(self.writes, fcntl.F_SETPIPE_SZ, 4096)

    def fill(self) -> None:
        os.set_blocking(self.writes, False)
        try:
            while True:
                os.write(self.writes, b"x\n" * 512)
        except BlockingIOError:
            os.set_blocking(self.writes, True)

    def lines_until(self, last: str) -> list[str]:
        """All lines up to the one that ends so."""
        text = b""
        while not text.endswith(last.encode() + b"\n"):
            piece = os.read(self.reads, 65536)
            assert piece, text
            text += piece
        return text.decode().splitlines()

    def close_reads(self) -> None:
        os.close(self.reads)
        self.reads = -1

    def close(self) -> None:
        for fd in (self.reads, self.writes):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    with closing(Pipe(tmp_path / "fifo")) as made:
        yield made


def test_lines_come_in_their_order(pipe: Pipe) -> None:
    out = LineWriter(pipe.writes, tell)
    for i in range(1000):
        out.put(f"line {i}")
    assert pipe.lines_until("line 999") == [f"line {i}" for i in range(1000)]


def test_what_finds_no_room_is_counted_and_told_in_its_place(pipe: Pipe) -> None:
    out = LineWriter(pipe.writes, tell)
    total = 3 * limits.STDERR_QUEUE_SIZE // 100
    for i in range(total):
        out.put(f"{i:099d}")
    lines = pipe.lines_until("nobody took it in time")
    kept = len(lines) - 1
    assert limits.STDERR_QUEUE_SIZE // 100 <= kept < total
    assert lines == [f"{i:099d}" for i in range(kept)] + [f"lost {total - kept}: nobody took it in time"]
    out.put("again")
    assert pipe.lines_until("again") == ["again"]


def test_once_lines_are_lost_more_are_until_half_of_the_room_is_free(pipe: Pipe) -> None:
    """Else a reader that is slow gets every other line, and a count between each two."""
    out = LineWriter(pipe.writes, tell)
    number = 0
    while not out._lost:
        out.put(f"{number:099d}")
        number += 1
    lines = number - 1  # so many are in the queue or on their way
    while out._size > limits.STDERR_QUEUE_SIZE * 3 // 4:
        os.read(pipe.reads, 4096)
        out.put("too soon")
        number += 1
        assert out._lost == number - lines, "there was room"
    found = pipe.lines_until(f"lost {number - lines}: nobody took it in time")
    assert "too soon" not in found


@pytest.mark.parametrize("times", [1, 3])
def test_lines_for_which_the_system_has_no_thread_are_counted(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """And whoever said them has the signals that he had: a server could not be told to end."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    out = LineWriter(pipe.writes, tell)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not before, "of a line that was said before"
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for number in range(times):
            out.put(f"{number}")
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    out.put("there is one")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert pipe.lines_until("there is one") == [f"lost {times}: can't start new thread", "there is one"]


def test_o_nonblock_of_somebody_else_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writes, False)
    out = LineWriter(pipe.writes, tell)
    for i in range(500):
        out.put(f"{i:099d}")
    assert pipe.lines_until(f"{499:099d}") == [f"{i:099d}" for i in range(500)]
    assert not os.get_blocking(pipe.writes)


def test_a_line_that_is_longer_than_the_queue(pipe: Pipe) -> None:
    out = LineWriter(pipe.writes, tell)
    out.put("x" * 2 * limits.STDERR_QUEUE_SIZE + "end")
    (line,) = pipe.lines_until("end")
    assert len(line) == 2 * limits.STDERR_QUEUE_SIZE + 3


def test_a_disk_that_was_full(tmp_path: Path) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        out = LineWriter(fd, tell)
        for i in range(3):
            out.put(f"{i}")
        out.flush()
        file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, fd)
        os.close(file)
        out.put("room again")
        out.flush()
        assert (tmp_path / "log").read_text() == "lost 3: No space left on device\nroom again\n"
    finally:
        os.close(fd)


def test_what_was_lost_is_told_without_another_line(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STDERR_RETRY_INTERVAL_S", 0.01)
    pipe.close_reads()
    out = LineWriter(pipe.writes, tell)
    out.put("nobody is there")
    out.flush()
    with pipe.path.open("rb") as reader:
        assert reader.readline() == b"lost 1: Broken pipe\n"


def test_a_line_that_was_cut_off_gets_an_end(tmp_path: Path) -> None:
    """The limit of a file's size stands for the end of the disk."""
    program = f"""
import os, resource, signal
from ingest.runtime.stderr import LineWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8, resource.RLIM_INFINITY))
out = LineWriter(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), lambda n, why: f"lost {{n}}: {{why}}")
out.put("0123456789")
out.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out.put("whole")
out.flush()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=TIMEOUT_S)
    assert (tmp_path / "log").read_text() == "01234567\nlost 1: File too large\nwhole\n"


@pytest.mark.parametrize("losses", [1, 2, 5])
def test_the_line_that_was_cut_off_gets_its_end_however_many_are_lost_first(
    tmp_path: Path, losses: int
) -> None:
    """Of the later ones not even a byte is written: that nothing of a line is there says nothing of the one before it."""
    program = f"""
import os, resource, signal
from ingest.runtime.stderr import LineWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8, resource.RLIM_INFINITY))
out = LineWriter(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), lambda n, why: f"lost {{n}}: {{why}}")
for _ in range({losses}):
    out.put("0123456789")
    out.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out.put("whole")
out.flush()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=TIMEOUT_S)
    assert (tmp_path / "log").read_text() == f"01234567\nlost {losses}: File too large\nwhole\n"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[LineWriter, Path]]:
    """What is written is lost, as on a full disk, until the path is there: `make_room`."""
    fd = os.open("/dev/full", os.O_WRONLY)
    yield LineWriter(fd, tell), tmp_path / "log"
    os.close(fd)


def make_room(fd: int, path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, fd)
    os.close(file)


@pytest.mark.parametrize("rounds", [(1, 1), (3, 1), (2, 3, 4)])
def test_a_count_that_is_lost_too_counts_with_all_that_it_tells_of(
    full: tuple[LineWriter, Path], rounds: tuple[int, ...]
) -> None:
    """Each round begins by telling of the last one's."""
    out, path = full
    for lines in rounds:
        for i in range(lines):
            out.put(f"{i}")
        out.flush()
    make_room(out.fd, path)
    out.put("room")
    out.flush()
    assert path.read_text() == f"lost {sum(rounds)}: No space left on device\nroom\n"


def test_what_was_lost_before_a_fork_is_told_once(full: tuple[LineWriter, Path]) -> None:
    """By the process that lost it."""
    out, path = full
    for i in range(3):
        out.put(f"{i}")
    out.flush()
    make_room(out.fd, path)
    pid = os.fork()
    if pid == 0:
        out.put("child")
        out.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    out.put("parent")
    out.flush()
    assert path.read_text() == "child\nlost 3: No space left on device\nparent\n"


def test_what_waits_at_a_fork_is_written_once(pipe: Pipe) -> None:
    out = LineWriter(pipe.writes, tell)
    for i in range(200):
        out.put(f"{i:099d}")
    pid = os.fork()
    if pid == 0:
        out.put("child")
        os._exit(0)  # its line finds a full pipe: what counts is that it ends
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    out.put("parent")
    lines = [line for line in pipe.lines_until("parent") if line != "child"]
    assert lines == [*(f"{i:099d}" for i in range(200)), "parent"]
    pid = os.fork()
    if pid == 0:
        out.put("another child")
        out.flush()
        os._exit(0)
    assert pipe.lines_until("another child") == ["another child"]
    os.waitpid(pid, 0)


def test_signals_are_not_for_its_thread(pipe: Pipe) -> None:
    out = LineWriter(pipe.writes, tell)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not before, "of a line that was said before"
    out.put("x")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    pipe.lines_until("x")
    masks = [
        int(line.split()[1], 16)
        for status in Path("/proc/self/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("SigBlk")
    ]
    assert any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


def test_a_stream_cuts_what_is_printed_into_lines(pipe: Pipe) -> None:
    stream = LineStream(LineWriter(pipe.writes, tell), None)
    print("a", 1, "\ud800", file=stream)
    stream.write("b\n\nc")
    stream.write("d\n")
    assert pipe.lines_until("cd") == ["a 1 \\ud800", "b", "", "cd"]


# --- whole processes


FAILS = """
import logging, sys
from ingest.runtime import logs
logs.start("info")
logging.getLogger("x").info("said")
sys.exit(3) if "exit" in sys.argv else 1 / 0
"""


def test_the_last_lines_of_a_process(pipe: Pipe) -> None:
    command = [sys.executable, "-c", FAILS]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert failed.returncode == 1
    assert " info said\nTraceback" in failed.stderr and failed.stderr.endswith(
        "ZeroDivisionError: division by zero\n"
    )
    pipe.fill()
    for arguments, code in ((["exit"], 3), ([], 1)):  # nobody reads what it says: it ends all the same
        done = subprocess.run([*command, *arguments], cwd=ROOT, stderr=pipe.writes, timeout=TIMEOUT_S)
        assert done.returncode == code


@pytest.fixture
def unread(pipe: Pipe) -> list[str]:
    """A program that runs another one whose stderr is a full pipe."""
    pipe.fill()
    program = (
        "import os, sys; os.dup2(os.open(sys.argv[1], os.O_WRONLY), 2); os.execv(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-c", program, str(pipe.path)]


def test_a_server_whose_stderr_nobody_reads(tmp_path: Path, unread: list[str]) -> None:
    with running_node(tmp_path / "data", "--workers=1", wrapper=unread) as node:
        with node.connect() as connection:
            assert connection.put(range(8)) == dict.fromkeys(range(8), Status.SAVED)
        os.kill(node.pid, signal.SIGHUP)
        (worker,) = node.children("ingest-worker")
        os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + TIMEOUT_S
        while node.children("ingest-worker") in ([], [worker]):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with node.connect() as connection:
            assert connection.put([9]) == {9: Status.SAVED}
        assert node.stop() == 0


def test_a_server_whose_stderr_is_read_late_has_said_all(
    tmp_path: Path, pipe: Pipe, unread: list[str]
) -> None:
    node = NodeGateway(tmp_path / "data", "--workers=1", "--http-workers=1", wrapper=unread)
    with closing(node):
        node.start()
        os.close(pipe.writes)
        pipe.writes = -1
        assert node.process is not None
        node.process.terminate()
        said = b""
        while piece := os.read(pipe.reads, 65536):
            said += piece
        assert node.process.wait(TIMEOUT_S) == 0
        for what in (b"gateway has pid", b"the store has recovered", b"SIGTERM: draining", b"flushed"):
            assert what in said
        assert b"could not be written" not in said


def test_closed_descriptors_are_nobody_elses(tmp_path: Path) -> None:
    """A server that was started with all three closed: no file of the store gets their numbers, nor what is said there."""
    close = "import os, sys; os.closerange(0, 3); os.execv(sys.argv[1], sys.argv[1:])"
    node = NodeGateway(
        tmp_path / "data", "--workers=1", "--http-workers=1", wrapper=[sys.executable, "-c", close]
    )
    with closing(node):
        node.start()
        assert node.gateway.request("PUT", "/objects/a", b"x").status == 200
        for process in node.family():
            for fd in (0, 1, 2):
                assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == "/dev/null"
        assert node.stop() == 0
