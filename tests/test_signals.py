"""What signals do to our processes, whatever the one that starts them has set; and orphans."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from gateway_rig import NodeGateway
from node_rig import NodeRig, data_of, running_node

from ingest.runtime import signals
from ingest.status import Status

TIMEOUT_S = 30.0
ROOT = Path(__file__).parent.parent

# Starts what follows it with everything ignored and blocked that can be.
HOSTILE = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""
# Starts what follows it as a subreaper that has a child which ended, and a grandchild that ends when the FIFO is closed.
ORPHANS = """
import ctypes, os, sys
fifo = sys.argv.pop(1)
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
if os.fork() == 0:
    ended = os.getpid()
    if os.fork() == 0:
        with open(fifo + ".pid", "w") as file:
            file.write(f"{ended} {os.getpid()}")
        open(fifo).read()
    os._exit(0)
os.execv(sys.argv[1], sys.argv[1:])
"""
# Says what a command sees after its start.
COMMAND = """
import signal
from ingest.runtime import signals
signals.begin()
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
    print(signal.getsignal(number) is signal.SIG_IGN)
print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""


def until(what: str, happens: object) -> None:
    """Until the kernel says so: there is nothing to wait for that tells it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def mask(pid: int, name: str) -> set[int]:
    """Of `SigBlk`, `SigIgn` and `SigCgt` in /proc: the numbers of the signals."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            bits = int(line.split()[1], 16)
            return {number for number in range(1, 65) if bits >> (number - 1) & 1}
    raise AssertionError(name)


def ends_nothing() -> list[int]:
    """The signals that are none of a server's business, and whose default action ends or stops it."""
    named = [
        getattr(signal, f"SIG{name}") for name in ("USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "TTOU")
    ]
    return [*named, signal.SIGRTMIN, signal.SIGRTMIN + 3, signal.SIGRTMAX]


@pytest.fixture(params=["server", "serve"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeRig | NodeGateway]:
    wrapper = [sys.executable, "-c", HOSTILE]
    rig = (
        NodeRig(tmp_path / "data", "--workers=2", wrapper=wrapper)
        if request.param == "server"
        else NodeGateway(tmp_path / "data", "--workers=2", "--http-workers=1", wrapper=wrapper)
    )
    rig.start()
    yield rig
    rig.close()


def family(rig: NodeRig | NodeGateway) -> dict[str, int]:
    assert rig.process is not None
    parent = psutil.Process(rig.process.pid)
    found = {"parent": parent.pid}
    for one in parent.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found[one.name()] = one.pid
    return found


def test_nothing_is_inherited(hostile: NodeRig | NodeGateway) -> None:
    last = "ingest-worker-1" if isinstance(hostile, NodeRig) else "ingest-collecto"
    until("not all of it has started", lambda: {last, "ingest-worker-1"} <= {*family(hostile)})
    processes = family(hostile)
    for name, pid in processes.items():
        is_parent = name == "parent"  # of all: it tells those below it
        until(f"{name} blocks {mask(pid, 'SigBlk')}", lambda pid=pid: not mask(pid, "SigBlk"))
        assert signal.SIGCHLD not in mask(pid, "SigIgn"), name
        assert set(ends_nothing()) <= mask(pid, "SigIgn"), name
        assert (signal.SIGQUIT in mask(pid, "SigCgt")) == is_parent, name
    # The first death of a child ends nothing but the child.
    os.kill(processes["ingest-worker-0"], signal.SIGKILL)
    until(
        "there is no new worker",
        lambda: (
            family(hostile).get("ingest-worker-0", processes["ingest-worker-0"])
            != processes["ingest-worker-0"]
        ),
    )
    assert hostile.says("was killed by signal 9")
    assert hostile.stop() == 0, hostile.log()


def test_signals_that_mean_nothing_end_nothing(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=1") as node:
        with node.connect() as connection:
            assert connection.put([7]) == {7: Status.SAVED}
            processes = [node.pid, *node.children()]
            for number in ends_nothing():
                for pid in processes:
                    os.kill(pid, number)
            assert connection.put([8]) == {8: Status.SAVED}
        assert [node.pid, *node.children()] == processes
        assert node.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGPWR])
def test_signals_that_drain_like_term(tmp_path: Path, number: int) -> None:
    """To the whole group, as a terminal sends them: the parent decides in which order they end."""
    with running_node(tmp_path / "data", "--workers=1") as node:
        with node.connect() as connection:
            assert connection.put([7]) == {7: Status.SAVED}
            for pid in [*node.children(), node.pid]:
                os.kill(pid, number)
            assert node.process is not None and node.process.wait(TIMEOUT_S) == 0
        log = node.log()
        assert f"{signal.Signals(number).name}: draining" in log and " error " not in log
        assert log.index("worker-0 info drained") < log.index("committer info flushed")
        node.start()
        assert node.get(7, 1) == [(Status.SAVED, data_of(7))]


def test_orphans_are_reaped_and_own_children_stay_the_parents(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    wrapper = [sys.executable, "-c", ORPHANS, str(fifo)]
    with running_node(tmp_path / "data", "--workers=2", wrapper=wrapper) as node, fifo.open("w") as held:
        ended, orphan = (int(pid) for pid in Path(f"{fifo}.pid").read_text().split())
        assert psutil.Process(orphan).ppid() == node.pid
        until("the child that had ended is not reaped", lambda: not psutil.pid_exists(ended))
        with node.connect() as connection:  # then all workers have started
            assert connection.put([7]) == {7: Status.SAVED}
        until("no worker has its name", lambda: len(node.children("ingest-worker")) == 2)
        parent, workers = psutil.Process(node.pid), node.children("ingest-worker")
        # An own child and an orphan have both ended when the parent looks.
        parent.suspend()
        os.kill(workers[0], signal.SIGKILL)
        held.close()
        for pid in (workers[0], orphan):
            until("it has not ended", lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        parent.resume()
        until("the orphan is not reaped", lambda: not psutil.pid_exists(orphan))
        until("there is no new worker", lambda: set(node.children("ingest-worker")) - {*workers})
        assert node.says(f"(pid {workers[0]}) was killed by signal 9")
        assert node.stop() == 0, node.log()


def test_a_command_keeps_what_a_shell_ignores_for_it() -> None:
    """`nohup ingest put …`, and what a script runs in the background; but CHLD and the mask are nobody's wish."""
    command = [sys.executable, "-c", HOSTILE, sys.executable, "-c", COMMAND]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True", "False", "0"]


def test_an_interrupted_load_generator_whose_interrupt_is_ignored_goes_on(tmp_path: Path) -> None:
    """A command with processes of its own, where INT and CHLD are ignored: it hears how they ended."""
    with running_node(tmp_path / "data", "--workers=1") as node:
        command = [
            sys.executable,
            "-c",
            HOSTILE,
            sys.executable,
            "-m",
            "ingest",
            "loopback",
            "--frames=20000",
        ]
        command += [f"--connect=127.0.0.1:{node.put_address[1]}", "--processes=2", "--connections=2"]
        command += [f"--key-file={node.data_dir}/.ingest/key"]
        command += [f"--read-connect=127.0.0.1:{node.get_address[1]}"]
        loopback = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until("it starts no process", lambda: psutil.Process(loopback.pid).children())
        loopback.send_signal(signal.SIGINT)
        said, _ = loopback.communicate(timeout=TIMEOUT_S)
        assert loopback.returncode == 0, said


def test_the_lists_do_not_overlap() -> None:
    lists = (*signals.HANDLED, *signals._FAILS_THE_CALL, *signals._MEANINGLESS)
    assert len({*lists}) == len(lists)


# --- without /proc


@pytest.fixture(scope="module")
def without_proc() -> list[str]:
    """A program that runs another one where /proc is empty."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    mount = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c"]
    wrapper = [*mount, 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    for attempt in (wrapper, [unshare, "--mount", *wrapper[4:]]):
        with suppress(OSError):
            if subprocess.run([*attempt, "true"], capture_output=True, check=False).returncode == 0:
                return attempt
    pytest.skip("no mount namespace here")


def test_without_proc_it_serves(tmp_path: Path, without_proc: list[str]) -> None:
    node = NodeGateway(tmp_path / "data", "--workers=1", "--http-workers=1", wrapper=without_proc)
    try:
        node.start()
        assert node.gateway.request("PUT", "/objects/a", b"x").status == 200
        assert node.gateway.request("GET", "/objects/a").body == b"x"
        assert node.stop() == 0, node.log()
    finally:
        node.close()


def test_what_needs_proc_names_it_at_the_start(tmp_path: Path, without_proc: list[str]) -> None:
    data = tmp_path / ("long" * 25) / "data"
    data.parent.mkdir()
    node = NodeGateway(data, "--workers=1", "--http-workers=1", wrapper=without_proc)
    node.start(wait=False)
    try:
        assert node.process is not None and node.process.wait(TIMEOUT_S) == 78
        (line,) = node.log_path.read_text().splitlines()
        assert line.startswith("ingest: /proc is not mounted") and str(data) in line
    finally:
        node.close()
