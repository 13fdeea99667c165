"""The parent of a gateway: what it checks and makes before it serves, what each process has of it, and what a HUP does."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.catalog.catalog_socket import catalog_path, service_lock
from ingest.errors import ConfigError, DataDirLostError, IngestError, KeyFileError, StoreLockedError
from ingest.gateway.process import gateway_processes
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.gateway_processes import check, run_gateway
from ingest.gateway.process.http_process import HttpRole, Sockets
from ingest.runtime.key_file import make_key_file
from ingest.runtime.listeners import format_address
from ingest.runtime.supervised import Child
from ingest.store.data_dir import DataDir

ANY = ("127.0.0.1", 0)


@pytest.fixture
def config(tmp_path: Path) -> GatewayConfig:
    """Of a gateway on a data directory that a server has made."""
    inside = DataDir(tmp_path / "data")
    inside.meta.mkdir(parents=True)
    inside.lock.touch()
    make_key_file(inside.key)
    return GatewayConfig(
        tmp_path / "data",
        ANY,
        api=(("blob", ANY), ("stream", ANY)),
        http_workers=2,
        drain_timeout=7,
        log_level="warning",
    )


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """That of all, whose stderr stays as it is."""
    monkeypatch.setattr(gateway_processes.logs, "start", lambda _: None)
    monkeypatch.setattr(gateway_processes.logs, "name_process", lambda _: None)
    monkeypatch.setattr(gateway_processes, "raise_open_files_limit", lambda: None)
    root = logging.getLogger()
    before, handler = root.level, signal.getsignal(signal.SIGHUP)
    root.setLevel(logging.INFO)
    yield root
    root.setLevel(before)
    signal.signal(signal.SIGHUP, handler)


class Parent:
    """A parent that starts none of its processes: ``work`` is done in their place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], int]) -> None:
        self.shares: list[Sockets] = []
        bind = gateway_processes.bind

        def binds(config: GatewayConfig) -> list[Sockets]:
            self.shares = bind(config)
            return self.shares

        def supervisor(
            ranks: Sequence[Sequence[Child]],
            patience: float,
            release: Callable[[], None] | None = None,
            reload: Callable[[Callable[[], None]], None] | None = None,
        ) -> Any:
            self.ranks, self.patience, self.release, self.reload = ranks, patience, release, reload
            self.children = {child.name: child for rank in ranks for child in rank}
            self.run = lambda: work(self)
            return self

        monkeypatch.setattr(gateway_processes, "bind", binds)
        monkeypatch.setattr(gateway_processes, "Supervisor", supervisor)

    def open_sockets(self) -> list[list[bool]]:
        return [[sock.fileno() >= 0 for sock in share.values()] for share in self.shares]

    def close(self) -> None:
        gateway_processes.close(self.shares)


PROCESSES = ("catalog", "http-0", "http-1", "collector")


def test_which_processes_there_are_and_in_which_order(
    config: GatewayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that changes the catalog is there before those that ask it and ends behind them. Who reads files reads them
    again at a HUP. Another one can do again what they did, but not what the catalog's was at."""

    def work(parent: Parent) -> int:
        assert [[child.name for child in rank] for rank in parent.ranks] == [["catalog"], [*PROCESSES[1:]]]
        assert [child.reloads for child in parent.children.values()] == [True] * 4
        assert [child.replaced_when_silent for child in parent.children.values()] == [False, True, True, True]
        assert not any(child.stays or child.has_line for child in parent.children.values())
        assert parent.patience == 7 and parent.reload is not None and parent.release is not None
        assert catalog_path(config.data_dir).exists()
        parent.release()
        assert parent.open_sockets() == [[False] * 3] * 2, "a port refuses when its last holder has closed it"
        return 3

    parent = Parent(monkeypatch, work)
    assert run_gateway(config, lambda: config) == 3
    parent.close()


@pytest.mark.parametrize("end", [0, 1, ConfigError("cannot run"), KeyboardInterrupt()])
def test_where_it_listens_is_said_as_long_as_it_does(
    config: GatewayConfig, monkeypatch: pytest.MonkeyPatch, end: int | BaseException
) -> None:
    path = DataDir(config.data_dir).gateway_json

    def work(parent: Parent) -> int:
        found = {name: format_address(sock.getsockname()) for name, sock in parent.shares[0].items()}
        assert json.loads(path.read_bytes()) == {"pid": os.getpid(), **found}
        parent.close()
        if isinstance(end, BaseException):
            raise end
        return end

    Parent(monkeypatch, work)
    if isinstance(end, BaseException):
        with pytest.raises(type(end)):
            run_gateway(config, lambda: config)
    else:
        assert run_gateway(config, lambda: config) == end
    assert not path.exists()


def loses(data_dir: Path, what: str) -> None:
    inside, moved = DataDir(data_dir), data_dir.with_name("moved")
    if what == "all":
        data_dir.rename(moved)
    elif what == "the directory":  # another one has all that was in it
        data_dir.rename(moved)
        data_dir.mkdir()
        DataDir(moved).meta.rename(inside.meta)
    elif what == "the catalog":  # another one is in its place
        copy = inside.catalog.with_name("copy")
        copy.write_bytes(inside.catalog.read_bytes())
        copy.rename(inside.catalog)
    else:
        {"the engine's lock": inside.lock, "the catalog's lock": inside.catalog_lock}[what].unlink()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    "lost", [None, "all", "the directory", "the catalog", "the engine's lock", "the catalog's lock"]
)
def test_what_each_process_has_of_it(
    config: GatewayConfig, monkeypatch: pytest.MonkeyPatch, name: str, lost: str | None
) -> None:
    """Its own ports and no others: a port would not refuse as long as somebody has it who does not serve it. And nothing of
    a directory that is somebody else's by now, which may have been so for as long as the process rested."""
    did: list[Any] = []

    def does(*arguments: Any) -> int:
        did.append(arguments)
        return 0

    for main in ("serve_catalog", "http_main", "collector_main"):
        monkeypatch.setattr(gateway_processes, main, does)

    def work(parent: Parent) -> int:
        if lost:
            loses(config.data_dir, lost)
            with pytest.raises(DataDirLostError):
                parent.children[name].main()
            assert not did
            parent.close()
            return 0
        assert parent.children[name].main() == 0
        own = [name == f"http-{number}" for number in range(2)]
        assert parent.open_sockets() == [[is_own] * 3 for is_own in own]
        ((first, *_),) = did
        if isinstance(first, HttpRole):
            assert first.sockets is parent.shares[own.index(True)]
            assert first.tells == own[0], "one of them says where they serve"
            assert [*first.hearts] == [*PROCESSES]
            assert all(first.hearts[child] is parent.children[child].heart for child in PROCESSES)
        parent.close()
        return 0

    Parent(monkeypatch, work)
    assert run_gateway(config, lambda: config) == 0


def test_all_its_http_processes_sign_links_with_one_key(
    config: GatewayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which no other gateway has, nor this one the next time: a link is for as long as it runs."""
    roles: list[HttpRole] = []
    monkeypatch.setattr(gateway_processes, "http_main", lambda role: roles.append(role) or 0)

    def work(parent: Parent) -> int:
        for name in ("http-0", "http-1", "http-0"):
            parent.children[name].main()
        parent.close()
        return 0

    for _ in range(2):
        Parent(monkeypatch, work)
        run_gateway(config, lambda: config)
    keys = [role.link_key for role in roles]
    assert len(set(keys)) == 2 and len(set(keys[:3])) == len(set(keys[3:])) == 1
    assert {len(key) for key in keys} == {32}
    assert all(role.telling is roles[0].telling for role in roles[:3])


# --- HUP


def unusable(config: GatewayConfig, what: str) -> GatewayConfig:
    """With a file that cannot be read, or what is no configuration at all."""
    absent = config.data_dir / "absent"
    if what == "tokens":
        return replace(config, token_file=absent)
    if what == "certificate":
        return replace(config, tls_cert=absent, tls_key=absent)
    if what == "engine":
        return replace(config, connect_tls_ca=absent)
    if what == "key":
        return replace(config, key_file=absent)
    raise ConfigError("it cannot be read")


@pytest.mark.parametrize("trouble", [None, "tokens", "certificate", "engine", "key", "configuration"])
def test_hup_is_passed_on_when_all_of_it_can_be_used(
    config: GatewayConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    log: logging.Logger,
    trouble: str | None,
) -> None:
    """Then a process that takes another one's place starts with it; and as long as some may not have heard of it, all that
    there are know that. Otherwise all is as it was: and the next HUP is heeded."""
    roles: list[HttpRole] = []
    monkeypatch.setattr(gateway_processes, "http_main", lambda role: roles.append(role) or 0)
    troubles = [trouble, None] if trouble is not None else [None]
    told: list[bool] = []

    def read() -> GatewayConfig:
        latest = replace(config, log_level="debug", collect_interval=5)
        return latest if troubles[0] is None else unusable(latest, troubles[0])

    def starts(parent: Parent) -> HttpRole:
        parent.children["http-0"].main()
        return roles[-1]

    def work(parent: Parent) -> int:
        assert parent.reload is not None
        role = starts(parent)
        assert role.config is config and not role.telling.under_way
        while troubles:
            parent.reload(lambda: told.append(role.telling.under_way))
            assert not role.telling.under_way
            if troubles[0] is not None:
                assert told == [] and starts(parent).config is config and log.level == logging.INFO
                assert "SIGHUP: nothing is reloaded" in caplog.text
            else:
                assert told == [True] and log.level == logging.DEBUG
                assert starts(parent).config == read()
            troubles.pop(0)
        parent.close()
        return 0

    Parent(monkeypatch, work)
    assert run_gateway(config, read) == 0


@pytest.mark.parametrize("trouble", [None, "configuration"])
def test_hup_changes_the_log_level_of_the_catalog_s_process(
    config: GatewayConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    log: logging.Logger,
    trouble: str | None,
) -> None:
    """One that came while it began is heeded when it can be reached, and the next one at once."""
    levels = ["error", "debug"]

    def read() -> GatewayConfig:
        if trouble is not None:
            raise ConfigError("it cannot be read")
        return replace(config, log_level=levels.pop(0))

    def serve_catalog(data_dir: Path, ready: Callable[[], None]) -> None:
        assert data_dir == config.data_dir
        signal.raise_signal(signal.SIGHUP)
        assert log.level == logging.INFO and "nothing was reloaded" not in caplog.text
        ready()
        for level in (logging.ERROR, logging.DEBUG):
            assert log.level == (level if trouble is None else logging.INFO)
            assert ("nothing was reloaded: it cannot be read" in caplog.text) == (trouble is not None)
            if level == logging.ERROR:
                signal.raise_signal(signal.SIGHUP)

    def work(parent: Parent) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            return parent.children["catalog"].main()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            parent.close()

    monkeypatch.setattr(gateway_processes, "serve_catalog", serve_catalog)
    Parent(monkeypatch, work)
    assert run_gateway(config, read) == 0


# --- before it serves


@pytest.mark.parametrize("named", [None, "its own", "another one"])
def test_only_the_store_s_own_key_is_taken_away_from_its_group(
    config: GatewayConfig, named: str | None
) -> None:
    own, other = DataDir(config.data_dir).key, config.data_dir.parent / "other"
    make_key_file(other)
    for path in (own, other):
        path.chmod(0o660)
    config = replace(config, key_file={None: None, "its own": own, "another one": other}[named])
    if named == "another one":
        with pytest.raises(KeyFileError, match="chmod 600"):
            check(config)
    else:
        check(config)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (own, other)]
    assert modes == [0o660 if named == "another one" else 0o600, 0o660]


@pytest.mark.parametrize(
    "trouble", ["tokens", "certificate", "engine", "key", "another gateway", "no store", "read-only"]
)
def test_a_start_that_is_refused_makes_nothing_and_takes_nothing(
    config: GatewayConfig, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """No catalog, no name; and where another gateway listens stays said."""
    inside, kept = DataDir(config.data_dir), b'{"pid": 1}'
    inside.gateway_json.write_bytes(kept)
    expected: type[IngestError] = ConfigError
    parent = Parent(monkeypatch, lambda _: pytest.fail("it serves"))
    with service_lock(config.data_dir) if trouble == "another gateway" else nullcontext():
        if trouble == "another gateway":
            expected = StoreLockedError
        elif trouble == "no store":
            config = replace(config, data_dir=config.data_dir.parent)
        elif trouble == "read-only":

            def check_access(path: Path, mode: int) -> None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

            monkeypatch.setattr("ingest.store.permission.check_access", check_access)
        else:
            expected = KeyFileError if trouble in ("tokens", "key") else ConfigError
            config = unusable(config, trouble)
        before = sorted(inside.meta.iterdir())
        with pytest.raises(expected):
            run_gateway(config, lambda: config)
    assert not parent.shares, "it had ports"
    assert sorted(inside.meta.iterdir()) == before
    assert inside.gateway_json.read_bytes() == kept
