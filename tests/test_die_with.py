"""A process that is supervised does not outlive its parent, whenever that is killed."""

from __future__ import annotations

import os
import select
import signal

import pytest

from ingest.runtime.supervised import Child

PATIENCE_S = 20.0


def say(word: bytes, to: int) -> int:
    os.write(to, word)
    return 0


def family(moment: str, said: int) -> None:
    """A parent that is killed at this moment in the life of its child, which says how far it comes."""
    parent = os.getpid()

    def orphaned() -> None:
        while os.getppid() == parent:
            os.sched_yield()

    def main() -> int:
        say(b"main ", said)
        if moment == "while it runs":
            os.kill(parent, signal.SIGKILL)
            signal.pause()
        return say(b"on ", said)

    def leave() -> None:
        say(b"leave ", said)
        if moment == "before it has left":
            os.kill(parent, signal.SIGKILL)
            signal.pause()

    if moment == "in the fork":
        os.register_at_fork(after_in_child=orphaned, after_in_parent=lambda: os.kill(parent, signal.SIGKILL))
    child = Child("child", main)
    child.start(leave)
    if moment == "never":
        child.reap()
    else:
        signal.pause()


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("in the fork", b""),
        ("before it has left", b"leave "),
        ("while it runs", b"leave main "),
        ("never", b"leave main on "),
    ],
)
def test_who_has_lost_his_parent_does_nothing_more(moment: str, expected: bytes) -> None:
    """It would hold the lock of the data directory, and no server started there."""
    told, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            family(moment, said)
        finally:
            os._exit(0)
    os.close(said)
    heard = b""
    with open(told, "rb", buffering=0) as file:
        while True:  # to the end: then nobody has the other end any more
            assert select.select([file], [], [], PATIENCE_S)[0], f"it lives on: {heard!r}"
            more = file.read(100)
            if not more:
                break
            heard += more
    os.waitpid(pid, 0)
    assert heard == expected
