"""What is said where there is no space: which file or stream it was, and what that means."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ingest.commands.object_files import Target
from ingest.errors import DiskError, RefusedError
from ingest.status import Status


def test_full_stdout_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb") as full, Target(None) as target:
        monkeypatch.setattr(target, "_fd", full.fileno())
        with pytest.raises(DiskError, match=r"^stdout: No space left on device$"):
            asyncio.run(target.write(b"a"))


def test_a_full_device_is_named() -> None:
    with (
        pytest.raises(DiskError, match=r"^/dev/full: No space left on device$"),
        Target(Path("/dev/full")) as target,
    ):
        asyncio.run(target.write(b"a"))


def test_who_was_refused_for_want_of_space_learns_that_nothing_was_stored() -> None:
    assert "the disk is full: nothing was stored" in str(RefusedError("A", Status.NO_SPACE))
    assert "disk" not in str(RefusedError("A", Status.BUSY))
