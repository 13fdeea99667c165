"""The log's bytes, written out by hand."""

from __future__ import annotations

import struct

import pytest
import xxhash
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from log_rig import LOG_ID, buffer_of, put

from ingest.errors import CorruptionError, StoreFormatError
from ingest.limits import FRAME_SIZE
from ingest.store.log.log_format import (
    BLOCK_SIZE,
    BatchHeader,
    Note,
    SegmentHeader,
    padded,
    parse_batch,
    seal_batch,
)

U64 = st.integers(0, 2**64 - 1)
SEED = 0x0123456789ABCDEF
HEADER = SegmentHeader(LOG_ID, use=3, first_batch=17, seed=SEED, synced_to=15)
SEGMENT_BYTES = bytes.fromhex(
    "494e4757414c3031"  # INGWAL01
    "00000001 00000000"  # format version 1
    "000102030405060708090a0b0c0d0e0f"  # log id
    "0000000000000003"  # use 3
    "0000000000000011"  # first batch 17
    "0123456789abcdef"  # seed
    "000000000000000f"  # synced to 15
)


def segment_block(head: bytes) -> bytes:
    head = head.ljust(504, b"\0")
    return (head + blake3(head).digest(8)).ljust(BLOCK_SIZE, b"\0")


class TestSegmentHeader:
    def test_golden(self):
        assert HEADER.serialize() == segment_block(SEGMENT_BYTES)
        assert SegmentHeader.parse(segment_block(SEGMENT_BYTES)) == HEADER

    @given(use=U64, first_batch=U64, seed=U64, synced_to=U64, log_id=st.binary(min_size=16, max_size=16))
    def test_any_header_comes_back(self, **fields):
        header = SegmentHeader(**fields)
        assert SegmentHeader.parse(header.serialize()) == header

    def test_a_segment_never_used_has_none(self):
        assert SegmentHeader.parse(bytes(BLOCK_SIZE)) is None

    @pytest.mark.parametrize("at", [0, 8, 15, 16, 40, 63, 64, 300, 503, 504, 511])
    def test_any_changed_byte_is_noticed(self, at):
        block = bytearray(HEADER.serialize())
        block[at] ^= 1
        with pytest.raises(CorruptionError, match="digest"):
            SegmentHeader.parse(bytes(block))

    def test_a_single_byte_says_that_a_segment_was_used(self):
        """Taken for one that never was, it would be written over: what is left of its batches may be all there is."""
        for at in range(512):
            block = bytearray(BLOCK_SIZE)
            block[at] = 0x10
            with pytest.raises(CorruptionError, match="digest"):
                SegmentHeader.parse(bytes(block))

    def test_an_unknown_version_is_named(self):
        head = SEGMENT_BYTES[:8] + (2).to_bytes(4, "big") + SEGMENT_BYTES[12:]
        with pytest.raises(StoreFormatError, match="format version 2; this program knows 1"):
            SegmentHeader.parse(segment_block(head))

    def test_other_magic_is_corruption(self):
        with pytest.raises(CorruptionError, match="INGPACK1"):
            SegmentHeader.parse(segment_block(b"INGPACK1" + SEGMENT_BYTES[8:]))

    def test_half_a_block_is_refused(self):
        with pytest.raises(CorruptionError, match="4096 bytes, not 512"):
            SegmentHeader.parse(HEADER.serialize()[:512])


def sealed(payload: bytes, header: BatchHeader, seed: int = SEED) -> memoryview:
    buffer = buffer_of(payload)
    assert seal_batch(buffer, header, seed) == len(buffer)
    return buffer


PAYLOAD = put(36, 1) + put(99, 2) + Note("ABC", 256, 1040).serialize()
BATCH = BatchHeader(number=7, length=64 + len(PAYLOAD), puts=1, deletes=1, notes=1, synced_to=6)


class TestBatch:
    def test_golden(self):
        head = b"INGBATCH" + struct.pack(">Q", 7)
        fields = struct.pack(">IIIIQ", 64 + 2 * 1474 + 16, 1, 1, 1, 6)
        digest = xxhash.xxh3_64_digest(head + bytes(8) + fields + bytes(8) + bytes(8) + PAYLOAD, SEED)
        head_digest = xxhash.xxh3_64_digest(head + digest + fields, SEED)
        expected = head + digest + fields + head_digest + bytes(8) + PAYLOAD
        assert bytes(sealed(PAYLOAD, BATCH)) == expected.ljust(BLOCK_SIZE, b"\0")

    def test_it_comes_back(self):
        assert parse_batch(sealed(PAYLOAD, BATCH), SEED) == BATCH

    def test_the_padding_is_zeroed_and_does_not_count(self):
        buffer = buffer_of(PAYLOAD)
        buffer[64 + len(PAYLOAD) :] = b"x" * (len(buffer) - 64 - len(PAYLOAD))
        seal_batch(buffer, BATCH, SEED)
        assert not any(buffer[BATCH.length :])
        buffer[BATCH.length] = 1
        assert parse_batch(buffer, SEED) == BATCH

    @given(at=st.integers(0, BATCH.length - 1), bit=st.integers(0, 7))
    def test_any_flipped_bit_is_noticed(self, at, bit):
        buffer = sealed(PAYLOAD, BATCH)
        buffer[at] ^= 1 << bit
        assert isinstance(parse_batch(buffer, SEED), str)

    @given(seed=U64.filter(lambda seed: seed != SEED))
    def test_another_use_of_the_segment_does_not_know_it(self, seed):
        assert isinstance(parse_batch(sealed(PAYLOAD, BATCH), seed), str)

    def test_a_header_without_the_seed_is_told_without_reading_what_it_claims(self):
        """Else a client could make recovery hash megabytes for each block of its data."""
        buffer = sealed(PAYLOAD, BATCH, seed=SEED + 1)
        reason = parse_batch(buffer[:64], SEED)
        assert reason == "the batch header fails its digest"

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            (BatchHeader(7, 64 + 1474, 2, 0, 0, 6), "length 1538 where its counts make 3012"),
            (BatchHeader(7, 64, 0, 0, 0, 7), "batch 7 says that 7 is synced"),
            (BatchHeader(7, 64 + 4 * 1474, 4, 0, 0, 6), "reaches past the end"),
        ],
    )
    def test_fields_that_contradict_each_other(self, header, reason):
        buffer = buffer_of(bytes(4 * 1474))
        seal_batch(buffer, header, SEED)
        assert reason in str(parse_batch(buffer[:BLOCK_SIZE], SEED))

    def test_no_room_for_a_header(self):
        assert parse_batch(memoryview(bytes(63)), SEED) == "no room for a batch header"

    def test_an_empty_batch(self):
        header = BatchHeader(1, 64, 0, 0, 0, 0)
        assert parse_batch(sealed(b"", header), SEED) == header

    def test_the_largest_counts_fit(self):
        assert BatchHeader.payload_size(4096, 0, 1024) == 4096 * FRAME_SIZE + 1024 * 16


class TestNote:
    def test_golden(self):
        assert Note("ABC", 256, 1040).serialize() == b"ABC\0\0\0\0\0" + bytes.fromhex("0100 0410 00000000")

    @pytest.mark.parametrize("note", [Note("", 1331, 1), Note("ZZZZZZ", 0, 1296), Note("0", 1, 256)])
    def test_it_comes_back(self, note):
        assert Note.parse(note.serialize()) == note


def test_padding_goes_to_whole_blocks():
    assert [padded(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
