"""The end of a connection whose client is told something that no request has been parsed for."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import msgspec

from ingest.limits import HTTP_LINGER_S, RETRY_AFTER_S
from ingest.runtime.cache_policy import MARK_LINES

TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x28"  # fatal, handshake_failure: RFC 8446, 6


def last_answer(
    transport: asyncio.Transport, status: int, code: str, message: str, request_id: str
) -> asyncio.TimerHandle:
    """Sends an answer that no request has been parsed for, and ends the connection a little later: closed at once, with what
    the client sent unread, it would get a reset that eats the answer. Who loses the connection cancels the timer."""
    body = msgspec.json.encode({"code": code, "message": message, "request_id": request_id})
    again = f"Retry-After: {RETRY_AFTER_S}\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{again}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\n{MARK_LINES}Connection: close\r\n\r\n"
    )
    transport.write(head.encode() + body)
    if transport.can_write_eof():
        transport.write_eof()
    return asyncio.get_running_loop().call_later(HTTP_LINGER_S, transport.abort)
