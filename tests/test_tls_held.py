"""A TLS record that a socket did not take whole is its connection's: sent before the end, counted while it waits."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import get_rig
import packs
import put_rig
import pytest
import trustme
from put_rig import ack, acks, frame, frames, split_acks
from test_left_behind import TOTAL, is_as_if_alone, until_gone
from tls_rig import TlsEnd, certificates, client_context

from ingest import limits
from ingest.engine import metrics
from ingest.runtime.tls_context import TlsContext
from ingest.status import Status

CA = trustme.CA()
SERVER = CA.issue_cert("127.0.0.1")
FIRST = 1332 + 5 * 1296
BUFFER = 4096  # bytes: of a socket whose peer does not read


class Client:
    """Speaks TLS over a socket with small buffers; `raw` is that socket."""

    def __init__(self, rig: put_rig.Rig | get_rig.Rig) -> None:
        sock = rig.connect(BUFFER)
        self.raw = sock.dup()
        self.end = TlsEnd(sock, client_context(CA))
        self.end.handshake(lambda: rig.step(0.01))

    def close(self) -> None:
        self.end.close()
        self.raw.close()


def bad(rig: put_rig.Rig | get_rig.Rig, client: Client) -> None:
    """Sends what makes the server refuse it."""
    if isinstance(rig, put_rig.Rig):
        rig.send(client.end, frame(1, key=bytes(32)) * limits.BAD_FRAME_LIMIT)
    else:
        rig.send(client.end, get_rig.request(50, 1, bytes(32)))


def ends(rig: put_rig.Rig | get_rig.Rig, client: Client) -> None:
    client.raw.shutdown(socket.SHUT_WR)
    rig.settle()


def drained(rig: put_rig.Rig | get_rig.Rig, client: Client) -> None:
    rig.server.begin_drain()
    rig.settle()


ENDS = pytest.mark.parametrize("end", [bad, ends, drained])


@pytest.fixture
def puts() -> Iterator[put_rig.Rig]:
    with put_rig.Rig(places=512, block_places=128, unread_acks_total_max=TOTAL) as rig:
        rig.server.set_tls(TlsContext(certificates(SERVER), is_server=True))
        rig.tick(0.0)
        yield rig


@pytest.fixture
def gets(tmp_path: Path) -> Iterator[get_rig.Rig]:
    with get_rig.Rig(tmp_path) as rig:
        rig.server.set_tls(TlsContext(certificates(SERVER), is_server=True))
        rig.packs.put(range(FIRST, FIRST + 200))
        yield rig


@ENDS
@pytest.mark.parametrize("count", [2200, 2800])
def test_each_ack_comes_before_the_end(
    puts: put_rig.Rig, end: Callable[[put_rig.Rig, Client], None], count: int
) -> None:
    client = Client(puts)
    puts.send(client.end, frames(100, count))
    puts.until(lambda: puts.counter("saved") == count)
    end(puts, client)
    expected = split_acks(acks(100, count))
    if end is bad:
        expected += [ack(1, Status.BAD_CHECKSUM)] * limits.BAD_FRAME_LIMIT
    assert Counter(split_acks(puts.receive_all(client.end))) == Counter(expected)
    client.close()
    until_gone(puts)


@ENDS
@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("ranges", ["of one", "of all"])
def test_each_reply_comes_before_the_end(
    gets: get_rig.Rig, end: Callable[[get_rig.Rig, Client], None], count: int, ranges: str
) -> None:
    client = Client(gets)
    if ranges == "of one":
        gets.send(client.end, b"".join(get_rig.request(FIRST + i) for i in range(count)))
    else:
        gets.send(client.end, get_rig.request(FIRST, count))
    asked = count if ranges == "of one" else 1
    gets.until(lambda: gets.counter(metrics.INDEX["GET_REQUESTS"]) == asked)
    end(gets, client)
    got = gets.receive_all(client.end)
    if end is bad:
        refused = get_rig.header(50, Status.BAD_CHECKSUM, 0)
        assert got.endswith(refused)
        got = got[: -len(refused)]
    assert b"".join(run[3] for run in get_rig.parse_runs(got)) == b"".join(
        packs.frame(FIRST + i) for i in range(count)
    )
    client.close()
    gets.until(lambda: gets.server.connections == 0)


def test_what_was_held_for_one_who_is_gone_does_not_count(puts: put_rig.Rig) -> None:
    for i in range(1, 3):
        client = Client(puts)
        puts.send(client.end, frame(9) * 3400)
        puts.until(lambda n=i: puts.counter("saved") == 3400 * n)
        assert puts.receive(client.end, 14_400) == ack(9) * 1600  # then all that waits goes into one record
        puts.settle()
        client.close()  # with acks that it has not read: a reset
        until_gone(puts)
    puts.server.set_tls(None)
    is_as_if_alone(puts)
