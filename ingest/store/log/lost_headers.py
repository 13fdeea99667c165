"""Packs whose headers are lost, while the log is replayed: what they hold by their slots, and what the log has for them.

A new header can be made only when all of the log was read: a slot without a valid frame counts as deleted, unless the
log has a put of it. So the log is read once, and what it has for such a pack is put by until then:

    the log has | now                        | when the log is read
    ------------|----------------------------|---------------------------------------------------
    a put       | the frame goes to its slot | its slot is present
    a note      | nothing                    | its slots are present, if their frames are valid
    a delete    | nothing                    | its slots are deleted, and zeroed

No slot is erased before the new header is durable: until then the slots are all that tells what the old one said. So
whoever dies on the way leaves a pack of which the next recovery makes the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ingest import _frame, limits, sharding
from ingest._hmac import verify
from ingest.runtime import _failpoints
from ingest.store.layouts._pack_table import PackTable
from ingest.store.layouts.pack_file import BITMAP_SIZE, SECTOR_SIZE

log = logging.getLogger(__name__)

_DIGITS = bytes.maketrans(b"\0\1", b"01")


def bits(slot: int, count: int) -> int:
    """The bitmap of ``count`` slots from ``slot`` on, as a number: slot i is the bit 1 << i."""
    return ((1 << count) - 1) << slot


def runs(bitmap: int) -> Iterator[tuple[int, int]]:
    """(first slot, how many) of each stretch of bits that are set."""
    slot = 0
    while bitmap:
        skipped = (bitmap & -bitmap).bit_length() - 1
        bitmap >>= skipped
        count = (~bitmap & bitmap + 1).bit_length() - 1
        yield slot + skipped, count
        bitmap >>= count
        slot += skipped + count


class LostHeaders:
    """What `PackTable` asks about packs whose headers are lost, and gives what the log has for them."""

    def __init__(self, packs: PackTable, put_keys: list[bytes]) -> None:
        self.packs = packs
        self.put_keys = put_keys
        self._lost: dict[int, LostHeader] = {}

    def __contains__(self, pack: int) -> bool:
        return pack in self._lost

    def add(self, pack: int) -> None:
        log.warning(
            "%s: the header is lost; rebuilding it from the slots and the log", sharding.pack_path(pack)
        )
        self._lost[pack] = LostHeader(pack, self.packs.read(pack), self.put_keys)

    def put(self, pack: int, slot: int, frames: memoryview) -> None:
        self.packs.write_slots(pack, slot, frames)
        self._lost[pack].logged |= bits(slot, len(frames) // limits.FRAME_SIZE)

    def note(self, pack: int, slot: int, count: int) -> None:
        self._lost[pack].noted |= bits(slot, count)

    def delete(self, pack: int, slot: int, count: int) -> None:
        self._lost[pack].erased |= bits(slot, count)

    def make(self, sync: bool) -> None:
        """Gives all of them new headers, then zeroes what the log deletes. LostHeaderError when one is lost once more."""
        for pack, lost in self._lost.items():
            if missing := lost.missing & ~lost.erased:
                log.error(
                    "%s: %d of its slots hold no valid frame, and the log says that they were written: they are lost, and"
                    " count as deleted",
                    *(sharding.pack_path(pack), missing.bit_count()),
                )
            self.packs.install_header(pack, lost.bitmaps())
            self.packs.rewrite_header(pack)
            _failpoints.passed(_failpoints.BITS_SET, _failpoints.RECOVERY)
        if sync and any(lost.erased for lost in self._lost.values()):
            self.packs.flush_begins()
            self.packs.sync()
            self.packs.flush_done()
        for pack, lost in self._lost.items():
            for slot, count in runs(lost.erased):
                self.packs.replay_delete(pack, slot, count)
        self._lost.clear()


class LostHeader:
    """One pack, about 1 kB. The bitmaps are numbers: slot i is the bit 1 << i."""

    def __init__(self, pack: int, content: bytes, put_keys: list[bytes]) -> None:
        self.slots = sharding.pack_slots(pack)
        self.zeros = not any(content[:SECTOR_SIZE])
        self.valid = valid_slots(pack, content, put_keys)
        self.logged = 0  # slots that the log has a put of: those were free, and are not lost if the slot is
        self.noted = 0
        self.erased = 0

    @property
    def missing(self) -> int:
        """Slots that the log says were written, and of which no frame is left; it may delete them as well."""
        return self.noted & ~(self.valid | self.logged)

    def bitmaps(self) -> bytes:
        """The present and deleted bitmaps, 168 bytes each, of the new header.

        A slot with a valid frame is present, every other one counts as deleted, but for those that the log has a put of. A
        header that is all zeros was never written (the power went before it reached the disk), if the log has all
        that lies there: then what is not valid was never acknowledged, and stays free. But where a note names slots whose
        frames are not there, the header had been written before it.
        """
        held = self.valid | self.logged
        never_written = self.zeros and not self.valid & ~self.logged and not self.missing
        used = 0 if never_written else bits(0, self.slots)
        deleted = self.erased | used & ~held
        present = held & ~deleted
        return present.to_bytes(BITMAP_SIZE, "little") + deleted.to_bytes(BITMAP_SIZE, "little")


def valid_slots(pack: int, content: bytes, put_keys: list[bytes]) -> int:
    """The bitmap of the slots whose frames are theirs, and check under one of the keys. ``content``: the whole file."""
    slots = min(sharding.pack_slots(pack), (len(content) - limits.PACK_HEADER_SIZE) // limits.FRAME_SIZE)
    if slots <= 0:
        return 0
    start = limits.PACK_HEADER_SIZE
    frames = memoryview(content)[start : start + slots * limits.FRAME_SIZE]
    placed = good = 0
    for position, count, first in _frame.runs(frames):
        if first >= 0 and sharding.ticket_pack(first) == pack and sharding.ticket_slot(first) == position:
            placed |= bits(position, count)
    for key in put_keys:
        good |= int(verify(key, frames)[::-1].translate(_DIGITS), 2)
    return placed & good
