"""What a store is taken for that has lost its description: what it says by its files, whatever its clients put into them.

One that is taken for a store of the other layout is moved into the quarantine by the repair that should save it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_fsck import check_layout

from faults.damaged_store import SMALL_SEGMENT, Builder, read_all, started
from ingest import sharding, ticket
from ingest.limits import DATA_SIZE
from ingest.status import Status
from ingest.store.check import identity as identity_module
from ingest.store.check.fsck import fsck
from ingest.store.check.identity import identify
from ingest.store.layouts.pack_file import MAGIC, PackHeader
from ingest.store.layouts.tree_file import CHECKSUM
from ingest.store.log.log_format import SegmentHeader
from ingest.store.store_json import write_json, write_store_json

PREFIXES = ("", "4", "B0", "NZC", "AABBC")  # packs; the files of all of their slots are no packs' in a tree
STORED = [sharding.slot_ticket(sharding.pack_id(prefix), slot) for prefix in PREFIXES for slot in (1, 40)]


def objects(data: Path) -> list[Path]:
    return sorted(path for path in data.rglob("obj") if path.is_file())


def as_it_is(_: Path) -> None:
    pass


def empty_files(data: Path) -> None:
    """Of both ends, as a death leaves them between the making of a file and its first byte."""
    for piece in ("0", "ZZ"):
        (data / piece).mkdir(mode=0o700)
        os.close(os.open(data / piece / "obj", os.O_CREAT | os.O_EXCL, 0o600))


def other_magic(data: Path) -> None:
    """The beginning of each file but one is lost."""
    for path in objects(data)[:-1]:
        with path.open("r+b") as file:
            file.write(b"\xff" * len(MAGIC))


def begin_as_packs(data: Path) -> None:
    """A client may put what it wants to."""
    for path in objects(data):
        if path.stat().st_size == DATA_SIZE:
            with path.open("r+b") as file:
                file.write(MAGIC)


def one_byte_off(data: Path) -> None:
    """Cut, or longer than a chunk: their attributes still say what they are."""
    for i, path in enumerate(objects(data)):
        os.truncate(path, DATA_SIZE + (1, -1, -DATA_SIZE)[i % 3])


def without_attributes(data: Path) -> None:
    """Of all but one, as a copy leaves them that does not know of any."""
    for path in objects(data)[:-1]:
        for name in os.listxattr(path):
            if name.startswith("user."):
                os.removexattr(path, name)


def half_written(data: Path) -> None:
    """Whoever writes a chunk dies before its attributes: the client's bytes alone are there."""
    begin_as_packs(data)
    for name in os.listxattr(objects(data)[0]):
        os.removexattr(objects(data)[0], name)


def tombstones(data: Path) -> None:
    for path in objects(data):
        os.removexattr(path, CHECKSUM)
        os.setxattr(path, "user.ingest.deleted", b"1")
        os.truncate(path, 0)


def much_put_aside(data: Path) -> None:
    """More names than are asked, which earlier repairs have moved away: of another store, say."""
    for n in range(3):
        path = data / ".ingest/quarantine/repair" / f"{n:04d}.copy" / "obj"
        path.parent.mkdir(parents=True)
        path.write_bytes(MAGIC if n % 2 else bytes(DATA_SIZE))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Builder]]:
    def made(layout: str) -> Builder:
        check_layout(layout, tmp_path)
        builder = Builder(tmp_path / "store", layout, random.Random(1), SMALL_SEGMENT)
        builder.put(STORED)
        builder.settle()
        builder.append(b"", [])
        builder.close()
        return builder

    yield made


@pytest.mark.parametrize("description", ["lost", "of no layout", "decayed"])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("pack", as_it_is),
        ("pack", empty_files),
        ("pack", other_magic),
        ("pack", much_put_aside),
        ("tree", as_it_is),
        ("tree", empty_files),
        ("tree", begin_as_packs),
        ("tree", one_byte_off),
        ("tree", without_attributes),
        ("tree", half_written),
        ("tree", tombstones),
        ("tree", much_put_aside),
    ],
)
def test_a_store_is_of_the_layout_that_its_files_are_of(
    make: Callable[[str], Builder],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    change: Callable[[Path], None],
    description: str,
) -> None:
    data = make(kind).directory
    monkeypatch.setattr(identity_module, "HEADERS_ASKED", 2 if change is much_put_aside else 256)
    change(data)
    path = data / ".ingest/store.json"
    record = json.loads(path.read_text())
    if description == "lost":
        path.unlink()
    elif description == "of no layout":
        path.write_text(json.dumps(record | {"layout": "heap"}))
    else:
        path.write_text(json.dumps(record | {"layout": "tree" if kind == "pack" else "pack"}))
    assert identify(data).layout == kind


@pytest.mark.parametrize(
    ("kind", "change"), [("pack", empty_files), ("tree", empty_files), ("tree", begin_as_packs)]
)
def test_and_a_repair_keeps_all_that_is_in_it(
    make: Callable[[str], Builder], kind: str, change: Callable[[Path], None]
) -> None:
    builder = make(kind)
    data = builder.directory
    change(data)
    (data / ".ingest/store.json").unlink()
    report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert report.problems[-1].kind == "store_json" and report.layout == kind
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    shown = [index for index in STORED if index in read]
    assert shown, "what the reader is asked for"
    assert all(read[index] == (Status.SAVED, builder.truth[index]) for index in shown), "the log has them"


OWN, OTHER, THIRD = "0" * 31 + "1", "0" * 31 + "2", "0" * 31 + "3"


@pytest.mark.parametrize(
    ("said", "in_packs", "believed"),
    [
        (OWN, [], OWN),
        (OWN, [OWN, OTHER, OTHER], OWN),
        (OWN, [OTHER, OWN, OTHER], OWN),
        (OWN, [OTHER, OTHER, OWN], OWN),
        (OWN, [OTHER], OTHER),
        (OWN, [OTHER, OTHER], OTHER),
        (OWN, [OTHER, THIRD], OWN),
        (OWN, [THIRD, OTHER, OTHER], OTHER),
        (OWN, ["", OTHER, OTHER], OTHER),
        ("", [OTHER], OTHER),
        ("", [OTHER, THIRD, THIRD], THIRD),
        ("", ["", THIRD], THIRD),
    ],
)
def test_the_store_s_id_is_what_most_packs_say_if_none_says_what_its_description_does(
    make: Callable[[str], Builder], said: str, in_packs: list[str], believed: str
) -> None:
    """One pack that came from elsewhere does not make a store another's; "": its header is lost."""
    data = make("pack").directory
    for i, path in enumerate(objects(data)):
        path.unlink()
        if i < len(in_packs):
            header = PackHeader.of_pack(sharding.pack_of_path(str(path.relative_to(data))), bytes(16))
            header.store_id = bytes.fromhex(in_packs[i] or OWN)
            raw = bytearray(header.serialize())
            raw[40] ^= not in_packs[i]
            path.write_bytes(raw)
    path = data / ".ingest/store.json"
    if said:
        record = json.loads(path.read_text())
        del record["check"]
        path.write_text(json.dumps(record | {"store_id": said}))
    else:
        path.unlink()
    found = identify(data)
    assert found.record["store_id"] == believed
    assert [problem.kind for problem in found.problems] == ["store_json"] * (believed != said)


@pytest.mark.parametrize(
    ("said", "in_file", "in_segments", "believed", "wrong"),
    [
        (OWN, OWN, [OWN, OWN], OWN, ""),
        (OWN, OWN, [], OWN, ""),
        (OWN, OWN, [OTHER], OWN, ""),
        (OWN, OWN, [OTHER, THIRD, THIRD], OWN, ""),
        (OWN, OTHER, [OWN], OWN, "log_json"),
        (OWN, OTHER, [OTHER, OTHER, OWN], OWN, "log_json"),
        (OWN, OTHER, [], OWN, "log_json"),
        (OWN, OTHER, [OTHER], OTHER, "store_json"),
        (OWN, OTHER, [THIRD, OTHER, THIRD], THIRD, "store_json log_json"),
        (OWN, "", [OWN], OWN, "log_json"),
        (OWN, "", [OTHER], OTHER, "store_json log_json"),
        (OWN, "", [], OWN, "log_json"),
        ("", OWN, [OWN], OWN, "store_json"),
        ("", OWN, [], OWN, "store_json"),
        ("", OTHER, [OWN], OWN, "store_json log_json"),
        ("", "", [OTHER, OWN, OTHER], OTHER, "store_json log_json"),
    ],
)
def test_the_log_s_id_is_what_two_of_three_say(
    make: Callable[[str], Builder],
    said: str,
    in_file: str,
    in_segments: list[str],
    believed: str,
    wrong: str,
) -> None:
    """The store's description, the log's, and most of the segments; "" is one that is lost. What says it otherwise is
    written again."""
    data = make("pack").directory
    path, wal = data / ".ingest/store.json", data / ".ingest/wal"
    for segment in wal.glob("*.log"):
        segment.unlink()
    for i, one in enumerate(in_segments):
        header = SegmentHeader(bytes.fromhex(one), i + 1, i + 1, 5, 0)
        (wal / f"{i:04d}.log").write_bytes(header.serialize())
    if said:
        write_store_json(path, json.loads(path.read_text()) | {"log_id": said})
    else:
        path.unlink()
    write_json(wal / "log.json", {"log_id": in_file} if in_file else {})
    found = identify(data)
    assert (found.record["log_id"], found.log_id.hex()) == (believed, believed)
    assert [problem.kind for problem in found.problems] == wrong.split()


@pytest.mark.parametrize(
    "log_id", ["", OWN[1:], OWN + "0", OWN + "\n", "A" * 32, "g" * 32, "\u0661" * 32, 7, None, [OWN]]
)
def test_what_is_no_id_names_no_log(make: Callable[[str], Builder], log_id: object) -> None:
    data = make("pack").directory
    path = data / ".ingest/wal/log.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"log_id": log_id}))
    (problem,) = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
    assert (problem.kind, problem.detail) == ("log_json", "is not readable as the log's description")
    assert json.loads(path.read_text()) == before


@pytest.mark.parametrize("damaged", [("store.json",), ("wal/log.json",), ("store.json", "wal/log.json")])
@pytest.mark.parametrize("how", ["cut", "a link", "gone", "a directory"])
def test_each_description_that_is_written_again_is_kept_and_lies_in_the_store(
    make: Callable[[str], Builder], tmp_path: Path, damaged: tuple[str, ...], how: str
) -> None:
    """A link that leads to a whole one is moved away as any other: then what it led to must be here."""
    data = make("pack").directory
    before = {name: json.loads((data / ".ingest" / name).read_text()) for name in damaged}
    spoilt = {}
    for name in damaged:
        path = data / ".ingest" / name
        elsewhere = tmp_path / path.name
        path.rename(elsewhere)
        if how == "cut":
            spoilt[f".ingest/{name}"] = elsewhere.read_bytes()[:-30]
            path.write_bytes(spoilt[f".ingest/{name}"])
            path.chmod(0o600)
        elif how == "a link":
            path.symlink_to(elsewhere)
        elif how == "a directory":
            path.mkdir(mode=0o700)
    report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert all(problem.repaired for problem in report.problems)
    kept = {problem.path: problem.copy for problem in report.problems if problem.copy}
    assert {path: (data / kept[path]).read_bytes() for path in spoilt} == spoilt
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    for name, record in before.items():
        path = data / ".ingest" / name
        assert json.loads(path.read_text()) == record
        assert path.is_file() and not path.is_symlink()


def test_a_store_that_nothing_names_gets_an_id_of_its_own(make: Callable[[str], Builder]) -> None:
    """Else two of them would take each other's packs for their own."""
    data = make("tree").directory
    (data / ".ingest/store.json").unlink()
    ids = {identify(data).record["store_id"] for _ in range(3)}
    assert len(ids) == 3 and all(len(bytes.fromhex(one)) == 16 for one in ids)


def test_ticket_files_of_a_tree_lie_also_where_packs_would(make: Callable[[str], Builder]) -> None:
    """Else the cases above would be told by their places alone."""
    data = make("tree").directory
    assert {ticket.tree_path(ticket.format(index)) for index in STORED} == {
        str(path.relative_to(data)) for path in objects(data)
    }
    assert any(path.count("/") < 4 for path in map(str, (p.relative_to(data) for p in objects(data))))
