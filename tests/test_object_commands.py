"""`ingest put`, `get`, `ls` and the others, as processes beside a real server."""

import asyncio
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from catalog_rig import ServiceRig
from node_rig import NodeRig, running_node

from ingest import ticket
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.version import VersionState
from ingest.client.async_client import Run
from ingest.client.blocking_client import Client
from ingest.commands.local_backend import LocalNode
from ingest.commands.object_commands import _names
from ingest.commands.object_files import Source, Target, shown
from ingest.engine import announcement
from ingest.errors import ConnectionLostError, DiskError, UsageError
from ingest.limits import (
    DATA_SIZE,
    FILE_READ_SIZE,
    FRAME_SIZE,
    LIST_PAGE_MAX,
    REQUEST_SIZE,
    RUN_HEADER_SIZE,
    SMALL_OBJECT_MAX,
)
from ingest.runtime.key_file import read_keys
from ingest.status import Status

ROOT = Path(__file__).parent.parent
SIZES = [
    0, 1, DATA_SIZE - 1, DATA_SIZE, DATA_SIZE + 1, SMALL_OBJECT_MAX - 1, SMALL_OBJECT_MAX, SMALL_OBJECT_MAX + 1,
    5_000_000,
]  # fmt: skip


def bytes_of(size: int, seed: int = 0) -> bytes:
    return blake3(seed.to_bytes(8, "big")).digest(size)


class Commands:
    """The command line beside one server."""

    def __init__(self, node: NodeRig) -> None:
        self.node = node
        self.data_dir = node.data_dir

    def environment(self) -> dict[str, str]:
        """Its ports are those of chance: the commands find them in the data directory."""
        return os.environ | {"PYTHONPATH": str(ROOT), "INGEST_DATA_DIR": str(self.data_dir)}

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ingest", *map(str, arguments)]
        return subprocess.Popen(command, env=self.environment(), **options)

    def run(self, *arguments: str | Path, stdin: bytes = b"", code: int = 0) -> bytes:
        """Its stdout; and its stderr in ``self.complaint``."""
        process = self.start(
            *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = process.communicate(stdin)
        self.complaint = err.decode()
        assert process.returncode == code, self.complaint
        return out

    def json(self, *arguments: str | Path, **options: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", **options))

    def reader(self) -> CatalogReader:
        return CatalogReader(catalog_path(self.data_dir))

    def client(self) -> Client:
        return Client.connect(self.node.put_address, self.node.get_address, self.data_dir / ".ingest" / "key")

    def saved(self) -> set[int]:
        """Index of all tickets that an allocator ever gave and that are SAVED."""
        with self.reader() as reader, self.client() as client:
            runs = client.inventory(ticket.format(FIRST), max(1, reader.next_ticket() - FIRST))
        return {index for run in runs if run.status is Status.SAVED for index in _indices(run)}

    def live(self) -> set[int]:
        with self.reader() as reader:
            places = [place for version in reader.versions(VersionState.OK) for place in version.extents]
        return {index for place in places for index in range(place.first, place.stop)}


def _indices(run: Run) -> range:
    first = ticket.parse(run.first)
    return range(first, first + run.count)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with running_node(tmp_path_factory.mktemp("commands") / "data", "--workers=1", "--sync=os") as node:
        yield Commands(node)


def write_files(directory: Path, sizes: Sequence[int]) -> list[Path]:
    files = [directory / f"size {size}" for size in sizes]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(bytes_of(size, size))
    return files


def test_round_trips(commands, tmp_path):
    files = write_files(tmp_path, SIZES)
    put = commands.json("put", *files)["objects"]
    assert [one["name"] for one in put] == [file.name for file in files]
    for one, size in zip(put, SIZES, strict=True):
        content = bytes_of(size, size)
        assert (one["size"], one["digest"]) == (size, blake3(content).hexdigest())
    for one in put[:2] + put[-2:]:
        got = tmp_path / "got"
        found = commands.json("get", one["name"], "-o", got)
        assert (found["id"], found["digest"], found["file"]) == (one["id"], one["digest"], str(got))
        assert got.read_bytes() == bytes_of(one["size"], one["size"])
    assert commands.run("get", put[4]["id"]) == bytes_of(SIZES[4], SIZES[4])  # by ObjectID, to stdout
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".ingest-")]


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
def test_stdin_from_a_pipe(commands, size):
    commands.run("put", "-", "--name", f"from stdin {size}", stdin=bytes_of(size))
    assert commands.run("get", f"from stdin {size}", "-o", "-") == bytes_of(size)


def test_stdin_from_a_file(commands, tmp_path):
    (file,) = write_files(tmp_path, [2_000_000])
    with file.open("rb") as opened:
        process = commands.start("put", "-", "--name", "redirected", stdin=opened, stdout=subprocess.DEVNULL)
        assert process.wait() == 0
    assert commands.run("get", "redirected") == file.read_bytes()


def test_a_name_is_replaced(commands, tmp_path):
    file = tmp_path / "twice"
    for content in (b"first", b"second"):
        file.write_bytes(content)
        commands.run("put", file)
    assert commands.run("get", "twice") == b"second"
    found = commands.json("stat", "twice")
    assert [step["state"] for step in found["history"]].count("DELETED") == 1
    assert found["digest"] == blake3(b"second").hexdigest()
    text = commands.run("stat", "twice").decode()
    assert found["digest"] in text and "replaced by version" in text


def test_what_can_not_be_put(commands, tmp_path):
    assert _names([Path("a/x"), Path("a/y")], None) == {"x": Path("a/x"), "y": Path("a/y")}
    with pytest.raises(UsageError, match="would be one object"):
        _names([Path("a/x"), Path("b/x")], None)
    with pytest.raises(UsageError, match="--name names one object"):
        _names([Path("a/x"), Path("b/y")], "both")
    with pytest.raises(UsageError, match="stdin has no name"):
        _names([Path("-")], None)
    commands.run("put", tmp_path / "nowhere", code=2)
    assert "No such file" in commands.complaint
    commands.run("put", tmp_path, "--name", "directory", code=2)
    assert "a directory" in commands.complaint
    commands.run("put", "/dev/null", "--name", "n" * 1025, code=2)
    assert "1 to 1024" in commands.complaint


def test_what_is_not_there(commands, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"as it was")
    commands.run("get", "missing", "-o", target, code=1)
    assert commands.complaint == "ingest: there is no object 'missing'\n"
    assert target.read_bytes() == b"as it was"
    commands.run("get", "ZZZZZZZZ", code=1)
    commands.run("stat", "missing", code=1)
    commands.run("put", "-", "--name", "kept")
    assert commands.json("rm", "missing", "kept", code=1) == {"removed": ["kept"], "missing": ["missing"]}
    commands.run("ls", "--data-dir", tmp_path, code=78)
    assert "no data directory" in commands.complaint
    commands.run("get", "kept", "--data-dir", tmp_path, code=78)
    commands.run("put", "/dev/null", "--name", "unreachable", "--connect", f"127.0.0.1:{_no_port()}", code=1)


def test_a_server_that_has_ended_is_not_looked_for(tmp_path):
    """Somebody else may listen now where it said that it did."""
    with running_node(tmp_path / "data", "--workers=1", "--sync=os") as node:
        commands = Commands(node)
        commands.run("put", "-", "--name", "a", stdin=b"a")
        assert node.stop() == 0
        assert "put" in json.loads((node.data_dir / ".ingest" / "lock").read_bytes())
        commands.run("put", "-", "--name", "b", stdin=b"b", code=1)
        assert "says where it listens" in commands.complaint
        commands.run("get", "a", code=1)
        assert "--read-connect" in commands.complaint


PORTS: list[Any] = [
    None, {}, {"pid": 1}, {"put": None, "get": None}, {"put": 5000, "get": 5005}, {"put": ["127.0.0.1", 1], "get": []},
    {"put": "", "get": ""}, {"put": "nowhere", "get": "127.0.0.1"}, {"put": "127.0.0.1:0x1", "get": "127.0.0.1:-1"}, [],
    "put",
]  # fmt: skip


@pytest.mark.parametrize("told", PORTS, ids=str)
@pytest.mark.parametrize(("port", "flag"), [("put", "--connect is"), ("get", "--read-connect is")])
def test_a_server_that_says_no_address(tmp_path, monkeypatch, told, port, flag):
    """As one does whose file was spoilt: the flag that helps is named, and it is the address where it is given."""
    monkeypatch.setattr(announcement, "running", lambda _: told)
    with pytest.raises(ConnectionLostError, match=f"says where it listens: {flag} for"):
        LocalNode(data_dir=tmp_path)._port(port, None)
    assert LocalNode(data_dir=tmp_path)._port(port, ("127.0.0.1", 7)) == ("127.0.0.1", 7)
    monkeypatch.setattr(announcement, "running", lambda _: {"put": "127.0.0.1:5", "get": "[::1]:6"})
    assert LocalNode(data_dir=tmp_path)._port(port, None) == (
        ("127.0.0.1", 5) if port == "put" else ("::1", 6)
    )


def _no_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_names_of_any_characters(commands):
    name = "line\nescape\x1b[2J {braces} [b]tags[/b] \u202e'\"\\ ü 🦦"
    commands.run("put", "-", "--name", name, "--namespace", "odd", stdin=b"odd")
    line = commands.run("ls", "--namespace", "odd").decode()
    assert line.count("\n") == 1 and "\x1b" not in line and "\\x1b" in line and "🦦" in line
    assert json.loads(commands.run("ls", "--namespace", "odd", "--json"))["name"] == name
    assert b"\x1b" not in commands.run("stat", name, "--namespace", "odd")
    assert commands.run("get", name, "--namespace", "odd") == b"odd"
    assert b"\x1b" not in commands.run("rm", name, "--namespace", "odd")
    assert shown("a\tb\udc80") == "a\\tb\\udc80"


def test_progress_on_a_terminal(commands, tmp_path):
    file = tmp_path / "{bar} [b]\x1b[2J"
    file.write_bytes(bytes_of(3_000_000))
    terminal, other = os.openpty()
    process = commands.start("put", file, stdout=subprocess.DEVNULL, stderr=other)
    os.close(other)
    shown_there = bytearray()
    while part := _read_terminal(terminal):
        shown_there += part
    os.close(terminal)
    assert process.wait(60) == 0
    assert rb"{bar} [b]\x1b[2J" in shown_there and b"\x1b[2J" not in shown_there
    assert b"MB" in shown_there
    commands.run("rm", file.name)


def _read_terminal(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: all who had the other end have closed it
        return b""


def test_a_listing_of_many_pages(commands):
    names = [f"many/{i}" for i in range(2 * LIST_PAGE_MAX + 3)] + ["many/é", "many/z", "other"]
    with Catalog(catalog_path(commands.data_dir)) as catalog, catalog.change():
        owner = catalog.enter("test")
        for name in names:
            lease = catalog.lease(owner, 2)
            catalog.store(owner, "list", name, 1, bytes(32), [lease])
    try:
        listed = [
            json.loads(line)["name"]
            for line in commands.run("ls", "many/", "--namespace", "list", "--json").splitlines()
        ]
        assert listed == sorted(names[:-1], key=str.encode)
        assert commands.run("ls", "nothing", "--namespace", "list") == b""
        assert commands.run("ls", "--namespace", "no such") == b""
    finally:  # nothing is stored of them
        with Catalog(catalog_path(commands.data_dir)) as catalog, catalog.change():
            for name in names:
                catalog.delete("list", name)


def test_the_collector_gives_back_what_was_removed(commands, tmp_path):
    files = write_files(tmp_path, [3000, 2_000_000])
    commands.run("put", *files, "--namespace", "gone")
    extents = [
        Extent(ticket.parse(first), count)
        for file in files
        for first, count in commands.json("stat", file.name, "--namespace", "gone")["extents"]
    ]
    commands.run("rm", *[file.name for file in files], "--namespace", "gone")
    dry = commands.json("gc", "--dry-run")
    assert dry["dry_run"] and dry["tickets"] >= sum(one.count for one in extents)
    assert commands.json("gc")["tickets"] == dry["tickets"]
    with commands.client() as client:
        for one in extents:
            (run,) = client.inventory(ticket.format(one.first), one.count)
            assert run.status is Status.DELETED
    assert commands.saved() == commands.live()
    assert commands.json("gc")["tickets"] == 0


def test_a_lease_is_given_once(commands):
    first, last = commands.run("tickets", "lease", "100").decode().split()
    found = commands.json("tickets", "lease", "50", "--what", "camera")
    assert ticket.parse(last) - ticket.parse(first) == 99
    assert ticket.parse(found["first"]) > ticket.parse(last)
    commands.run("put", "-", "--name", "after a lease", stdin=b"x")
    assert ticket.parse(commands.json("stat", "after a lease")["id"]) > ticket.parse(found["last"])
    with commands.client() as client:
        client.put(first, b"mine")
        commands.run("gc")
        assert client.get(first).rstrip(b"\0") == b"mine"
        client.delete(first, 1)
    commands.run("tickets", "lease", "0", code=2)


def test_through_the_service_of_a_gateway(commands, tmp_path):
    service = ServiceRig(commands.data_dir)
    service.start()
    try:
        (file,) = write_files(tmp_path, [1_000_000])
        commands.run("put", file)
        assert commands.run("get", file.name) == file.read_bytes()
        commands.run("rm", file.name)
        commands.run("gc")
        assert commands.saved() == commands.live()
    finally:
        service.close()


class HalfAnUpload:
    """A put that has sent more than a few ranges and waits for more of its stdin."""

    def __init__(self, commands: Commands, name: str) -> None:
        self.process = commands.start(
            "put", "-", "--name", name, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin is not None
        self.process.stdin.write(bytes_of(4_000_000))
        self.process.stdin.flush()
        deadline = time.monotonic() + 60
        while not self._sent(commands, name):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    @staticmethod
    def _sent(commands: Commands, name: str) -> bool:
        with commands.reader() as reader:
            pending = [version for version in reader.versions(VersionState.PENDING) if version.name == name]
        return bool(pending) and bool(commands.saved() - commands.live())

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        for stream in (self.process.stdin, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_put(commands, number, code):
    assert HalfAnUpload(commands, "interrupted").end(number) == code
    commands.run("stat", "interrupted", code=1)
    commands.run("gc")
    assert commands.saved() == commands.live()


def test_a_killed_put(commands):
    """Its tickets are garbage when its deadline has passed, which is made so here."""
    assert HalfAnUpload(commands, "killed").end(signal.SIGKILL) == -signal.SIGKILL
    commands.run("gc")
    assert commands.saved() != commands.live()  # it might be alive
    with Catalog(catalog_path(commands.data_dir)) as catalog, catalog.change():
        for version in catalog.versions(VersionState.PENDING):
            catalog._db.run("UPDATE owners SET deadline = 0 WHERE id IN (SELECT owner FROM versions WHERE number = ?)",
                            version.number)  # fmt: skip
    assert commands.json("gc")["processes"] == 1
    assert commands.saved() == commands.live()
    assert [step["state"] for step in history(commands, "killed")] == ["FAILED", "PENDING"]


def history(commands: Commands, name: str) -> list[dict[str, Any]]:
    with commands.reader() as reader:
        return [{"state": step.state.name} for step in reader.history("objects", name)]


def test_a_broken_get_leaves_nothing(commands, tmp_path):
    """One chunk of a large object is gone: what was read before it is gone as well."""
    (file,) = write_files(tmp_path, [3_000_000])
    commands.run("put", file, "--name", "damaged")
    found = commands.json("stat", "damaged")
    with commands.client() as client:
        client.delete(ticket.format(ticket.parse(found["id"]) + 1500))
    target = tmp_path / "target"
    commands.run("get", "damaged", "-o", target, code=1)
    assert "DELETED" in commands.complaint
    assert os.listdir(tmp_path) == [file.name]
    commands.run("rm", "damaged")
    commands.run("gc")


def test_a_get_that_is_not_what_the_catalog_says(commands, tmp_path):
    commands.run("put", "-", "--name", "mismatch", stdin=b"bytes")
    with Catalog(catalog_path(commands.data_dir)) as catalog, catalog.change():
        catalog._db.run("UPDATE versions SET digest = ? WHERE name = 'mismatch'", bytes(32))
    commands.run("get", "mismatch", "-o", tmp_path / "target", code=1)
    assert "and the catalog has 5" in commands.complaint
    assert not os.listdir(tmp_path)


def answer_once(listener: socket.socket, server: tuple[str, int], taken: list[socket.socket]) -> None:
    """Passes on one get of one chunk, and is silent then."""
    taken.append(listener.accept()[0])
    with socket.create_connection(server) as sock:
        sock.sendall(taken[0].recv(REQUEST_SIZE, socket.MSG_WAITALL))
        taken[0].sendall(sock.recv(RUN_HEADER_SIZE + FRAME_SIZE, socket.MSG_WAITALL))


def test_an_interrupted_get(commands, tmp_path):
    """Its temporary file goes with it. The get port is one that says whose its store is, and answers nothing more."""
    (file,) = write_files(tmp_path, [3_000_000])
    commands.run("put", file, "--name", "large")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        taken: list[socket.socket] = []
        threading.Thread(target=answer_once, args=(listener, commands.node.get_address, taken)).start()
        out = tmp_path / "out"
        out.mkdir()
        silent = f"127.0.0.1:{listener.getsockname()[1]}"
        process = commands.start("get", "large", "-o", out / "target", "--read-connect", silent)
        deadline = time.monotonic() + 60
        while not os.listdir(out):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not os.listdir(out)
        for sock in taken:
            sock.close()


def test_output_that_is_no_file(commands, tmp_path):
    commands.run("put", "-", "--name", "to a device", stdin=b"x")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    commands.run("get", "to a device", "-o", pipe)
    assert os.read(end, 10) == b"x" and pipe.is_fifo()
    os.close(end)
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    commands.run("get", "to a device", "-o", link)
    assert link.is_symlink() and real.read_bytes() == b"x"
    commands.run("get", "to a device", "-o", tmp_path, code=2)
    commands.run("get", "to a device", "--json", code=2)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(commands, tmp_path, mode):
    commands.run("put", "-", "--name", "private", stdin=b"new")
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(mode)
    commands.run("get", "private", "-o", target)
    assert (target.read_bytes(), target.stat().st_mode & 0o7777) == (b"new", mode)


def test_a_new_file_is_for_whom_the_umask_says(tmp_path):
    for umask in (0o077, 0o027, 0o022):
        target = Target(tmp_path / f"{umask:o}")
        before = os.umask(umask)
        try:
            with target:
                target.keep()
        finally:
            os.umask(before)
        assert target.path.stat().st_mode & 0o7777 == 0o666 & ~umask


def test_no_rights_of_a_group_that_it_can_not_have(tmp_path, monkeypatch):
    """As for one who may not give files away."""

    def refused(fd: int, user: int, group: int) -> None:
        raise PermissionError(errno.EPERM, "not you")

    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o664)
    found = target.stat()
    foreign = os.stat_result((*found[:5], found.st_gid + 1, *found[6:]))
    monkeypatch.setattr(os, "fchown", refused)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: foreign if path == target else real(path, **more))
    with Target(target) as opened:
        opened.keep()
    monkeypatch.undo()
    assert target.stat().st_mode & 0o7777 == 0o604


@pytest.mark.parametrize("foreign", [(0, 1), (1, 0), (1, 1)], ids=["group", "owner", "both"])
def test_the_new_file_is_nobody_else_s_until_it_has_its_owner(tmp_path, monkeypatch, foreign):
    """Whoever opens it before could read all of it afterwards."""
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o666)
    found, modes = target.stat(), []
    user, group = foreign
    owned = os.stat_result((*found[:4], found.st_uid + user, found.st_gid + group, *found[6:]))
    real = os.stat
    before = os.umask(0)
    monkeypatch.setattr(os, "stat", lambda path, **more: owned if path == target else real(path, **more))
    monkeypatch.setattr(os, "fchown", lambda fd, *_: modes.append(os.fstat(fd).st_mode & 0o7777))
    try:
        with Target(target) as opened:
            opened.keep()
    finally:
        os.umask(before)
        monkeypatch.undo()
    assert modes == [0o600] * sum(foreign)
    assert target.stat().st_mode & 0o7777 == 0o666


@pytest.mark.parametrize("bit", [0o4000, 0o2000, 0o1000], ids=oct)
def test_new_bytes_do_not_run_as_somebody_else(tmp_path, bit):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(bit | 0o755)
    with Target(target) as opened:
        opened.keep()
    assert target.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("place", ["file", "device", "stdout"])
def test_what_is_written_in_parts_is_written_whole(tmp_path, monkeypatch, place):
    """A disk that is almost full, a signal, or a pipe takes less than it is given."""
    written, real = bytearray(), os.write

    def short(fd: int, data: memoryview) -> int:
        part = bytes(data[: 1 + len(written) % 3])
        written.extend(part)
        return real(fd, part) if place == "file" else len(part)

    target = tmp_path / "target"
    path = {"file": target, "device": Path("/dev/null"), "stdout": None}[place]
    monkeypatch.setattr(os, "write", short)

    async def write() -> None:
        with Target(path) as opened:
            for size in (1, 0, 17, 2):
                await opened.write(memoryview(bytes_of(20))[20 - size :])
            opened.keep()

    asyncio.run(write())
    monkeypatch.undo()
    expected = b"".join(bytes_of(20)[20 - size :] for size in (1, 17, 2))
    assert bytes(written) == expected
    assert place != "file" or target.read_bytes() == expected


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
@pytest.mark.parametrize("fails", ["fsync of the file", "rename", "fsync of the directory"])
def test_a_file_that_may_not_be_on_the_disk_is_not_there(tmp_path, monkeypatch, fails, there):
    """Exit code 0 says that it is. Until the name is the new file's, what had it before stays."""
    done: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def act(what: str, call: Any, *arguments: Any) -> None:
        done.append(what)
        if what == fails:
            raise OSError(errno.EIO, "Input/output error")
        call(*arguments)

    def fsync(fd: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        act(f"fsync of the {kind}", real_fsync, fd)

    target = tmp_path / "target"
    if there:
        target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda *names: act("rename", real_rename, *names))

    async def write() -> None:
        with Target(target) as opened:
            await opened.write(b"new")
            opened.keep()

    with pytest.raises(DiskError, match="Input/output error"):
        asyncio.run(write())
    monkeypatch.undo()
    steps = ["fsync of the file", "rename", "fsync of the directory"]
    assert done == steps[: steps.index(fails) + 1]
    renamed = fails == "fsync of the directory"
    assert os.listdir(tmp_path) == (["target"] if there or renamed else [])
    assert not target.exists() or target.read_bytes() == (b"new" if renamed else b"old")


def source_of(path: Path | None) -> tuple[Source, bytes, list[int]]:
    """What was read, and the sizes that its progress was told."""
    told: list[int] = []

    async def read() -> tuple[Source, bytes]:
        source = Source(path).open()
        try:
            return source, b"".join([piece async for piece in source.pieces(told.append)])
        finally:
            source.close()

    return *asyncio.run(read()), told


@pytest.mark.parametrize(
    "size", [0, 1, FILE_READ_SIZE - 1, FILE_READ_SIZE, FILE_READ_SIZE + 1, 3 * FILE_READ_SIZE]
)
def test_each_byte_of_a_source_is_counted(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes_of(size))
    source, found, told = source_of(path)
    assert found == bytes_of(size)
    assert (source.read, sum(told), source.size or 0) == (size, size, size)
    assert source.hash.digest() == blake3(found).digest()


def test_the_size_of_a_source_is_that_of_a_file(tmp_path):
    """What is made as it is read says nothing of it, or that it is 0."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_bytes, args=(b"through a pipe",))
    writing.start()
    for path, content in (
        (Path("/proc/self/comm"), None),
        (Path("/dev/null"), b""),
        (pipe, b"through a pipe"),
    ):
        source, found, _ = source_of(path)
        assert source.size is None and source.read == len(found)
        assert content is None or found == content
    writing.join()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_source_that_can_not_be_read_to_its_end(tmp_path, monkeypatch, at):
    """It is not taken for one that has ended."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * FILE_READ_SIZE))
    reads, real = [], os.read

    def fails(fd: int, size: int) -> bytes:
        if size == FILE_READ_SIZE:
            reads.append(fd)
            if len(reads) > at:
                raise OSError(errno.EIO, "Input/output error")
        return real(fd, size)

    monkeypatch.setattr(os, "read", fails)
    with pytest.raises(DiskError, match=f"^{path}: Input/output error$"):
        source_of(path)
    assert len(reads) == at + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    os.chown(target, 12345, 23456)
    with Target(target) as opened:
        opened.keep()
    found = target.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12345, 23456, 0o640)


def test_a_lost_catalog(tmp_path):
    files = write_files(tmp_path, [0, 5000, 1_000_000])
    with running_node(tmp_path / "data", "--workers=1", "--sync=os") as node:
        commands = Commands(node)
        commands.run("put", *files)
        copied = commands.json("catalog", "backup", tmp_path / "copy.db")
        assert copied["bytes"] == (tmp_path / "copy.db").stat().st_size
        commands.run("catalog", "rebuild", "--replace", code=75)  # a server runs
        node.stop()
        commands.run("catalog", "rebuild", code=2)  # there is one
        for side in ("", "-wal", "-shm"):
            Path(f"{catalog_path(node.data_dir)}{side}").unlink(missing_ok=True)
        found = commands.json("catalog", "rebuild")
        assert (found["objects"], found["bytes"], found["orphans"]) == (3, 1_005_000, [])
        node.start()
        for file in files:
            assert commands.run("get", file.name) == file.read_bytes()
        assert read_keys(node.data_dir / ".ingest" / "key")
