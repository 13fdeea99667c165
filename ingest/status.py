"""The status byte of an ack and of a run: `docs/protocol.md`, "Statuses". On the wire; must not change."""

from enum import IntEnum


class Status(IntEnum):
    """What became of one frame, or what is stored under one ticket."""

    SAVED = 1
    ERROR = 2
    BAD_CHECKSUM = 3
    BAD_TICKET = 4
    CONFLICT = 5
    BUSY = 6
    NO_SPACE = 7
    MISSING = 8
    DELETED = 9


RETRIED = (Status.ERROR, Status.BUSY)  # what to try again for a while; the others are answers
