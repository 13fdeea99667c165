"""What a committer has met of damage and of errors of the disk, on its way into the log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ingest import sharding
from ingest.engine.commit._committer import Committer

log = logging.getLogger(__name__)


def tell_of_damage(core: Committer, data_dir: Path) -> None:
    """All that came together since the last call."""
    for pack, slot in dict.fromkeys(core.corrupt):  # each once, however often it was met
        name = sharding.pack_path(pack)
        log.error("%s: slot %d is corrupt: its bit is set, its frame fails the check", name, slot)
    core.corrupt.clear()
    for pack, error in dict.fromkeys(core.disk_errors):  # each once, however many frames met it
        log.error("%s/%s: %s", data_dir, sharding.pack_path(pack), os.strerror(error))
    core.disk_errors.clear()
