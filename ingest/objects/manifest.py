"""The manifest of an object: what the catalog knows of it, stored behind its chunks. `docs/objects.md`, "The manifest".

A lost catalog is made again from the manifests. So nobody may make one but who has the key, or bring an old one back
elsewhere: its checksum is keyed and covers the ticket that it lies under.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from blake3 import blake3

from ingest import ticket
from ingest.catalog.extent import Extent, chunks_needed, total
from ingest.catalog.version import check_name, check_namespace, order_at
from ingest.errors import CatalogError
from ingest.limits import DATA_SIZE

MAGIC = b"ingestM1"
KEY_CONTEXT = "ingest 2026 object manifest"
_HEADER = struct.Struct(">8sII32s")  # magic, bytes of the text, chunks of the manifest, checksum
CHUNKS_MAX = 256  # 370 kB: an object of more extents than fit into so much is not made


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to find and to judge an object. ``extents`` are [ticket, count], the manifest's own chunks included."""

    version: int
    namespace: str
    name: str
    size: int  # bytes
    digest: str  # BLAKE3 of them, hexadecimal
    created: float  # seconds since 1970
    order: int = 0  # of two manifests with one name, the higher one is newer; 0: made before there was one
    headers: dict[str, str] = {}
    extents: list[tuple[str, int]] = []

    @property
    def rank(self) -> int:
        """Its order; what the clock said, where it has none."""
        return self.order or order_at(self.created)

    @property
    def places(self) -> tuple[Extent, ...]:
        return tuple(Extent(ticket.parse(first), count) for first, count in self.extents)


def manifest_key(shared_key: bytes) -> bytes:
    """The key of manifests of a shared key (32 bytes): BLAKE3, mode derive_key."""
    return blake3(shared_key, derive_key_context=KEY_CONTEXT).digest()


def chunks_of(text_size: int) -> int:
    """How many chunks a manifest of so many bytes of text has."""
    return -(-(_HEADER.size + text_size) // DATA_SIZE)


def serialize(manifest: Manifest, place: Extent, key: bytes) -> bytes:
    """The data of the chunks that are stored in ``place``, which has to be large enough: `size_max`."""
    text = msgspec.json.encode(manifest)
    assert chunks_of(len(text)) <= place.count <= CHUNKS_MAX, (
        f"a manifest of {len(text)} bytes in {place.count} chunks"
    )
    data = _HEADER.pack(MAGIC, len(text), place.count, _checksum(key, place.first, place.count, text)) + text
    return data.ljust(place.count * DATA_SIZE, b"\0")


def size_max(manifest: Manifest, more_extents: int) -> int:
    """Chunks that suffice for this manifest with so many more extents, and with any numbers in them."""
    entry = len('["ZZZZZZZZ",999999999999999],')
    return chunks_of(len(msgspec.json.encode(manifest)) + entry * more_extents)


def begins(data: bytes) -> int:
    """How many chunks a manifest has whose first chunk this is; 0 when it is none."""
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        return 0
    _, size, chunks, _ = _HEADER.unpack_from(data)
    return chunks if chunks_of(size) <= chunks <= CHUNKS_MAX else 0


def parse(data: bytes, place: int, keys: Sequence[bytes]) -> Manifest:
    """From its chunks' data, as stored from ``place`` on. CatalogError when none of ``keys`` made it for that place."""
    chunks = begins(data)
    if chunks == 0 or len(data) < chunks * DATA_SIZE:
        raise CatalogError(f"ticket {ticket.format(place)}: this is not a whole manifest")
    _, size, _, checksum = _HEADER.unpack_from(data)
    text = bytes(data[_HEADER.size : _HEADER.size + size])
    if not any(hmac.compare_digest(checksum, _checksum(key, place, chunks, text)) for key in keys):
        raise CatalogError(f"ticket {ticket.format(place)}: a manifest that none of the keys has signed")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
        check_namespace(manifest.namespace)
        check_name(manifest.name)
        places = manifest.places
        whole = (
            manifest.size >= 0
            and 0 < manifest.version < 1 << 62
            and 0 <= manifest.rank < 1 << 62
            and len(bytes.fromhex(manifest.digest)) == 32
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise CatalogError(
            f"ticket {ticket.format(place)}: a manifest that makes no sense: {error}"
        ) from None
    if not whole or any(one.count < 1 for one in places):
        raise CatalogError(f"ticket {ticket.format(place)}: a manifest that makes no sense: its numbers")
    if (
        not places
        or places[-1].stop != place + chunks
        or total(places) != chunks_needed(manifest.size) + chunks
    ):
        raise CatalogError(f"ticket {ticket.format(place)}: a manifest whose extents do not end with it")
    return manifest


def _checksum(key: bytes, place: int, chunks: int, text: bytes) -> bytes:
    """Keyed BLAKE3 over the ticket (8 bytes, as on the wire), the numbers of the header and the text."""
    head: Any = ticket.index_to_wire(place) + struct.pack(">II", len(text), chunks)
    return blake3(head + text, key=key).digest()
