"""What a store at rest holds, pack by pack: its files and its log together, as a server that starts on it would show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ingest import sharding, ticket
from ingest.errors import ConfigError, KeyFileError
from ingest.limits import LOG_SEGMENT_SIZE
from ingest.store.check.chunk_file import read_chunks
from ingest.store.check.chunk_repair import read_whole
from ingest.store.check.fsck import locked
from ingest.store.check.identity import Identity, identify
from ingest.store.check.log_survey import LoggedPack, LogSurvey
from ingest.store.check.pack_check import (
    PackState,
    Resolved,
    SlotState,
    header_may_be_unwritten,
    mask_bools,
    resolve,
)
from ingest.store.check.walk import walk


class Contents:
    """``packs``: those that anything is known of; in layout tree with the slots that have a file."""

    def __init__(self, identity: Identity, survey: LogSurvey) -> None:
        self.identity = identity
        self._survey = survey
        self._put_keys = [keys.put for keys in identity.keys]
        self._problems: list[str] = []
        self.packs = _packs(identity, survey)

    def read(self, pack: int) -> Resolved:
        """Every slot of a pack, each frame verified."""
        state = self._state(pack, self.packs[pack])
        logged = self._survey.packs.get(pack) or LoggedPack()
        found = resolve(state, logged, self._survey.frame)
        lost, self._problems = found.lost, []
        if state.header_lost and not header_may_be_unwritten(state, logged):
            self._problems.append(
                f"{sharding.pack_path(pack)}: its header is lost: only slots with a valid frame are copied"
            )
            # Which of the others were used nobody knows.
            lost = lost & (state.filled | mask_bools(logged.noted, state.slots))
        for slot in np.flatnonzero(lost):
            name = ticket.format(sharding.slot_ticket(pack, int(slot)))
            self._problems.append(
                f"{sharding.pack_path(pack)}, slot {slot}, ticket {name}: no valid frame, not copied"
            )
        return found

    def losses(self) -> list[str]:
        """A line for each chunk of the pack that was read last of which no verified frame is left."""
        return self._problems

    def _state(self, pack: int, slots: Iterable[int]) -> SlotState:
        if self.identity.layout == "tree":
            return read_chunks(self.identity.data_dir, pack, slots, self._put_keys)
        try:
            content = read_whole(self.identity.data_dir / sharding.pack_path(pack))
        except FileNotFoundError:
            content = bytearray()
        return PackState(pack, content, self.identity.store_id, self._put_keys)


@contextmanager
def opened_at_rest(
    data_dir: Path,
    key_file: Path | None = None,
    wal_dir: Path | None = None,
    segment_size: int = LOG_SEGMENT_SIZE,
) -> Iterator[Contents]:
    """The store in ``data_dir``, locked so that no server starts on it.

    ConfigError (no store, damage that only fsck mends), KeyFileError (a key is missing), StoreLockedError, OSError.
    """
    with locked(data_dir):
        identity = identify(data_dir, wal_dir, key_file)
        if identity.problems:
            problem = identity.problems[0]
            raise ConfigError(f"{problem.path} {problem.detail}: run `ingest fsck {data_dir}` first")
        if identity.key_problem:
            raise KeyFileError(identity.key_problem)
        if identity.missing:
            raise KeyFileError(f"the key file lacks the key {', '.join(identity.missing)} that signed here")
        survey = LogSurvey(identity.wal_dir, identity.log_id, identity.keys, segment_size)
        try:
            if survey.faults:
                fault = survey.faults[0]
                raise ConfigError(f"{fault.path}: {fault.detail}: run `ingest fsck {data_dir}` first")
            yield Contents(identity, survey)
        finally:
            survey.close()


def _packs(identity: Identity, survey: LogSurvey) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for path in walk(identity.data_dir, identity.layout).objects:
        if identity.layout == "pack":
            found[sharding.pack_of_path(path)] = []
        else:
            index = ticket.parse(ticket.from_tree_path(path))
            found[sharding.ticket_pack(index)].append(sharding.ticket_slot(index))
    for pack in survey.packs:
        found.setdefault(pack, [])
    return found
