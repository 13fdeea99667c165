"""What a gateway has before it serves: its ports, what it says of them, and what is known of its engine's store."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingest import limits
from ingest.engine.server_config import ServerConfig
from ingest.errors import (
    ConfigError,
    ConnectionLostError,
    ForeignStoreError,
    IngestError,
    KeyFileError,
    NoSpaceError,
    ReadOnlyError,
    RefusedError,
)
from ingest.gateway.process import gateway_processes, upstream
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.gateway_processes import announce, bind, close, worker_count
from ingest.gateway.process.serve import beside
from ingest.gateway.process.upstream import Binding
from ingest.runtime import listeners
from ingest.status import Status

ANY = ("127.0.0.1", 0)

# --- its ports


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("apis", [(), ("blob",), ("blob", "stream"), ("blob", "blob", "blob")])
def test_every_process_has_a_socket_of_every_port(
    monkeypatch: pytest.MonkeyPatch, workers: int, hosts: int, apis: tuple[str, ...]
) -> None:
    """Of one API that is served twice, and of each address of a host, too. None of them is lost or another one's."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **more: Any) -> Any:
        return [found for n in range(hosts) for found in real(f"127.0.0.{n + 1}", *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    at = ("several", 0)
    shares = bind(GatewayConfig(http_listen=at, api=tuple((name, at) for name in apis), http_workers=workers))
    try:
        assert len(shares) == workers
        for share in shares:
            served = sorted(port.split()[0] for port in share)
            assert served == sorted(("http", *apis) * hosts)
        every = [sock for share in shares for sock in share.values()]
        assert len({sock.fileno() for sock in every}) == len(every) == workers * hosts * (1 + len(apis))
        for sockets in zip(*(share.values() for share in shares), strict=True):
            assert len({sock.getsockname() for sock in sockets}) == 1, "each port is shared by all"
        assert len({sock.getsockname() for sock in every}) == hosts * (1 + len(apis))
    finally:
        close(shares)


@pytest.mark.parametrize(("asked", "usable"), [(0, 1), (0, 3), (0, 500), (1, 3), (5, 3)])
def test_there_is_a_process_for_each_core_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, asked: int, usable: int
) -> None:
    """In a container these are fewer than the machine has; and no more of them than a gateway may have."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    expected = asked or min(usable, limits.GATEWAY_WORKERS_MAX)
    assert worker_count(GatewayConfig(http_workers=asked)) == expected


# --- what it says of them


@pytest.mark.parametrize("reserve", [False, True])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("failures", range(4))
def test_a_full_disk_keeps_nobody_from_saying_where_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, older: bool, reserve: bool
) -> None:
    """What another gateway left there makes way, then the catalog's reserve. Nobody is led to where it was."""
    inside = tmp_path / ".ingest"
    inside.mkdir()
    path, kept = inside / "gateway.json", gateway_processes.DataDir(tmp_path).catalog_reserve
    if older:
        path.write_text('{"pid": 1, "http": "192.0.2.1:1"}')
    if reserve:
        kept.write_bytes(bytes(4096))
    real, calls = gateway_processes.write_all, itertools.count()

    def write_all(fd: int, buffer: memoryview, offset: int) -> None:
        if next(calls) < failures:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, buffer, offset)

    monkeypatch.setattr(gateway_processes, "write_all", write_all)
    (share,) = bind(GatewayConfig(data_dir=tmp_path, http_listen=ANY, api=(("blob", ANY),), http_workers=1))
    try:
        announce(GatewayConfig(data_dir=tmp_path), share)
        expected = {name: listeners.format_address(sock.getsockname()) for name, sock in share.items()}
    finally:
        close([share])
    if failures <= older + reserve:
        assert json.loads(path.read_bytes()) == {"pid": os.getpid(), **expected}
    else:
        assert not path.exists()
    if reserve:
        assert (kept.exists() and kept.stat().st_size > 0) == (failures <= older), (
            "given only when there is need"
        )


# --- what is known of the engine's store

AWAY, FULL, READ_ONLY = ConnectionLostError("away"), NoSpaceError("full"), ReadOnlyError("read-only")
REFUSED = RefusedError("0", Status.BAD_CHECKSUM)
TRIES = [(shows, error) for shows in (False, True) for error in (AWAY, FULL, READ_ONLY, REFUSED)]


class Tries:
    """A binding, each try of which does what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, load_changed: Callable[[], None]) -> None:
        monkeypatch.setattr(limits, "WAIT_TOLD_S", 0.0)
        monkeypatch.setattr(limits, "RETRY_DELAY_MIN_S", 0.0)
        monkeypatch.setattr(limits, "RETRY_DELAY_MAX_S", 0.0)
        monkeypatch.setattr(upstream, "CatalogReader", lambda path: SimpleNamespace(close=lambda: None))
        monkeypatch.setattr(upstream, "bind", self._bind)
        self._next: asyncio.Queue[tuple[bool, IngestError | None]] = asyncio.Queue()
        self._begun = asyncio.Semaphore(0)
        keys: Any = SimpleNamespace(load_changed=load_changed)
        client: Any = SimpleNamespace(open=self._open)
        self.binding = Binding(GatewayConfig(), client, client, keys)

    async def _open(self) -> None:
        self._begun.release()

    async def _bind(self, client: Any, catalog: Any, reader: Any, show: Callable[[], None]) -> None:
        shows, error = await self._next.get()
        if shows:
            show()
        if error is not None:
            raise error

    async def tried(self, shows: bool, error: IngestError | None) -> None:
        """Back when that one is over, and the next one under way."""
        self._next.put_nowait((shows, error))
        if error is None:
            await self.binding.wait()
        else:
            await self._begun.acquire()

    async def begin(self) -> None:
        await self.binding.begin()
        await self._begun.acquire()


def answer(check: Callable[[], None]) -> type[IngestError] | None:
    try:
        check()
    except IngestError as error:
        return type(error)
    return None


@pytest.mark.parametrize("trouble", [None, KeyFileError("unreadable")])
def test_each_try_says_anew_what_may_be_done(
    monkeypatch: pytest.MonkeyPatch, trouble: KeyFileError | None
) -> None:
    """Whatever an earlier one knew: another engine may be there by now. Keys are looked for where they may be why."""
    looks: list[int] = []

    def load_changed() -> None:
        looks.append(1)
        if trouble is not None:
            raise trouble

    async def main() -> None:
        for tries in itertools.product(TRIES, repeat=2):
            rig = Tries(monkeypatch, load_changed)
            await rig.begin()
            assert answer(rig.binding.check) is answer(rig.binding.check_shown) is ConnectionLostError
            for shows, error in tries:
                looks.clear()
                await rig.tried(shows, error)
                why = type(error) if error in (FULL, READ_ONLY) else ConnectionLostError
                assert answer(rig.binding.check) is why
                assert answer(rig.binding.check_shown) is (None if shows else why), tries
                assert len(looks) == (error in (AWAY, REFUSED))
            await rig.tried(True, None)
            assert answer(rig.binding.check) is answer(rig.binding.check_shown) is None
            await rig.binding.close()

    asyncio.run(main())


@pytest.mark.parametrize("before", [None, *TRIES])
def test_another_catalog_s_store_ends_it_whenever_it_shows(
    monkeypatch: pytest.MonkeyPatch, before: tuple[bool, IngestError] | None
) -> None:
    async def main() -> None:
        rig = Tries(monkeypatch, lambda: None)
        await rig.begin()
        told: list[int] = []
        rig.binding.tell(lambda: told.append(1))
        if before is not None:
            await rig.tried(*before)
        rig.binding.raise_failure()
        rig._next.put_nowait((False, ForeignStoreError("another one's")))
        with pytest.raises(ForeignStoreError):
            await rig.binding.wait()
        await asyncio.sleep(0)
        assert told == [1]
        with pytest.raises(ForeignStoreError):
            rig.binding.raise_failure()
        assert answer(rig.binding.check) is not None, "nothing is stored there"
        await rig.binding.close()

    asyncio.run(main())


def test_who_stops_waiting_for_it_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait on, and uploads may be taken when it is bound."""

    async def main() -> None:
        rig = Tries(monkeypatch, lambda: None)
        await rig.begin()
        waits = [asyncio.create_task(rig.binding.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[1].cancel()
        await asyncio.wait([waits[1]])
        assert answer(rig.binding.check) is ConnectionLostError
        await rig.tried(True, None)
        await asyncio.gather(waits[0], waits[2])
        assert answer(rig.binding.check) is None
        await rig.binding.close()

    asyncio.run(main())


def test_its_tries_become_rarer_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may come after an hour, and is met soon then."""
    delays: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        delays.append(delay)
        await real(0)

    async def main() -> None:
        rig = Tries(monkeypatch, lambda: None)
        monkeypatch.setattr(limits, "RETRY_DELAY_MIN_S", 0.5)
        monkeypatch.setattr(limits, "RETRY_DELAY_MAX_S", 3)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            await rig.begin()
            for _, error in [*TRIES, *TRIES]:
                await rig.tried(False, error)
            await rig.binding.close()

    asyncio.run(main())
    assert delays == [0.5, 1, 2, *[3] * (2 * len(TRIES) - 3)]


# --- beside its server

SERVER_PORTS = ("listen", "read_listen", "admin_listen")


@pytest.mark.parametrize("name", SERVER_PORTS)
@pytest.mark.parametrize("place", range(4))
def test_no_port_of_a_server_is_one_of_its_gateway_s(name: str, place: int) -> None:
    """Whichever of its ports, and wherever it stands among the gateway's."""
    at = ("127.0.0.1", 6000)
    server = ServerConfig(**{name: at})
    ports = [("127.0.0.1", 7000 + number) for number in range(4)]
    apart = GatewayConfig(
        http_listen=ports[0], api=tuple(zip(("blob", "store", "stream"), ports[1:], strict=True))
    )
    assert beside(server, apart) == apart
    ports[place] = at
    together = replace(
        apart, http_listen=ports[0], api=tuple(zip(("blob", "store", "stream"), ports[1:], strict=True))
    )
    with pytest.raises(ConfigError, match=f"^{name}: 127.0.0.1:6000 is an address of the gateway too$"):
        beside(server, together)


def test_ports_that_the_system_chooses_are_never_the_same() -> None:
    server = ServerConfig(listen=ANY, read_listen=ANY, admin_listen=ANY)
    beside(server, GatewayConfig(http_listen=ANY, api=(("blob", ANY),)))


def test_beside_its_server_a_gateway_pins_that_one_s_certificate_and_has_none_of_its_clients(
    tmp_path: Path,
) -> None:
    (tmp_path / "cert").write_bytes(b"as it is now")
    server = ServerConfig(tls_cert=tmp_path / "cert", tls_key=tmp_path / "key")
    pinned = beside(server, GatewayConfig()).connect_tls_own
    (tmp_path / "cert").write_bytes(b"the next one")
    assert pinned is not None and (pinned.chain, pinned.key, pinned.ca) == (b"as it is now", None, None)
    assert beside(ServerConfig(), GatewayConfig()).connect_tls_own is None
    with pytest.raises(ConfigError, match="tls_client_ca"):
        beside(replace(server, tls_client_ca=tmp_path / "ca"), GatewayConfig())
    with pytest.raises(ConfigError, match="absent"):
        beside(replace(server, tls_cert=tmp_path / "absent"), GatewayConfig())
