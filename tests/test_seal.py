"""Sealing and unsealing against the plain functions of `frame` and `mac`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import mac, ticket
from ingest.client._seal import seal, seal_request, unseal
from ingest.errors import TicketError, UsageError

OLD, NEW = mac.derive(bytes(range(1, 33))), mac.derive(bytes(range(32)))
KEYS = (NEW.put, OLD.put)


def plain(key: bytes, first: int, data: bytes) -> bytes:
    return b"".join(
        mac.build_frame(key, ticket.index_to_wire(first + i // 1458), data[i : i + 1458])
        for i in range(0, len(data), 1458)
    )


@given(first=st.integers(0, ticket.LAST - 40), size=st.integers(0, 40 * 1458), fill=st.binary(min_size=1))
def test_seal_builds_and_signs(first: int, size: int, fill: bytes) -> None:
    data = (fill * (size // len(fill) + 1))[:size]
    assert seal(NEW.put, first, data) == plain(NEW.put, first, data)


@given(count=st.integers(1, 40), data=st.data())
def test_unseal_tells_what_is_bad_and_takes_the_rest(count: int, data: st.DataObject) -> None:
    chunks = [b"%d" % i * 700 for i in range(count)]
    padded = [chunk[:1458].ljust(1458, b"\0") for chunk in chunks]
    old = data.draw(st.sets(st.integers(0, count - 1)))
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    frames = bytearray(
        b"".join(plain(OLD.put if i in old else NEW.put, 100 + i, padded[i]) for i in range(count))
    )
    for i in bad:
        at = i * 1474 + data.draw(st.integers(0, 1473))
        frames[at] ^= 1 << data.draw(st.integers(0, 7))
    out = bytearray(b"\xee" * (count * 1458 + 1))
    assert unseal(KEYS, 100, frames, out) == sorted(bad)
    for i in range(count):
        assert out[i * 1458 : (i + 1) * 1458] == (b"\xee" * 1458 if i in bad else padded[i])
    assert out[-1] == 0xEE


def test_unseal_knows_only_its_keys_and_tickets() -> None:
    out = bytearray(3 * 1458)
    assert unseal((NEW.put,), 7, plain(OLD.put, 7, b"x" * 3000), out) == [0, 1, 2]
    assert unseal((NEW.put,), 7, seal(NEW.put, 8, b"x" * 3000), out) == [0, 1, 2]
    assert unseal((NEW.put,), 7, seal(NEW.delete, 7, b"x" * 3000), out) == [0, 1, 2]
    assert unseal((), 7, seal(NEW.put, 7, b"x" * 3000), out) == [0, 1, 2]
    assert out == bytes(3 * 1458)
    assert unseal(KEYS, 7, b"", bytearray()) == []


@given(first=st.integers(0, ticket.LAST), count=st.integers(1, 65_536))
def test_requests(first: int, count: int) -> None:
    assert seal_request(NEW.get, first, count) == mac.build_request(
        NEW.get, ticket.index_to_wire(first), count
    )


def test_bad_arguments() -> None:
    with pytest.raises(TicketError):
        seal(NEW.put, ticket.LAST, bytes(1459))
    with pytest.raises(TicketError):
        seal(NEW.put, -1, b"x")
    with pytest.raises(UsageError, match="32 bytes"):
        seal(b"short", 0, b"x")
    with pytest.raises(UsageError, match="whole frames"):
        unseal(KEYS, 0, bytes(1473), bytearray(1458))
    with pytest.raises(UsageError, match="the buffer has 1457"):
        unseal(KEYS, 0, bytes(1474), bytearray(1457))
    with pytest.raises(UsageError, match="32 bytes"):
        unseal((b"short",), 0, bytes(1474), bytearray(1458))
    with pytest.raises(TicketError):
        seal_request(NEW.get, ticket.LAST + 1, 1)
