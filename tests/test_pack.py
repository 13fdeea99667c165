"""The header of a pack: golden bytes, and every way in which one can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import _hmac, sharding
from ingest.errors import CorruptionError, TicketError
from ingest.limits import FRAME_SIZE
from ingest.store.layouts import pack_file
from ingest.store.layouts.pack_file import PackHeader

STORE_ID = bytes(range(16, 32))


def golden(contract: dict[str, Any]) -> list[tuple[PackHeader, bytes]]:
    cases = []
    for case in contract["pack_headers"]:
        header = PackHeader(
            case["slots"], case["prefix"], bytes.fromhex(case["store_id_hex"]), case["generation"]
        )
        for slot in case["present"]:
            pack_file.set_bits(header.present, slot)
        for slot in case["deleted"]:
            pack_file.set_bits(header.deleted, slot)
        cases.append((header, bytes.fromhex(case["first_512_hex"])))
    assert len(cases) == 3
    return cases


def sealed(raw: bytearray) -> bytes:
    """``raw`` with the checksum that fits it."""
    raw[504:512] = _hmac.digest504(raw)
    return bytes(raw)


def sector(**fields: Any) -> bytearray:
    values: dict[str, Any] = {"slots": 1296, "prefix": "AB", "store_id": STORE_ID, "generation": 7}
    return bytearray(PackHeader(**(values | fields)).serialize()[:512])


def test_golden_headers_parse(contract: dict[str, Any]) -> None:
    for header, raw in golden(contract):
        assert PackHeader.parse(raw) == header


def test_golden_headers_are_what_serialize_writes(contract: dict[str, Any]) -> None:
    for header, raw in golden(contract):
        written = header.serialize()
        assert written[:512] == raw
        assert written[512:] == bytes(3584)


def test_golden_slots_and_paths(contract: dict[str, Any]) -> None:
    for header, _ in golden(contract):
        assert sharding.pack_prefix(header.pack) == header.prefix
        assert sharding.pack_slots(header.pack) == header.slots


def test_file_size_ends_after_the_last_slot() -> None:
    for slots in (1296, 1332):
        assert pack_file.file_size(slots) == sharding.slot_offset(slots - 1) + FRAME_SIZE


def test_a_new_pack_holds_nothing() -> None:
    header = PackHeader.of_pack(sharding.pack_id("AABBCC"), STORE_ID)
    assert PackHeader.parse(header.serialize()) == header
    assert not list(pack_file.bits_of(header.present)) and not list(pack_file.bits_of(header.deleted))
    assert header.generation == 0


def test_no_header_of_a_pack_that_cannot_be() -> None:
    with pytest.raises(TicketError):
        PackHeader.of_pack(sharding.PACK_LAST + 1, STORE_ID)


def test_every_flipped_bit_is_noticed() -> None:
    raw = sector()
    for i in range(8 * 512):
        raw[i >> 3] ^= 1 << (i & 7)
        with pytest.raises(CorruptionError):
            PackHeader.parse(raw)
        raw[i >> 3] ^= 1 << (i & 7)
    assert PackHeader.parse(raw).generation == 7


@pytest.mark.parametrize("size", [0, 1, 8, 504, 511])
def test_a_cut_header_is_named(size: int) -> None:
    with pytest.raises(CorruptionError, match=f"cut at {size}"):
        PackHeader.parse(sector()[:size])


def change(offset: int, value: bytes) -> bytes:
    raw = sector()
    raw[offset : offset + len(value)] = value
    return sealed(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (change(0, b"INGPACK2"), "starts with"),
        (change(11, b"\2"), "format version 2"),
        (change(12, (1332).to_bytes(4, "big")), "1332 slots"),
        (change(12, bytes(4)), "0 slots"),
        (change(16, bytes(8)), "expected 1332"),
        (change(16, b"ab"), "prefix"),
        (change(16, b"A\0B"), "prefix"),
        (change(16, b"ABCDEFG"), "prefix"),
        (change(16, b"\xff"), "prefix"),
        (change(16, b"../../.."), "prefix"),
        (change(48, b"\1"), "leaves zero"),
        (change(503, b"\1"), "leaves zero"),
        (change(64 + 162, b"\1"), "present bit"),
        (change(232 + 167, b"\x80"), "deleted bit"),
    ],
)
def test_whole_headers_that_say_what_cannot_be(raw: bytes, reason: str) -> None:
    with pytest.raises(CorruptionError, match=reason):
        PackHeader.parse(raw)


def test_zeros_are_no_header() -> None:
    with pytest.raises(CorruptionError):
        PackHeader.parse(bytes(4096))


@pytest.mark.parametrize(
    "fields",
    [
        {"store_id": b"short"},
        {"generation": 1 << 64},
        {"generation": -1},
        {"slots": 1332},
        {"present": bytearray(167)},
        {"deleted": bytearray(169)},
    ],
)
def test_nothing_wrong_is_written(fields: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError):
        sector(**fields)


SLOTS = st.sets(st.integers(0, 1295), max_size=40)


@given(SLOTS, SLOTS, st.integers(0, 2**64 - 1), st.integers(1, sharding.PACK_LAST))
def test_what_is_written_is_read(present: set[int], deleted: set[int], generation: int, number: int) -> None:
    header = PackHeader.of_pack(number, STORE_ID)
    header.generation = generation
    for slot in present - deleted:
        pack_file.set_bits(header.present, slot)
    for slot in deleted:
        pack_file.set_bits(header.deleted, slot)
    read = PackHeader.parse(header.serialize())
    assert read == header and read.pack == number
    assert set(pack_file.bits_of(read.present)) == present - deleted
    assert all(pack_file.bit(read.deleted, slot) == (slot in deleted) for slot in range(1296))


@given(st.integers(0, 1331), st.integers(0, 200))
def test_bits_are_set_and_cleared(slot: int, count: int) -> None:
    count = min(count, 1332 - slot)
    bitmap = bytearray(pack_file.BITMAP_SIZE)
    pack_file.set_bits(bitmap, slot, count)
    assert list(pack_file.bits_of(bitmap)) == list(range(slot, slot + count))
    pack_file.set_bits(bitmap, slot, count, False)
    assert bitmap == bytes(pack_file.BITMAP_SIZE)
