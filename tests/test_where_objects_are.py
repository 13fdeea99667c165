"""Where the object commands look: each flag and each variable reaches what it is for, and nothing else."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ingest import tls
from ingest.client.async_client import AsyncClient
from ingest.commands import cli, local_backend, object_options
from ingest.commands.local_backend import LocalNode
from ingest.engine import announcement
from ingest.errors import ConfigError
from ingest.runtime.key_file import make_key_file

SERVER = {  # flag: field of a node, what it becomes
    "--data-dir": ("data_dir", Path("a/b")),
    "--connect": ("connect", ("127.0.0.1", 5)),
    "--read-connect": ("read_connect", ("127.0.0.1", 6)),
    "--key-file": ("key_file", Path("a/key")),
    "--connect-tls-ca": ("tls_ca", Path("a/ca")),
    "--connect-tls-cert": ("tls_cert", Path("a/cert")),
    "--connect-tls-key": ("tls_key", Path("a/own")),
}
ARGUMENTS = {
    "put": ("/dev/null", "--name=a"),
    "get": ("a",),
    "ls": (),
    "stat": ("a",),
    "rm": ("a",),
    "gc": (),
}
BYTES = {"--key-file", "--connect-tls-ca", "--connect-tls-cert", "--connect-tls-key"}
FLAGS = {
    "put": BYTES | {"--connect"},
    "get": BYTES | {"--read-connect"},
    "gc": BYTES | {"--connect"},
}  # beside --data-dir


class Found(Exception):
    pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """The node that a command line leads to, or its exit code."""

    def found(node: LocalNode) -> None:
        raise Found(node)

    for flag in (*SERVER, "--gateway", "--token"):
        monkeypatch.delenv("INGEST_" + flag[2:].replace("-", "_").upper(), raising=False)
    monkeypatch.setattr(object_options, "LocalBackend", found)

    def run(*arguments: str) -> LocalNode | int:
        try:
            return cli.run(cli.cli, "ingest", arguments)
        except Found as node:
            return node.args[0]

    return run


def text(value: Any) -> str:
    return f"{value[0]}:{value[1]}" if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("flag", SERVER)
@pytest.mark.parametrize("command", ARGUMENTS)
def test_each_flag_and_each_variable_is_a_field_of_its_own(run, monkeypatch, command: str, flag: str) -> None:
    name, value = SERVER[flag]
    if flag != "--data-dir" and flag not in FLAGS.get(command, ()):
        assert run(command, flag, text(value), *ARGUMENTS[command]) == 2
        return
    variable = "INGEST_" + flag[2:].replace("-", "_").upper()
    expected = LocalNode(**{"data_dir": Path("."), name: value})
    assert run(command, flag, text(value), *ARGUMENTS[command]) == expected
    monkeypatch.setenv(variable, text(value))
    assert run(command, *ARGUMENTS[command]) == expected
    monkeypatch.setenv(variable, "127.0.0.1:9")
    assert run(command, flag, text(value), *ARGUMENTS[command]) == expected  # the flag goes before it


@pytest.mark.parametrize("flag", ["--connect", "--read-connect"])
@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", ":x"])
def test_what_is_no_address(run, capfd: pytest.CaptureFixture[str], flag: str, address: str) -> None:
    command = "put" if flag == "--connect" else "get"
    assert run(command, flag, address, *ARGUMENTS[command]) == 2
    assert flag in capfd.readouterr().err


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """The ports, and the context of TLS, of each client that is made."""
    made: list[tuple[Any, Any, Any]] = []

    @asynccontextmanager
    async def client():
        yield None

    async def connect(put: Any, get: Any, key: Any, *, tls: Any) -> Any:
        made.append((put, get, tls))
        return client()

    monkeypatch.setattr(AsyncClient, "connect", connect)
    monkeypatch.setattr(announcement, "running", lambda _: {"put": "127.0.0.1:1", "get": "127.0.0.1:2"})
    return made


def enter(node: LocalNode, **ports: bool) -> None:
    async def work() -> None:
        async with node.client(**ports):
            pass

    asyncio.run(work())


@pytest.mark.parametrize(
    ("connect", "read_connect"), list(product([None, ("127.0.0.1", 5)], [None, ("127.0.0.1", 6)]))
)
def test_the_get_port_is_that_of_the_server_that_is_put_into(
    connected, tmp_path: Path, connect: Any, read_connect: Any
) -> None:
    """It tells whose store the server has. That which a data directory names is another server's, where the put port was
    given: a look there would say of the wrong one that it is the right one."""
    make_key_file(tmp_path / "key")
    node = LocalNode(data_dir=tmp_path, key_file=tmp_path / "key", connect=connect, read_connect=read_connect)
    for ports in ({"put": True}, {"get": True}, {"put": True, "get": True}):
        enter(node, **ports)
    put, get = connect or ("127.0.0.1", 1), read_connect or ("127.0.0.1", 2)
    beside = None if connect and not read_connect else get
    assert connected == [(put, beside, None), (None, get, None), (put, get, None)]


@pytest.mark.parametrize("given", list(product([False, True], repeat=3)), ids=str)
def test_any_file_for_tls_means_tls(
    connected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[bool, ...]
) -> None:
    """Nothing goes out plainly that was to be hidden: a CA alone, or an own certificate for whom the system trusts."""
    make_key_file(tmp_path / "key")
    files = [Path(name) if there else None for name, there in zip(("ca", "cert", "own"), given, strict=True)]
    monkeypatch.setattr(tls, "client_context", lambda *names: names)
    names = dict(zip(("tls_ca", "tls_cert", "tls_key"), files, strict=True))
    enter(LocalNode(data_dir=tmp_path, key_file=tmp_path / "key", **names), put=True)
    assert [context for *_, context in connected] == [tuple(files) if any(given) else None]
    monkeypatch.undo()
    if given == (False, False, True):
        with pytest.raises(ConfigError, match="a key needs its certificate"):
            enter(LocalNode(data_dir=tmp_path, key_file=tmp_path / "key", **names), put=True)


def test_the_key_is_the_store_s_unless_another_is_given(tmp_path: Path) -> None:
    (tmp_path / ".ingest").mkdir()
    own = make_key_file(tmp_path / ".ingest" / "key")
    other = make_key_file(tmp_path / "key")
    assert local_backend.LocalNode(data_dir=tmp_path).keys() == [own]
    assert local_backend.LocalNode(data_dir=tmp_path, key_file=tmp_path / "key").keys() == [other] != [own]
