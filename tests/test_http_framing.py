"""Where requests end. Each is cut at every byte, and aiohttp's parser has to agree."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser

from ingest import limits
from ingest.runtime.http_framing import ChunkedEnd, HeadEnd, SizedEnd, is_length

BEHIND = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"PUT /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = [
    b"0\r\n\r\n",
    b"5\r\nabcde\r\n0\r\n\r\n",
    b"005;name=value\r\nabcde\r\n00\r\n\r\n",
    b"A\r\n0\r\n\r\n0\r\n\r\n\r\n1\r\n\n\r\n0\r\n\r\n",
    b"1\r\na\r\n0\r\nX: y\r\nZ: \r\n\r\n",
    b"1\r\na\r\n0;x\r\nX: y\r\n\r\n",
    b"%x\r\n%s\r\n0\r\n\r\n" % (70_000, b"\r\n" * 35_000),
    b"0" * 40 + b"2\r\nab\r\n0\r\n\r\n",
    b"2;a=5\r\nab\r\n0;b=5\r\n\r\n",  # the digits behind a cut in an extension are no size
    b"00;a=0;b=000a\r\nX: 5\r\n\r\n",
]


def ends(end: HeadEnd | SizedEnd | ChunkedEnd, *pieces: bytes) -> int:
    """How many bytes are taken of what comes in ``pieces``, until the end."""
    taken = 0
    for piece in pieces:
        if end.ended:
            break
        taken += end.take(piece)
    return taken


@pytest.mark.parametrize("make", [HeadEnd, lambda: SizedEnd(len(HEAD))])
def test_an_end_is_found_wherever_it_is_cut(make: Any) -> None:
    for at in range(len(HEAD) + 1):
        end = make()
        assert ends(end, HEAD[:at], HEAD[at:] + BEHIND) == len(HEAD)
        assert end.ended
    end = make()
    assert ends(end, *(bytes([byte]) for byte in HEAD + BEHIND)) == len(HEAD)


@pytest.mark.parametrize("body", CHUNKED, ids=range(len(CHUNKED)))
def test_chunks_end_wherever_they_are_cut(body: bytes) -> None:
    for at in range(min(len(body), 100) + 1):
        for cut in (at, len(body) - at):
            end = ChunkedEnd()
            assert ends(end, body[:cut], body[cut:] + BEHIND) == len(body)
    end = ChunkedEnd()
    assert ends(end, *(bytes([byte]) for byte in body[-300:] if len(body) < 300)) in (0, len(body))
    end = ChunkedEnd()
    assert ends(end, body[:-1]) == len(body) - 1
    assert not end.ended


@pytest.mark.parametrize("body", CHUNKED, ids=range(len(CHUNKED)))
def test_the_parser_sees_the_same_end(body: bytes) -> None:
    async def parse() -> None:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        parser = HttpRequestParser(protocol, loop, 1 << 20)
        protocol._parser = parser
        messages, _, _ = parser.feed_data(HEAD)
        (_, content), *none = messages
        assert not none
        parser.feed_data(body[:-1])
        assert not content.is_eof()
        parser.feed_data(body[-1:])
        assert content.is_eof()

    asyncio.run(parse())


@pytest.mark.parametrize("step", [1 << 20, 1000, 1])
@pytest.mark.parametrize("line", [1 << 20, 100, 5])
def test_trailers_may_have_as_much_as_a_head_and_no_more(line: int, step: int) -> None:
    """In however many lines and pieces."""
    most = limits.HTTP_HEAD_SIZE_MAX
    sent = (b"X: " + b"x" * (min(line, most) - 5) + b"\r\n") * (most // line + 1)
    end = ChunkedEnd()
    ends(end, b"0\r\n", *(sent[at : min(at + step, most)] for at in range(0, most, step)))
    assert (end.trailers, end.too_long, end.ended) == (most, False, False)
    ends(end, b"x")
    assert end.too_long and not end.ended


@pytest.mark.parametrize("line", [b" ", b"\t", b"\0", b"\x0b", b"\x0c", b"\xa0", b" \t ", b"\r "])
def test_a_line_that_only_looks_empty_ends_no_trailers(line: bytes) -> None:
    """What comes behind it would be taken for a request of its own."""
    for sent in (b"0\r\n" + line + b"\r\n", b"0\r\nX: y\r\n" + line + b"\n"):
        end = ChunkedEnd()
        assert ends(end, sent + BEHIND[:3]) == len(sent) + 3
        assert not end.ended
        end = ChunkedEnd()
        assert ends(end, *(bytes([byte]) for byte in sent)) == len(sent)
        assert not end.ended


@pytest.mark.parametrize("digits", [1, 2, limits.HTTP_BODY_DIGITS_MAX])
def test_a_length_that_every_reader_takes(digits: int) -> None:
    assert is_length("9" * digits) and is_length("0" * digits)


@pytest.mark.parametrize(
    "text", [str((1 << 64) - 1), str((1 << 64) - 2), str(1 << 63), "0" * 20 + "5", "9" * 5000]
)
def test_a_length_that_is_none_to_some_is_none(text: str) -> None:
    assert not is_length(text)


@pytest.mark.parametrize("step", [1 << 20, 1000, 7, 1])
@pytest.mark.parametrize(
    "chunk",
    [b"1\r\na\r\n", b"3\r\nabc\r\n", b"4;name=value\r\nabcd\r\n", b"5;" + b"x" * 40_000 + b"\r\nabcde\r\n"],
)
def test_framing_may_have_little_more_bytes_than_data(chunk: bytes, step: int) -> None:
    end = ChunkedEnd()
    sent = chunk * (100_000 // len(chunk) + 1)
    taken = 0
    for at in range(0, len(sent), step):
        taken += end.take(sent[at : at + step])
        if end.too_thin:
            break
    assert end.too_thin and not end.ended
    data = len(chunk.partition(b"\r\n")[2].strip())
    assert taken <= limits.HTTP_CHUNKS_EXCESS_MAX * len(chunk) // (len(chunk) - 2 * data) + len(chunk)


@pytest.mark.parametrize("step", [1 << 20, 1000, 7])
@pytest.mark.parametrize("before", [0, 1, 20_000, 100_000])
def test_data_that_came_before_pays_for_no_thin_chunks(before: int, step: int) -> None:
    """Of however many bytes: who sends a megabyte may not send a megabyte of chunks of one byte behind it."""
    end, chunk = ChunkedEnd(), b"1\r\na\r\n"
    if before:
        ends(end, b"%x\r\n%s\r\n" % (before, b"a" * before))
    sent = chunk * (limits.HTTP_CHUNKS_EXCESS_MAX // (2 * len(chunk)))
    assert ends(end, *(sent[at : at + step] for at in range(0, len(sent), step))) == len(sent)
    assert not end.too_thin
    ends(end, sent * 3)
    assert end.too_thin


@pytest.mark.parametrize("step", [1 << 20, 1000, 7])
@pytest.mark.parametrize("size", [5, 16, 100])
def test_small_chunks_may_be_many(size: int, step: int) -> None:
    body = b"%x\r\n%s\r\n" % (size, b"a" * size) * 20_000 + b"0\r\n\r\n"
    end = ChunkedEnd()
    assert ends(end, *(body[at : at + step] for at in range(0, len(body), step))) == len(body)
    assert end.ended and not end.too_thin
