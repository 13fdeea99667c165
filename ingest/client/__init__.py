"""The other end of the wire: connections, batches, ranges."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.client.async_client import AsyncClient
    from ingest.client.blocking_client import Client

__all__ = ["AsyncClient", "Client"]


# Only those who want a client load asyncio and the checksum kernel.
def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from ingest.client.async_client import AsyncClient

        return AsyncClient
    if name == "Client":
        from ingest.client.blocking_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
