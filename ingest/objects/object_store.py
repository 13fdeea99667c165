"""What everyone who stores objects talks to: the gateway's routes, and the commands beside a running node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from typing import Protocol

from ingest.catalog.catalog_reader import Entry
from ingest.catalog.version import ANY, Condition, Transition, Version
from ingest.objects.body import Body


class Download(Protocol):
    """One version, open for reading: what is read is of that version, whatever becomes of its name meanwhile."""

    version: Version

    def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        """Its bytes from ``start`` up to ``stop`` (None: the end), in pieces, each frame checked.

        CorruptFrameError, RefusedError and ConnectionLostError end it before its end.
        """

    async def close(self) -> None:
        """Nobody reads it any more: it may be collected if it is not live."""


class StoredDownload(Download, Protocol):
    """One whose reader may say how far it came: what it has not taken needs no memory while it waits."""

    def took(self, count: int) -> None:
        """Of the piece that came last only ``count`` bytes are taken, and nobody has a view of it any more.

        The rest comes again, as one piece or several. It may have been read anew: a client that takes nothing for a while
        keeps no memory that others could use.
        """


class ObjectStore(Protocol):
    """Objects by namespace and name. Errors: `ingest.errors`, the branches PeerError, DiskError and ObjectError."""

    async def put(
        self,
        namespace: str,
        name: str | Callable[[], str],
        body: Body | AsyncIterable[bytes],
        *,
        size: int | None = None,
        headers: Mapping[str, str] | None = None,
        condition: Condition = ANY,
    ) -> Version:
        """Stores what ``body`` gives, to its end, under a name; back when it is durable and can be read.

        With the condition ``same`` the version that has these bytes already is left as it is, and comes back.

        ``name``: or a function that knows it once the body has ended, where the bytes say the name. What the condition
        raises is then raised at the end.

        ``size``: how many bytes it has to be, when that is known: UploadLostError when it is another number. An error of
        ``body`` fails the upload. What the condition raises, it raises before the body is read if it can.
        """

    async def check(self, namespace: str, name: str, condition: Condition) -> None:
        """Raises what the condition would raise now: before a client is asked for its bytes."""

    async def open(self, namespace: str, name: str) -> StoredDownload:
        """NotFoundError."""

    async def open_object(self, object_id: str) -> StoredDownload:
        """By ObjectID. NotFoundError, TicketError."""

    async def stat(self, namespace: str, name: str) -> Version:
        """NotFoundError."""

    async def stat_object(self, object_id: str) -> Version:
        """By ObjectID. NotFoundError, TicketError."""

    async def delete(self, namespace: str, name: str, condition: Condition = ANY) -> Version:
        """NotFoundError, PreconditionError."""

    async def page(
        self, namespace: str, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[Entry]: ...

    async def namespaces(self) -> list[str]: ...

    async def history(self, namespace: str, name: str) -> list[Transition]:
        """Newest first. NotFoundError when there never was such a name."""

    async def shares_second(self, version: Version) -> bool:
        """Whether its name came to point to another version too within the second of `Version.modified`."""
