"""What a server says of itself: whole at every moment, whatever the disk does, and where it can be reached."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingest.engine import announcement
from ingest.engine.announcement import announce, announced, reachable, running
from ingest.mac import KeyRing
from ingest.runtime import lock_file
from ingest.store.data_dir import DataDir

KEYS = KeyRing([bytes([n]) * 32 for n in range(4)]).all
ADDRESSES = {"put": "127.0.0.1:1", "get": "127.0.0.1:2", "admin": "127.0.0.1:3"}
COUNTS = (0, 2, 1, 4, 3, 0, 4)  # of keys: it becomes longer, and shorter


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    DataDir(tmp_path).meta.mkdir()
    return tmp_path


@pytest.fixture
def node(data_dir: Path) -> Iterator[Any]:
    """Of a server that has the lock."""
    inside = DataDir(data_dir)
    fds = lock_file.acquire(inside.lock, inside.meta)
    yield SimpleNamespace(store=SimpleNamespace(lock_fd=fds[0]), addresses=ADDRESSES)
    for fd in fds:
        os.close(fd)


def said(count: int) -> dict[str, Any]:
    return {"pid": os.getpid(), **ADDRESSES, "keys": [key.id for key in KEYS[:count]]}


def test_who_reads_it_finds_the_last_one_or_the_next(
    data_dir: Path, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has been done of it: he may look at any moment, and the server may die there."""
    found: list[dict[str, Any]] = []

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def does(*arguments: Any) -> Any:
            try:
                return real(*arguments)
            finally:
                found.append(announced(data_dir))

        return does

    for name in ("pwrite", "ftruncate", "fstat"):
        monkeypatch.setattr(announcement.os, name, watched(getattr(os, name)))
    allowed: list[dict[str, Any]] = [{}]
    for count in COUNTS:
        announce(node, KEYS[:count])
        allowed.append(said(count))
        assert found and all(one in allowed for one in found), count
        found.clear()
        content = DataDir(data_dir).lock.read_bytes()
        assert content.endswith(b"}\n") and json.loads(content) == said(count) == running(data_dir)
        del allowed[0]


@pytest.mark.parametrize("name", ["fstat", "pwrite", "ftruncate"])
def test_a_disk_that_takes_nothing_ends_no_server(
    data_dir: Path, node: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It is told, and what stands there is one of the two."""
    for before, after in ((0, 4), (4, 1)):
        announce(node, KEYS[:before])
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):

            def fails(*_: Any) -> Any:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(announcement.os, name, fails)
            announce(node, KEYS[:after])
            assert os.strerror(errno.ENOSPC) in caplog.text
        assert announced(data_dir) in (said(before), said(after))
        caplog.clear()
        announce(node, KEYS[:after])
        assert announced(data_dir) == said(after) and not caplog.records


@pytest.mark.parametrize("content", [None, b"", b"\n", b"[", b"[]", b"1", b"null", b"\xff", b"[" * 100_000])
def test_what_says_nothing_yet(data_dir: Path, content: bytes | None) -> None:
    if content is not None:
        DataDir(data_dir).lock.write_bytes(content)
    assert announced(data_dir) == {} and running(data_dir) is None


def test_only_a_server_that_runs_says_where(data_dir: Path, node: Any) -> None:
    announce(node, KEYS[:1])
    assert running(data_dir) == said(1)
    fcntl.flock(node.store.lock_fd, fcntl.LOCK_UN)
    assert running(data_dir) == said(1), "it has the directory still"
    assert running(data_dir / "nowhere") is None


def test_what_a_server_left_is_not_said_by_one_that_runs(data_dir: Path) -> None:
    DataDir(data_dir).lock.write_bytes(json.dumps(said(2)).encode())
    assert announced(data_dir) == said(2) and running(data_dir) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:5", ("127.0.0.1", 5)),
        ("[::]:5", ("::1", 5)),
        ("127.0.0.2:5", ("127.0.0.2", 5)),
        ("10.1.2.3:5", ("10.1.2.3", 5)),
        ("[::1]:5", ("::1", 5)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
    ],
)
def test_where_it_is_reached(text: str, expected: tuple[str, int]) -> None:
    assert reachable(text) == expected


@pytest.mark.parametrize("text", ["", "5", "name:5", "127.0.0.1", "127.0.0.1:x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        reachable(text)
