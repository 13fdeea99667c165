"""What a check of a store found: problems one by one, and how much was looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Problem:
    """One thing that is wrong in a store.

    ``kind`` is a word of the list in `docs/operations.md`; ``path`` is named from DATA on. ``repair`` says what
    ``--repair`` does about it (empty: nothing, only the operator can). ``lost``: what was stored there does not come
    back. ``copy``: where the bytes were put aside, from DATA on; with ``repaired`` it is set once that is done.
    """

    kind: str
    path: str
    detail: str
    repair: str = ""
    slot: int | None = None
    ticket: str | None = None
    lost: bool = False
    repaired: bool = False
    copy: str | None = None

    def __str__(self) -> str:
        place = self.path if self.slot is None else f"{self.path}, slot {self.slot}"
        if self.ticket is not None:
            place += f", ticket {self.ticket}"
        text = f"{place}: {self.detail}"
        if self.repaired:
            text += f"; repaired: {self.repair}"
        elif self.repair:
            text += f"; --repair: {self.repair}"
        return text + (f"; the copy is {self.copy}" if self.copy else "")


@dataclass
class Report:
    """What ``fsck`` says. ``notes`` are things worth a line that are no problem."""

    data_dir: str
    layout: str = ""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    chunks: int = 0
    deleted: int = 0
    bytes: int = 0
    log_segments: int = 0
    log_batches_pending: int = 0
    seconds: float = 0.0
    repaired: bool = False

    @property
    def clean(self) -> bool:
        return not self.problems

    @property
    def mb_per_s(self) -> float:
        return self.bytes / 1e6 / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        record = asdict(self)
        return record | {
            "clean": self.clean,
            "seconds": round(self.seconds, 3),
            "mb_per_s": round(self.mb_per_s, 1),
        }


# (what is being done, how much of it, of how much or 0 when that is not known yet)
Progress = Callable[[str, int, int], None]


def no_progress(_: str, __: int, ___: int) -> None:
    """Nobody watches."""
