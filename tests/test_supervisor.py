"""SIGHUP on its way to processes that have no handler yet: none is lost, and none ends anybody. Starts that fail."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ingest.errors import (
    BusyError,
    CatalogError,
    ConfigError,
    CorruptionError,
    NoSpaceError,
    StoreFormatError,
)
from ingest.runtime import heartbeat, logs, signals
from ingest.runtime.supervised import Child, State
from ingest.runtime.supervisor import Supervisor

HERE = Path(__file__).parent


class Rig:
    """`supervisor_rig` in a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []
        for name in ("root", "leaf", "branch", "twig"):
            os.mkfifo(directory / name)
        command = [sys.executable, str(HERE / "supervisor_rig.py"), str(directory)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def until(self, *lines: str) -> None:
        """Until it has said all of them."""
        assert self.process.stdout is not None
        while not set(lines) <= set(self.lines):
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.lines}"
            self.lines.append(line.strip())

    def go_on(self, name: str) -> None:
        (self.directory / name).write_text("go")

    def hup(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    started = Rig(tmp_path)
    yield started
    started.close()


def test_a_reload_that_comes_before_there_is_a_handler(rig: Rig) -> None:
    """At the root, in a child of it, and in a child that has children of its own."""
    rig.until("root starts")
    rig.hup()
    rig.go_on("root")
    rig.until("root passes it on", "leaf starts", "branch starts")
    # By the time the root takes the next one, it has passed the first one on.
    rig.lines.clear()
    rig.hup()
    rig.until("root passes it on")
    rig.go_on("leaf")
    rig.until("leaf runs")
    assert "leaf reloads" in rig.lines
    rig.go_on("branch")
    rig.until("branch passes it on", "twig starts")
    rig.go_on("twig")
    rig.until("twig runs", "twig reloads")
    rig.lines.clear()
    rig.hup()
    rig.until("leaf reloads", "twig reloads")
    assert rig.terminate() == 0


def test_who_does_not_reload_has_signals_as_they_were(rig: Rig) -> None:
    rig.go_on("root")
    rig.until("deaf has 0 signals blocked and ignores SIGHUP", "leaf starts")
    rig.go_on("leaf")
    rig.go_on("branch")
    rig.go_on("twig")
    rig.until("leaf runs", "twig runs")
    assert rig.terminate() == 0


def test_where_no_process_can_be_watched_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    started: list[int] = []
    monkeypatch.setattr(os, "pidfd_open", missing)
    with pytest.raises(ConfigError, match=r"Linux 5\.3 or later"):
        Supervisor([[Child("one", lambda: started.append(1) or 0)]], 1).run()
    assert not started


def test_a_reload_that_comes_in_the_drain_is_none() -> None:
    """What it would change, or refuse, is of no use to processes that end."""
    reloads: list[object] = []
    supervisor = Supervisor([[Child("one", lambda: 0)]], 10, reload=reloads.append)
    supervisor._hang_up()
    supervisor._drain()
    supervisor._hang_up()
    assert len(reloads) == 1


@pytest.mark.parametrize("first", ["TERM", "END", "an end that is final"])
@pytest.mark.parametrize("then", ["END", "HUP", "CHLD", "an end that is final"])
def test_a_drain_goes_on_as_it_began(first: str, then: str) -> None:
    """Whatever comes meanwhile: it has no more time, and what was let go of is not let go of again."""
    released: list[object] = []
    children = [Child(f"child-{number}", lambda: 0, state=State.RESTING, exit_code=78) for number in (0, 1)]
    supervisor = Supervisor([children], 10, release=lambda: released.append(1))
    supervisor._signals_read, writes = os.pipe()

    def comes(what: str, child: Child) -> None:
        if what == "an end that is final":
            supervisor._settle(child, False)
        else:
            number = {
                "TERM": signal.SIGTERM,
                "END": signals.END,
                "HUP": signal.SIGHUP,
                "CHLD": signal.SIGCHLD,
            }
            os.write(writes, bytes([number[what]]))
            assert supervisor._take_signals()

    try:
        comes(first, children[0])
        deadline = supervisor._deadline
        comes(then, children[1])
        assert (supervisor._draining, supervisor._deadline, released) == (True, deadline, [1])
        os.write(writes, bytes([signal.SIGTERM]))
        assert not supervisor._take_signals(), "who asks again does not want to wait"
    finally:
        os.close(supervisor._signals_read)
        os.close(writes)


@pytest.mark.parametrize("reloads", [False, True])
def test_who_is_told_to_end_before_he_has_begun_ends(monkeypatch: pytest.MonkeyPatch, reloads: bool) -> None:
    """While nothing says yet what a signal does to him. He would be waited for until the drain is over, and killed."""
    monkeypatch.setattr(heartbeat, "take", lambda _: os.kill(os.getpid(), signals.END))
    child = Child("child", lambda: 3, reloads=reloads)
    child.start(lambda: None)
    child.reap()
    assert child.exit_code == -signals.END


@pytest.mark.parametrize("number", signals.DRAINS)
@pytest.mark.parametrize("first", [True, False])
def test_what_tells_a_server_to_end_does_while_it_starts(
    monkeypatch: pytest.MonkeyPatch, number: int, first: bool
) -> None:
    """As process 1 of a container too: the kernel drops what that has no handler for."""
    if not (pid := os.fork()):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # QUIT leaves one
        try:
            if first:
                real = os.getpid()
                monkeypatch.setattr(os, "getpid", lambda: 1)
                signals.begin_server()
                os.kill(real, number)
            else:
                signals.begin_server()
                os.kill(os.getpid(), number)
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code or 0))
        finally:
            os._exit(1)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended == (128 + number if first else -number)


FINAL = {75: BusyError, 78: ConfigError, 65: CorruptionError}


@pytest.mark.parametrize("first", [0, 1, -9, *FINAL])
@pytest.mark.parametrize("second", [None, 0, 1, *FINAL])
def test_what_all_end_by_is_what_came_first(first: int, second: int | None) -> None:
    """Of two that ended in one moment too. It is told whatever the others end with, who are told to end for it; and that
    somebody ended who was to stay is never called well."""
    children = [Child(name, lambda: 0, stays=True, state=State.RESTING, starts=1) for name in ("one", "two")]
    told = Child("told", lambda: 0, state=State.RESTING, told_to_end=True)
    supervisor = Supervisor([children, [told]], 3600)
    for child, code in zip(children, (first, second), strict=True):
        if code is not None:
            child.exit_code = code
            supervisor._settle(child, False)
            assert child.state is State.DONE
    supervisor._settle(told, True)
    assert supervisor._draining and not supervisor._clean
    codes = [code for code in (first, second) if code in FINAL]
    expected = FINAL[codes[0]] if codes else type(None)
    assert type(supervisor._error) is expected
    if codes:
        assert ("one" if codes[0] == first else "two") in str(supervisor._error)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("code", [0, -signals.END, 1, 70, 75, 78, *(-number for number in (6, 9, 11, 15))])
def test_only_an_end_that_was_asked_for_and_went_well_is_called_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: bool, code: int
) -> None:
    """Who was killed in the drain, by whom ever, may have left something undone."""
    caplog.set_level("INFO")
    child = Child("it", lambda: 0, state=State.RUNNING, exit_code=int(code), told_to_end=told, starts=2)
    supervisor = Supervisor([[child]], 3600)
    monkeypatch.setattr(supervisor, "_reap", lambda _: None)
    supervisor._ended(child)
    well = told and code in (0, -signals.END)
    assert caplog.records[0].levelname == ("INFO" if well else "ERROR")
    if told:
        assert (child.state, supervisor._clean, supervisor._draining) == (State.DONE, well, False)
    else:
        final = code in (78,)
        assert child.state is (State.DONE if final else State.RESTING) and supervisor._clean != final
        assert supervisor._draining == final


class Told(Child):
    """A process that ends when the test says so: it is told to by its parent before."""

    def tell_to_end(self) -> None:
        self.told_to_end = True
        if self.state is not State.RUNNING:
            self.state = State.DONE


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (2, 3), (3, 1, 2)])
@pytest.mark.parametrize("first_ends_first", [False, True])
@pytest.mark.parametrize("others", [State.RUNNING, State.RESTING])
def test_a_rank_is_told_to_end_when_all_of_the_one_behind_it_have(
    sizes: tuple[int, ...], first_ends_first: bool, others: State
) -> None:
    """Whichever of it ends last: who asks somebody else is gone before that one is. One that rests just stays away."""
    ranks = [
        [
            Told(f"{rank}-{number}", lambda: 0, state=others if number else State.RUNNING, due=float("inf"))
            for number in range(size)
        ]
        for rank, size in enumerate(sizes)
    ]
    supervisor = Supervisor(ranks, 3600)
    supervisor._listened_at = float("inf")  # nobody's heart is listened to
    supervisor._drain()
    now = supervisor._deadline - 1
    for at in reversed(range(len(ranks))):
        running = [child for child in ranks[at] if child.state is State.RUNNING]
        for child in running if first_ends_first else reversed(running):
            for _ in range(2):
                supervisor._step(now)
            assert all(one.told_to_end for rank in ranks[at:] for one in rank)
            assert not any(one.told_to_end for rank in ranks[:at] for one in rank)
            assert all(one.state is not State.RESTING for one in ranks[at])
            child.state = State.DONE
    supervisor._step(now)
    assert all(child.state is State.DONE and child.starts == 0 for rank in ranks for child in rank)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process gets so many more, and then none."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(count + 1)]  # the lowest ones that are free
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextmanager
def no_process() -> Iterator[None]:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", fork)
        yield


class TestStartsThatFail:
    """At each call of a start: what was made until then is gone again, and the next start finds nothing of it."""

    def has(self) -> tuple[set[int], set[str], set[signal.Signals]]:
        """What a start may leave: processes, descriptors, blocked signals."""
        children = {child.pid for child in psutil.Process().children()}
        return children, set(os.listdir("/proc/self/fd")), signal.pthread_sigmask(signal.SIG_BLOCK, [])

    @pytest.mark.parametrize(
        ("has_line", "failing"),
        [
            (False, no_process),
            (True, no_process),
            (False, partial(descriptors_left, 0)),  # no pidfd
            (True, partial(descriptors_left, 0)),  # no line
            (True, partial(descriptors_left, 1)),  # half a line
            (True, partial(descriptors_left, 2)),  # a line and no pidfd
        ],
    )
    @pytest.mark.parametrize("times", [1, 2])
    @pytest.mark.parametrize("then", ["it is started", "it is to end"])
    def test_leave_nothing(
        self, has_line: bool, failing: Callable[[], AbstractContextManager[None]], times: int, then: str
    ) -> None:
        def main() -> int:
            while True:
                signal.pause()

        child = Child("child", main, has_line=has_line)
        before = self.has()
        try:
            for _ in range(times):
                with failing():
                    child.start(lambda: None)
                assert self.has() == before
                assert (child.state, child.starts, child.pidfd, child.line) == (State.RESTING, 0, -1, None)
            if then == "it is to end":
                child.tell_to_end()
                assert (child.state, self.has()) == (State.DONE, before)
                return
            child.start(lambda: None)
            assert (child.state, child.starts, child.line is not None) == (State.RUNNING, 1, has_line)
            assert self.has()[0] - before[0] == {child.pid}
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            child.reap()
            assert self.has() == before
        finally:
            for pid in self.has()[0] - before[0]:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def fails(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: 0, 0),
        (lambda: 3, 3),
        (partial(fails, CorruptionError("x")), 65),
        (partial(fails, CatalogError("x")), 65),  # another process would find it too
        (partial(fails, BusyError("x")), 75),
        (partial(fails, ConfigError("x")), 78),
        (partial(fails, StoreFormatError("x")), 78),
        (partial(fails, NoSpaceError("x")), NoSpaceError.exit_code),
        (partial(fails, SystemExit()), 0),
        (partial(fails, SystemExit(0)), 0),
        (partial(fails, SystemExit(7)), 7),
        (partial(fails, SystemExit("why")), 1),
        (partial(fails, SystemExit("")), 1),
        (partial(fails, OSError(5, "x")), 70),
        (partial(fails, KeyboardInterrupt()), 70),
        (partial(fails, MemoryError()), 70),
    ],
)
def test_each_end_of_a_process_has_its_code(main: Callable[[], int], code: int) -> None:
    """By which its parent decides whether another one takes its place."""
    child = Child("child", main)
    child.start(lambda: None)
    child.reap()
    assert child.exit_code == code


class Inherited:
    """What a process says of itself, that is started third of four by a parent which has signals, descriptors and hearts."""

    def __init__(self, reloads: bool, has_line: bool) -> None:
        self.reads, self.writes = os.pipe()
        self.given = self.descriptors()
        self.child = Child("third", self._main, reloads=reloads, has_line=has_line)
        self.others = [Child(name, self._wait, has_line=True) for name in ("first", "second", "fourth")]
        self.supervisor = Supervisor([self.others[:2], [self.child], self.others[2:]], 1)

    def descriptors(self) -> set[int]:
        return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}

    def _wait(self) -> int:
        while True:
            signal.pause()

    def _main(self) -> int:
        found = self.descriptors()
        line = self.child.line
        more = found - self.given - ({line.fileno()} if line is not None else set())
        numbers = (
            *signals.DRAINS,
            signals.END,
            signal.SIGHUP,
            signal.SIGCHLD,
            signal.SIGUSR1,
            signal.SIGPIPE,
        )
        said = {
            "more": len(more),
            "less": len(self.given - found),
            "line": line is not None,
            "wakeup": signal.set_wakeup_fd(-1),
            "name": Path("/proc/self/comm").read_text().strip(),
            "in the log": logs._process,
            "own heart": heartbeat.own() is self.child.heart,
            "told by": [int(number) for number in signals.ends()],
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "ignored": [int(one) for one in numbers if signal.getsignal(one) is signal.SIG_IGN],
            "default": [int(one) for one in numbers if signal.getsignal(one) is signal.SIG_DFL],
        }
        os.write(self.writes, json.dumps(said).encode())
        return 0

    def run(self) -> dict[str, Any]:
        before = signal.getsignal(signals.END)
        handlers = self.supervisor._catch_signals()
        try:
            for child in (*self.others[:2], self.child, self.others[2]):
                self.supervisor._start(child)
            return json.loads(os.read(self.reads, 4096))  # type: ignore[no-any-return]
        finally:
            self.supervisor._kill_all()
            self.supervisor._release_signals(handlers)
            assert self.descriptors() == self.given
            os.close(self.reads)
            os.close(self.writes)
            assert signal.getsignal(signals.END) is before
            assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("has_line", [False, True])
@pytest.mark.parametrize("reloads", [False, True])
def test_a_process_has_nothing_of_its_parent_s_and_of_no_other(reloads: bool, has_line: bool) -> None:
    """A line that another one has too never ends. A signal's number goes into whatever file has the descriptor by then."""
    hup, ignored = int(signal.SIGHUP), sorted(int(number) for number in signals.DRAINS)
    said = Inherited(reloads, has_line).run()
    assert sorted(said.pop("ignored")) == sorted(
        [*ignored, *([] if reloads else [hup]), int(signal.SIGUSR1), int(signal.SIGPIPE)]
    )
    assert said.pop("default") == [int(signals.END), int(signal.SIGCHLD)]
    assert said == {
        "more": 0,
        "less": 0,
        "line": has_line,
        "wakeup": -1,
        "name": "ingest-third",
        "in the log": "third",
        "own heart": True,
        "told by": [int(signals.END)],
        "blocked": [hup] if reloads else [],
    }


LAST_WORDS = """
import logging
from ingest.errors import ConfigError, CorruptionError
from ingest.runtime import logs
from ingest.runtime.supervised import Child
logs.start("info")
def main(error):
    for number in range(500):
        logging.getLogger().info("word %d", number)
    if error is not None:
        raise error
    return 0
for error in (None, ConfigError("last"), CorruptionError("last"), SystemExit(1), ValueError("last")):
    child = Child(type(error).__name__, lambda: main(error))
    child.start(lambda: None)
    child.reap()
"""


def test_the_last_words_of_a_process_are_written_however_it_ends() -> None:
    """They say why."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", LAST_WORDS]
    said = subprocess.run(command, env=environment, timeout=60, check=True, capture_output=True, text=True)
    for name in ("NoneType", "ConfigError", "CorruptionError", "SystemExit", "ValueError"):
        lines = [line for line in said.stderr.splitlines() if f" {name} info word " in line]
        assert len(lines) == 500, name
    for name in ("ConfigError", "CorruptionError"):
        assert f" {name} critical last\n" in said.stderr
    assert " ValueError critical unexpected\nTraceback" in said.stderr
    assert said.stderr.endswith("\nValueError: last\n")


FAMILY = """
import os, signal, sys
from ingest.runtime import signals
from ingest.runtime.supervised import Child
from ingest.runtime.supervisor import Supervisor
codes = [int(code) for code in sys.argv[1:]]
ready, tells = os.pipe()
def main(number):
    code = codes[number]
    signal.signal(signals.end(), (lambda *_: os._exit(code)) if code >= 0 else signal.SIG_IGN)
    os.write(tells, b"x")
    if number == 0:
        taken = 0
        while taken < len(codes):
            taken += len(os.read(ready, len(codes)))
        for asks in os.environ.get("ASKS", "SIGTERM").split():
            os.kill(os.getppid(), getattr(signal, asks))
    while True: signal.pause()
signals.begin_server()
children = [Child(f"child-{number}", lambda number=number: main(number)) for number in range(len(codes))]
sys.exit(Supervisor([[child] for child in children], float(os.environ.get("TIMEOUT_S", 30))).run())
"""


@pytest.mark.parametrize("silent", [0, 1])
def test_a_drain_that_took_too_long_did_not_end_well(silent: int) -> None:
    """One that does not listen is killed, wherever it stands: it did not flush."""
    codes = ["0", "0"]
    codes[silent] = "-1"
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "TIMEOUT_S": "0.1"}
    command = [sys.executable, "-c", FAMILY, *codes]
    ended = subprocess.run(command, env=environment, timeout=60, check=False, stderr=subprocess.PIPE)
    assert ended.returncode == 1 and b"the drain took longer" in ended.stderr


@pytest.mark.parametrize("codes", [("-1",), ("0", "-1"), ("-1", "0")])
def test_who_asks_twice_does_not_wait_and_is_not_told_that_it_went_well(codes: tuple[str, ...]) -> None:
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "TIMEOUT_S": "3600", "ASKS": "SIGTERM SIGINT"}
    command = [sys.executable, "-c", FAMILY, *codes]
    ended = subprocess.run(command, env=environment, timeout=60, check=False, stderr=subprocess.PIPE)
    assert ended.returncode == 1 and b"again: ending at once" in ended.stderr


@pytest.mark.parametrize("codes", [(0, 0, 0), (3, 0, 0), (0, 3, 0), (0, 0, 3)])
def test_an_end_that_went_wrong_is_told_whoever_ends_after_it(codes: tuple[int, ...]) -> None:
    """They end from the last one on. A service manager that sees 0 takes all to be stored and flushed."""
    command = [sys.executable, "-c", FAMILY, *map(str, codes)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    ended = subprocess.run(command, env=environment, timeout=60, check=False)
    assert ended.returncode == int(any(codes))


class TestBusy:
    """Exit 75: somebody else has it, for now."""

    def run(self, directory: Path, *codes: int) -> int:
        """A family of one, whose processes end with `codes`, one after the other; the last one ends all when told to."""
        script = (
            "import os, signal, sys\n"
            "from ingest.runtime import signals\n"
            "from ingest.runtime.supervised import Child\n"
            "from ingest.runtime.supervisor import Supervisor\n"
            "codes = [int(code) for code in sys.argv[2:]]\n"
            "def main():\n"
            "    with open(sys.argv[1], 'a+') as file:\n"
            "        file.write('x')\n"
            "        file.flush()\n"
            "        lives = file.tell()\n"
            "    if lives <= len(codes): return codes[lives - 1]\n"
            "    signal.signal(signals.end(), lambda *_: sys.exit(0))\n"
            "    os.kill(os.getppid(), signal.SIGTERM)\n"
            "    while True: signal.pause()\n"
            "signals.begin_server()\n"
            "try: sys.exit(Supervisor([[Child('one', main)]], 10.0).run())\n"
            "except Exception as error: sys.exit(error.exit_code)\n"
        )
        command = [sys.executable, "-c", script, str(directory / "lives"), *map(str, codes)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        return subprocess.run(command, env=environment, timeout=60, check=False).returncode

    def test_a_start_is_refused(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, 75) == 75
        assert (tmp_path / "lives").stat().st_size == 1

    def test_who_takes_the_place_of_another_tries_again(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, 1, 75, 75) == 0
        assert (tmp_path / "lives").stat().st_size == 4

    @pytest.mark.parametrize("code", [78, 65])
    def test_what_is_no_matter_of_time_ends_all(self, tmp_path: Path, code: int) -> None:
        assert self.run(tmp_path, 1, code) not in (0, 75)
        assert (tmp_path / "lives").stat().st_size == 2
