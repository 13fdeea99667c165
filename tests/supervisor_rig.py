"""A family of processes under supervisors, which tells on stdout what becomes of SIGHUP. Its processes are slow to start:
each says so, and goes on when something comes out of the FIFO that is named for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ingest.runtime import signals
from ingest.runtime.supervised import Child
from ingest.runtime.supervisor import Supervisor


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


class Family:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start_slowly(self, name: str) -> None:
        say(f"{name} starts")
        with (self.directory / name).open() as fifo:
            fifo.read()

    def leaf(self, name: str) -> int:
        self.start_slowly(name)
        signal.signal(signal.SIGHUP, lambda *_: say(f"{name} reloads"))
        signals.take_reloads()
        say(f"{name} runs")
        while True:
            signal.pause()

    def deaf(self) -> int:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        say(f"deaf has {len(blocked)} signals blocked and {'ignores' if ignored else 'takes'} SIGHUP")
        while True:
            signal.pause()

    def branch(self) -> int:
        self.start_slowly("branch")
        return self.supervise("branch", [Child("twig", lambda: self.leaf("twig"), reloads=True)])

    def supervise(self, name: str, children: list[Child]) -> int:
        def reload(tell: Callable[[], None]) -> None:
            say(f"{name} passes it on")
            tell()

        return Supervisor([children], 10.0, reload=reload).run()

    def run(self) -> int:
        signals.begin_server()
        self.start_slowly("root")
        return self.supervise(
            "root",
            [
                Child("leaf", lambda: self.leaf("leaf"), reloads=True),
                Child("branch", self.branch, stays=True, reloads=True),
                Child("deaf", self.deaf),
            ],
        )


if __name__ == "__main__":
    sys.exit(Family(Path(sys.argv[1])).run())
