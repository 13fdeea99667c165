"""SIGHUP on its way to processes that have no handler yet: none is lost, and none ends anybody."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.errors import ConfigError
from ingest.runtime.supervised import Child
from ingest.runtime.supervisor import Supervisor

HERE = Path(__file__).parent


class Rig:
    """`supervisor_rig` in a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []
        for name in ("root", "leaf", "branch", "twig"):
            os.mkfifo(directory / name)
        command = [sys.executable, str(HERE / "supervisor_rig.py"), str(directory)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def until(self, *lines: str) -> None:
        """Until it has said all of them."""
        assert self.process.stdout is not None
        while not set(lines) <= set(self.lines):
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.lines}"
            self.lines.append(line.strip())

    def go_on(self, name: str) -> None:
        (self.directory / name).write_text("go")

    def hup(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    started = Rig(tmp_path)
    yield started
    started.close()


def test_a_reload_that_comes_before_there_is_a_handler(rig: Rig) -> None:
    """At the root, in a child of it, and in a child that has children of its own."""
    rig.until("root starts")
    rig.hup()
    rig.go_on("root")
    rig.until("root passes it on", "leaf starts", "branch starts")
    # By the time the root takes the next one, it has passed the first one on.
    rig.lines.clear()
    rig.hup()
    rig.until("root passes it on")
    rig.go_on("leaf")
    rig.until("leaf runs")
    assert "leaf reloads" in rig.lines
    rig.go_on("branch")
    rig.until("branch passes it on", "twig starts")
    rig.go_on("twig")
    rig.until("twig runs", "twig reloads")
    rig.lines.clear()
    rig.hup()
    rig.until("leaf reloads", "twig reloads")
    assert rig.terminate() == 0


def test_who_does_not_reload_has_signals_as_they_were(rig: Rig) -> None:
    rig.go_on("root")
    rig.until("deaf has 0 signals blocked and ignores SIGHUP", "leaf starts")
    rig.go_on("leaf")
    rig.go_on("branch")
    rig.go_on("twig")
    rig.until("leaf runs", "twig runs")
    assert rig.terminate() == 0


def test_where_no_process_can_be_watched_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    started: list[int] = []
    monkeypatch.setattr(os, "pidfd_open", missing)
    with pytest.raises(ConfigError, match=r"Linux 5\.3 or later"):
        Supervisor([[Child("one", lambda: started.append(1) or 0)]], 1).run()
    assert not started
