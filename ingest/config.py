"""The configuration of a server, after flags, environment, file and defaults were put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ingest import limits


@dataclass(frozen=True)
class ServerConfig:
    """Sizes in bytes, times in seconds, addresses as (host, port)."""

    data_dir: Path = Path()
    listen: tuple[str, int] = ("127.0.0.1", 5000)
    read_listen: tuple[str, int] = ("127.0.0.1", 5005)
    admin_listen: tuple[str, int] = ("127.0.0.1", 5080)
    workers: int = 0  # 0: one a core
    layout: str = "pack"
    sync: str = "disk"  # or "os"
    key_file: Path | None = None  # None: DATA/.ingest/key
    wal_dir: Path | None = None  # None: DATA/.ingest/wal
    wal_size: int = limits.LOG_SIZE_DEFAULT
    reserve: int = limits.RESERVE_DEFAULT
    drain_timeout: float = limits.DRAIN_TIMEOUT_S
    bad_frame_limit: int = limits.BAD_FRAME_LIMIT
    bad_peer_delay: float = 0.0
    log_level: str = "info"
