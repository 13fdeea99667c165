"""The words of the catalog: versions, their states, and what must be true of a name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from ingest import ticket
from ingest.catalog.extent import Extent
from ingest.errors import NameTakenError, NotFoundError, PreconditionError, UsageError
from ingest.limits import NAME_SIZE_MAX, NAMESPACE_SIZE_MAX


class VersionState(IntEnum):
    """PENDING becomes OK or FAILED, OK becomes DELETED. On disk: never changed."""

    PENDING = 0
    OK = 1
    FAILED = 2
    DELETED = 3


class Version(msgspec.Struct, frozen=True):
    """One upload of a name. ``digest``: BLAKE3 of its bytes, 32 bytes (none while PENDING or FAILED)."""

    number: int
    namespace: str
    name: str
    state: VersionState
    size: int
    digest: bytes
    created: float  # seconds since 1970
    extents: tuple[Extent, ...]
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    saved: float | None = None  # seconds since 1970, when the name came to point to it
    order: int = (
        0  # its place among the versions of its name: `order_at` the clock, and above all that it replaced
    )

    @property
    def object_id(self) -> str:
        """The first ticket of its first extent."""
        return ticket.format(self.extents[0].first)

    @property
    def etag(self) -> str:
        return self.digest.hex()

    @property
    def modified(self) -> int:
        """Since when its bytes are those of its name: whole seconds since 1970, as HTTP's dates have them. Its upload may
        have begun long before, and others have come and gone meanwhile."""
        return int(self.created if self.saved is None else self.saved)


def order_at(seconds: float) -> int:
    """What the clock says of the order of a version: microseconds since 1970."""
    return int(seconds * 1_000_000)


@dataclass(frozen=True, slots=True)
class Transition:
    """One entry of the history of a name."""

    version: int
    time: float  # seconds since 1970
    state: VersionState
    reason: str
    size: int


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be true of a name for a version of it to be committed or deleted.

    ``exists``: True: it has a version, False: it has none, None: either. ``etags``: its version is one of these
    (If-Match). ``none_of``: it is none of these (If-None-Match). ``same``: if it has a version, its bytes are the same.
    ``unmodified_since``: it is not younger than so many seconds since 1970 (If-Unmodified-Since).
    """

    exists: bool | None = None
    etags: frozenset[str] | None = None
    none_of: frozenset[str] | None = None
    same: bool = False
    unmodified_since: int | None = None

    def check(self, name: str, present: Version | None, digest: bytes | None = None) -> None:
        """NameTakenError, NotFoundError or PreconditionError. ``digest``: of what is to be committed, when it is known."""
        if self.exists is True and present is None:
            raise NotFoundError(f"there is no object {name!r}")
        if present is None:
            if self.etags is not None:
                raise PreconditionError(f"there is no object {name!r}, and If-Match asks for one")
            return
        if self.etags is not None and "*" not in self.etags and present.etag not in self.etags:
            raise PreconditionError(f"object {name!r} has changed: it is {present.etag} now")
        if self.unmodified_since is not None and present.modified > self.unmodified_since:
            raise PreconditionError(f"object {name!r} was replaced after If-Unmodified-Since")
        if self.none_of is not None and ("*" in self.none_of or present.etag in self.none_of):
            raise PreconditionError(f"object {name!r} is {present.etag}, which If-None-Match excludes")
        if self.exists is False:
            raise NameTakenError(f"there is an object {name!r} already")
        if self.same and digest is not None and present.digest != digest:
            raise NameTakenError(f"there is an object {name!r} already, with other bytes")


ANY = Condition()
ABSENT = Condition(exists=False)
PRESENT = Condition(exists=True)
SAME = Condition(same=True)


def check_name(name: str) -> str:
    """UsageError unless it is 1 to 1024 bytes of UTF-8. Any characters may be in it: it never becomes a path."""
    return _check(name, "name", NAME_SIZE_MAX)


def check_namespace(name: str) -> str:
    """UsageError unless it is 1 to 64 bytes of UTF-8."""
    return _check(name, "namespace", NAMESPACE_SIZE_MAX)


def check_text(text: str, what: str) -> bytes:
    """Its UTF-8. UsageError when it has none: half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} {text!r} is not UTF-8") from None


def _check(name: str, what: str, size_max: int) -> str:
    size = len(check_text(name, what))
    if not 1 <= size <= size_max:
        raise UsageError(f"a {what} of {size} bytes: it has 1 to {size_max}")
    return name
