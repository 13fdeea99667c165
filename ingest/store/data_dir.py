"""Where everything is in a data directory: `docs/format.md`. Beside `.ingest` there are only packs, or a tree of chunks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

META = ".ingest"
LOG_ID_FILE = "log.json"  # in the directory of the log


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths in the data directory ``path``. None is looked at: what they lead to need not be there."""

    path: Path

    @property
    def meta(self) -> Path:
        return self.path / META

    @property
    def store_json(self) -> Path:
        """What the store is."""
        return self.meta / "store.json"

    @property
    def lock(self) -> Path:
        """Of the one server; it says there where it listens."""
        return self.meta / "lock"

    @property
    def key(self) -> Path:
        """The key file, unless another one is named."""
        return self.meta / "key"

    @staticmethod
    def is_key_of_one(path: Path) -> bool:
        """Whether ``path`` is the key file that a store made for itself, by where it lies. This one looks: no link is."""
        store = DataDir(path.absolute().parent.parent)
        return path.absolute() == store.key and store.store_json.is_file() and not path.is_symlink()

    @property
    def wal(self) -> Path:
        """The directory of the log, unless another one is named."""
        return self.meta / "wal"

    @property
    def export_mark(self) -> Path:
        """There while `ingest export` makes a store."""
        return self.meta / "export.json"

    @property
    def quarantine(self) -> Path:
        """What repairs put aside."""
        return self.meta / "quarantine"

    @property
    def catalog(self) -> Path:
        return self.meta / "catalog.db"

    @property
    def catalog_reserve(self) -> Path:
        """Room that the catalog has in reserve for a full disk."""
        return self.catalog.with_suffix(".reserve")

    @property
    def catalog_lock(self) -> Path:
        """Of the one process that changes the catalog."""
        return self.meta / "catalog.lock"

    @property
    def catalog_socket(self) -> Path:
        """Where that process listens."""
        return self.meta / "catalog.sock"

    @property
    def gateway_json(self) -> Path:
        """Where the gateway listens, for scripts."""
        return self.meta / "gateway.json"
