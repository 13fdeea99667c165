"""One server from its configuration: lock, keys, ports, and the errors that a second one gets.

The store, the committer and the admin port are the real ones; the workers only wait.
"""

import http.client
import json
import os
import re
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import uvloop
from node_rig import running_node

from ingest import limits
from ingest.engine import admin
from ingest.engine.commit.committer import committer_main
from ingest.engine.node import Node
from ingest.engine.pool import Roles
from ingest.engine.server import run_server, worker_count
from ingest.engine.server_config import ServerConfig
from ingest.errors import ConfigError, IngestError, KeyFileError, PortTakenError, StoreLockedError
from ingest.runtime import heartbeat, logs
from ingest.runtime.key_file import make_key_file, read_keys
from ingest.status import Status
from ingest.store.store_json import write_store_json

ANY = ("127.0.0.1", 0)
PATIENCE_S = 20.0


def admin_main(node: Node) -> int:
    uvloop.run(admin.serve_admin(node, lambda _: lambda index: (Status.MISSING, b"")))
    return 0


def worker_main(node: Node, slot: int) -> int:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    while not told:
        heartbeat.own().beat()
        select.select([], [], [], limits.HEART_INTERVAL_S)
    return 0


def worker_that_fails(node: Node, slot: int) -> int:
    return 70


ROLES = Roles(admin_main, committer_main, worker_main)


class Server:
    """A server in a process of its own. Its log, and how it ended, come through a pipe."""

    def __init__(self, config: ServerConfig, roles: Roles = ROLES) -> None:
        self.lock = config.data_dir / ".ingest" / "lock"
        self.log, write = os.pipe2(os.O_CLOEXEC)
        self.text = ""
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                sys.stderr = os.fdopen(write, "w", buffering=1)  # pytest has put its own there
                code = run_server(config, roles)
            except IngestError as error:
                print(f"ingest: {error}", file=sys.stderr)
                code = error.exit_code
            finally:
                logs.flush()
                os._exit(code)
        os.close(write)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.text:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.log], [], [], left)[0], f"no {text!r} in {self.text}"
            piece = os.read(self.log, 65536).decode()
            assert piece, f"ended without {text!r}: {self.text}"
            self.text += piece

    def addresses(self) -> dict[str, str]:
        return json.loads(self.lock.read_text())

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.addresses()["admin"], timeout=PATIENCE_S)
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def end(self, number: int = signal.SIGTERM) -> int:
        if not self.pid:
            return 0
        os.kill(self.pid, number)
        return self.exit_code()

    def exit_code(self) -> int:
        pidfd = os.pidfd_open(self.pid)
        ended = select.select([pidfd], [], [], PATIENCE_S)[0]
        os.close(pidfd)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        pid, self.pid = self.pid, 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        # To the end: all processes of the server held the other end of this pipe.
        while select.select([self.log], [], [], PATIENCE_S)[0] and (piece := os.read(self.log, 65536)):
            self.text += piece.decode()
        os.close(self.log)
        return code


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(
        data_dir=tmp_path / "data",
        listen=ANY,
        read_listen=ANY,
        admin_listen=ANY,
        workers=2,
        wal_size=limits.LOG_SIZE_MIN,
        reserve=0,
    )


@pytest.fixture
def server(config: ServerConfig) -> Iterator[Server]:
    server = Server(config)
    server.wait_for("serving with 2 workers")
    yield server
    assert server.end() == 0, server.text


def refused(config: ServerConfig, error: type[IngestError], match: str) -> None:
    """What `serve` raises before it has started anything."""
    server = Server(config)
    assert server.exit_code() == error.exit_code, server.text
    assert match in server.text.splitlines()[-1]
    assert server.text.splitlines()[-1].startswith("ingest: ")


def test_the_lock_file_and_the_log_say_where_it_listens(server: Server, config: ServerConfig) -> None:
    found = server.addresses()
    assert found["pid"] == server.pid
    for name in ("put", "get", "admin"):
        host, port = found[name].split(":")
        with socket.create_connection((host, int(port))):
            assert f"{name} {found[name]}" in server.text
    assert stat.S_IMODE(server.lock.stat().st_mode) == 0o600


def test_ready_when_it_serves(server: Server) -> None:
    until_reasons(server, "")
    assert b'ingest_recoveries_total{process="committer"} 1.0' in server.get("/metrics")[1]


def test_the_key_file_is_made_once(config: ServerConfig) -> None:
    path = config.data_dir / ".ingest" / "key"
    keys = []
    for _ in range(2):
        server = Server(config)
        server.wait_for("serving")
        keys.append(read_keys(path))
        assert server.end() == 0
    assert keys[0] == keys[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys[0][0].hex() not in server.text


def test_a_store_whose_key_is_gone_gets_no_new_one(config: ServerConfig) -> None:
    server = Server(config)
    server.wait_for("serving")
    assert server.end() == 0
    path = config.data_dir / ".ingest" / "key"
    path.unlink()
    refused(config, KeyFileError, "put it back")
    assert not path.exists()


def test_a_key_file_that_was_named_is_not_made(config: ServerConfig, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    refused(replace(config, key_file=path), KeyFileError, f"key file {path}: there is no such file")
    assert not path.exists()
    make_key_file(path)
    path.chmod(0o644)
    refused(replace(config, key_file=path), KeyFileError, "opens it to others")


def test_another_key_file_is_refused(config: ServerConfig, tmp_path: Path) -> None:
    server = Server(config)
    server.wait_for("serving")
    assert server.end() == 0
    make_key_file(tmp_path / "other")
    refused(replace(config, key_file=tmp_path / "other"), KeyFileError, "lacks the key")


def test_a_second_server_on_the_same_data(server: Server, config: ServerConfig) -> None:
    before = server.addresses()
    refused(config, StoreLockedError, f"process {server.pid}")
    assert server.addresses() == before
    until_reasons(server, "")


@pytest.mark.parametrize(
    ("flag", "name"), [("listen", "put"), ("read_listen", "get"), ("admin_listen", "admin")]
)
def test_a_second_server_on_the_same_port(
    server: Server, config: ServerConfig, tmp_path: Path, flag: str, name: str
) -> None:
    address = server.addresses()[name]
    host, port = address.split(":")
    other = replace(config, data_dir=tmp_path / "other", **{flag: (host, int(port))})
    refused(other, PortTakenError, f"{address} is taken")


def test_a_forgotten_wal_dir(config: ServerConfig, tmp_path: Path) -> None:
    server = Server(replace(config, wal_dir=tmp_path / "wal"))
    server.wait_for("serving")
    assert server.end() == 0
    refused(config, ConfigError, "--wal-dir")


def test_an_unknown_format_version(config: ServerConfig) -> None:
    server = Server(config)
    server.wait_for("serving")
    assert server.end() == 0
    path = config.data_dir / ".ingest" / "store.json"
    write_store_json(path, json.loads(path.read_text()) | {"format": 7})
    refused(config, ConfigError, "format version 7")


@pytest.mark.parametrize("victim", ["ingest-admin", "ingest-committe", "ingest-worker-1"])
def test_it_serves_on_when_one_process_is_killed(server: Server, victim: str) -> None:
    def pids() -> dict[str, int]:
        """The children by their names, once each has taken its own: a moment after it was forked."""
        deadline = time.monotonic() + 30
        while True:
            found = {child.name(): child.pid for child in psutil.Process(server.pid).children()}
            if len(found) == 4 and all(name.startswith("ingest-") for name in found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    name = {"ingest-committe": "committer"}.get(victim, victim.removeprefix("ingest-"))
    before = pids()
    os.kill(before[victim], signal.SIGKILL)
    server.wait_for(f"{name} (pid {before[victim]}) was killed")
    server.text = server.text.partition("was killed")[2]
    server.wait_for(f"{name} has pid")
    if name == "committer":
        server.wait_for("the store has recovered")
    after = pids()
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {victim}
    until_reasons(server, "")


def child_of(server: Server, name: str) -> psutil.Process:
    return next(one for one in psutil.Process(server.pid).children() if one.name() == name)


def reasons(server: Server) -> list[str]:
    return json.loads(server.get("/readyz")[1])["reasons"]


def until_reasons(server: Server, pattern: str) -> None:
    """Until there is one reason, and this one; an empty pattern: until there is none."""
    deadline = time.monotonic() + PATIENCE_S
    while not re.fullmatch(pattern, "; ".join(found := reasons(server))):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.parametrize("victim", ["ingest-committe", "ingest-worker-1"])
def test_it_is_not_ready_while_one_process_stands_still(server: Server, victim: str) -> None:
    """And goes on with the same process when that goes on."""
    server.wait_for("serving")
    until_reasons(server, "")
    name = {"ingest-committe": "committer"}.get(victim, victim.removeprefix("ingest-"))
    process = child_of(server, victim)
    process.suspend()
    try:
        until_reasons(server, rf"{name} has not answered for \d+ s")
        server.wait_for(f"{name} (pid {process.pid}) has answered nothing for")
        ages = {
            name: float(value)
            for name, value in re.findall(
                r'ingest_heartbeat_age_seconds{process="(\S+)"} (\S+)', server.get("/metrics")[1].decode()
            )
        }
        assert max(ages, key=ages.__getitem__) == name
        assert ages.keys() == {"parent", "committer", "admin", "worker-0", "worker-1"}
    finally:
        process.resume()
    until_reasons(server, "")
    server.wait_for(f"{name} (pid {process.pid}) answers again")
    assert process.is_running()
    assert server.end() == 0


def test_it_is_not_ready_without_a_worker(config: ServerConfig) -> None:
    server = Server(config, replace(ROLES, worker=worker_that_fails))
    server.wait_for("worker-1")
    until_reasons(server, "no worker")
    server.end()


def test_the_lock_is_free_after_a_kill(config: ServerConfig) -> None:
    for _ in range(2):
        server = Server(config)
        server.wait_for("serving")
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server = Server(config)
    server.wait_for("serving")
    assert server.end() == 0


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_who_removes_the_lock_lets_no_second_server_in(
    server: Server, config: ServerConfig, how: str
) -> None:
    """As an operator does who takes it for a stale one. The first server says that something is wrong."""
    server.wait_for("serving")
    said = server.lock.read_bytes()
    address = server.addresses()["admin"]
    server.lock.unlink()
    if how == "replaced":
        server.lock.write_bytes(said)
    refused(config, StoreLockedError, "in use by another ingest server")
    assert server.lock.exists() == (how == "replaced")
    server.wait_for("nothing is saved any more")
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["reasons"] == ["data directory lost"]
    assert server.end() == 0


def test_a_committer_that_starts_while_it_is_lost_takes_a_reload_over(tmp_path: Path) -> None:
    """Else SIGHUP is answered only when it is back, and keys that were withdrawn are good until then."""
    with running_node(tmp_path / "data") as node:

        def until(text: str, times: int = 1) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while node.log().count(text) < times:
                assert time.monotonic() < deadline, node.log()
                time.sleep(0.01)

        lock = node.data_dir / ".ingest" / "lock"
        said = lock.rename(tmp_path / "lock")
        until("nothing is saved any more")
        (committer,) = node.children("ingest-committe")
        os.kill(committer, signal.SIGKILL)
        until("committer has pid", 2)
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        until("SIGHUP: reloaded")
        assert "is there again" not in node.log()
        said.rename(lock)


def test_a_data_directory_that_is_none(config: ServerConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(replace(config, data_dir=tmp_path / "file"), ConfigError, "file: Not a directory")


def test_one_worker_for_each_core_that_may_be_used(config: ServerConfig) -> None:
    assert worker_count(config) == 2
    assert worker_count(replace(config, workers=0)) == len(os.sched_getaffinity(0))
