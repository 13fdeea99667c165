"""Who may read a file with a secret, as volumes of Kubernetes have them: Secrets, and what `fsGroup` does to a store."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_rig import node_gateway
from node_rig import running_node

from ingest.client.key import shared_keys
from ingest.engine.check_server import check
from ingest.errors import KeyFileError
from ingest.gateway.http.token_file import read_token, read_tokens
from ingest.runtime.key_file import close_key, read_keys
from ingest.runtime.secret_mode import gives_by_name, is_opened_to_group, openness
from ingest.store.check.fsck import fsck

OURS, FOREIGN = os.getegid(), 54321
US, ROOT, OTHER = os.geteuid(), 0, 54321
KEY = bytes(range(32))
TOKEN = "mJ7cQ2hXs9DfW4pK"


def status(mode: int, uid: int, gid: int, kind: int = stat.S_IFREG) -> os.stat_result:
    return os.stat_result((kind | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


def as_fs_group(root: Path) -> None:
    """What the kubelet does to a volume at each mount."""
    for directory, _, names in os.walk(root):
        path = Path(directory)
        path.chmod(path.stat().st_mode | 0o2770)
        for name in names:
            (path / name).chmod((path / name).stat().st_mode | 0o660)


@pytest.mark.parametrize("mode", [0o640, 0o440])
@pytest.mark.parametrize(
    ("uid", "gid", "good"),
    [
        (US, OURS, True),
        (ROOT, OURS, True),
        (US, FOREIGN, False),
        (ROOT, FOREIGN, False),
        (OTHER, OURS, False),
    ],
)
def test_a_group_may_read_when_it_was_meant_to(mode: int, uid: int, gid: int, good: bool) -> None:
    assert (openness(status(mode, uid, gid), os.devnull) is None) == good


@pytest.mark.parametrize("groups", [[FOREIGN], [OURS + 1, FOREIGN], [FOREIGN, OURS + 1], []])
def test_a_group_that_we_have_besides_is_ours(monkeypatch: pytest.MonkeyPatch, groups: list[int]) -> None:
    """`fsGroup` is one: the first group of a container's processes is another."""
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    assert (openness(status(0o440, ROOT, FOREIGN), os.devnull) is None) == bool(groups)
    assert is_opened_to_group(status(0o660, US, FOREIGN), 0o600, os.devnull) == bool(groups)
    assert openness(status(0o440, ROOT, OURS), os.devnull) is None


@pytest.mark.parametrize(
    ("code", "has_none"),
    [
        (errno.ENODATA, True),
        (errno.EOPNOTSUPP, True),
        (errno.EACCES, False),
        (errno.EIO, False),
        (errno.EPERM, False),
    ],
)
def test_a_list_that_cannot_be_read_is_not_taken_for_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, has_none: bool
) -> None:
    def getxattr(*_: object, **__: object) -> bytes:
        raise OSError(code, os.strerror(code))

    key = tmp_path / "key"
    key.write_text(KEY.hex())
    key.chmod(0o640)
    monkeypatch.setattr(os, "getxattr", getxattr)
    if has_none:
        assert read_keys(key) == [KEY]
        assert is_opened_to_group(status(0o660, US, OURS), 0o600, os.devnull)
        return
    with pytest.raises(KeyFileError, match=os.strerror(code)):
        read_keys(key)
    with pytest.raises(OSError, match=os.strerror(code)):
        is_opened_to_group(status(0o660, US, OURS), 0o600, os.devnull)


@pytest.mark.parametrize("mode", [0o620, 0o610, 0o660, 0o604, 0o444, 0o602, 0o601])
def test_a_group_never_writes_and_others_never_read(mode: int) -> None:
    assert f"{mode:04o}" in (openness(status(mode, ROOT, OURS), os.devnull) or "")


def test_what_fs_group_gives_and_nothing_else() -> None:
    assert is_opened_to_group(status(0o660, US, OURS), 0o600, os.devnull)
    assert is_opened_to_group(status(0o2770, US, OURS, stat.S_IFDIR), 0o700, os.devnull)
    for mode, uid, gid in [(0o664, US, OURS), (0o640, US, OURS), (0o660, OTHER, OURS), (0o660, US, FOREIGN)]:
        assert not is_opened_to_group(status(mode, uid, gid), 0o600, os.devnull)


def test_secrets_are_links_to_files_that_the_group_may_read(tmp_path: Path) -> None:
    inside = tmp_path / "..data"
    inside.mkdir()
    for name, content in (("key", KEY.hex()), ("tokens", f"read-write {TOKEN}")):
        (inside / name).write_text(content)
        (inside / name).chmod(0o440)
        (tmp_path / name).symlink_to(f"..data/{name}")
    assert read_keys(tmp_path / "key") == [KEY]
    assert read_tokens(tmp_path / "tokens").find(TOKEN)
    assert read_token(tmp_path / "tokens") == TOKEN


def test_a_store_on_such_a_volume_starts_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_node(data) as rig:
        assert rig.stop() == 0
    key = data / ".ingest/key"
    for _ in range(2):
        as_fs_group(data)
        flags = {"listen": "127.0.0.1:0", "read_listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
        checked = check({**flags, "data_dir": str(data)}, {}, None)
        assert checked.exit_code == 0
        assert stat.S_IMODE(key.stat().st_mode) == 0o660  # a check changes nothing
        with running_node(data) as rig:
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
            assert rig.stop() == 0


def test_a_gateway_closes_the_key_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_node(data) as rig:
        assert rig.stop() == 0
    as_fs_group(data)
    with node_gateway(data):
        assert stat.S_IMODE((data / ".ingest/key").stat().st_mode) == 0o600


def test_a_client_takes_the_key_of_a_store_as_its_server_does(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as rig:
        own, copy = tmp_path / "data/.ingest/key", tmp_path / "key"
        shutil.copy(own, copy)
        keys = shared_keys(own)
        for path in (own, copy):
            path.chmod(0o660)
        assert shared_keys(own) == shared_keys(str(own)) == keys
        put = ["put", "-", "--name", "a", f"--data-dir={tmp_path / 'data'}"]
        command = [sys.executable, "-m", "ingest", *put, "--connect={}:{}".format(*rig.put_address)]
        done = subprocess.run(command, input=b"x", capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        own.with_name("link").symlink_to("key")
        for path in (copy, own.with_name("link")):
            with pytest.raises(KeyFileError, match="chmod 600"):
                shared_keys(path)
        own.chmod(0o664)
        with pytest.raises(KeyFileError, match="chmod 600"):
            shared_keys(own)
        own.chmod(0o600)
        own.rename(own.with_name("moved"))
        own.symlink_to(copy)  # whose it is, its place does not say any more
        with pytest.raises(KeyFileError, match="chmod 600"):
            shared_keys(own)
        own.with_name("moved").replace(own)
        assert rig.stop() == 0


def test_a_key_that_everybody_could_read_stays_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY.hex())
    key.chmod(0o664)
    close_key(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o664


def give_by_name(path: Path, permissions: int, most: int, tag: int = 0x02) -> None:
    """An access control list, which gives a user (0x02) or a group (0x08) of the number 65534 something, but not more than
    `most`."""
    none = 0xFFFFFFFF
    entries = [
        (0x01, 6, none),
        (0x04, 0, none),
        (tag, permissions, 65534),
        (0x10, most, none),
        (0x20, 0, none),
    ]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"{path.parent} keeps no access control lists")


class TestNamedByAList:
    """Where there is an access control list, the group's bits of the mode are what any of those that it names may have."""

    @pytest.mark.parametrize("tag", [0x02, 0x08])
    @pytest.mark.parametrize("read", [read_keys, read_tokens, read_token])
    def test_a_secret_that_somebody_else_may_read_is_refused(
        self, read: Callable[[Path], object], tag: int, tmp_path: Path
    ) -> None:
        path = tmp_path / "secret"
        path.write_text(KEY.hex() if read is read_keys else f"read-write {TOKEN}")
        path.chmod(0o600)
        give_by_name(path, 4, 4, tag)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        with pytest.raises(KeyFileError, match=f"access control list opens it to others: chmod 600 {path}"):
            read(path)
        path.chmod(0o600)  # as it says
        read(path)

    @pytest.mark.parametrize(("permissions", "most"), [(0, 4), (4, 0), (2, 4)])
    def test_who_gets_nothing_by_it_does_no_harm(self, permissions: int, most: int, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(KEY.hex())
        path.chmod(0o600)
        give_by_name(path, permissions, most)
        assert read_keys(path) == [KEY]

    def test_a_list_of_another_form_is_taken_for_the_worst(self) -> None:
        assert not gives_by_name(struct.pack("<IHHI", 2, 0x04, 4, 0))
        for tag in (0x02, 0x08):  # without a word of the most that they get
            assert gives_by_name(struct.pack("<IHHI", 2, tag, 1, 65534))
        for found in (b"", struct.pack("<IHHI", 3, 0x04, 4, 0), struct.pack("<IH", 2, 0x04)):
            assert gives_by_name(found)

    def test_what_looks_as_if_fs_group_had_given_it_is_not(self, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_text(KEY.hex())
        key.chmod(0o600)
        give_by_name(key, 4, 6)
        assert stat.S_IMODE(key.stat().st_mode) == 0o660
        close_key(key)
        assert stat.S_IMODE(key.stat().st_mode) == 0o660  # somebody may have read it: not to be passed over
        with pytest.raises(KeyFileError):
            read_keys(key, own=True)

    def test_fsck_takes_it_for_opened(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        with running_node(data) as rig:
            assert rig.stop() == 0
        give_by_name(data / ".ingest/store.json", 4, 6)
        assert [problem.kind for problem in fsck(data).problems] == ["mode"]


def test_fsck_counts_what_the_group_was_given_in_one_note(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_node(data) as rig:
        assert rig.stop() == 0
    as_fs_group(data)
    (data / "A").mkdir(0o700)  # by a server, in a directory that has S_ISGID
    report = fsck(data)
    assert report.clean
    assert len([note for note in report.notes if "given to their group" in note]) == 1
    (data / ".ingest/store.json").chmod(0o664)
    assert [problem.kind for problem in fsck(data).problems] == ["mode"]
