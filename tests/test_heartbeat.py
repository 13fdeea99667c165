"""Who is silent, for how long, and who is killed for it: by a clock that the tests set."""

import ctypes
import logging
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from ingest import limits
from ingest.disk_wait import DiskWait
from ingest.runtime import heartbeat
from ingest.runtime.child import IN_THE_KERNEL, state_of
from ingest.runtime.heartbeat import Heart, Listener
from ingest.runtime.supervised import Child, State
from ingest.runtime.supervisor import Supervisor
from ingest.store.log.log_writer import LogWriter

S = 1_000_000_000  # ns


@pytest.fixture
def heart() -> Iterator[Heart]:
    """This process's own, as of a child that was just started."""
    before, mine = heartbeat.own(), Heart()
    heartbeat.take(mine)
    mine.reset()
    yield mine
    heartbeat.take(before)


class TestHeart:
    def test_one_that_was_never_started_is_no_trouble(self):
        assert Heart().trouble("x", time.monotonic_ns() + 100 * S) == ""

    def test_one_that_does_not_come_up(self, heart):
        now = time.monotonic_ns()
        assert (heart.age(now), heart.trouble("x", now + 2 * S)) == (None, "")
        assert heart.trouble("x", now + 4 * S) == "x does not run"

    def test_beats(self, heart):
        heart.beat()
        now = time.monotonic_ns()
        assert heart.trouble("x", now + 2 * S) == ""
        assert heart.trouble("x", now + 12 * S) == "x has not answered for 12 s"
        heart.reset()
        assert heart.age(now) is None

    def test_what_it_waits_for(self, heart):
        heart.wait(DiskWait.LOG_SYNC)
        later = time.monotonic_ns() + 12 * S
        assert heart.trouble("x", later) == "x waits for the disk: log sync for 12 s"
        heart.wait(DiskWait.NOTHING)
        assert heart.trouble("x", later) == "x has not answered for 12 s"

    def test_a_loop_that_goes_round_and_does_nothing(self, heart):
        heart.stall(DiskWait.PACKS_SYNC)
        first = heart.waiting(time.monotonic_ns())
        heart.stall(DiskWait.BULK_WRITE)  # since then, whatever it is by now
        heart.beat()
        later = time.monotonic_ns() + 4 * S
        assert first[0] is DiskWait.PACKS_SYNC
        assert heart.trouble("x", later) == "x waits for the disk: bulk write for 4 s"
        heart.stall(DiskWait.NOTHING)
        assert heart.waiting(later) == (DiskWait.NOTHING, 0.0)

    def test_stands_since_it_was_said_first(self, heart):
        """However often it is said again, and whatever it is by then; until it goes on."""
        later = time.monotonic_ns() + 4 * S
        since = set()
        for what in (DiskWait.PACKS_SYNC, DiskWait.PACKS_SYNC, DiskWait.BULK_WRITE):
            heart.stall(what)
            assert heart.waiting(later)[0] is what
            since.add(heart.waiting(later)[1])
            passes()
        assert len(since) == 1
        heart.stall(DiskWait.NOTHING)
        heart.stall(DiskWait.PACKS_SYNC)
        assert heart.waiting(later)[1] < min(since)

    def test_is_seen_by_others(self, heart):
        """And the one of the parent is not the child's."""
        pid = os.fork()
        if pid == 0:
            heart.beat()
            os._exit(0)
        os.waitpid(pid, 0)
        assert heart.last_beat


# Of what is written at a moment, as it is seen so many seconds later. What came after the look is of this moment.
SEEN = (-1.0, 0.0, limits.HEART_UNREADY_S - 0.5, limits.HEART_UNREADY_S, 9 * limits.HEART_UNREADY_S)


@pytest.mark.parametrize("beaten", [None, *SEEN])
@pytest.mark.parametrize("waits", [None, *SEEN])
@pytest.mark.parametrize("stalled", [None, *SEEN])
def test_what_is_wrong_is_what_has_been_for_long(beaten, waits, stalled):
    """What it waits for is said for as long as it waits, whatever its loop does meanwhile; a stall counts when it waits for
    nothing itself."""
    heart, now = Heart(), 1000 * S
    for word, ago in ((heartbeat._BEAT, beaten), (heartbeat.SINCE, waits), (heartbeat._STALLED, stalled)):
        heart.words[word] = 0 if ago is None else now - int(ago * S)
    heart.words[heartbeat.WAIT] = DiskWait.NOTHING if waits is None else DiskWait.LOG_SYNC
    heart.words[heartbeat._STALLED_BY] = DiskWait.PACKS_SYNC
    unready = limits.HEART_UNREADY_S
    what, seconds = ("log sync", waits) if waits is not None else ("packs sync", stalled)
    if beaten is None:
        expected = "x does not run" if (waits or 0) >= unready else ""
    elif seconds is not None and seconds >= unready:
        expected = f"x waits for the disk: {what} for {seconds:.0f} s"
    else:
        expected = f"x has not answered for {beaten:.0f} s" if beaten >= unready else ""
    assert heart.trouble("x", now) == expected
    assert heart.age(now) == (None if beaten is None else max(0.0, beaten))
    assert heart.waiting(now)[1] == max(0.0, seconds or 0.0)
    assert heart.missing(now) == (0.0 if beaten is not None or waits is None else max(0.0, waits))


def beat(heart):
    heart.beat()


def passes():
    """The clock shows another time."""
    now = time.monotonic_ns()
    while time.monotonic_ns() - now < 1000:
        pass


WAITS = [wait for wait in DiskWait if wait is not DiskWait.NOTHING]


class TestWhatAProcessLeaves:
    """However the one before ended, the next one is judged by what it does itself."""

    @pytest.mark.parametrize("second", [beat, *WAITS])
    @pytest.mark.parametrize("first", ["waited", "stalled", "stalled and waited"])
    def test_nothing_of_it_is_its_successor_s(self, heart, first, second):
        alone = Heart()
        alone.reset()
        for what in WAITS:
            if "stalled" in first:
                heart.stall(what)
            if "waited" in first:
                heart.wait(what)
            heart.beat()
            heart.reset()  # it ended
            now = time.monotonic_ns()
            assert (heart.age(now), heart.waiting(now)) == (None, (DiskWait.NOTHING, 0.0))
            heart.reset()  # another one is started
            for one in (alone, heart):
                second(one) if second is beat else one.wait(second)
            later = time.monotonic_ns() + 12 * S
            assert heart.trouble("x", later) == alone.trouble("x", later)
            assert heart.waiting(later)[0] is alone.waiting(later)[0]
            heart.wait(DiskWait.NOTHING)
            assert heart.trouble("x", later) == "x has not answered for 12 s"

    @pytest.mark.parametrize("parent", [True], indirect=True)
    @pytest.mark.parametrize("left", [DiskWait.STORED_READS, DiskWait.NOTHING])
    def test_a_successor_that_hangs_is_killed_too(self, parent, left, caplog):
        for _ in range(2):
            parent.child.heart.stall(DiskWait.BULK_WRITE)
            parent.child.heart.wait(left)
            signal.pidfd_send_signal(parent.child.pidfd, signal.SIGKILL)
            parent.child.reap()
            parent.begin()
            caplog.clear()
            parent.listen(*SECONDS)
            assert caplog.messages[-1].endswith("killing it")
            assert parent.exit_code() == -signal.SIGKILL
            parent.begin()


@pytest.mark.parametrize("left", [DiskWait.NOTHING, DiskWait.LOG_SYNC])
def test_what_ended_does_not_answer_and_what_was_started_has_not_yet(left):
    """Nobody is told that a process is well, or waits for a disk, by what its heart had when it died."""

    def main():
        child.heart.beat()
        child.heart.stall(DiskWait.BULK_WRITE)
        child.heart.wait(left)
        os._exit(0)

    def seen():
        now = time.monotonic_ns()
        return child.heart.age(now), child.heart.waiting(now), child.heart.missing(now) > 0

    child = Child("it", main)
    for _ in range(2):
        child.start(lambda: None)
        child.reap()
        assert seen() == (None, (DiskWait.NOTHING, 0.0), True)
        child.heart.beat()  # of whoever was slow to end
        child.heart.wait(left)
    child.main = signal.pause
    child.start(lambda: None)
    try:
        assert seen() == (None, (DiskWait.NOTHING, 0.0), True)
    finally:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        child.reap()


def test_a_parent_that_listens_beats_itself(heart):
    """Whose own parent listens to it."""
    supervisor = Supervisor([[Child("it", lambda: 0)]], 1)
    begun = supervisor._listened_at
    supervisor._listen(begun + limits.HEART_LISTEN_INTERVAL_S * 0.9)
    assert not heart.last_beat, "it listens once a second"
    for times in (1, 2):
        before = time.monotonic_ns()
        supervisor._listen(begun + times * limits.HEART_LISTEN_INTERVAL_S)
        assert heart.last_beat >= before


def test_time_in_which_the_listener_did_not_run_does_not_count():
    heart = Heart()
    listener = Listener(heart)
    assert [listener.listen(1.0) for _ in range(3)] == [0.0] * 3  # it starts
    heart.beat()
    assert [listener.listen(passed) for passed in (1.0, 1.0, 0.0, 1.0)] == [0.0, 1.0, 1.0, 2.0]
    heart.beat()
    assert listener.listen(1.0) == 0.0


def test_the_log_says_what_it_waits_for_while_it_does(heart, tmp_path, monkeypatch):
    seen = []
    for call in ("pwrite", "fdatasync"):
        real = getattr(os, call)

        def note(*arguments, real=real):
            seen.append(heart.waiting(time.monotonic_ns())[0])
            return real(*arguments)

        monkeypatch.setattr(os, call, note)
    writer = LogWriter(tmp_path, bytes(16), size_max=3 * 65536, segment_size=65536)
    writer.make_spare()
    seen.clear()
    buffer = memoryview(mmap.mmap(-1, 8192))
    writer.append(buffer, 0, 0, 0)
    writer.close()
    assert seen[-2:] == [DiskWait.LOG_WRITE, DiskWait.LOG_SYNC]
    assert heart.waiting(time.monotonic_ns())[0] is not DiskWait.LOG_SYNC


class Parent(Supervisor):
    """With one child, which stands still after its first beat."""

    def __init__(self, replaced_when_silent: bool, wait: Callable[[], object] = signal.pause) -> None:
        def stand_still() -> int:
            heartbeat.own().beat()
            while True:
                wait()

        self.child = Child("child", stand_still, replaced_when_silent=replaced_when_silent)
        super().__init__([[self.child]], 10.0)
        self.now = float(int(time.monotonic()))  # whole: sums of seconds are exact
        self.begin()

    def begin(self) -> None:
        self.child.start(lambda: None)
        deadline = time.monotonic() + 20
        while not self.child.heart.last_beat:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        self.listen(1.0, 1.0)  # hears that beat

    def listen(self, *passed: float) -> None:
        for seconds in passed:
            self.now += seconds
            self._listen(self.now)

    def exit_code(self) -> int:
        self.child.reap()
        return self.child.exit_code

    def close(self) -> None:
        if self.child.pidfd >= 0:
            signal.pidfd_send_signal(self.child.pidfd, signal.SIGKILL)
            self.child.reap()


@pytest.fixture
def parent(request) -> Iterator[Parent]:
    made = Parent(request.param)
    yield made
    made.close()


SECONDS = [limits.HEART_LISTEN_INTERVAL_S] * int(limits.HEART_SILENCE_MAX_S)


def is_running(parent: Parent) -> bool:
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PIDFD, parent.child.pidfd, options) is None


@pytest.mark.parametrize("parent", [True], indirect=True)
def test_one_that_is_silent_for_long_is_killed(parent, caplog):
    with caplog.at_level(logging.WARNING):
        parent.listen(*SECONDS)
    assert parent.exit_code() == -signal.SIGKILL
    assert [record.getMessage().partition(") ")[2] for record in caplog.records] == [
        "has answered nothing for 3 s",
        "has answered nothing for 30 s: killing it",
    ]


@pytest.mark.parametrize("parent", [True], indirect=True)
@pytest.mark.parametrize("jump", [3.0, 600.0])
def test_a_parent_that_stood_still_itself_blames_nobody(parent, caplog, jump):
    """A container that was frozen, a machine that was suspended: all wake up together, the parent may be the first."""
    with caplog.at_level(logging.WARNING):
        parent.listen(*[jump] * 30)
    assert is_running(parent) and not caplog.records
    parent.listen(*SECONDS[:-2])
    parent.child.heart.beat()
    parent.listen(*SECONDS[:-1])
    assert is_running(parent)


@pytest.mark.parametrize("parent", [False], indirect=True)
def test_one_that_only_waits_is_named_and_left_alone(parent, caplog):
    parent.child.heart.wait(DiskWait.LOG_SYNC)
    parent.listen(1.0)
    with caplog.at_level(logging.WARNING):
        parent.listen(*SECONDS, *SECONDS)
        parent.child.heart.wait(DiskWait.NOTHING)
        parent.listen(1.0)
    assert is_running(parent)
    first, last = (record.getMessage() for record in caplog.records)
    assert "has answered nothing for 3 s; it waits for the disk: log sync for" in first
    assert last.endswith("answers again")


@pytest.mark.parametrize("parent", [True], indirect=True)
def test_one_that_says_that_it_waits_for_the_disk_is_not_replaced(parent, caplog):
    """Another one would wait for the same disk."""
    parent.child.heart.wait(DiskWait.STORED_READS)
    parent.listen(1.0)
    with caplog.at_level(logging.WARNING):
        parent.listen(*SECONDS, *SECONDS)
    assert is_running(parent)
    early, *late = (record.getMessage() for record in caplog.records)
    assert "it waits for the disk: stored reads for" in early
    assert len(late) == 2  # once in a while, not with each look
    assert all("it waits for the disk: stored reads" in one and "left alone" in one for one in late)
    parent.child.heart.wait(DiskWait.NOTHING)
    parent.listen(1.0, *SECONDS)
    assert parent.exit_code() == -signal.SIGKILL


@pytest.mark.parametrize("parent", [True], indirect=True)
def test_one_that_was_stopped_while_it_read_is_replaced(parent):
    parent.child.heart.wait(DiskWait.STORED_READS)
    parent.listen(1.0)
    signal.pidfd_send_signal(parent.child.pidfd, signal.SIGSTOP)
    os.waitid(os.P_PIDFD, parent.child.pidfd, os.WSTOPPED)
    parent.listen(*SECONDS)
    assert parent.exit_code() == -signal.SIGKILL


def held_by_the_kernel() -> None:
    """A vfork whose child does not end holds who called it in an uninterruptible sleep, as a disk does."""
    libc = ctypes.PyDLL(None)
    parent = os.getpid()
    libc.vfork()
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # the child, which ends with its parent: PR_SET_PDEATHSIG
    while os.getppid() == parent:  # it may have ended before that
        signal.pause()
    os._exit(0)


@pytest.mark.parametrize("name", ["x) R 1 (", ")))", "( D (", "a b", "ingest"])
def test_the_state_of_a_process_stands_behind_its_whole_name(name):
    """Who looks at another place kills one that waits for a disk, or lets one be that was stopped."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        assert state_of(pid) == "T"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert state_of(pid) == ""


def test_one_that_the_kernel_holds_is_not_replaced(caplog):
    parent = Parent(True, held_by_the_kernel)
    try:
        deadline = time.monotonic() + 20
        while state_of(parent.child.pid) != IN_THE_KERNEL:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with caplog.at_level(logging.ERROR):
            parent.listen(*SECONDS)
        assert is_running(parent)
        assert "the kernel holds it" in caplog.text
    finally:
        parent.close()


@pytest.mark.parametrize("parent", [True], indirect=True)
def test_one_that_starts_has_as_long_as_it_takes(parent):
    parent.child.heart.reset()
    parent.listen(*SECONDS, *SECONDS)
    assert is_running(parent)


class TestOneThatEndsAtOnce:
    """Started again and again: none of them ever beats."""

    def test_is_missing_from_the_first_start_on(self, heart):
        first = time.monotonic_ns()
        for _ in range(3):
            heart.reset()  # it ended
            heart.reset()  # another one is started
        assert heart.trouble("x", first + 3 * S) == "x does not run"

    def test_is_missing_though_its_first_process_neither_beats_nor_ends(self):
        child = Child("child", signal.pause)
        child.start(lambda: None)
        try:
            assert child.heart.trouble("x", time.monotonic_ns() + 3 * S) == "x does not run"
        finally:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            child.reap()

    def test_is_missing_from_the_end_of_the_last_that_beat(self, heart):
        heart.beat()
        before = time.monotonic_ns()
        heart.reset()
        heart.reset()
        later = time.monotonic_ns() + 3 * S
        assert 3.0 <= heart.missing(later) <= (later - before) * 1e-9
        heart.beat()
        assert (heart.missing(later), heart.trouble("x", time.monotonic_ns())) == (0.0, "")

    def test_is_told_each_time_that_it_begins_anew(self, caplog, monkeypatch):
        """Once it ran again: then it is another trouble."""
        monkeypatch.setattr(limits, "HEART_UNREADY_S", 0.0)
        child = Child("child", lambda: 1, state=State.RESTING)
        supervisor = Supervisor([[child]], 10.0)
        for _ in range(3):
            child.heart.reset()
            supervisor._miss(child, time.monotonic_ns() + 1)
            supervisor._miss(child, time.monotonic_ns() + 2)
            child.heart.beat()
            supervisor._miss(child, time.monotonic_ns() + 3)
        said = [message.partition(":")[0].partition(" (")[0] for message in caplog.messages]
        assert said == ["child has not run for 0 s", "child"] * 3

    def test_stays_unready_through_real_starts_and_is_told_once(self, caplog, monkeypatch):
        """By a parent whose patience is none, so that nothing has to pass."""
        monkeypatch.setattr(limits, "HEART_UNREADY_S", 0.0)
        child = Child("child", lambda: 1)
        supervisor = Supervisor([[child]], 10.0)
        supervisor._signals_read, supervisor._signals_write = os.pipe()
        child.start(lambda: None)
        first = child.heart.missing(time.monotonic_ns())
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                supervisor._ended(child)
                supervisor._miss(child, time.monotonic_ns())
                last = child.heart.missing(time.monotonic_ns())
                assert last > first and child.heart.trouble("x", time.monotonic_ns()) == "x does not run"
                first = last
                child.start(lambda: None)
        supervisor._ended(child)
        child.heart.beat()
        with caplog.at_level(logging.WARNING):
            supervisor._miss(child, time.monotonic_ns())
        said = [record.getMessage() for record in caplog.records]
        assert sum("has not run for" in line for line in said) == 1
        assert said[-1].endswith("runs again")
        os.close(supervisor._signals_read)
        os.close(supervisor._signals_write)

    @pytest.mark.parametrize(
        ("state", "why"),
        [
            (State.RESTING, "it ends before it does anything"),
            (
                State.RETIRING,
                "others still use what the last one had",
            ),  # of a worker: a committer that stands still
        ],
    )
    def test_is_told_with_what_keeps_it(self, caplog, monkeypatch, state, why):
        monkeypatch.setattr(limits, "HEART_UNREADY_S", 0.0)
        child = Child("child", lambda: 1, state=state)
        child.heart.reset()
        Supervisor([[child]], 10.0)._miss(child, time.monotonic_ns() + 1)
        assert [record.getMessage() for record in caplog.records] == [f"child has not run for 0 s: {why}"]
