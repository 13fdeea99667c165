"""Part 9 of the proof in short: a full disk, through HTTP. `make faults PART=9` is the long run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_rig import NodeGateway, node_gateway
from small_disk import small_disk

from faults import full_disk, object_history
from faults.disk_filler import Filler
from faults.object_client import Address, Loss, Teller, read_back
from faults.object_history import Content, ObjectHistory, Promises, content_of

ONE, TWO = Content(1, 70_000), Content(2, 70_000)
SHORT_S = 0.3  # patience with who never answers


@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_on_a_few_full_disks(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_disk, "PERIODS_MAX", 1)
    monkeypatch.setattr(full_disk, "STEPS_BETWEEN", 20)
    outcome = full_disk.run(seed, 2, tmp_path)
    if outcome.not_run:
        pytest.skip(outcome.not_run)
    assert outcome.passed, "\n".join(outcome.losses)
    assert outcome.counts["stores_checked"] == outcome.counts["times_full"] == 2
    assert outcome.counts["read_back"] > 0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGateway]:
    with node_gateway(tmp_path_factory.mktemp("node") / "data", "--http-workers=1", "--workers=1") as running:
        yield running


@pytest.fixture
def teller(node: NodeGateway, tmp_path: Path) -> Iterator[Teller]:
    one = Teller(Address(node.gateway.address), ObjectHistory(tmp_path / "history.txt"))
    yield one
    one.close()
    one.history.close()


def behind_its_back(node: NodeGateway, method: str, name: str, body: bytes | None = None) -> None:
    assert node.gateway.request(method, f"/objects/{name}", body).status == 200


class TestPlantedLosses:
    """Each is a change that the history does not have."""

    def test_a_byte_is_another(self, node, teller):
        assert teller.put("planted/byte", ONE)
        changed = bytearray(content_of(ONE))
        changed[-1] ^= 1
        behind_its_back(node, "PUT", "planted/byte", bytes(changed))
        expected = f"GET planted/byte: expected {ONE}, found 70000 other bytes"
        assert read_back(teller.address, object_history.read(teller.history.path)) == [expected]
        with pytest.raises(Loss, match="other bytes"):
            teller.get("planted/byte")
        with pytest.raises(Loss, match="other bytes"):
            teller.get_range("planted/byte", 69_000, 69_999)
        behind_its_back(node, "DELETE", "planted/byte")

    def test_it_is_short(self, node, teller):
        assert teller.put("planted/short", ONE)
        behind_its_back(node, "PUT", "planted/short", content_of(ONE)[:-1])
        assert "found 69999 other bytes" in read_back(teller.address, teller.history.promises)[0]
        with pytest.raises(Loss, match="are one-sided"):
            teller.list("planted/short", 10)
        behind_its_back(node, "DELETE", "planted/short")

    def test_it_is_gone_or_came_back(self, node, teller):
        for name in ("planted/gone", "planted/back"):
            assert teller.put(name, ONE)
        teller.delete("planted/back")
        assert read_back(teller.address, teller.history.promises) == []
        teller.list("planted/", 1)
        behind_its_back(node, "DELETE", "planted/gone")
        behind_its_back(node, "PUT", "planted/back", content_of(ONE))
        back, gone = read_back(teller.address, teller.history.promises)
        assert back == "GET planted/back: expected no object, found 70000 other bytes"
        assert gone.startswith(f"GET planted/gone: expected {ONE}, found 404")
        with pytest.raises(Loss, match="which is there: 404"):
            teller.delete("planted/gone")

    def test_nobody_answers(self, teller):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = Address(silent.getsockname())
            teller.history.append("done", "planted/hang", ONE)
            expected = f"GET planted/hang: no answer within {SHORT_S:g} s"
            assert read_back(address, teller.history.promises, SHORT_S) == [expected]
            hanging = Teller(address, teller.history, SHORT_S)
            with pytest.raises(Loss, match=f"PUT /objects/planted/hang: no answer within {SHORT_S:g} s"):
                hanging.put("planted/hang", TWO)
            assert teller.history.promises.possible("planted/hang") == [ONE, TWO]


def test_a_try_without_an_answer_leaves_both_open(tmp_path: Path) -> None:
    history = ObjectHistory(tmp_path / "history.txt")
    for event, content in (("try", ONE), ("done", ONE), ("try", TWO), ("refused", TWO)):
        history.append(event, "a", content)
    assert history.promises.possible("a") == [ONE]
    history.append("try", "a", TWO)
    history.append("try", "b", None)
    history.close()
    with history.path.open("a") as file:
        file.write("seen a 2:7")  # the client died in the middle of a line
    promises = object_history.read(history.path)
    assert (promises.possible("a"), promises.possible("b"), promises.possible("c")) == (
        [ONE, TWO],
        [None],
        [None],
    )
    promises.event("seen", "a", TWO)
    assert promises.possible("a") == [TWO]
    assert promises.names() == ["a", "b"]


def test_contents_differ() -> None:
    assert len(content_of(Content(1, 3 << 20))) == 3 << 20
    assert content_of(Content(1, 200)) != content_of(Content(2, 200))
    assert content_of(Content(3, 0)) == b""
    assert Promises().possible("x") == [None]


@pytest.mark.parametrize("inodes", [0, 64])
def test_the_filler_leaves_nothing_and_gives_it_back(tmp_path: Path, inodes: int) -> None:
    with small_disk(tmp_path, "disk", 16, inodes=inodes) as disk:
        filler = Filler(disk / "others", inodes=bool(inodes), greedy=False)
        for _ in range(2):
            filler.fill()
            with pytest.raises(OSError, match="No space left on device"):
                (disk / "mine").write_bytes(b"a")
            filler.free()
            (disk / "mine").write_bytes(b"a")
            (disk / "mine").unlink()
