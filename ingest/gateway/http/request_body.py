"""The body of a request, on its way into the buffers of a receiver (`objects.body.Body`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from ingest.gateway.http.failures import ClientGoneError, Failure
from ingest.gateway.http.incoming import Incoming
from ingest.limits import HTTP_DIRECT_MIN, HTTP_STALL_TIMEOUT_S
from ingest.runtime.http_connection import Connection


class RequestBody:
    """Its bytes, as they are, to its end. A client that waits for 100 Continue gets it with the first step, so whoever has
    something against the request says so before. `fill` raises ClientGoneError, Failure 400 and 408."""

    def __init__(
        self,
        request: web.BaseRequest,
        size: int | None,
        say_continue: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self.ended = False
        self._request = request
        self._say_continue = say_continue  # before the first byte, to a client that waits for it
        self._left = size  # bytes, None when the client will say
        self._rest = memoryview(b"")  # of what aiohttp has read, not given yet
        self._direct: Incoming | None = None  # what comes behind that, when it does not go through aiohttp

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        if self._say_continue is not None:
            await self._say_continue()
            self._say_continue = None
        deadline = None if patience is None else asyncio.get_running_loop().time() + patience
        filled = 0
        try:
            while filled < len(buffer) and not self.ended:
                if self._rest:
                    here = min(len(buffer) - filled, len(self._rest))
                    buffer[filled : filled + here] = self._rest[:here]
                    self._rest = self._rest[here:]
                    filled += here
                    self.ended = self._left == 0 and not self._rest
                elif self._direct is not None:
                    filled += await self._direct.fill(buffer[filled:], _until(deadline))
                    self.ended = self._direct.ended
                    break
                elif not await self._next(len(buffer) - filled, deadline):
                    break
        except TimeoutError:
            message = f"not one byte of the body came for {HTTP_STALL_TIMEOUT_S:g} s"
            raise Failure(408, "body_stalled", message, {"Connection": "close"}) from None
        except (ConnectionError, RequestPayloadError) as error:
            raise ClientGoneError(f"the body ended early: {error}") from None
        except HttpProcessingError as error:
            message = " ".join(error.message.split())[:200]
            raise Failure(400, "bad_http", message, {"Connection": "close"}) from None
        except RuntimeError as error:  # aiohttp's word for a read from a connection that has been closed
            if self._request.transport is not None:
                raise
            raise ClientGoneError(f"the client went away: {error}") from None
        return filled

    async def _next(self, wanted: int, deadline: float | None) -> bool:
        """Takes what aiohttp has; False at the end, or at the deadline. TimeoutError when nothing came for too long."""
        content = self._request.content
        piece = content.read_nowait(wanted)
        if not piece and content.at_eof():
            self.ended = True
        elif not piece and self._left is not None and self._left >= HTTP_DIRECT_MIN:
            connection = self._request.protocol
            assert isinstance(connection, Connection) and connection.wire is not None
            # Its buffer is empty, so it reads on, and its parser has given all that it had.
            self._direct = connection.wire.take_body(Incoming, self._left)
        elif not piece:
            left = _until(deadline)
            try:
                async with asyncio.timeout(HTTP_STALL_TIMEOUT_S if left is None else left):
                    piece = await content.readany()
            except TimeoutError:
                if left is None:
                    raise
                return False
            self.ended = not piece
        self._rest = memoryview(piece)
        if self._left is not None:
            self._left -= len(piece)
        return not self.ended

    async def close(self) -> None:
        """What nobody read, the connection gets rid of."""


def _until(deadline: float | None) -> float | None:
    """Seconds."""
    return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
