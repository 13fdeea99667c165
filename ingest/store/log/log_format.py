"""The write-ahead log on disk: `docs/format.md`, "The log". Pure: bytes in, bytes out.

A log directory holds segments, files of one size. A segment is a header block and batches; each starts at a multiple of
4096 bytes, so that they can be written past the page cache. All numbers are big endian. The values here are on
disk and must not change.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash
from blake3 import blake3

from ingest import limits
from ingest.errors import CorruptionError, StoreFormatError

BLOCK_SIZE = 4096  # bytes: what segment headers and batches are aligned to
SEGMENT_MAGIC = b"INGWAL01"
SEGMENT_VERSION = 1
SEGMENT_HEADER = struct.Struct(">8sI4x16sQQQQ")
SEGMENT_DIGEST_OFFSET = 504
BATCH_MAGIC = b"INGBATCH"
BATCH_HEADER = struct.Struct(">8sQQIIIIQQ8x")
BATCH_HEADER_SIZE = BATCH_HEADER.size  # 64 bytes
BATCH_DIGEST = slice(16, 24)  # of header and payload, with both digests zero
BATCH_HEAD_DIGEST = slice(48, 56)  # of the bytes before it
NOTE = struct.Struct(">8sHHI")
NOTE_SIZE = NOTE.size  # 16 bytes


def padded(length: int) -> int:
    """`length` rounded up to whole blocks."""
    return -(-length // BLOCK_SIZE) * BLOCK_SIZE


@dataclass(frozen=True)
class SegmentHeader:
    """The first block of a segment, written anew at each use.

    ``log_id``: 16 random bytes of the log directory. ``use`` counts the uses of all segments of the log.
    ``first_batch``: number of its first batch. ``seed``: random, seeds the digests of its batches, so that what
    lies here from earlier uses, or what a client chose to send, is not taken for a batch.
    ``synced_to``: the packs hold everything up to this batch, durably.
    """

    log_id: bytes
    use: int
    first_batch: int
    seed: int
    synced_to: int

    def serialize(self) -> bytes:
        head = SEGMENT_HEADER.pack(
            SEGMENT_MAGIC, SEGMENT_VERSION, self.log_id, self.use, self.first_batch, self.seed, self.synced_to
        ).ljust(SEGMENT_DIGEST_OFFSET, b"\0")
        return (head + blake3(head).digest(8)).ljust(BLOCK_SIZE, b"\0")

    @classmethod
    def parse(cls, block: bytes) -> SegmentHeader | None:
        """The header in `block` (4096 bytes); None when the segment was never used (all zero).

        Raises CorruptionError when the bytes do not check, StoreFormatError for a version that we don't know.
        """
        if len(block) < BLOCK_SIZE:
            raise CorruptionError(f"a segment header has {BLOCK_SIZE} bytes, not {len(block)}")
        if not any(block[: SEGMENT_DIGEST_OFFSET + 8]):
            return None
        head = block[:SEGMENT_DIGEST_OFFSET]
        if block[SEGMENT_DIGEST_OFFSET : SEGMENT_DIGEST_OFFSET + 8] != blake3(head).digest(8):
            raise CorruptionError("the segment header fails its digest")
        magic, version, log_id, use, first_batch, seed, synced_to = SEGMENT_HEADER.unpack_from(head)
        if magic != SEGMENT_MAGIC:
            raise CorruptionError(f"the segment starts with {magic!r}, not {SEGMENT_MAGIC!r}")
        if version != SEGMENT_VERSION:
            raise StoreFormatError(
                f"log segment of format version {version}; this program knows {SEGMENT_VERSION}"
            )
        return cls(log_id, use, first_batch, seed, synced_to)


@dataclass(frozen=True)
class BatchHeader:
    """What precedes a batch's put frames, delete frames and notes, in this order.

    ``length``: bytes from the header on, without the padding. ``synced_to``: as in the segment header.
    """

    number: int
    length: int
    puts: int
    deletes: int
    notes: int
    synced_to: int

    @staticmethod
    def payload_size(puts: int, deletes: int, notes: int) -> int:
        return (puts + deletes) * limits.FRAME_SIZE + notes * NOTE_SIZE

    def check(self) -> str | None:
        """Why the fields contradict each other, or None."""
        expected = BATCH_HEADER_SIZE + self.payload_size(self.puts, self.deletes, self.notes)
        if self.length != expected:
            return f"length {self.length} where its counts make {expected}"
        if self.synced_to >= self.number:
            return f"batch {self.number} says that {self.synced_to} is synced"
        return None


def seal_batch(buffer: memoryview, header: BatchHeader, seed: int) -> int:
    """Completes the batch whose payload already lies in `buffer` behind the header's place.

    Writes the header with its digests (XXH3, 64 bits, seeded) and zeros the padding. The first is over header and payload
    with the digests' fields zero. The second is over the header up to it: so the reader knows a header from bytes that a
    client made look like one before it reads, for each of them, the megabytes that they claim. Returns the padded length.
    """
    end = padded(header.length)
    buffer[header.length : end] = bytes(end - header.length)
    BATCH_HEADER.pack_into(
        buffer, 0, BATCH_MAGIC, header.number, 0, header.length, header.puts, header.deletes, header.notes,
        header.synced_to, 0,
    )  # fmt: skip
    buffer[BATCH_DIGEST] = _digest(buffer[: header.length], seed)
    buffer[BATCH_HEAD_DIGEST] = _digest(buffer[: BATCH_HEAD_DIGEST.start], seed)
    return end


def parse_batch_head(buffer: memoryview, seed: int) -> BatchHeader | str:
    """The header of the batch at the start of `buffer`, whatever its payload is, or the reason why there is none."""
    if len(buffer) < BATCH_HEADER_SIZE:
        return "no room for a batch header"
    magic, number, _, length, puts, deletes, notes, synced_to, _ = BATCH_HEADER.unpack_from(buffer)
    if magic != BATCH_MAGIC:
        return "no batch starts here"
    if buffer[BATCH_HEAD_DIGEST] != _digest(buffer[: BATCH_HEAD_DIGEST.start], seed):
        return "the batch header fails its digest"
    header = BatchHeader(number, length, puts, deletes, notes, synced_to)
    if length > len(buffer):
        return f"batch {number} of {length} bytes reaches past the end of its segment"
    return header.check() or header


def parse_batch(buffer: memoryview, seed: int) -> BatchHeader | str:
    """The header of the whole batch at the start of `buffer`, or the reason why there is none."""
    header = parse_batch_head(buffer, seed)
    if isinstance(header, str):
        return header
    hasher = xxhash.xxh3_64(seed=seed)
    hasher.update(buffer[: BATCH_DIGEST.start])
    hasher.update(bytes(8))
    hasher.update(buffer[BATCH_DIGEST.stop : BATCH_HEAD_DIGEST.start])
    hasher.update(bytes(8))
    hasher.update(buffer[BATCH_HEAD_DIGEST.stop : header.length])
    if hasher.digest() != buffer[BATCH_DIGEST]:
        return f"batch {header.number} fails its digest"
    return header


def _digest(data: memoryview, seed: int) -> bytes:
    return xxhash.xxh3_64_digest(data, seed)


@dataclass(frozen=True)
class Note:
    """Frames that a batch does not carry, because they lie in their pack already, synced: ``count`` slots from ``slot``."""

    prefix: str
    slot: int
    count: int

    def serialize(self) -> bytes:
        return NOTE.pack(self.prefix.encode("ascii"), self.slot, self.count, 0)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Note:
        prefix, slot, count, _ = NOTE.unpack(data)
        return cls(prefix.rstrip(b"\0").decode("ascii"), slot, count)
