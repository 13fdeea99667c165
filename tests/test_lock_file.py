"""A lock is taken once, and whoever looks sees that it is, and by whom."""

import errno
import fcntl
import os

import pytest

from ingest import limits
from ingest.runtime import lock_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def held(path):
    fd = lock_file.open_lock(path)
    lock_file.take(fd)
    yield fd
    os.close(fd)


def test_there_is_none(path):
    with pytest.raises(FileNotFoundError):
        lock_file.is_held(path, path.parent)
    assert (lock_file.holder(path), path.exists()) == ("", False)


def test_nobody_holds_what_was_given_up(path):
    fd = lock_file.open_lock(path)
    assert not lock_file.is_held(path, path.parent)
    lock_file.take(fd)
    os.close(fd)
    assert not lock_file.is_held(path, path.parent)


def test_it_is_held(path, held):
    assert (lock_file.is_held(path, path.parent), lock_file.holder(path)) == (True, "")
    os.pwrite(held, b'{"pid": 4711}', 0)
    assert lock_file.holder(path) == " (process 4711)"


@pytest.mark.parametrize("text", [b"[", b"[]", b"{}", b'{"pid": "x"}', b"[" * 100_000, b"\xff"])
def test_what_nobody_can_read_names_nobody(path, text):
    path.write_bytes(text)
    assert lock_file.holder(path) == ""


def test_a_second_one_is_refused(path, held, monkeypatch):
    waited = []
    monkeypatch.setattr("ingest.runtime.lock_file.time.sleep", waited.append)
    fd = lock_file.open_lock(path)
    with pytest.raises(BlockingIOError):
        lock_file.take(fd)
    assert waited == []
    with pytest.raises(BlockingIOError):
        lock_file.take_patiently(fd)
    assert len(waited) == limits.LOCK_TRIES - 1
    os.close(fd)


def test_no_link_is_followed(path, tmp_path):
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic link"):
        lock_file.open_lock(path)
    with pytest.raises(OSError, match="symbolic link"):
        lock_file.is_held(path, tmp_path)
    assert not (tmp_path / "other").exists()


def test_nobody_else_may_read_it_or_keep_it(path):
    """Who may open a lock may have it, and keep a server from its store. One that is there is left as it is."""
    before = os.umask(0)
    try:
        for mode in (0o600, 0o640):
            fd = lock_file.open_lock(path)
            assert os.fstat(fd).st_mode & 0o777 == mode
            assert not os.get_inheritable(fd)
            os.close(fd)
            path.chmod(0o640)
    finally:
        os.umask(before)


def close(fds):
    for fd in fds:
        os.close(fd)


class TestTheDirectoryIsLockedToo:
    def test_who_removes_the_file_lets_nobody_in(self, path):
        fds = lock_file.acquire(path, path.parent)
        path.unlink()
        assert lock_file.is_held(path, path.parent)
        with pytest.raises(BlockingIOError):
            lock_file.acquire(path, path.parent)
        assert not path.exists(), "the second one made a file"
        path.touch()
        with pytest.raises(BlockingIOError):
            lock_file.acquire(path, path.parent)
        close(fds)
        assert not lock_file.is_held(path, path.parent)
        close(lock_file.acquire(path, path.parent))

    def test_a_program_that_knows_the_file_alone_keeps_others_out(self, path, held):
        with pytest.raises(BlockingIOError):
            lock_file.acquire(path, path.parent)
        directory = lock_file.open_directory(path.parent)
        assert lock_file.take_directory(directory), "what was not taken is still locked"
        os.close(directory)

    def test_a_directory_that_cannot_be_locked(self, path):
        """As NFS says it: EBADF, for a descriptor that may not write."""
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        assert not lock_file.take_directory(fd)
        os.close(fd)


# What flock(2) of a directory says where there is none; all else is a failure, or another one's lock.
NONE_THERE = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@pytest.mark.parametrize("code", sorted(errno.errorcode), ids=errno.errorcode.get)
def test_only_where_there_are_none_a_directory_is_taken_for_one_without_locks(path, monkeypatch, code):
    """Then the file alone is the lock, for who takes it and for who looks."""
    real = fcntl.flock

    def flock(fd, how):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(code, os.strerror(code))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("ingest.runtime.lock_file.time.sleep", lambda _: None)
    path.touch()
    if code in NONE_THERE:
        fds = lock_file.acquire(path, path.parent)
        assert lock_file.is_held(path, path.parent)
        close(fds)
        assert not lock_file.is_held(path, path.parent)
        return
    with pytest.raises(OSError) as caught:
        lock_file.acquire(path, path.parent)
    assert caught.value.errno == code
    if isinstance(caught.value, BlockingIOError):
        assert lock_file.is_held(path, path.parent)
        return
    with pytest.raises(OSError) as caught:
        lock_file.is_held(path, path.parent)
    assert caught.value.errno == code


def test_no_program_that_is_started_keeps_it(path):
    """The lock ends with the last copy of a descriptor."""
    fds = lock_file.acquire(path, path.parent)
    one = lock_file.open_lock(path)
    assert [os.get_inheritable(fd) for fd in (*fds, one)] == [False] * 3
    close((*fds, one))


class Looker:
    """Somebody else who looks whether there is a lock, and has got so far."""

    def __init__(self, path, sees):
        path.touch()
        self.fds = [os.open(of, os.O_RDONLY) for of in sees(path)]
        for fd in self.fds:
            fcntl.flock(fd, fcntl.LOCK_SH)

    def goes(self, *_):
        close(self.fds)
        self.fds = []


@pytest.mark.parametrize(
    "sees",
    [lambda path: [path.parent], lambda path: [path], lambda path: [path.parent, path]],
    ids=["the directory", "the file", "both"],
)
class TestWhoOnlyLooks:
    """Is no holder: not for others who look, and not for long for who wants the lock."""

    def test_is_not_seen(self, path, sees):
        looker = Looker(path, sees)
        assert not lock_file.is_held(path, path.parent)
        looker.goes()

    def test_keeps_nobody_out(self, path, sees, monkeypatch):
        looker = Looker(path, sees)
        monkeypatch.setattr("ingest.runtime.lock_file.time.sleep", looker.goes)
        close(lock_file.acquire(path, path.parent))
        assert not looker.fds, "it was there all the time"


@pytest.mark.parametrize("obstacle", ["the directory", "the file", "a link", "no directory"])
def test_who_is_refused_keeps_nothing_open(path, tmp_path, monkeypatch, obstacle):
    """A server that tries again and again would use up its descriptors, and keep what it did not get locked."""
    monkeypatch.setattr("ingest.runtime.lock_file.time.sleep", lambda _: None)
    directory, keeps = path.parent, []
    if obstacle == "the directory":
        keeps.append(lock_file.open_directory(directory))
        assert lock_file.take_directory(keeps[0])
    elif obstacle == "the file":
        keeps.append(lock_file.open_lock(path))
        lock_file.take(keeps[0])
    elif obstacle == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        directory = tmp_path / "none"
    before = sorted(os.listdir("/proc/self/fd"))
    for call in (lock_file.acquire, lock_file.is_held):
        if (call, obstacle) not in [(lock_file.is_held, "the directory"), (lock_file.is_held, "the file")]:
            with pytest.raises(OSError, match=r"Resource temporarily|symbolic links|No such file"):
                call(path, directory)
        else:
            assert call(path, directory)
        assert sorted(os.listdir("/proc/self/fd")) == before
    close(keeps)
