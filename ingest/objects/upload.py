"""What is uploaded, and what must hold of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ingest import ticket
from ingest.catalog.extent import Extent, without
from ingest.catalog.version import SAME, Condition, Version, order_at
from ingest.errors import RefusedError, UploadLostError
from ingest.limits import DATA_SIZE, FRAME_SIZE
from ingest.objects import manifest
from ingest.objects.manifest import Manifest
from ingest.status import Status

NAMELESS = "(not known yet)"  # the name of an upload whose bytes will say it
FOREIGN = (Status.CONFLICT, Status.DELETED)  # somebody else has, or had, such a ticket: another one will do


@dataclass(frozen=True, slots=True)
class Upload:
    """What is uploaded, but for its bytes. ``name``: or a function that knows it once they have ended. ``present``: the
    version that a name of this namespace has now. ``last_order``: `CatalogReader.last_order` of such a name."""

    namespace: str
    name: str | Callable[[], str]
    size: int | None
    headers: Mapping[str, str]
    condition: Condition
    present: Callable[[str], Version | None]
    last_order: Callable[[str], int]

    def kept(self, name: str, digest: bytes) -> Version | None:
        """The version that stays, where the same bytes are to be stored once: it has them already."""
        found = self.present(name) if self.condition == SAME else None
        return found if found is not None and found.digest == digest else None

    def later(self, about: Manifest) -> Manifest:
        """The manifest again, behind that of the version that the name has got meanwhile, or whose clock was ahead."""
        order = max(order_at(time.time()), self.last_order(about.name) + 1)
        return msgspec.structs.replace(about, order=order)

    def final_name(self) -> str:
        return self.name if isinstance(self.name, str) else self.name()


def sealed_manifest(about: Manifest, extents: Sequence[Extent], place: Extent, key: bytes) -> bytes:
    """Exactly ``place.count`` chunks."""
    named = msgspec.structs.replace(about, extents=[(ticket.format(one.first), one.count) for one in extents])
    return manifest.serialize(named, place, key)


def ours(places: Sequence[Extent], refused: Mapping[str, Status]) -> list[Extent]:
    """What of these tickets is not somebody else's."""
    rest: Sequence[Extent] = places
    for name, status in refused.items():
        if status is Status.CONFLICT:
            rest = without(rest, ticket.parse(name))
    return list(rest)


def raise_unless_foreign(refused: Mapping[str, Status]) -> None:
    """RefusedError for a status that another ticket would get as well."""
    for name, status in refused.items():
        if status not in FOREIGN:
            raise RefusedError(name, status)


def data_of(frames: bytes) -> bytes:
    """What was sealed in whole frames, 1458 bytes of each."""
    start = FRAME_SIZE - DATA_SIZE
    return b"".join([frames[at + start : at + FRAME_SIZE] for at in range(0, len(frames), FRAME_SIZE)])


def check_size(expected: int | None, size: int) -> None:
    if expected is not None and size != expected:
        raise UploadLostError(f"the body ended after {size} of {expected} bytes")
