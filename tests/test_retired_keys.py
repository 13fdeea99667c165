"""What a key that is accepted no more has signed is counted under its own name, on both frame ports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import get_rig
import put_rig
import pytest

from ingest.engine import _queue, metrics
from ingest.limits import KEYS_COUNTED
from ingest.mac import SubKeys, derive

ALL = [derive(bytes([i]) * 32) for i in range(2, 2 + KEYS_COUNTED + 1)]  # one more than have names
NAMES = tuple(key.id for key in ALL[:KEYS_COUNTED])
STRANGER = derive(bytes(32))
Ask = Callable[[SubKeys], bytes]

PUTS: dict[str, Ask] = {
    "put": lambda key: put_rig.frame(10, b"", key.put),
    "delete": lambda key: put_rig.frame(10, (1).to_bytes(8, "big"), key.delete),
}
GETS: dict[str, Ask] = {
    "get": lambda key: get_rig.request(10, 1, key.get),
    "inventory": lambda key: get_rig.request(10, 1, key.inventory),
}


def bad(rig: put_rig.Rig | get_rig.Rig, what: str) -> list[int]:
    """How many of each named key; the last: of none."""
    (counters,) = (one for one in metrics.BY_KEY if one.metric == what)
    row = rig.queue.counter_row(_queue.ROW_WORKER)
    at = metrics.KEY_START + metrics.BY_KEY.index(counters) * metrics.KEY_COUNTERS
    return [int(row[at + i]) for i in range(metrics.KEY_COUNTERS)]


def expected(number: int) -> list[int]:
    counts = [0] * metrics.KEY_COUNTERS
    counts[min(number, metrics.KEY_COUNTERS - 1)] = 1
    return counts


@pytest.mark.parametrize("signer", [2, 3, KEYS_COUNTED // 2, KEYS_COUNTED - 1, KEYS_COUNTED, -1])
@pytest.mark.parametrize("ask", PUTS)
def test_a_frame(ask: str, signer: int) -> None:
    with put_rig.Rig() as rig:
        rig.server.set_keys(ALL[:2], ALL, NAMES)
        client = rig.connect()
        client.send(PUTS[ask](STRANGER if signer < 0 else ALL[signer]))
        assert rig.receive(client, 9)[8] == put_rig.Status.BAD_CHECKSUM
        assert bad(rig, "bad_frames") == expected(KEYS_COUNTED if signer < 0 else signer)


@pytest.mark.parametrize("signer", [2, 3, KEYS_COUNTED // 2, KEYS_COUNTED - 1, KEYS_COUNTED, -1])
@pytest.mark.parametrize("ask", GETS)
def test_a_request(tmp_path: Path, ask: str, signer: int) -> None:
    with get_rig.Rig(tmp_path) as rig:
        rig.server.set_keys(ALL[:2], ALL, NAMES)
        client = rig.connect()
        client.send(GETS[ask](STRANGER if signer < 0 else ALL[signer]))
        assert rig.receive(client, 16)[8] == get_rig.Status.BAD_CHECKSUM
        assert bad(rig, "bad_requests") == expected(KEYS_COUNTED if signer < 0 else signer)
