"""What a client says of an address where something else answers than the port that it wants."""

from __future__ import annotations

import asyncio

import pytest

from ingest.client.channel import Channel, Proof
from ingest.client.get_channel import GetChannel
from ingest.client.put_channel import PutChannel
from ingest.errors import ConnectionLostError, ProtocolError
from ingest.runtime.listeners import parse_address


def asked(kind: type[Channel], answer: bytes, timeout: float) -> None:
    """Opens a channel that waits for an answer, to a server that gives this one, byte for byte."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for i in range(len(answer)):
            writer.write(answer[i : i + 1])
            await writer.drain()
        await reader.read()
        writer.close()

    async def before() -> None:
        pass

    async def test() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        channel = kind(server.sockets[0].getsockname()[:2], timeout, 0.0)
        channel.proof = Proof(before, lambda: b"A", lambda data: 100, lambda data: None)
        try:
            await channel.open()
        finally:
            server.close()

    asyncio.run(test())


@pytest.mark.parametrize("kind", [PutChannel, GetChannel])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "answers with HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "alert of TLS"),
    ],
)
def test_who_answers_instead_is_named(kind: type[Channel], answer: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        asked(kind, answer, 30)


@pytest.mark.parametrize("kind", [PutChannel, GetChannel])
def test_of_silence_the_port_is_asked_for(kind: type[Channel]) -> None:
    with pytest.raises(
        ConnectionLostError, match=rf"no answer for 0\.1 s \(is this the {kind.port} port\?\)"
    ):
        asked(kind, b"", 0.1)


def test_a_url_is_no_address() -> None:
    with pytest.raises(ValueError, match="is a URL, no address: HOST:PORT is expected, without http://"):
        parse_address("http://host:7000")
