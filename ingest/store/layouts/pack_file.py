"""A pack as it lies on disk: `docs/format.md`, "Packs". Pure: bytes in, bytes out.

A pack is a header of 4096 bytes and then its slots, 1474 bytes each. Only the first 512 bytes of the header, one
sector, say anything; the last 8 of them are its checksum. Which pack and slot a ticket has, and where they
lie, is `ingest.sharding`'s arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ingest import _hmac, sharding
from ingest.errors import CorruptionError, TicketError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE

# On disk: must not change.
MAGIC = b"INGPACK1"
VERSION = 1
SECTOR_SIZE = 512  # bytes: what of the header holds anything
BITMAP_SIZE = 168  # bytes: bits for 1344 slots, of which 1296 or 1332 exist
STORE_ID_SIZE = 16  # bytes
PRESENT_OFFSET = 64
DIGEST_OFFSET = 504

_FIELDS = struct.Struct(f">8sII8s{STORE_ID_SIZE}sQ16x{BITMAP_SIZE}s{BITMAP_SIZE}s104x")

assert _FIELDS.size == DIGEST_OFFSET


def file_size(slots: int) -> int:
    """The length in bytes of a pack whose last slot is written."""
    return PACK_HEADER_SIZE + FRAME_SIZE * slots


def bit(bitmap: bytes | bytearray, slot: int) -> bool:
    return bool(bitmap[slot >> 3] >> (slot & 7) & 1)


def set_bits(bitmap: bytearray, slot: int, count: int = 1, value: bool = True) -> None:
    """Sets (or clears) the bits of ``count`` slots from ``slot`` on."""
    for i in range(slot, slot + count):
        if value:
            bitmap[i >> 3] |= 1 << (i & 7)
        else:
            bitmap[i >> 3] &= ~(1 << (i & 7))


def bits_of(bitmap: bytes | bytearray) -> Iterator[int]:
    """The slots whose bit is set, in order."""
    return (8 * i + j for i, byte in enumerate(bitmap) if byte for j in range(8) if byte >> j & 1)


@dataclass
class PackHeader:
    """What a header says. ``present`` and ``deleted`` are bitmaps of 168 bytes: slot i is byte i/8, value 1 << i % 8.

    A slot whose deleted bit is set is deleted, whatever its present bit says. ``check`` holds for every header that
    a server writes and that ``parse`` returns.
    """

    slots: int
    prefix: str
    store_id: bytes
    generation: int = 0
    present: bytearray = field(default_factory=lambda: bytearray(BITMAP_SIZE))
    deleted: bytearray = field(default_factory=lambda: bytearray(BITMAP_SIZE))

    @classmethod
    def of_pack(cls, pack: int, store_id: bytes) -> PackHeader:
        """The header of a pack in which nothing was ever stored. TicketError when there is no such pack."""
        return cls(sharding.pack_slots(pack), sharding.pack_prefix(pack), store_id)

    @classmethod
    def parse(cls, raw: bytes | bytearray | memoryview) -> PackHeader:
        """Reads a header, 512 bytes or more of which 512 are looked at. CorruptionError says what is wrong with it."""
        raw = bytes(raw[:SECTOR_SIZE])
        if len(raw) < SECTOR_SIZE:
            raise CorruptionError(f"a pack header has {SECTOR_SIZE} bytes, this one is cut at {len(raw)}")
        if raw[:8] != MAGIC:
            raise CorruptionError(f"a pack header starts with {MAGIC!r}, this one with {raw[:8]!r}")
        if _hmac.digest504(raw) != raw[DIGEST_OFFSET:]:
            raise CorruptionError("the pack header fails its checksum")
        _, version, slots, prefix, store_id, generation, present, deleted = _FIELDS.unpack_from(raw)
        if version != VERSION:
            raise CorruptionError(
                f"the pack header has format version {version}, this program knows {VERSION}"
            )
        text = prefix.rstrip(b"\0").decode("latin-1")
        header = cls(slots, text, store_id, generation, bytearray(present), bytearray(deleted))
        header.check()
        if header._sector() != raw[:DIGEST_OFFSET]:
            raise CorruptionError("the pack header has bytes set that format version 1 leaves zero")
        return header

    def check(self) -> None:
        """CorruptionError when this is no header of any pack."""
        try:
            pack = sharding.pack_id(self.prefix)
        except TicketError as e:
            raise CorruptionError(f"the pack header has the prefix {self.prefix!r}: {e}") from None
        if self.slots != sharding.pack_slots(pack):
            raise CorruptionError(
                f"the header of pack {self.prefix!r} speaks of {self.slots} slots, "
                f"expected {sharding.pack_slots(pack)}"
            )
        if len(self.store_id) != STORE_ID_SIZE:
            raise CorruptionError(f"a store id has {STORE_ID_SIZE} bytes, this one {len(self.store_id)}")
        if not 0 <= self.generation < 1 << 64:
            raise CorruptionError(f"a generation has 8 bytes, {self.generation} does not fit")
        for name, bitmap in (("present", self.present), ("deleted", self.deleted)):
            if len(bitmap) != BITMAP_SIZE:
                raise CorruptionError(f"the {name} bitmap has {len(bitmap)} bytes, expected {BITMAP_SIZE}")
            if any(slot >= self.slots for slot in bits_of(bitmap)):
                raise CorruptionError(
                    f"a {name} bit of pack {self.prefix!r} lies past its {self.slots} slots"
                )

    def serialize(self) -> bytes:
        """The 4096 bytes at the start of the file."""
        self.check()
        sector = self._sector()
        return (sector + _hmac.digest504(sector)).ljust(PACK_HEADER_SIZE, b"\0")

    def _sector(self) -> bytes:
        return _FIELDS.pack(
            MAGIC,
            VERSION,
            self.slots,
            self.prefix.encode("ascii").ljust(8, b"\0"),
            self.store_id,
            self.generation,
            bytes(self.present),
            bytes(self.deleted),
        )

    @property
    def pack(self) -> int:
        """The id of the pack that this is the header of."""
        return sharding.pack_id(self.prefix)
