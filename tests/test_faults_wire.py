"""Part 7 of the proof in short: the wire, some of each kind of case. `make faults PART=7` is the long run."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_rig import data_of

from faults import wire
from faults.wire_client import Target, well_formed
from ingest import ticket


def test_the_store_holds_what_was_acknowledged_whatever_came(tmp_path: Path) -> None:
    outcome = wire.run(1, 1500, tmp_path)
    assert outcome.passed, "\n".join(outcome.losses)
    assert all(outcome.counts.values()), outcome.counts


def test_every_bit_and_every_byte_has_its_case() -> None:
    cases = {kind.name: len(kind.cases) for kind in wire.KINDS}
    assert cases["put_bits_flipped"] == cases["delete_bits_flipped"] == 1474 * 8
    assert cases["get_bits_flipped"] == cases["inventory_bits_flipped"] == 24 * 8
    assert cases["puts_cut"] == cases["deletes_cut"] == 1474


@pytest.mark.parametrize("name", [b"A", b"09AZ", b"ABCDEFGH"])
def test_tickets(name: bytes) -> None:
    assert well_formed(name.ljust(8, b"\0"))


@pytest.mark.parametrize("name", [b"", b"a", b"A\0B", b"\0A", b"ABCDEFG\n", b"A/B", b"\xffA"])
def test_what_is_none(name: bytes) -> None:
    assert not well_formed(name.ljust(8, b"\0"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path, "pack", strict=True)
    yield target
    target.close()


@pytest.mark.parametrize("kind", ["replays", "rivals", "malformed_tickets"])
def test_each_round_of_these(target: Target, kind: str) -> None:
    (found,) = (one for one in wire.KINDS if one.name == kind)
    found.run(target, found.cases[:20])
    assert target.look() == []


def test_flipped_bits_of_a_ticket(target: Target) -> None:
    wire.flip_put(target, range(64))
    wire.flip_delete(target, range(64))
    assert target.look() == []


def test_http_shows_nothing_that_fails_its_checksum(target: Target) -> None:
    index = target.take()
    wire.put(target, index)
    host, port = target.rig.admin_address
    url = f"http://{host}:{port}/{ticket.tree_path(ticket.format(index))}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == data_of(index)
    for path in target.rig.data_dir.rglob("obj"):
        content = bytearray(path.read_bytes())
        content[content.index(data_of(index)) + 700] ^= 1
        path.write_bytes(content)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(url, timeout=30)


def test_the_limit_of_bad_frames(target: Target) -> None:
    wire.flip_put(target, range(8 * 700, 8 * 700 + 6))
    assert target.look() == []


def test_the_model_sees_what_is_missing_too_much_and_changed(target: Target) -> None:
    a, b, c = target.take(), target.take(), target.take()
    wire.put(target, a)
    wire.put(target, b)
    assert target.look() == []
    target.stored[a] = data_of(a, 1)
    del target.stored[b]
    target.stored[c] = None
    assert [line.partition(": ")[2] for line in target.wrong([a, b, c])] == [
        "SAVED expected, SAVED found with other bytes",
        "MISSING expected, SAVED found",
        "DELETED expected, MISSING found",
    ]
    assert len(target.finish()) == 4  # one too many and one missing on the disk, one changed, one not deleted
