"""A start that is refused for what could be seen before has made nothing: no directory, no key, no catalog."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import everything_of
from test_cli import complains, run

from ingest.runtime.key_file import make_key_file
from ingest.runtime.listeners import format_address
from ingest.store.store import Store

NOBODY = "nosuch.invalid:1"
SERVER = ("--listen", "--read-listen", "--admin-listen")


@pytest.fixture
def taken() -> Iterator[str]:
    """The address of a port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield format_address(listener.getsockname())


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store that a server could serve, and no gateway has seen."""
    Store.open(tmp_path / "data").close()
    make_key_file(tmp_path / "data/.ingest/key")
    return tmp_path / "data"


def begin(program: str, data_dir: Path, refused: str, address: str, code: int) -> None:
    """Starts it with free ports, but for the one of the flag ``refused``."""
    own = {"server": SERVER, "gateway": ("--http-listen",), "serve": (*SERVER, "--http-listen")}[program]
    flags = [f"{flag}={address if flag == refused else '127.0.0.1:0'}" for flag in own]
    if refused not in own:  # of several
        flags.append(f"{refused}={address}")
    complains(run(program, f"--data-dir={data_dir}", *flags), code, address.rpartition("=")[2])


@pytest.mark.parametrize(
    ("program", "refused"),
    [*(("server", flag) for flag in SERVER), ("serve", "--admin-listen"), ("serve", "--http-listen")],
)
def test_no_data_directory_is_made_for_an_address(tmp_path, taken, program, refused):
    begin(program, tmp_path / "data", refused, NOBODY, 78)
    begin(program, tmp_path / "data", refused, taken, 75)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refused", ["--http-listen", "--api"])
def test_no_catalog_is_made_for_an_address(made, taken, refused):
    kind: Callable[[str], str] = "blob={}".format if refused == "--api" else str
    with everything_of(made):
        begin("gateway", made, refused, kind(NOBODY), 78)
        begin("gateway", made, refused, kind(taken), 75)


def test_two_names_of_one_port(tmp_path):
    """Each of them could be bound alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    flags = {**dict.fromkeys(SERVER, "127.0.0.1:0"), "--listen": f"127.0.0.1:{port}"}
    flags |= {"--http-listen": f"localhost:{port}", "--data-dir": str(tmp_path / "data")}
    result = run("serve", *(f"{flag}={value}" for flag, value in flags.items()))
    complains(result, 75, f"localhost:{port} is taken")
    assert list(tmp_path.iterdir()) == []


def test_no_data_directory_is_made_for_a_key_file_that_is_not_there(tmp_path):
    for program in ("server", "serve"):
        result = run(program, f"--data-dir={tmp_path / 'data'}", f"--key-file={tmp_path / 'key'}")
        complains(result, 78, "key file")
    assert list(tmp_path.iterdir()) == []


def test_no_data_directory_is_made_for_the_log_of_another_store(made, tmp_path):
    with everything_of(tmp_path):
        result = run("server", f"--data-dir={tmp_path / 'new'}", f"--wal-dir={made / '.ingest/wal'}")
        complains(result, 78, "another store")
