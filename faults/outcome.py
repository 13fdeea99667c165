"""What a part of the proof found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """`cases` were tried with `seed`; `losses` says, a line each, where a guarantee was broken (empty: all were kept).

    `counts` are figures that show how much was really tested (acks checked, states mounted, faults that struck).
    `not_run` names what the machine lacks; such an outcome does not count as passed.
    """

    seed: int
    cases: int
    losses: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    not_run: str = ""

    @property
    def passed(self) -> bool:
        return not self.losses and not self.not_run and self.cases > 0
