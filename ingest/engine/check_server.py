"""What a server would start with, where each value comes from, and what would keep it from starting. Starts and makes
nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ingest.engine.announcement import running
from ingest.engine.reload import read_certificates
from ingest.engine.server import refuse_file_systems
from ingest.engine.server_config import ServerConfig, resolve
from ingest.errors import IngestError
from ingest.mac import KeyRing
from ingest.runtime import listeners
from ingest.runtime.file_system import file_system
from ingest.runtime.key_file import read_keys
from ingest.runtime.listeners import Address, format_address
from ingest.secret_text import shown
from ingest.store.data_dir import DataDir
from ingest.store.space import existing
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
        return max(codes, default=0)

    def attempt(self, step: Callable[..., object], *arguments: Any) -> None:
        """What ``step`` raises is a problem."""
        try:
            step(*arguments)
        except IngestError as error:
            self.problems.append(Problem(str(error), error.exit_code))
        except OSError as error:
            self.problems.append(Problem(str(error), 1))

    def as_json(self) -> dict[str, Any]:
        settings = {
            name: {"value": value, "source": source} for name, (value, source) in self.settings.items()
        }
        problems = [asdict(problem) for problem in self.problems]
        return {"ok": not self.problems, "settings": settings, "problems": problems, "notes": self.notes}


def check(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None) -> CheckedConfig:
    """Resolves the configuration as a server does and tries what a start would fail at: the directory, the store, its
    log, the keys, the certificates, the addresses. Not what it needs while it goes on: memory, room on the disk.

    ConfigError or UsageError, as from a start, for values that can't be read at all.
    """
    config, sources = resolve(flags, environ, file)
    checked = CheckedConfig({name: (_text(config, name), source) for name, source in sources.items()})
    for step in (_data_dir, _file_systems, _store, _keys, _certificates, _addresses):
        checked.attempt(step, config, checked)
    return checked


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
    path = config.data_dir
    if not path.exists():
        above = next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())
        checked.notes.append(f"{path} will be made")
        path = above
    if not path.is_dir():
        checked.problems.append(Problem(f"{path} is no directory", 1))
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        checked.problems.append(Problem(f"{path} may not be written by this user", 1))


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
        if not checked.problems:  # else the directory is none that anything could be made in
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


def _certificates(config: ServerConfig, _: CheckedConfig) -> None:
    read_certificates(config)


def _addresses(config: ServerConfig, checked: CheckedConfig) -> None:
    """Whether each address can be bound. One that the server on this very DATA has is no second problem."""
    own = _held_addresses(config.data_dir)
    for name in ADDRESSES:
        check_address(name, getattr(config, name), own, checked)


def check_address(name: str, address: Address, own: Container[str], checked: CheckedConfig) -> None:
    """Whether it can be bound, or is one of ``own``, which is HOST:PORT each."""
    try:
        if any(format_address(found) in own for found in (address, *listeners.resolve(address))):
            return
        listeners.close_all(listeners.bind_alone(address))
    except IngestError as error:
        checked.problems.append(Problem(f"{name}: {error}", error.exit_code))


def _held_addresses(data_dir: Path) -> set[str]:
    found = running(data_dir) or {}
    return {str(found[key]) for key in ADDRESSES.values() if key in found}
