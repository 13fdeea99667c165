"""A data directory: what it is, who holds it, what is refused and with which words."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import everything_of

from ingest import limits
from ingest.errors import BusyError, ConfigError, DiskError, KeyFileError, StoreFormatError, StoreLockedError
from ingest.mac import KeyRing
from ingest.runtime.key_file import make_key_file
from ingest.store.check.fsck import fsck
from ingest.store.permission import refusal, refuse_unwritable
from ingest.store.space import Space
from ingest.store.store import Store
from ingest.store.store_json import read_store_json, store_check, write_store_json

KEYS = [bytes([i]) * 32 for i in range(1, 5)]
SET_UP = [
    *(errno.EACCES, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS),
]
DISK = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ESTALE]


@pytest.fixture
def opened() -> Iterator[list[Store]]:
    """Stores in it are closed at the end."""
    stores: list[Store] = []
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory that was made and closed."""
    Store.open(tmp_path / "data").close()
    return tmp_path / "data"


def record_of(data: Path) -> dict[str, object]:
    return json.loads((data / ".ingest/store.json").read_text())


def change(data: Path, **fields: object) -> None:
    """As another version, or a person who knows the format, would write it: with the check that fits."""
    record = record_of(data) | fields
    write_store_json(data / ".ingest/store.json", {k: v for k, v in record.items() if v is not ...})


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestOpen:
    def test_a_new_store(self, tmp_path, opened):
        store = Store.open(tmp_path / "deep/data")
        opened.append(store)
        record = record_of(tmp_path / "deep/data")
        assert record == {
            "format": 1,
            "layout": "pack",
            "store_id": store.store_id.hex(),
            "log_id": store.log_id.hex(),
            "keys": [],
            "check": store_check(record),
        }
        assert len(store.store_id) == len(store.log_id) == 16
        assert store.wal_dir == tmp_path / "deep/data/.ingest/wal"

    def test_everything_in_it_is_ours_alone(self, tmp_path, opened):
        old = os.umask(0)
        try:
            opened.append(Store.open(tmp_path / "deep/data"))
        finally:
            os.umask(old)
        for path in (tmp_path / "deep").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_a_directory_that_is_made_is_durable(self, tmp_path, monkeypatch, opened):
        synced = []
        real = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))
        )
        opened.append(Store.open(tmp_path / "deep/data", wal_dir=tmp_path / "other/wal"))
        parents = ["", "/deep", "/deep/data", "/deep/data/.ingest", "/other", "/other/wal"]
        assert {f"{tmp_path}{parent}" for parent in parents} <= set(synced)

    def test_it_comes_back_as_it_was(self, data):
        stores = []
        for _ in range(2):
            store = Store.open(data)
            stores.append((store.store_id, store.log_id, store.layout, store.key_ids))
            store.close()
        assert stores[0] == stores[1]

    def test_two_stores_differ(self, tmp_path, data, opened):
        other = Store.open(tmp_path / "other")
        opened.append(other)
        assert other.store_id.hex() != record_of(data)["store_id"]

    def test_a_start_that_was_cut_short_is_done_again(self, tmp_path, opened):
        data = tmp_path / "data"
        Store.open(data).close()
        (data / ".ingest/store.json").unlink()
        (data / ".ingest/store.json.new").write_text("half a fi")
        log_id = json.loads((data / ".ingest/wal/log.json").read_text())["log_id"]
        opened.append(Store.open(data))
        assert opened[0].log_id.hex() == log_id

    def test_packs_without_a_description_are_refused(self, tmp_path):
        for name in ("obj", "0", "ZZ"):
            data = tmp_path / f"data-{name}"
            (data / name).mkdir(parents=True)
            with pytest.raises(StoreFormatError, match=f"holds packs .{name}. but no .ingest/store.json"):
                Store.open(data)

    def test_other_people_s_files_do_not_matter(self, tmp_path, opened):
        (tmp_path / "data/lost+found").mkdir(parents=True)
        (tmp_path / "data/.hidden").touch()
        opened.append(Store.open(tmp_path / "data"))

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "data").touch()
        with pytest.raises(ConfigError, match="Not a directory; the data directory must be"):
            Store.open(tmp_path / "data")

    def test_a_symbolic_link_for_our_directory(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "data").mkdir()
        (tmp_path / "data/.ingest").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match="symbolic link"):
            Store.open(tmp_path / "data")
        assert os.listdir(tmp_path / "elsewhere") == []

    def test_a_symbolic_link_for_the_lock(self, tmp_path, data):
        (data / ".ingest/lock").unlink()
        (data / ".ingest/lock").symlink_to(tmp_path / "victim")
        with pytest.raises(ConfigError):
            Store.open(data)
        assert not (tmp_path / "victim").exists()

    @pytest.mark.parametrize("name", ["store.json", "wal"])
    def test_a_symbolic_link_for_what_is_ours(self, tmp_path, data, name):
        (data / ".ingest" / name).rename(tmp_path / "elsewhere")
        (data / ".ingest" / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match="symbolic link"):
            Store.open(data)

    def test_an_unknown_layout(self, tmp_path):
        with pytest.raises(ConfigError, match="layout 'bush' is not in this version"):
            Store.open(tmp_path, layout="bush")

    def test_nothing_stays_open_after_a_refusal(self, data):
        change(data, format=2)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(StoreFormatError):
                Store.open(data)
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("holds", ["the whole lock", "the file alone"])
    def test_nor_when_another_server_has_it(self, data, monkeypatch, holds):
        monkeypatch.setattr("ingest.runtime.lock_file.time.sleep", lambda _: None)
        other = Store.open(data)
        alone = os.open(data / ".ingest/lock", os.O_RDONLY)
        if holds == "the file alone":
            other.close()
            fcntl.flock(alone, fcntl.LOCK_EX)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(StoreLockedError):
                Store.open(data)
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(alone)
        if holds == "the whole lock":
            other.close()

    @pytest.mark.parametrize("code", SET_UP + DISK, ids=errno.errorcode.get)
    def test_whose_fault_an_error_is(self, tmp_path, code):
        """What somebody has to set up differently ends a server for good (exit 78), a disk's errors do not."""
        found = refusal(OSError(code, os.strerror(code)), tmp_path, "the data directory")
        assert type(found) is (ConfigError if code in SET_UP else DiskError)
        assert os.strerror(code) in str(found)
        assert ("must be a directory" in str(found)) == (code in SET_UP)

    @pytest.mark.parametrize("place", ["data", "data/.ingest", "data/.ingest/lock", "wal"])
    def test_each_permission_that_a_server_needs_is_asked_for(self, tmp_path, monkeypatch, place):
        """Before it is started (`check-config`, too), not when it first lacks it."""
        data, wal = tmp_path / "data", tmp_path / "wal"
        Store.open(data, wal_dir=wal).close()
        refuse_unwritable(data, wal)
        for lacking in (os.R_OK, os.W_OK) if place.endswith("lock") else (os.R_OK, os.W_OK, os.X_OK):

            def check(path: Path, mode: int, lacking: int = lacking) -> None:
                if path == tmp_path / place and mode & lacking:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

            monkeypatch.setattr("ingest.store.permission.check_access", check)
            with pytest.raises(ConfigError, match=f"{place}: Permission denied"):
                refuse_unwritable(data, wal)


class TestLock:
    def test_a_second_open_is_refused(self, data, opened):
        opened.append(Store.open(data))
        with pytest.raises(StoreLockedError, match="in use by another ingest server") as caught:
            Store.open(data)
        assert isinstance(caught.value, BusyError)
        assert caught.value.exit_code == 75

    def test_it_is_free_after_a_close(self, data, opened):
        Store.open(data).close()
        opened.append(Store.open(data))

    def test_a_child_holds_it_on(self, data, opened):
        """The parent is gone, a worker is not: nobody else may start yet."""
        store = Store.open(data)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the test closes its end
            os._exit(0)
        os.close(read)
        store.close()
        try:
            with pytest.raises(StoreLockedError):
                Store.open(data)
        finally:
            os.close(write)
            os.waitpid(child, 0)
        opened.append(Store.open(data))

    def test_who_holds_it_is_named_when_it_says_so(self, data, opened):
        opened.append(Store.open(data))
        os.pwrite(opened[0].lock_fd, b'{"pid": 4711}', 0)
        with pytest.raises(StoreLockedError, match="process 4711"):
            Store.open(data)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff\xfe", b"[" * 4000])
    def test_what_the_lock_says_cannot_hurt(self, data, opened, content):
        opened.append(Store.open(data))
        os.pwrite(opened[0].lock_fd, content, 0)
        with pytest.raises(StoreLockedError):
            Store.open(data)

    def test_who_only_looks_is_waited_for(self, data, opened, monkeypatch):
        """`ingest.engine.announcement.running` has the lock for a moment."""
        Store.open(data).close()
        other = os.open(data / ".ingest/lock", os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_SH)
        waited = []

        def go(seconds: float) -> None:
            waited.append(seconds)
            os.close(other)

        monkeypatch.setattr("ingest.runtime.lock_file.time.sleep", go)
        opened.append(Store.open(data))
        assert len(waited) == 1

    def test_it_is_a_flock_and_not_inherited_by_programs(self, data, opened):
        opened.append(Store.open(data))
        for fd in (opened[0].lock_fd, opened[0].data_fd):
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        other = os.open(data / ".ingest/lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(other)


class TestDescription:
    @pytest.mark.parametrize("version", [0, 2, -1, "1", 1.0, True, None, [1]])
    def test_an_unknown_version_is_named(self, data, version):
        change(data, format=version)
        with pytest.raises(
            StoreFormatError, match=r"store\.json: format version .*; this program knows 1"
        ) as caught:
            Store.open(data)
        assert repr(version) in str(caught.value)
        assert caught.value.exit_code == 78

    @pytest.mark.parametrize(
        "fields",
        [
            {"layout": ...},
            {"layout": 1},
            {"store_id": ...},
            {"store_id": "0" * 31},
            {"store_id": "0" * 33},
            {"store_id": "G" * 32},
            {"store_id": 0},
            {"log_id": ...},
            {"log_id": "A" * 32},
            {"keys": ...},
            {"keys": "0" * 16},
            {"keys": ["0" * 15]},
            {"keys": ["0" * 17]},
            {"keys": ["0" * 16, "0" * 16 + "\n"]},
            {"keys": ["0" * 16, 1]},
            {"keys": None},
        ],
        ids=str,
    )
    def test_each_field_is_checked(self, data, fields):
        change(data, **fields)
        with pytest.raises(StoreFormatError, match="expected layout, store_id, log_id"):
            Store.open(data)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"null", b"[]", b"{}", b'"x"', b"1", b"\xff", b"[" * 100_000],
        ids=lambda c: str(c[:8]),
    )
    def test_what_is_no_description(self, data, content):
        (data / ".ingest/store.json").write_bytes(content)
        with pytest.raises(StoreFormatError, match=r"store\.json"):
            Store.open(data)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}'])
    def test_the_refusal_says_what_to_do(self, data, content):
        (data / ".ingest/store.json").write_bytes(content)
        with pytest.raises(StoreFormatError, match=f"`ingest fsck --repair {data}` writes it again"):
            Store.open(data)

    def test_no_bit_flips_unnoticed(self, data):
        path = data / ".ingest/store.json"
        change(data, keys=["0" * 16])
        before = path.read_bytes()
        for place in range(len(before) * 8):
            content = bytearray(before)
            content[place // 8] ^= 1 << place % 8
            path.write_bytes(content)
            try:
                record = read_store_json(path)
            except StoreFormatError:
                continue
            assert record == json.loads(before), bytes(content)  # white space

    def test_members_of_a_later_writer_are_kept_under_a_check_only(self, data, opened):
        change(data, comment="moved here in May")
        opened.append(Store.open(data))
        opened[0].check_keys(KeyRing(KEYS[:1]))
        record = record_of(data)
        assert record["comment"] == "moved here in May"
        del record["check"]
        (data / ".ingest/store.json").write_text(json.dumps(record))
        with pytest.raises(StoreFormatError, match="no check, and a member 'comment' that is not known"):
            read_store_json(data / ".ingest/store.json")

    @pytest.mark.parametrize("full", [False, True])
    def test_one_of_before_there_was_a_check(self, data, opened, monkeypatch, full):
        """The next start adds it, if the disk has room."""
        keys = KeyRing(KEYS[:1])
        change(data, keys=list(keys.ids))
        record = record_of(data)
        del record["check"]
        path = data / ".ingest/store.json"
        path.write_text(json.dumps(record))
        opened.append(Store.open(data))
        if full:
            monkeypatch.setattr(os, "write", no_space)
        opened[0].check_keys(keys)
        assert ("check" in record_of(data)) == (not full)
        assert read_store_json(path).items() >= record.items()

    def test_another_layout(self, data):
        change(data, layout="tree")
        with pytest.raises(
            ConfigError, match="this store has layout 'tree', not 'pack'; it is fixed for good"
        ):
            Store.open(data)

    def test_a_refusal_changes_nothing(self, data):
        change(data, format=7)
        before = (data / ".ingest/store.json").read_bytes()
        with pytest.raises(StoreFormatError):
            Store.open(data)
        assert (data / ".ingest/store.json").read_bytes() == before


class TestLogDirectory:
    def test_elsewhere(self, tmp_path, opened):
        opened.append(Store.open(tmp_path / "data", wal_dir=tmp_path / "disk2/wal"))
        assert opened[0].wal_dir == tmp_path / "disk2/wal"
        assert not (tmp_path / "data/.ingest/wal").exists()

    def test_forgotten(self, tmp_path):
        Store.open(tmp_path / "data", wal_dir=tmp_path / "wal").close()
        with pytest.raises(ConfigError, match="which holds no log: start with the --wal-dir") as caught:
            Store.open(tmp_path / "data")
        assert caught.value.exit_code == 78
        assert not (tmp_path / "data/.ingest/wal").exists()

    def test_given_where_there_was_none(self, tmp_path, data):
        with pytest.raises(ConfigError, match="which holds no log"):
            Store.open(data, wal_dir=tmp_path / "wal")

    def test_that_of_another_store(self, tmp_path):
        for name in "ab":
            Store.open(tmp_path / name, wal_dir=tmp_path / f"wal-{name}").close()
        with pytest.raises(ConfigError, match="which holds the log of another store"):
            Store.open(tmp_path / "a", wal_dir=tmp_path / "wal-b")

    @pytest.mark.parametrize("segment", ["0000.log", "0001.log", "9999.log"])
    def test_a_new_store_does_not_take_over_a_log_with_segments(self, tmp_path, segment):
        """Any of them: the first one may have been removed."""
        (tmp_path / "wal").mkdir()
        (tmp_path / "wal" / segment).touch()
        with pytest.raises(ConfigError, match="holds the log of another store: give each store its own"):
            Store.open(tmp_path / "data", wal_dir=tmp_path / "wal")

    @pytest.mark.parametrize("other", ["b", "ab", "elsewhere/a", "a/a", "a/.ingest", "", "A"])
    @pytest.mark.parametrize("made", ["a", "deep/down/a"])
    def test_nor_one_that_another_store_made_and_did_not_use_yet(self, tmp_path, made, other):
        """Both would go on in one log, and each would do again what the other one's says. Names tell nothing: that of
        the directory above is often all that stores differ in."""
        Store.open(tmp_path / made, wal_dir=tmp_path / "wal").close()
        with everything_of(tmp_path / "wal"), pytest.raises(ConfigError, match="was made for another store"):
            Store.open(tmp_path / other, wal_dir=tmp_path / "wal")
        assert not (tmp_path / other / ".ingest/store.json").exists()
        Store.open(tmp_path / made, wal_dir=tmp_path / "wal").close()

    @pytest.mark.parametrize("maker", ["a", "./a", "../a", ""], ids=lambda maker: f"of {maker}")
    def test_nor_one_of_which_nobody_can_say_whose_it_is(self, tmp_path, monkeypatch, maker):
        """No maker, or a path that depends on where somebody stood."""
        monkeypatch.chdir(tmp_path)
        Store.open(tmp_path / "a", wal_dir=tmp_path / "wal").close()
        (tmp_path / "a/.ingest/store.json").unlink()
        record = json.loads((tmp_path / "wal/log.json").read_bytes())
        for made_for in (maker, None, ...):
            record = {**record, "made_for": made_for}
            content = {name: value for name, value in record.items() if value is not ...}
            (tmp_path / "wal/log.json").write_text(json.dumps(content))
            with pytest.raises(ConfigError, match="was made for another store"):
                Store.open(tmp_path / "a", wal_dir=tmp_path / "wal")

    @pytest.mark.parametrize("way", ["a", "./a", "b/../a", "link", "link/../a", "b/up/a"])
    def test_a_start_that_was_cut_short_takes_its_own_over(self, tmp_path, opened, monkeypatch, way):
        """Whichever way leads to the same directory."""
        monkeypatch.chdir(tmp_path)
        Store.open(Path("a"), wal_dir=Path("wal")).close()
        Path("a/.ingest/store.json").unlink()
        Path("b").mkdir()
        Path("link").symlink_to("a")
        Path("b/up").symlink_to(tmp_path)
        log = Path("wal/log.json").read_bytes()
        opened.append(Store.open(Path(way), wal_dir=Path("wal")))
        assert Path("wal/log.json").read_bytes() == log

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b'{"log_id": 1}', b'{"log_id": "x"}', b"[" * 100_000],
        ids=lambda c: str(c[:8]),
    )
    def test_a_damaged_log_id_is_mended_by_fsck(self, data, content):
        (data / ".ingest/wal/log.json").write_bytes(content)
        with pytest.raises(ConfigError, match=f"is {'damaged' if content else 'empty'}.*fsck --repair"):
            Store.open(data)
        make_key_file(data / ".ingest/key")
        assert [problem.kind for problem in fsck(data, repair=True).problems] == ["log_json"]
        Store.open(data).close()


class TestKeys:
    def ids(self, *keys: bytes) -> list[str]:
        return list(KeyRing(keys).ids)

    def test_keys_that_sign_are_remembered(self, data, opened):
        store = Store.open(data)
        store.check_keys(KeyRing(KEYS[:3]))
        assert record_of(data)["keys"] == store.key_ids == self.ids(*KEYS[:2]), "the third only verifies"
        store.close()
        opened.append(Store.open(data))
        assert opened[0].key_ids == self.ids(*KEYS[:2])

    def test_rotation(self, data, opened):
        store = Store.open(data)
        opened.append(store)
        store.check_keys(KeyRing([KEYS[0]]))
        store.check_keys(KeyRing([KEYS[1], KEYS[0]]))
        store.check_keys(KeyRing([KEYS[2], KEYS[1], KEYS[0]]))
        assert record_of(data)["keys"] == self.ids(*KEYS[:3])

    def test_a_missing_key_is_refused_and_named(self, data, opened):
        opened.append(Store.open(data))
        opened[0].check_keys(KeyRing(KEYS[:2]))
        before = (data / ".ingest/store.json").read_bytes()
        with pytest.raises(
            KeyFileError, match=f"lacks the key {self.ids(KEYS[1])[0]}.*add it behind the others"
        ) as caught:
            opened[0].check_keys(KeyRing([KEYS[3], KEYS[0]]))
        assert caught.value.exit_code == 78
        assert (data / ".ingest/store.json").read_bytes() == before, "nor is the new one remembered"

    def test_the_order_does_not_matter(self, data, opened):
        opened.append(Store.open(data))
        opened[0].check_keys(KeyRing(KEYS[:2]))
        opened[0].check_keys(KeyRing([KEYS[2], KEYS[1], KEYS[0]]))

    @pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
    def test_one_that_can_not_be_remembered_is_not_taken(self, data, opened, monkeypatch, call):
        """Whichever step fails: it would sign, and nobody would ask for it when it is gone. The next try is whole."""
        store = Store.open(data)
        opened.append(store)
        store.check_keys(KeyRing([KEYS[0]]))
        steps = 0
        real = getattr(os, call)

        def fail_at(step: int) -> None:
            def made(*arguments, **more):
                nonlocal steps
                steps += 1
                if steps == step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*arguments, **more)

            monkeypatch.setattr(os, call, made)

        fail_at(0)
        store.check_keys(KeyRing([KEYS[1], KEYS[0]]))
        failing, steps = range(1, steps + 1), 0
        assert failing
        for step in failing:
            fail_at(step)
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                store.check_keys(KeyRing([KEYS[2], KEYS[1], KEYS[0]]))
            assert store.key_ids == self.ids(*KEYS[:2])
            steps = 0
        monkeypatch.setattr(os, call, real)
        store.check_keys(KeyRing([KEYS[2], KEYS[1], KEYS[0]]))
        assert record_of(data)["keys"] == store.key_ids == self.ids(*KEYS[:3])

    def test_remembering_is_durable_and_whole(self, data, opened, monkeypatch):
        opened.append(Store.open(data))
        before = (data / ".ingest/store.json").read_bytes()
        order = []
        real_fsync, real_rename = os.fsync, os.rename
        monkeypatch.setattr(
            os, "fsync", lambda fd: (order.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd))
        )

        def rename(source: Path, target: Path) -> None:
            assert (data / ".ingest/store.json").read_bytes() == before
            order.append("rename")
            real_rename(source, target)

        monkeypatch.setattr(os, "rename", rename)
        opened[0].check_keys(KeyRing(KEYS[:1]))
        meta = f"{data}/.ingest"
        assert order == [f"{meta}/store.json.new", "rename", meta]
        assert stat.S_IMODE((data / ".ingest/store.json").stat().st_mode) == 0o600


class FakeStat:
    def __init__(
        self, available: int, files: int = 1 << 20, free_files: int = 1 << 20, block: int = 4096
    ) -> None:
        self.f_bavail, self.f_frsize = available // block, block
        self.f_bfree = self.f_bavail + 1000  # what is kept for root is not ours
        self.f_files, self.f_favail, self.f_ffree = files, free_files, free_files + 1000


class TestSpace:
    RESERVE = 256 << 20

    def check(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, answer: FakeStat, growth: int = 0
    ) -> str | None:
        monkeypatch.setattr(os, "fstatvfs", lambda fd: answer)
        return Space(store.data_dir, store.data_fd, store.wal_dir, self.RESERVE).check(growth)

    @pytest.fixture
    def store(self, data, opened):
        opened.append(Store.open(data))
        return opened[0]

    def test_room(self, store, monkeypatch):
        assert self.check(store, monkeypatch, FakeStat(self.RESERVE)) is None

    def test_below_the_reserve(self, store, monkeypatch):
        reason = self.check(store, monkeypatch, FakeStat(self.RESERVE - 4096))
        assert reason is not None
        assert "255 MiB are free, the reserve" in reason

    def test_what_the_log_may_still_take_counts(self, store, monkeypatch):
        assert self.check(store, monkeypatch, FakeStat(self.RESERVE + (96 << 20)), 96 << 20) is None
        assert "is 352 MiB" in str(
            self.check(store, monkeypatch, FakeStat(self.RESERVE + (95 << 20)), 96 << 20)
        )

    def test_but_not_on_another_disk(self, store, monkeypatch):
        real = os.stat
        with monkeypatch.context() as patch:
            patch.setattr(
                os,
                "stat",
                lambda path, **kw: (
                    os.stat_result((0, 0, 99, *[0] * 7)) if path == store.wal_dir else real(path, **kw)
                ),
            )
            assert self.check(store, patch, FakeStat(self.RESERVE), 1 << 40) is None

    @pytest.mark.parametrize(
        ("lacks", "free", "short"), [(0, 0, False), (96, 96, False), (96, 95, True), (512, 256, False)]
    )
    def test_the_log_s_disk_needs_what_the_log_lacks_but_no_more_than_the_reserve(
        self, store, tmp_path, monkeypatch, lacks, free, short
    ):
        real = os.stat
        monkeypatch.setattr(os, "fstatvfs", lambda fd: FakeStat(1 << 40))
        monkeypatch.setattr(os, "statvfs", lambda path: FakeStat(free << 20))
        with monkeypatch.context() as patch:
            other = os.stat_result((0, 0, 99, *[0] * 7))
            patch.setattr(os, "stat", lambda path, **kw: other if path == store.wal_dir else real(path, **kw))
            space = Space(store.data_dir, store.data_fd, store.wal_dir, self.RESERVE)
            reason = space.check(1 << 40, lacks << 20)
        assert (reason is not None) == short
        if short:
            assert f"the file system of {store.wal_dir}: 95 MiB are free" in str(reason)

    def test_inodes(self, store, monkeypatch):
        few = limits.RESERVE_INODES
        assert self.check(store, monkeypatch, FakeStat(1 << 40, free_files=few)) is None
        assert f"{few - 1} inodes are free" in str(
            self.check(store, monkeypatch, FakeStat(1 << 40, free_files=few - 1))
        )

    def test_a_file_system_that_does_not_count_inodes(self, store, monkeypatch):
        assert self.check(store, monkeypatch, FakeStat(1 << 40, files=0, free_files=0)) is None

    @pytest.mark.parametrize(
        ("free", "inodes", "tombstones"),
        [(0, 0, 0), (1, 10, 1), (7, 6, 3), (7, 1, 0), (100, 14, 7), (-1, 10, 0), (10, -1, 0), (5, None, 5)],
    )
    def test_tombstones_take_no_more_than_there_is_of_either(
        self, store, monkeypatch, free, inodes, tombstones
    ):
        """Of layout tree: so many files' worth of bytes, and two inodes each, are left beyond what is kept in reserve."""
        files, block = limits.RESERVE_INODES + (inodes or 0), limits.TREE_FILE_SIZE
        answer = FakeStat(self.RESERVE + free * block, 0 if inodes is None else 1 << 20, files, block)
        monkeypatch.setattr(os, "fstatvfs", lambda fd: answer)
        space = Space(store.data_dir, store.data_fd, store.wal_dir, self.RESERVE)
        space.check(0)
        assert space.tombstones == tombstones

    def test_a_disk_that_does_not_answer(self, store, monkeypatch):
        def fstatvfs(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fstatvfs", fstatvfs)
        with pytest.raises(OSError, match="Input/output"):
            Space(store.data_dir, store.data_fd, store.wal_dir, 0).check(0)
