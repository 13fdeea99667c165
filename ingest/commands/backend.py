"""Where the object commands find objects: what a data directory beside its server and a gateway have in common."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from ingest.catalog.catalog_reader import Entry
    from ingest.catalog.version import Transition, Version
    from ingest.objects.collector import Collected
    from ingest.objects.object_store import Download


@dataclass(frozen=True)
class Facts:
    """What a command says of one version. ``digest``: BLAKE3 of its bytes, hexadecimal."""

    name: str
    namespace: str
    id: str
    size: int
    digest: str
    version: int

    @classmethod
    def of(cls, version: Version) -> Facts:
        return cls(
            version.name,
            version.namespace,
            version.object_id,
            version.size,
            version.etag,
            version.number,
        )

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Backend(Protocol):
    """An asynchronous context; it reaches for what a call needs with the first one that does.

    Errors: `ingest.errors`. Nothing that broke is resumed behind the caller's back.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def names_content(self, namespace: str) -> bool:
        """Whether the bytes say the name there, so that nobody gives one. UsageError for a namespace that takes nothing."""

    async def put(
        self, namespace: str, name: str, body: AsyncIterable[bytes], *, size: int | None = None
    ) -> Facts:
        """Back when it is durable. ``size``: UploadLostError when ``body`` has another one; then nothing is stored."""

    async def open(self, namespace: str, name: str) -> Download:
        """NotFoundError."""

    async def open_object(self, object_id: str) -> Download:
        """By ObjectID, in any namespace. NotFoundError, TicketError."""

    async def page(self, namespace: str, prefix: str, after: str) -> list[Entry]: ...

    async def describe(self, namespace: str, name: str) -> tuple[Version, list[Transition]]:
        """The live version, and the history of the name, newest first. NotFoundError."""

    async def delete(self, namespace: str, name: str) -> None:
        """NotFoundError."""

    async def collect(self, dry_run: bool) -> Collected:
        """Deletes garbage until nothing is left, or says what there is of it. BusyError while somebody else collects."""
