"""The other end of the wire: connections, batches, ranges."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.client.async_client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # only those who want a client load asyncio and the checksum kernel
        from ingest.client import async_client

        return getattr(async_client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
