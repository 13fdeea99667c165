"""Manifests: golden bytes, and that nothing but a whole one at its own place passes."""

import re
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from ingest import ticket
from ingest.catalog.extent import FIRST, Extent
from ingest.errors import CatalogError
from ingest.limits import DATA_SIZE
from ingest.objects import manifest
from ingest.objects.manifest import Manifest

DOCUMENT = (Path(__file__).parent.parent / "docs" / "objects.md").read_text()
SHARED = bytes(range(32))
KEY = manifest.manifest_key(SHARED)
PLACE = FIRST + 1
HELLO = Manifest(
    version=7,
    namespace="store",
    name="hello",
    size=12,
    digest=blake3(b"hello, chunk").hexdigest(),
    created=1795219200.0,
    order=1795219200000000,
    headers={"content-type": "text/plain"},
    extents=[("00000000", 2)],
)


def stored(made: Manifest = HELLO, place: int = PLACE, key: bytes = KEY) -> bytes:
    """Its chunks as they come back."""
    return manifest.serialize(made, Extent(place, made.extents[-1][1] if len(made.extents) > 1 else 1), key)


def test_one_of_before_there_was_an_order_goes_by_its_clock():
    text = msgspec.json.encode(HELLO).replace(b'"order":1795219200000000,', b"")
    old = msgspec.json.decode(text, type=Manifest)
    assert (old.order, old.rank, old.created) == (0, HELLO.rank, HELLO.created)
    assert manifest.parse(stored(old), PLACE, [KEY]) == old


def example() -> bytes:
    block = re.search(r"```\nmanifest of the object hello.*?\n(.*?)```", DOCUMENT, re.S)
    assert block, "the worked example is gone"
    raw = bytearray()
    for line in block[1].splitlines():
        pairs = re.match(r"(?:[0-9a-f]{2} )*[0-9a-f]{2}(?=$|  )", line)
        raw += bytes.fromhex(pairs[0]) if pairs else line.encode()
    return bytes(raw)


def test_the_worked_example_is_what_is_written():
    assert stored() == example().ljust(DATA_SIZE, b"\0")


def test_the_key_and_the_checksum_are_made_as_the_document_says():
    key = blake3(SHARED, derive_key_context="ingest 2026 object manifest").digest()
    raw = example()
    head = ticket.to_wire("00000001") + raw[8:16]
    assert raw[16:48] == blake3(head + raw[48:], key=key).digest()
    assert raw[:8] == b"ingestM1"
    assert int.from_bytes(raw[8:12], "big") == len(raw) - 48


def test_comes_back_as_it_was():
    assert manifest.parse(stored(), PLACE, [KEY]) == HELLO
    assert manifest.begins(stored()) == 1


def test_any_key_that_ever_signed_will_do():
    assert manifest.parse(stored(), PLACE, [manifest.manifest_key(bytes(32)), KEY]) == HELLO


def many_extents(count: int) -> Manifest:
    """Of an object that lies in every other ticket: so many extents of one, and one for the manifest."""
    single = [(ticket.format(FIRST + 2 * i), 1) for i in range(count)]
    text_size = len(manifest.msgspec.json.encode(manifest.msgspec.structs.replace(HELLO, extents=single)))
    chunks = manifest.chunks_of(text_size + 60)
    last = (ticket.format(FIRST + 2 * count), chunks)
    return manifest.msgspec.structs.replace(HELLO, size=count * DATA_SIZE, extents=[*single, last])


def test_a_manifest_of_many_chunks():
    made = many_extents(500)
    place = FIRST + 1000
    chunks = made.extents[-1][1]
    data = stored(made, place)
    assert chunks > 3 and len(data) == chunks * DATA_SIZE
    assert manifest.begins(data[:DATA_SIZE]) == chunks
    assert manifest.parse(data, place, [KEY]) == made
    with pytest.raises(CatalogError):
        manifest.parse(data[:-DATA_SIZE], place, [KEY])


def test_may_have_more_chunks_than_it_needs():
    made = manifest.msgspec.structs.replace(HELLO, extents=[("00000000", 4)])
    data = manifest.serialize(made, Extent(PLACE, 3), KEY)
    assert len(data) == 3 * DATA_SIZE and manifest.begins(data) == 3
    assert manifest.parse(data, PLACE, [KEY]) == made
    with pytest.raises(AssertionError):
        manifest.serialize(many_extents(500), Extent(FIRST + 1000, 1), KEY)


def test_size_max_suffices():
    few = manifest.msgspec.structs.replace(HELLO, extents=[])
    assert manifest.size_max(few, 501) >= many_extents(500).extents[-1][1]


def test_a_copy_of_it_elsewhere_is_none():
    with pytest.raises(CatalogError, match="signed"):
        manifest.parse(stored(), PLACE + 1, [KEY])


@pytest.mark.parametrize("bit", [0, 7])
def test_a_changed_byte_is_noticed(bit):
    """Whichever it is, of the header and of the text to its end."""
    whole = stored()
    for at in range(len(example())):
        data = bytearray(whole)
        data[at] ^= 1 << bit
        with pytest.raises(CatalogError):
            manifest.parse(bytes(data), PLACE, [KEY])


def test_each_byte_of_the_key_and_each_of_its_place_counts():
    for at in range(32):
        other = bytearray(KEY)
        other[at] ^= 1
        with pytest.raises(CatalogError, match="signed"):
            manifest.parse(stored(), PLACE, [bytes(other)])
        shared = bytearray(SHARED)
        shared[at] ^= 1
        assert manifest.manifest_key(bytes(shared)) != KEY
    with pytest.raises(CatalogError, match="signed"):
        manifest.parse(stored(), PLACE, [])
    for bit in range(40):
        if (place := PLACE ^ 1 << bit) < ticket.COUNT:
            with pytest.raises(CatalogError, match="signed"):
                manifest.parse(stored(), place, [KEY])


@pytest.mark.parametrize(
    "changed",
    [
        {"extents": []},
        {"extents": [("00000000", 3)]},
        {"extents": [("00000001", 1)]},
        {"extents": [("0000000a", 2)]},
        {"extents": [("00000001", 2)]},
        {"extents": [("00000001", 1), ("00000000", 1)]},
        {"extents": [("00000005", 2), ("00000001", 1)]},
        {"size": 3 * DATA_SIZE, "extents": [("00000000", 2)]},
        {"extents": [("00000000", 1), ("00000003", 1)]},
        {"size": 5000},
        {"size": -1},
        {"version": 0},
        {"version": 1 << 63},
        {"digest": "00"},
        {"digest": "no"},
        {"version": -1},
        {"order": -1},
        {"order": 1 << 62},
        {"name": ""},
        {"name": 1025 * "n"},
        {"namespace": ""},
        {"namespace": 65 * "n"},
        {"extents": [("00000001", 0), ("00000000", 2)]},
    ],
)
def test_signed_nonsense_is_refused(changed):
    made = manifest.msgspec.structs.replace(HELLO, **changed)
    with pytest.raises(CatalogError):
        manifest.parse(stored(made), PLACE, [KEY])


@pytest.mark.parametrize("data", [b"", bytes(DATA_SIZE), b"ingestM1".ljust(DATA_SIZE, b"\xff")])
def test_other_chunks_do_not_begin_one(data):
    assert manifest.begins(data) == 0
