"""aiohttp's part of a connection: it parses what `wire` gives it, one request at a time, and writes the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from ingest.runtime.http_framing import is_length


class DirectBody(Protocol):
    """Who takes the rest of a body straight from the socket: `Incoming`. ``left`` bytes come; ``waste``: memory for what
    nobody wants."""

    def __init__(self, transport: asyncio.Transport, left: int, waste: memoryview) -> None: ...
    def buffer(self) -> memoryview: ...
    def received(self, size: int) -> None: ...
    def finish(self, lost: str | None = None) -> None: ...
    def discard(self, then: Callable[[], None]) -> None: ...


Body = TypeVar("Body", bound=DirectBody)


class SocketPart(Protocol):
    """The other part of a connection: `Wire`, whose methods these are."""

    @property
    def much_to_come(self) -> bool: ...
    def is_last(self, method: str) -> bool: ...
    def answered(self, last: bool) -> None: ...
    def hold(self) -> None: ...
    def send_now(self, data: memoryview) -> int: ...
    def take_body(self, kind: type[Body], size: int) -> Body: ...
    def end_body(self, content: Any) -> bool: ...


class Connection(web.RequestHandler):
    """``wire``: the other part, once it is open; ``busy``: has a request that is not answered."""

    __slots__ = ("_answered", "_broken", "_content", "busy", "wire")

    def __init__(self, server: web.Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self.busy = False
        self.wire: SocketPart | None = None
        self._content: Any = None  # of the request under way
        self._answered = False  # that request
        self._broken = False  # what came was no HTTP

    def parse(self, data: bytes) -> object | None:
        """The message whose head ends with ``data``: a RawRequestMessage, or something else if this is no HTTP."""
        self._content = None
        self._answered = False
        self.data_received(data)
        if not self._messages:
            return None
        message, self._content = self._messages[-1]
        if isinstance(message, RawRequestMessage) and not is_length(
            message.headers.get("Content-Length", "0")
        ):
            message, _ = self._messages[-1] = _refusal("the Content-Length is larger than any body")
        return message

    def data_received(self, data: bytes) -> None:
        """aiohttp tells nobody who waits for a body that its chunks are malformed, and notes it again with each piece. Once
        the request is answered nobody waits."""
        if self._broken:
            return
        super().data_received(data)
        if self._upgraded and self._parser is not None:
            # No protocol is changed here. aiohttp would keep back what comes.
            self._parser.set_upgraded(False)
            self._upgraded = False
        if self._messages and isinstance(refusal := self._messages[-1][0], _ErrInfo):
            self._break(refusal)

    def refuse_body(self, why: str) -> None:
        """Of the request under way: 400 to whoever waits for it."""
        refusal, nothing = _refusal(why)
        self._messages.append((refusal, nothing))
        self._break(refusal)

    def _break(self, refusal: _ErrInfo) -> None:
        self._broken = True
        if self.unread:
            if self._answered:
                self.close()  # without another answer
            else:  # `finish_response` ends the connection: `close` would before aiohttp has even begun with a request
                self._content.set_exception(refusal.exc)
                self._content.feed_eof()

    @property
    def unread(self) -> bool:
        """Not all of its body has come."""
        return self._content is not None and not self._content.is_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._answered and self.unread:
            self._content.feed_eof()  # for which aiohttp waits a while

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: Any
    ) -> Any:
        if self._broken or (self.wire is not None and self.wire.is_last(request.method)):
            resp.force_close()
        sent = await super().finish_response(request, resp, start_time)
        self._answered = True
        if self.wire is not None:
            self.wire.answered(last=not sent[0].keep_alive)
        return sent

    def resume_reading(self, resume_parser: bool = True) -> None:
        super().resume_reading(resume_parser)
        if self.wire is not None:
            self.wire.hold()


def _refusal(why: str) -> tuple[_ErrInfo, Any]:
    """What aiohttp answers with 400, in place of a request and its body."""
    error = BadHttpMessage(why)
    return _ErrInfo(status=400, exc=error, message=error.message), EMPTY_PAYLOAD
