"""What the transfers of a process, its uploads and downloads under way, may hold in memory together.

Each may hold ``TRANSFER_ALLOWANCE_CHUNKS`` whatever the others do: so each can always go on, and none waits for another.
To be quicker it borrows, at most its fair share of what there is, for a piece of its bytes at a time. Who has borrowed
nothing has no share: a thousand idle clients slow down nobody. What its client does not fill within ``PIECE_PATIENCE_S`` is
stored as far as it came; what it does not take in that time is let go, all of it, and read again later.
"""

from __future__ import annotations

from ingest.limits import DATA_SIZE, FRAME_SIZE, TRANSFER_ALLOWANCE_CHUNKS, TRANSFERS_MEMORY

ALLOWANCE_SIZE = TRANSFER_ALLOWANCE_CHUNKS * DATA_SIZE  # bytes of an object
SEALED_SIZE = (
    DATA_SIZE + FRAME_SIZE
)  # bytes of memory of a chunk on its way to the engine: its data, and its frame


class Budget:
    """``size``: bytes that all of them may borrow; ``lent``: that they have borrowed; ``transfers``: how many there are;
    ``borrowers``: how many of them have borrowed something."""

    def __init__(self, size: int = TRANSFERS_MEMORY) -> None:
        self.size = size
        self.lent = 0
        self.transfers = 0
        self.borrowers = 0

    def enter(self) -> Transfer:
        return Transfer(self)


class Transfer:
    """One of them, until ``leave``. ``borrowed``: bytes."""

    __slots__ = ("_budget", "_left", "borrowed")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.borrowed = 0
        self._left = False
        budget.transfers += 1

    @property
    def share(self) -> int:
        """Bytes that it may borrow when nothing is lent to others beyond their shares: these are those who have borrowed."""
        return self._budget.size // (self._budget.borrowers + (not self.borrowed))

    def borrow(self, least: int, most: int) -> int:
        """From ``least`` to ``most`` bytes, to be given back; 0 when there are not so many."""
        assert not self._left and 0 < least <= most, (least, most)
        budget = self._budget
        granted = min(most, self.share - self.borrowed, budget.size - budget.lent)
        if granted < least:
            return 0
        budget.borrowers += not self.borrowed
        self.borrowed += granted
        budget.lent += granted
        return granted

    def give_back(self, size: int) -> None:
        """After `leave` there is nothing to give back."""
        if self._left:
            return
        assert 0 <= size <= self.borrowed, (size, self.borrowed)
        if size:
            self.borrowed -= size
            self._budget.lent -= size
            self._budget.borrowers -= not self.borrowed

    def leave(self) -> None:
        """Nothing of it is in memory any more. Once more does nothing."""
        if not self._left:
            if self.borrowed:
                self.give_back(self.borrowed)
            self._left = True
            self._budget.transfers -= 1
