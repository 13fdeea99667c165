"""Lines in the log of a process that runs: it writes them behind its back, so an answer may be there before its line."""

import time
from collections.abc import Callable

PATIENCE_S = 20.0


def says(log: Callable[[], str], text: str) -> bool:
    """Whether the line with ``text`` comes."""
    deadline = time.monotonic() + PATIENCE_S
    while text not in log():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
