"""A multi-process ingest engine: small records in, verified, durable before they are acknowledged."""

from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from ingest.client.async_client import AsyncClient
    from ingest.client.blocking_client import Client

__all__ = ["AsyncClient", "Client", "__version__"]


# Only those who want a client load asyncio and the checksum kernel.
def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from ingest.client.async_client import AsyncClient

        return AsyncClient
    if name == "Client":
        from ingest.client.blocking_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
