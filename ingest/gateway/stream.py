"""The API `stream`: raw TCP. Bytes until the client closes its sending side, then the reply [8B ObjectID | 1B Status].

Here nobody can tell a connection that was cut politely (a FIN) from the end of what was sent: what came is stored. Who can't
live with that takes HTTP, which says how much there is to come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from ingest import ticket
from ingest.errors import BusyError, ConnectionLostError, IngestError, RefusedError
from ingest.gateway.failures import ClientGoneError
from ingest.gateway.request_id import RequestIds
from ingest.limits import HTTP_STALL_TIMEOUT_S, STREAM_READ_SIZE, TICKET_SIZE
from ingest.objects.object_store import ObjectStore
from ingest.objects.version import ABSENT
from ingest.status import Status

NAMESPACE = "stream"
log = logging.getLogger(__name__)


class StreamServer:
    """Stores each connection's bytes as one object, named after the time and an id."""

    def __init__(self, store: ObjectStore, ids: RequestIds) -> None:
        self._store = store
        self._ids = ids
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end: what `asyncio.start_server` calls."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            writer.write(await self._receive(reader))
            await writer.drain()
        except (ConnectionError, ClientGoneError) as error:
            log.debug("stream: %s", error)
        finally:
            self._connections.discard(task)
            writer.close()

    async def drain(self, timeout: float) -> None:
        """Waits for the connections that are there; who is not done then is cut off, and its upload fails."""
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _receive(self, reader: asyncio.StreamReader) -> bytes:
        id_ = self._ids.next()
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            version = await self._store.put(NAMESPACE, f"{moment} {id_}", _body(reader), condition=ABSENT)
        except RefusedError as error:
            log.warning("%s: stream: %s", id_, error)
            return _reply("", error.status)
        except (BusyError, ConnectionLostError) as error:
            log.warning("%s: stream: %s", id_, error)
            return _reply("", Status.BUSY)
        except (IngestError, OSError, TimeoutError) as error:
            if isinstance(error, ConnectionError):
                raise
            log.warning("%s: stream: %s", id_, str(error) or "not one byte came for too long")
            return _reply("", Status.ERROR)
        return _reply(version.object_id, Status.SAVED)


async def _body(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(HTTP_STALL_TIMEOUT_S):
            piece = await reader.read(STREAM_READ_SIZE)
        if not piece:
            return
        yield piece


def _reply(object_id: str, status: Status) -> bytes:
    """9 bytes; without an object the first 8 are NUL."""
    return (ticket.to_wire(object_id) if object_id else bytes(TICKET_SIZE)) + bytes([status])
