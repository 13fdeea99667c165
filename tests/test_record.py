"""Records: what a client puts with its length comes back as it was, and what is no record is refused (`ingest.record`)."""

import asyncio
import runpy
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_server import ReferenceServer

from ingest import AsyncClient, Client, record
from ingest.errors import RecordError, RefusedError, TicketError, UsageError
from ingest.status import Status

KEY = bytes(range(32))
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def server() -> Iterator[ReferenceServer]:
    with ReferenceServer([KEY]) as running:
        yield running


@pytest.fixture
def client(server: ReferenceServer) -> Iterator[Client]:
    with Client.connect(server.put_address, server.get_address, KEY, timeout=5, retry_for=20) as connected:
        yield connected


# --- the form -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "chunk"),
    [
        (b"", bytes(1458)),
        (b"\0", bytes(1456) + b"\0\1"),
        (b"ab\0", b"ab" + bytes(1454) + b"\0\3"),
        (b"x" * 255, b"x" * 255 + bytes(1201) + b"\x00\xff"),
        (b"x" * 256, b"x" * 256 + bytes(1200) + b"\x01\x00"),
        (b"\xff" * 1455, b"\xff" * 1455 + b"\0\x05\xaf"),
        (b"\xff" * 1456, b"\xff" * 1456 + b"\x05\xb0"),
    ],
)
def test_golden_bytes(given: bytes, chunk: bytes) -> None:
    assert record.serialize(given) == chunk
    assert record.parse(chunk, "A") == given


@given(st.binary(max_size=1456), st.integers(0, 1456))
def test_what_is_put_comes_back(data: bytes, zeros: int) -> None:
    for one in (data, (data + bytes(zeros))[:1456]):
        assert record.parse(record.serialize(memoryview(bytearray(one))), "A") == one


@given(
    st.binary(min_size=1458, max_size=1458)
    | st.binary(max_size=1458).map(lambda data: data.ljust(1458, b"\0"))
)
def test_a_chunk_is_a_record_in_one_way_or_none(chunk: bytes) -> None:
    try:
        found = record.parse(chunk, "A")
    except RecordError:
        length = int.from_bytes(chunk[1456:], "big")
        assert length > 1456 or chunk[length:1456].strip(b"\0")
    else:
        assert record.serialize(found) == chunk


@given(st.binary(max_size=1455), st.data())
def test_a_byte_behind_the_record_is_refused(data: bytes, draw: st.DataObject) -> None:
    chunk = bytearray(record.serialize(data))
    chunk[draw.draw(st.integers(len(data), 1455))] = draw.draw(st.integers(1, 255))
    with pytest.raises(RecordError, match=f"ticket AB12: .*{len(data)}"):
        record.parse(bytes(chunk), "AB12")


@pytest.mark.parametrize("size", [0, 1, 729, 1454, 1455])
def test_so_is_one_at_any_place(size: int) -> None:
    whole = record.serialize(b"\xff" * size)
    for place in range(size, 1456):
        chunk = bytearray(whole)
        chunk[place] = 1
        with pytest.raises(RecordError):
            record.parse(bytes(chunk), "A")


def test_a_record_that_is_too_long() -> None:
    with pytest.raises(UsageError, match="1456"):
        record.serialize(bytes(1457))


# --- the clients ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=64), zeros=st.integers(0, 1392))
def test_both_clients_give_back_what_they_got(data: bytes, zeros: int) -> None:
    with ReferenceServer([KEY]) as server:
        with Client.connect(server.put_address, server.get_address, KEY) as client:
            client.put_record("A", data + bytes(zeros))
            assert client.get_record("A") == data + bytes(zeros)

        async def again() -> bytes:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await client.put_record("A", data + bytes(zeros))  # the same: SAVED again
                return await client.get_record("A")

        assert asyncio.run(again()) == data + bytes(zeros)


def test_ranges(client: Client) -> None:
    records = [b"", b"\0", b"one\0\0", bytes(1456), b"\xff" * 1456] * 40
    assert client.put_records("ZZ", iter(records), window=8) == {}
    found = list(client.get_records("ZZ", len(records)))
    assert [data for _, _, data in found] == records
    assert [name for name, _, _ in found[:2]] == ["ZZ", "000"]
    assert list(client.get_records("00", 1)) == [("00", Status.MISSING, b"")]


def test_ranges_without_a_thread(server: ReferenceServer) -> None:
    async def both() -> list[bytes]:
        async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
            assert await client.put_records("A", [b"1\0", b"2", b""]) == {}
            found: AsyncIterator[tuple[str, Status, bytes]] = client.get_records("A", 4)
            return [data async for _, _, data in found]

    assert asyncio.run(both()) == [b"1\0", b"2", b"", b""]


def test_what_is_no_record_is_refused(client: Client) -> None:
    client.put_record("A", b"a record")
    client.put("B", b"no record")
    client.put("C", b"\xff" * 1458)
    for name in ("B", "C"):
        with pytest.raises(RecordError, match=f"ticket {name}:"):
            client.get_record(name)
    found = client.get_records("A", 3)
    assert next(found)[2] == b"a record"
    with pytest.raises(RecordError, match="ticket B:"):
        next(found)


def test_other_errors_are_those_of_chunks(client: Client) -> None:
    with pytest.raises(UsageError, match="1456"):
        client.put_record("A", bytes(1457))
    with pytest.raises(TicketError):
        client.put_record("a", b"")
    with pytest.raises(TicketError):
        client.put_records("ZZZZZZZZ", [b"", b""])
    with pytest.raises(RefusedError, match="MISSING"):
        client.get_record("A")
    client.put_record("A", b"1")
    assert client.put_records("A", [b"2", b"3"]) == {"A": Status.CONFLICT}


def test_the_program_of_the_front_page(server: ReferenceServer, tmp_path: Path) -> None:
    """As it stands there, but for the addresses and the path of the key."""
    (program,) = [part.split("```")[0] for part in README.read_text().split("```python\n")[1:]]
    key = tmp_path / "key"
    key.write_text(KEY.hex() + "\n")
    key.chmod(0o600)
    for theirs, ours in (
        ("127.0.0.1:5000", f"127.0.0.1:{server.put_address[1]}"),
        ("127.0.0.1:5005", f"127.0.0.1:{server.get_address[1]}"),
        ("/srv/ingest/.ingest/key", str(key)),
    ):
        assert theirs in program
        program = program.replace(theirs, ours)
    (tmp_path / "program.py").write_text(program)
    runpy.run_path(str(tmp_path / "program.py"))
