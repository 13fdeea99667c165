"""A disk that loses what was not synced: the log's writes go through it, and `crash` makes what a power cut leaves."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingest.store.log import log_writer, recovery

SECTOR = 512  # bytes: what a disk writes whole or not at all


class PowerCut(BaseException):
    """The power went in the middle of an operation; no code of ours may catch it."""


@dataclass
class LossyDisk:
    """Files below `directory`, written through `log_writer.write_all` and synced by `os.fdatasync` and `os.fsync`.

    `operations`: writes and syncs until the power goes, None for never.
    """

    directory: Path
    operations: int | None = None
    durable: dict[str, bytearray] = field(default_factory=dict)
    volatile: list[tuple[str, int, bytes]] = field(default_factory=list)
    syncs: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real_write, real_fdatasync, real_fsync = log_writer.write_all, os.fdatasync, os.fsync

        def write_all(fd: int, buffer: memoryview, offset: int) -> None:
            name = self._name(fd)
            self._step()
            self.volatile.append((name, offset, bytes(buffer)))
            real_write(fd, buffer, offset)

        def sync(fd: int, real: object) -> None:
            self._step()
            self.syncs += 1
            real(fd)  # type: ignore[operator]
            name = self._name(fd)
            for entry in [entry for entry in self.volatile if entry[0] == name]:
                self._apply(self.durable.setdefault(name, bytearray()), entry[1], entry[2])
                self.volatile.remove(entry)

        patch.setattr(log_writer, "write_all", write_all)
        patch.setattr(recovery, "write_all", write_all)
        patch.setattr(os, "fdatasync", lambda fd: sync(fd, real_fdatasync))
        patch.setattr(os, "fsync", lambda fd: sync(fd, real_fsync))

    def _name(self, fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def _step(self) -> None:
        if self.operations is not None:
            if self.operations == 0:
                raise PowerCut
            self.operations -= 1

    @staticmethod
    def _apply(content: bytearray, offset: int, data: bytes) -> None:
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data

    def crash(self, chance: random.Random, destination: Path) -> None:
        """Writes to `destination` what was synced, and of each other write none, all, the start, or any sectors."""
        destination.mkdir()
        files = {name: bytearray(content) for name, content in self.durable.items()}
        for name, offset, data in self.volatile:
            fate = chance.choice(["none", "all", "start", "sectors"])
            sectors = range(0, len(data), SECTOR)
            if fate == "none":
                kept = []
            elif fate == "all":
                kept = list(sectors)
            elif fate == "start":
                kept = list(sectors)[: chance.randrange(len(sectors) + 1)]
            else:
                kept = [at for at in sectors if chance.random() < 0.5]
            for at in kept:
                self._apply(files.setdefault(name, bytearray()), offset + at, data[at : at + SECTOR])
        for name, content in files.items():
            if name.endswith(".log"):
                (destination / name).write_bytes(content)
