"""One connection of an HTTP port: what comes is aiohttp's, until the rest of a large body is received where it is wanted.

aiohttp gets one request at a time, with a head of bounded size (`http_framing`). What comes behind a request waits until
that is answered: as much as one receive has waits here, the rest in the kernel and at the client.

aiohttp reads HTTP from bytes objects, and a body is copied four times on its way through it. The rest of a large body of
known length is bytes and nothing else, and goes by it. aiohttp never sees its end, so the connection ends with the answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from aiohttp.http import RawRequestMessage

from ingest.limits import (
    HTTP_HEAD_SIZE_MAX,
    HTTP_HEAD_SIZE_OWN,
    HTTP_HEAD_TIMEOUT_S,
    HTTP_HEADS_SIZE_MAX,
    HTTP_LINGER_S,
    HTTP_LINGER_SIZE,
    HTTP_UNREAD_TIMEOUT_S,
)
from ingest.runtime.http_connection import Body, Connection, DirectBody
from ingest.runtime.http_framing import ChunkedEnd, HeadEnd, SizedEnd
from ingest.runtime.last_answer import TLS_ALERT, last_answer
from ingest.runtime.tcp_progress import progress_of
from ingest.runtime.wires import Wires

log = logging.getLogger(__name__)


class Wire(asyncio.BufferedProtocol):
    """``handler``: aiohttp's part. A connection is in one of these states:

    | state | what comes | is left by |
    |---|---|---|
    | head | goes to the parser, and is counted | a whole head; a refusal |
    | body | goes to the parser, to the end of the body | that end; `take_body` |
    | under way | waits: one receive of it, then nothing is read | the answer |
    | direct | goes to who took the body | the end of the connection |
    | over | goes nowhere | the end of the connection |
    """

    def __init__(self, wires: Wires, handler: Connection, next_id: Callable[[], str]) -> None:
        self._wires = wires
        self._handler = handler
        self._next_id = next_id
        handler.wire = self
        self._transport: asyncio.Transport | None = None
        self._is_tls = False
        self._head = HeadEnd()
        self._head_borrowed = 0  # bytes of `Wires.heads`
        self._busy = False  # a request is not answered
        self._end: SizedEnd | ChunkedEnd | None = None  # of its body, while that comes
        self._rest = b""  # what came behind it
        self._last = False  # no other request is taken
        self._late: asyncio.TimerHandle | None = None  # when the head takes too long
        self.opening: asyncio.Task[None] | None = None  # a handshake
        self._over = False
        self._eof = False  # the client sends no more, and may wait for answers
        self._lingering: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when the last bytes came of what nobody wants, by the loop's clock
        self._body: DirectBody | None = None  # since it does not go through aiohttp
        self._acked = 0  # bytes that the client's machine had acknowledged at the last look
        self._acked_at: float | None = None  # when that was first seen, while there was more for it

    def take_body(self, kind: type[Body], size: int) -> Body:
        """The next ``size`` bytes, the last ones that are received of this connection. aiohttp must have nothing of them."""
        assert self._transport is not None and self._body is None and not self._rest
        self._end = None
        self._body = body = kind(self._transport, size, self._wires.scratch)
        return body

    def end_body(self, content: asyncio.StreamReader | Any) -> bool:
        """Whether a body was taken: then what is left of it goes nowhere, and ``content``, aiohttp's view of it, ends with
        it."""
        if self._body is None:
            return False
        self._body.discard(content.feed_eof)
        return True

    @property
    def much_to_come(self) -> bool:
        """Of the body under way there may be more than an answer waits for."""
        end = self._end
        return isinstance(end, ChunkedEnd) or (end is not None and end.left > HTTP_LINGER_SIZE)

    # --- one request at a time

    def _take(self, data: bytes) -> None:
        """Gives aiohttp what belongs to the request under way, or begins the next one."""
        while data and not self._over:
            if self._end is not None:
                data = self._take_of_body(self._end, data)
            elif self._busy:
                self._rest = data
                self.hold()
                return
            else:
                data = self._take_of_head(data)

    def _take_of_head(self, data: bytes) -> bytes:
        if not self._head.size:
            data = data.lstrip(b"\r\n")
            if data.startswith(b"\x16") and not self._is_tls:
                self._refuse_tls()
                return b""
            if not data:  # empty lines before a head are none of it: RFC 9112, 2.2
                return b""
        size = self._head.take(data)
        if self._head.size > HTTP_HEAD_SIZE_MAX:
            why = f"the request line and the headers have more than {HTTP_HEAD_SIZE_MAX} bytes"
            self._refuse(431, "headers_too_large", why)
        elif not self._borrow():
            self._refuse(503, "busy", "the headers of all requests here are too large: try again")
        elif (message := self._handler.parse(data[:size])) is not None:
            self._begin(message)
        elif self._late is None:
            self._expect_head()
        return data[size:]

    def _begin(self, message: object) -> None:
        """A head is whole, or what came is none."""
        self._busy = True
        self._wires.guests.busy(self)
        self._wires.unfinished.pop(self, None)
        self._head = HeadEnd()
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if not isinstance(message, RawRequestMessage):
            self._over = True
        elif message.chunked:
            self._end = ChunkedEnd()
        elif message.method != "CONNECT" and (size := int(message.headers.get("Content-Length", "0"))):
            self._end = SizedEnd(size)

    def _take_of_body(self, end: SizedEnd | ChunkedEnd, data: bytes) -> bytes:
        size = end.take(data)
        if isinstance(end, ChunkedEnd) and end.too_long:
            if self._wires.may_say("sent too long trailers"):
                log.info("%s sent too long trailers: closed", self._peer())
            self._abort()
            return b""
        if isinstance(end, ChunkedEnd) and end.too_thin:
            self._over, self._end = True, None
            self._handler.refuse_body("the chunks are too small for their number")
            return b""
        if end.ended:
            self._end = None
        self._handler.data_received(data[:size])
        if end.ended and not self._busy:
            self._next()
        return data[size:]

    def is_last(self, method: str) -> bool:
        """Whether nothing is read behind the request under way: chunks that are to come, what follows CONNECT."""
        return isinstance(self._end, ChunkedEnd) or method == "CONNECT"

    def answered(self, last: bool) -> None:
        """The request under way is, whatever of its body is to come; ``last``: aiohttp takes no other."""
        self._busy = False
        self._wires.guests.idle(self)
        self._last = last
        if self._handler.unread:
            self._heard = asyncio.get_running_loop().time()
            self._end_quiet()
        if last and isinstance(self._end, ChunkedEnd):
            self._over = True  # aiohttp closes: at the client's end, or when it has lingered
        elif self._end is None:
            self._next()
            rest, self._rest = self._rest, b""
            self._take(rest)
            if not self._busy and self._eof and self._transport is not None:
                self._transport.close()

    def _end_quiet(self) -> None:
        """Waits for the rest of a body that is answered already, until nothing comes for a while."""
        loop = asyncio.get_running_loop()
        if self._transport is not None and not self._busy and self._handler.unread:
            if (quiet := loop.time() - self._heard) >= HTTP_LINGER_S:
                self._transport.close()
            else:
                self._lingering = loop.call_later(HTTP_LINGER_S - quiet, self._end_quiet)

    def _next(self) -> None:
        """All of a request has come and is answered."""
        self._let_go()
        if self._last:
            self._over = True
        elif self._rest and self._transport is not None and not self._eof:
            self._transport.resume_reading()

    def _let_go(self) -> None:
        """Of the memory for a head."""
        self._wires.heads -= self._head_borrowed
        self._head_borrowed = 0
        self._wires.unfinished.pop(self, None)

    def hold(self) -> None:
        """Nothing more is read while something waits."""
        if self._rest and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _borrow(self) -> bool:
        """Whether there is memory for the head as far as it came."""
        more = max(0, self._head.size - HTTP_HEAD_SIZE_OWN) - self._head_borrowed
        if more <= 0:
            return True
        if not self._wires.has_room(self, more, HTTP_HEADS_SIZE_MAX):
            return False
        self._wires.heads += more
        self._head_borrowed += more
        self._wires.unfinished[self] = self._head_borrowed
        return True

    def _refuse_tls(self) -> None:
        """A hello of TLS on a port without."""
        assert self._transport is not None
        self._wires.tell_of_tls(self._peer())
        self._over = True
        self._transport.write(TLS_ALERT)
        self._transport.close()

    def _expect_head(self) -> None:
        self._late = asyncio.get_running_loop().call_later(HTTP_HEAD_TIMEOUT_S, self._end_late)

    def _end_late(self) -> None:
        if self._over or self._busy or self._transport is None:
            return
        if self._head.size:
            why = f"the request line and the headers did not come within {HTTP_HEAD_TIMEOUT_S:g} s"
            self._refuse(408, "head_stalled", why)
        else:
            self._transport.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answers what is no whole request: all before it are answered. What still comes goes nowhere."""
        assert self._transport is not None and not self._busy
        self._over = True
        self._lingering = last_answer(self._transport, status, code, message, self._next_id())

    def send_now(self, data: memoryview) -> int:
        """How many bytes of ``data`` the system took at once: none while what was written before waits here, none with TLS.

        An error of the connection is left to the next write to find.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or self._is_tls:
            return 0
        try:
            return os.write(transport.get_extra_info("socket").fileno(), data)
        except OSError:
            return 0

    def check(self, now: float) -> None:
        """Ends the connection if the client took nothing for too long."""
        transport = self._transport
        if transport is None:
            return
        waiting, acked = progress_of(transport)
        if not waiting:
            self._acked_at = None
        elif self._acked_at is None or acked != self._acked:
            self._acked, self._acked_at = acked, now
        elif now - self._acked_at >= HTTP_UNREAD_TIMEOUT_S:
            if self._wires.may_say("took nothing for too long"):
                log.info("%s took nothing for %.1f s: closed", self._peer(), now - self._acked_at)
            self._abort()

    def _abort(self) -> None:
        """With a reset: otherwise the kernel would keep for the client what it has for it."""
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _peer(self) -> Any:
        assert self._transport is not None
        return self._transport.get_extra_info("peername")

    # --- asyncio

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        guests = self._wires.guests
        # Who may write on then knows that nothing is left here: uvloop keeps all of what was written until its last byte is
        # gone. TLS pauses at its limit, the others beyond it.
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(1 if self._is_tls else 0)
        if self not in guests and not guests.admit(self, self._peer()):
            self._turn_away()
            return
        self._wires.open.add(self)
        self._wires.count()
        self._expect_head()
        self._handler.connection_made(transport)

    def _turn_away(self) -> None:
        assert self._transport is not None
        self._over = True
        if self._wires.may_refuse(self):
            self._refuse(503, "busy", f"{len(self._wires.guests)} connections are open here: try again")
        else:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.dismiss()
        self._transport = None
        for timer in (self._late, self._lingering):
            if timer is not None:
                timer.cancel()
        if self not in self._wires.open:  # it was turned away
            return
        self._wires.open.discard(self)
        self._wires.count()
        if self._body is not None:
            self._body.finish(str(error or "the connection ended"))
        self._handler.connection_lost(error)

    def dismiss(self) -> None:
        """The connection has ended."""
        self._wires.dismissed(self)
        self._let_go()
        self._over = True
        self._rest = b""

    def evict(self) -> None:
        """Nothing waits for the client: aiohttp has waited until all was sent."""
        self._over = True
        self._let_go()
        if self._transport is not None:
            self._transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wires.scratch if self._body is None else self._body.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._lingering is not None:
            self._heard = asyncio.get_running_loop().time()
        if self._body is not None:
            self._body.received(nbytes)
        elif not self._over:
            self._take(self._rest + bytes(self._wires.scratch[:nbytes]))

    def eof_received(self) -> bool:
        """Whether the connection stays: the answer to a whole request is still to be sent. TLS has no such thing."""
        self._eof = True
        if self._body is not None:
            self._body.finish("the client closed its side")
        return self._busy and self._end is None and not self._is_tls

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()
