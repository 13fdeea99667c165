"""What a server would start with, where each value comes from, and what would keep it from starting. Starts and makes
nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ingest.engine.announcement import running
from ingest.engine.reload import read_certificates
from ingest.engine.server import check_file_size_limit, refuse_file_systems
from ingest.engine.server_config import ServerConfig, resolve
from ingest.errors import BusyError, IngestError
from ingest.mac import KeyRing
from ingest.runtime import listeners
from ingest.runtime.file_system import file_system
from ingest.runtime.key_file import read_keys
from ingest.runtime.listeners import Address, format_address
from ingest.secret_text import shown
from ingest.store.data_dir import DataDir
from ingest.store.permission import refuse_unwritable
from ingest.store.space import existing, shortage_at_start
from ingest.store.store import Store, check_new, refuse_locked

ADDRESSES = {
    "listen": "put",
    "read_listen": "get",
    "admin_listen": "admin",
}  # and what the lock file calls them


@dataclass(frozen=True)
class Problem:
    """Why a server would not start, and the exit code that it would end with."""

    what: str
    exit_code: int


@dataclass
class CheckedConfig:
    """``settings``: {name: (value as text, source)}; a source is a flag, a variable, the path of the file, or `default`."""

    settings: dict[str, tuple[str, str]]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """That of the first problem which the operator has to change something for, else of one that passes by
        itself; else 0."""
        codes = [problem.exit_code for problem in self.problems]
        lasting = [code for code in codes if code != BusyError.exit_code]
        return next(iter(lasting or codes), 0)

    def attempt(self, step: Callable[..., object], *arguments: Any) -> None:
        """What ``step`` raises is a problem."""
        try:
            step(*arguments)
        except IngestError as error:
            self.problems.append(Problem(str(error), error.exit_code))
        except OSError as error:
            text = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
            self.problems.append(Problem(text, IngestError.exit_code))

    def as_json(self) -> dict[str, Any]:
        settings = {
            name: {"value": value, "source": source} for name, (value, source) in self.settings.items()
        }
        problems = [asdict(problem) for problem in self.problems]
        return {"ok": not self.problems, "settings": settings, "problems": problems, "notes": self.notes}


def check(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None) -> CheckedConfig:
    """Resolves the configuration as a server does and tries what a start would fail at: the directory, the store, its
    log, the keys, the certificates, the addresses; of room on the disk a note, as a server without it starts all the same.
    Not what it needs while it goes on: memory.

    ConfigError or UsageError, as from a start, for values that can't be read at all.
    """
    config, checked = check_all_but_addresses(flags, environ, file)
    check_addresses(addresses_of(config), held_addresses(config.data_dir), checked)
    return checked


def check_all_but_addresses(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None
) -> tuple[ServerConfig, CheckedConfig]:
    """As `check`."""
    config, sources = resolve(flags, environ, file)
    checked = CheckedConfig({name: (_text(config, name), source) for name, source in sources.items()})
    checked.attempt(check_file_size_limit)
    held = len(checked.problems)
    checked.attempt(refuse_unwritable, config.data_dir, config.wal_dir)
    there = len(checked.problems) == held  # else nothing can be said of what is in it
    for step in (_data_dir, _file_systems, _space, _store, _keys) if there else (_named_key,):
        checked.attempt(step, config, checked)
    checked.attempt(_certificates, config, checked)
    return config, checked


def _text(config: ServerConfig, name: str) -> str:
    value = getattr(config, name)
    if value is None:
        inside = DataDir(config.data_dir)
        return str({"key_file": inside.key, "wal_dir": inside.wal}.get(name, "-"))
    if name in ("wal_size", "reserve") and value % (1 << 20) == 0:
        return f"{value >> 20}MiB"
    if name.endswith(("_file", "_key")):
        return shown(value)
    return format_address(value) if isinstance(value, tuple) else str(value)


def _data_dir(config: ServerConfig, checked: CheckedConfig) -> None:
    if not config.data_dir.exists():
        checked.notes.append(f"{config.data_dir} will be made")


def _space(config: ServerConfig, checked: CheckedConfig) -> None:
    wal = config.wal_dir if config.wal_dir is not None else DataDir(config.data_dir).wal
    reason = shortage_at_start(config.data_dir, wal, config.layout, config.reserve, config.wal_size)
    if reason is not None:
        checked.notes.append(f"no space: {reason}; new frames would be refused")


def _file_systems(config: ServerConfig, checked: CheckedConfig) -> None:
    refuse_file_systems(config)
    fd = os.open(existing(config.data_dir), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        checked.notes.append(f"{config.data_dir} is on {file_system(fd)}")
    finally:
        os.close(fd)


def _store(config: ServerConfig, checked: CheckedConfig) -> None:
    if not DataDir(config.data_dir).store_json.exists():
        checked.notes.append(
            f"{config.data_dir} holds no store yet: one with layout {config.layout} will be made"
        )
        wal = config.wal_dir if config.wal_dir is not None else DataDir(config.data_dir).wal
        check_new(config.data_dir, wal, config.layout)
        return
    Store.read(config.data_dir, wal_dir=config.wal_dir, layout=config.layout)
    refuse_locked(config.data_dir)


def _keys(config: ServerConfig, checked: CheckedConfig) -> None:
    made = DataDir(config.data_dir).key
    path = config.key_file if config.key_file is not None else made
    described = DataDir(config.data_dir).store_json.exists()
    if config.key_file is None and not os.path.lexists(path) and not described:
        checked.notes.append(f"the key file {path} will be made: clients need a copy")
        return
    ring = KeyRing(read_keys(path, data_dir=config.data_dir, own=path == made))
    if described:
        try:
            store = Store.read(config.data_dir, wal_dir=config.wal_dir, layout=config.layout)
        except IngestError:
            return  # said already
        store.require_keys(ring)


def _named_key(config: ServerConfig, _: CheckedConfig) -> None:
    """A key file that is not in the data directory."""
    if config.key_file is not None and not config.key_file.is_relative_to(config.data_dir):
        KeyRing(read_keys(config.key_file))


def _certificates(config: ServerConfig, _: CheckedConfig) -> None:
    read_certificates(config)


def addresses_of(config: ServerConfig) -> list[tuple[str, Address]]:
    return [(name, getattr(config, name)) for name in ADDRESSES]


def check_addresses(
    addresses: Iterable[tuple[str, Address]], own: Container[str], checked: CheckedConfig
) -> None:
    """Whether all of them can be bound together, but for those of ``own``, which is HOST:PORT each: what the server and the
    gateway on this very DATA have is no second problem."""
    bound: list[socket.socket] = []
    for name, address in addresses:
        try:
            if any(format_address(found) in own for found in (address, *listeners.resolve(address))):
                continue
            bound += listeners.bind_shared(
                address, 1
            )  # `bind_alone` would pass over one that does not listen yet
        except IngestError as error:
            checked.problems.append(Problem(f"{name}: {error}", error.exit_code))
    listeners.close_all(bound)


def held_addresses(data_dir: Path) -> set[str]:
    """Where the server of a data directory says that it listens."""
    found = running(data_dir) or {}
    return {str(found[key]) for key in ADDRESSES.values() if key in found}
