"""Failpoints: a server under test ends itself, by SIGKILL, at a named step of a put or delete.

The environment variable FAILPOINTS arms them, for the tests of recovery and for nothing else:

    FAILPOINTS=log_synced=kill@3                    the process that passes this step the third time
    FAILPOINTS=bulk:slots_written=kill-node@1       the whole server, when a bulk job has written its slots
    FAILPOINTS=recovery:bits_set=kill-parent@2

    step        received verified claimed log_written log_synced slots_written bits_set acked packs_synced
                log_recycled tombstone_written: `docs/architecture.md`, "Life of one put"
    before it   nothing: any frame on its way; `bulk:` only those that skip the log; `recovery:` only what a recovery does
    action      kill: the process that passes; kill-parent: the parent, with which all processes end; kill-node: both at once
    @K          at the K-th passing, counted over all processes of the server, which strikes once; default 1

Several are separated by commas. A step is passed once a batch, when it is over for all frames of it. Where FAILPOINTS is not
set, a step costs the test of one integer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from ingest.errors import ConfigError
from ingest.runtime import _failpoints

log = logging.getLogger(__name__)

VARIABLE = "FAILPOINTS"
ACTIONS = ("kill", "kill-parent", "kill-node")  # as numbered in csrc/failpoint.h
WAYS = {"": _failpoints.LOG | _failpoints.BULK, "bulk:": _failpoints.BULK, "recovery:": _failpoints.RECOVERY}

_POINT = re.compile(r"(bulk:|recovery:|)([a-z_]+)=([a-z-]+)(?:@([1-9][0-9]{0,8}))?")


def parse(text: str) -> list[tuple[int, int, int, int]]:
    """(step, ways, action, passing) of each failpoint in `text`. ConfigError names what is not one."""
    points = []
    for word in text.split(","):
        match = _POINT.fullmatch(word.strip())
        if match is None:
            raise ConfigError(f"{VARIABLE}: {word!r} is not [bulk:|recovery:]STEP=ACTION[@K]")
        way, step, action, passing = match.groups()
        if step not in _failpoints.NAMES:
            raise ConfigError(f"{VARIABLE}: unknown step {step!r}; there are: {', '.join(_failpoints.NAMES)}")
        if action not in ACTIONS:
            raise ConfigError(f"{VARIABLE}: unknown action {action!r}; there are: {', '.join(ACTIONS)}")
        points.append((_failpoints.NAMES.index(step), WAYS[way], ACTIONS.index(action), int(passing or 1)))
    if len(points) > _failpoints.MOST:
        raise ConfigError(f"{VARIABLE}: {len(points)} failpoints, at most {_failpoints.MOST} are possible")
    return points


def arm(environ: Mapping[str, str]) -> None:
    """Arms what FAILPOINTS names, for this process and all that it forks. ConfigError for what cannot be armed."""
    text = environ.get(VARIABLE, "")
    if text:
        _failpoints.arm(parse(text))
        log.warning("%s=%s: this server will end itself, for a test", VARIABLE, text)
