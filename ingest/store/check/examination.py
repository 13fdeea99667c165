"""What the parts of one check of a store have in common: what they look at, and what they have found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ingest.store.check.findings import Progress, Report
from ingest.store.check.identity import Identity
from ingest.store.check.log_survey import LogSurvey
from ingest.store.check.quarantine import Quarantine
from ingest.store.check.walk import Walk


@dataclass
class Examination:
    """``data_fd``: of the data directory, from before anything was read. ``report`` grows."""

    identity: Identity
    survey: LogSurvey
    walk: Walk
    repair: bool
    progress: Progress
    data_fd: int
    report: Report
    misplaced: bool = False  # packs that only the operator can put where they belong
    unverified: int = 0  # frames that no key fits, while a key is missing
    quarantine: Quarantine = field(init=False)

    def __post_init__(self) -> None:
        self.quarantine = Quarantine(self.data_dir)

    @property
    def data_dir(self) -> Path:
        return self.identity.data_dir

    @property
    def put_keys(self) -> list[bytes]:
        return [keys.put for keys in self.identity.keys]

    @property
    def in_packs(self) -> bool:
        """Else it is a tree."""
        return self.identity.layout == "pack"

    @property
    def blind(self) -> bool:
        """A key is missing: what fails its checksum may be good."""
        return bool(self.identity.missing) or not self.identity.keys

    @property
    def full_replay(self) -> bool:
        """The log will be gone: the packs have to hold all that it says."""
        return bool(self.survey.faults)
