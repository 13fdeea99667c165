"""What a repair and a copy must not do with less than all they need: all keys, all bytes, all that the log had."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from stores import everything_of, slot_offset

from faults.damaged_store import SMALL_SEGMENT, Builder, read_all, started
from ingest import sharding, ticket
from ingest._hmac import sign
from ingest.errors import ConfigError, IngestError, KeyFileError
from ingest.limits import DATA_SIZE, FRAME_SIZE
from ingest.mac import derive, format_keys, parse_keys
from ingest.objects.rebuild import rebuild
from ingest.status import Status
from ingest.store.check import identity_repair
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck
from ingest.store.check.identity import identify
from ingest.store.check.inspection import inspect
from ingest.store.layouts.pack_file import PackHeader
from ingest.store.store import Store
from ingest.store.store_json import write_store_json

PACK = "4/obj"
FIRST = sharding.slot_ticket(5, 7)
LATER = [bytes([i]) * 32 for i in range(1, 4)]
SIGNED_EARLIER = 2  # the place in the key file of the one that signed all


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)


def rotate(data: Path) -> list[str]:
    """The key that signed becomes the third of four, all of which ``store.json`` names. Returns their identifiers."""
    path = data / ".ingest/key"
    keys = LATER[:]
    keys[SIGNED_EARLIER:SIGNED_EARLIER] = parse_keys(path.read_text())
    path.write_text(format_keys(keys))
    ids = [derive(key).id for key in keys]
    record = json.loads((data / ".ingest/store.json").read_text())
    write_store_json(data / ".ingest/store.json", record | {"keys": ids})
    return ids


def finish(builder: Builder) -> Path:
    builder.settle()
    builder.append(b"", [])
    builder.close()
    return builder.directory


@pytest.mark.parametrize("target", ["pack", "tree"])
def test_a_copy_requires_each_key_that_its_source_did(builder: Builder, tmp_path: Path, target: str) -> None:
    """Else one that still signs there can be left out, and what it signs is unreadable."""
    builder.put([FIRST])
    data = finish(builder)
    ids = rotate(data)
    try:
        export(data, tmp_path / "new", target, segment_size=SMALL_SEGMENT)
    except ConfigError as error:
        if target == "tree":
            pytest.skip(str(error))
        raise
    assert json.loads((tmp_path / "new/.ingest/store.json").read_text())["keys"] == ids
    assert inspect(tmp_path / "new/.ingest/key")["keys"] == [
        {"id": name, "use": use}
        for name, use in zip(
            ids, ["signs and is accepted", "is accepted", *["verifies what is stored"] * 2], strict=True
        )
    ]


@pytest.mark.parametrize("tool", [fsck, export, rebuild, identify])
@pytest.mark.parametrize("named", [False, True])
def test_a_key_that_its_group_may_change_is_taken_from_the_store_only(
    builder: Builder, tmp_path: Path, tool: Callable[..., object], named: bool
) -> None:
    """`fsGroup` opens what a store has made; elsewhere it was somebody who set it up so."""
    builder.put([FIRST])
    data = finish(builder)
    path = (data / ".ingest/key").rename(tmp_path / "key") if named else data / ".ingest/key"
    path.chmod(0o660)
    rest = [tmp_path / "new", "pack"] if tool is export else []
    options = {} if tool is identify else {"segment_size": SMALL_SEGMENT}
    with pytest.raises(KeyFileError, match="opens it to others") if named else nullcontext():
        tool(data, *rest, key_file=path if named else None, **options)


@pytest.mark.parametrize("lacks", range(4))
def test_nothing_is_copied_without_one_of_the_keys(builder: Builder, tmp_path: Path, lacks: int) -> None:
    """What it signed would be left out, as if it were damaged."""
    builder.put([FIRST])
    data = finish(builder)
    ids = rotate(data)
    keys = parse_keys((data / ".ingest/key").read_text())
    (data / ".ingest/key").write_text(format_keys([*keys[:lacks], *keys[lacks + 1 :]]))
    with everything_of(tmp_path):
        with pytest.raises(KeyFileError, match=ids[lacks]):
            export(data, tmp_path / "new", "pack", segment_size=SMALL_SEGMENT)
        with pytest.raises(KeyFileError, match=ids[lacks]):
            rebuild(data, segment_size=SMALL_SEGMENT)


@pytest.mark.parametrize("keys", ["one lacks", "none", "damaged"])
def test_a_damaged_log_stays_while_a_key_lacks(builder: Builder, keys: str) -> None:
    """Nobody can say which of its frames are whole, so none is in the packs yet."""
    for slot in range(3):
        builder.put([FIRST + slot], apply=False)
    builder.close()
    data, key = builder.directory, builder.directory / ".ingest/key"
    kept = key.read_text()
    (place,) = builder.batches[1].frames
    change(data / builder.batches[1].segment, place + 100, b"decay")
    if keys == "none":
        key.unlink()
    else:
        key.write_text(format_keys(LATER[:1]) if keys == "one lacks" else "no key\n")
    with everything_of(data):
        assert not fsck(data, repair=True, segment_size=SMALL_SEGMENT).clean
    key.write_text(kept)
    os.chmod(key, 0o600)
    fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    assert [read[FIRST + slot][0] for slot in range(3)] == [Status.SAVED, Status.DELETED, Status.SAVED]


@pytest.mark.parametrize("signed", ["put", "delete"])
def test_a_key_that_signed_only_what_is_in_the_log_is_not_dropped(builder: Builder, signed: str) -> None:
    """Without it in store.json a server would start that can't read what it brings in, and a repair would delete that."""
    if signed == "put":
        builder.put([FIRST], apply=False)
    else:
        builder.delete(FIRST, 2, apply=False)
    builder.close()
    data = builder.directory
    (data / ".ingest/key").write_text(format_keys(LATER[:2]))
    with everything_of(data):
        (problem,) = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
    assert (problem.kind, problem.repaired) == ("key", False)
    assert builder.keys.id in problem.detail


@pytest.mark.parametrize("where", ["a slot", "a slot under a lost header", "only under a lost header"])
def test_a_key_that_signed_only_what_is_in_a_pack_is_not_dropped(builder: Builder, where: str) -> None:
    """Under a lost header nothing says which slots are in use: what is there may all be of that key."""
    builder.put([FIRST, FIRST + 1])
    data = finish(builder)
    for path in (data / ".ingest/wal").glob("*.log"):
        path.unlink()
    if where != "a slot":
        change(data / PACK, 100, b"\xff" * 8)
    if where == "only under a lost header":
        header = (data / PACK).read_bytes()[:4096]
        (data / PACK).write_bytes(header)
    (data / ".ingest/key").write_text(format_keys(LATER[:2]))
    with everything_of(data):
        (problem,) = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
    assert (problem.kind, problem.repaired) == ("key", False)
    assert builder.keys.id in problem.detail


def lose_bits(data: Path, slots: Iterable[int]) -> None:
    """As the power does: the frames are there, and the header does not say so yet."""
    header = PackHeader.parse((data / PACK).read_bytes())
    for slot in slots:
        assert header.present[slot // 8] >> slot % 8 & 1
        header.present[slot // 8] &= ~(1 << slot % 8)
    change(data / PACK, 0, header.serialize())


def only_noted(builder: Builder) -> None:
    builder.note(FIRST + 10, 3)
    builder.close()
    lose_bits(builder.directory, (17, 18, 19))


def below_a_bad_batch(builder: Builder) -> None:
    builder.put([FIRST], apply=False)
    bad = builder.batches[-1]
    builder.append(b"", [])  # else it would be the end of the log, torn
    builder.close()
    change(builder.directory / bad.segment, bad.offset + 10, b"\xff\xff")


def below_a_bad_segment(builder: Builder) -> None:
    builder.put([FIRST], apply=False)
    builder.append(b"", [])
    builder.close()
    change(builder.directory / builder.batches[0].segment, 0, b"\xff" * 600)


@pytest.mark.parametrize("made", [only_noted, below_a_bad_batch, below_a_bad_segment])
def test_a_key_is_not_dropped_while_anything_can_be_of_it(builder: Builder, made: Any) -> None:
    """However often it is repaired without the key: with it all is there again, and what a damaged log held is named."""
    made(builder)
    data, key = builder.directory, builder.directory / ".ingest/key"
    kept = key.read_text()
    key.write_text(format_keys(LATER[:1]))
    with everything_of(data):
        for _ in range(2):
            problems = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
            (found,) = [problem for problem in problems if problem.kind == "key"]
            assert not found.repaired and builder.keys.id in found.detail
    key.write_text(kept)
    lost = {
        problem.ticket
        for problem in fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
        if problem.lost
    }
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    for index, held in builder.truth.items():
        assert read[index] == (Status.SAVED, held) or ticket.format(index) in lost


@pytest.mark.parametrize("log", ["settled", "settled, and deleted", "a note", "a note, and deleted"])
@pytest.mark.parametrize("left", ["no file", "no bytes", "zeros"])
def test_a_pack_of_which_nothing_is_left_was_used_where_the_log_says_so(
    builder: Builder, left: str, log: str
) -> None:
    """The log has forgotten some of what lay there: those tickets count as deleted too, and each loss that it knows of has
    a line."""
    builder.packs.replay_puts(builder.frames([FIRST, FIRST + 1]))  # by segments that were recycled since
    builder.packs.write_headers()
    if "settled" in log:
        builder.put([FIRST + 2])
        builder.settle()
    else:
        builder.note(FIRST + 2, 1)
    if "deleted" in log:
        builder.delete(FIRST + 2, 1, apply=False)
    builder.append(b"", [])
    builder.close()
    data = builder.directory
    size = (data / PACK).stat().st_size
    (data / PACK).unlink()
    if left != "no file":
        (data / PACK).write_bytes(bytes(size if left == "zeros" else 0))
    problems = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
    assert problems and all(problem.repaired for problem in problems)
    assert (
        log != "a note"
        or left != "zeros"
        or ticket.format(FIRST + 2) in {one.ticket for one in problems if one.lost}
    )
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    assert [read[FIRST + i][0] for i in range(2)] == [Status.DELETED] * 2
    expected = (Status.SAVED, builder.truth[FIRST + 2]) if log == "settled" else (Status.DELETED, b"")
    assert read[FIRST + 2] == expected


def test_a_key_that_can_have_signed_nothing_is_dropped_from_an_older_pack_too(builder: Builder) -> None:
    """What the pack lacks of the log is no frame of that key: the log has it, and says whose it is."""
    builder.put([FIRST, FIRST + 1])
    before = (builder.directory / PACK).read_bytes()
    builder.delete(FIRST, 1)
    builder.put([FIRST + 2])
    data = finish(builder)
    (data / PACK).write_bytes(before)
    record = json.loads((data / ".ingest/store.json").read_text())
    keys = record["keys"]
    write_store_json(data / ".ingest/store.json", record | {"keys": [*keys, derive(LATER[0]).id]})
    for _ in range(2):
        fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert json.loads((data / ".ingest/store.json").read_text())["keys"] == keys
    assert fsck(data, segment_size=SMALL_SEGMENT).clean


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("there", [a_directory, a_link, a_fifo])
@pytest.mark.parametrize("named", [False, True])
def test_a_repair_that_dies_while_it_describes_the_log_is_finished_by_the_next(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, there: Callable[[Path], None], named: bool
) -> None:
    """Its segments are there until then, although they are damaged: they say where the log is. ``named``: by --wal-dir."""
    below_a_bad_batch(builder)
    data = builder.directory
    there(data / ".ingest/wal/log.json")
    wal_dir = data / "../store/.ingest/wal" if named else None
    real = identity_repair.write_json

    def die(path: Path, record: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(identity_repair, "write_json", die)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        fsck(data, repair=True, wal_dir=wal_dir, segment_size=SMALL_SEGMENT)
    monkeypatch.setattr(identity_repair, "write_json", real)
    fsck(data, repair=True, wal_dir=wal_dir, segment_size=SMALL_SEGMENT)
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    with started(data, SMALL_SEGMENT) as reader:
        assert read_all(reader, builder.keys)[FIRST] == (Status.SAVED, builder.truth[FIRST])


def test_what_a_lost_note_named_is_found_in_its_pack(builder: Builder) -> None:
    """Frames that went past the log, whose bits the power took: the note alone said that they are there."""
    builder.put([FIRST])
    builder.note(FIRST + 10, 3)
    note = builder.batches[-1]
    builder.put([FIRST + 1], apply=False)
    builder.close()
    data = builder.directory
    lose_bits(data, (17, 18, 19))
    change(data / note.segment, note.offset + 70, b"decay")
    fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    assert {i: read[i] for i in builder.truth} == {
        i: (Status.SAVED, held) for i, held in builder.truth.items()
    }


@pytest.mark.parametrize("at", [0, 1, DATA_SIZE // 2, DATA_SIZE - 2, DATA_SIZE - 1])
def test_log_and_pack_that_differ_in_any_byte_contradict_each_other(builder: Builder, at: int) -> None:
    """Both frames are authentic: the log counts, whichever byte it is."""
    builder.put([FIRST])
    data = finish(builder)
    held = builder.truth[FIRST]
    assert held is not None
    other = bytearray(ticket.index_to_wire(FIRST) + bytes(8) + held)
    other[16 + at] ^= 1
    sign(builder.keys.put, other)
    assert len(other) == FRAME_SIZE
    change(data / PACK, slot_offset(FIRST), bytes(other))
    (problem,) = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
    assert (problem.kind, problem.slot, problem.repaired) == ("contradiction", 7, True)
    with started(data, SMALL_SEGMENT) as reader:
        assert read_all(reader, builder.keys)[FIRST] == (Status.SAVED, held)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_keys_that_may_sign_are_named_when_one_that_did_not_is_dropped(builder: Builder, count: int) -> None:
    """The first two may: what the second one signs from now on must not be lost with it."""
    builder.put([FIRST])
    data = finish(builder)
    key = data / ".ingest/key"
    keys = [*parse_keys(key.read_text()), *LATER][:count]
    key.write_text(format_keys(keys))
    record = json.loads((data / ".ingest/store.json").read_text())
    write_store_json(data / ".ingest/store.json", record | {"keys": ["0" * 16]})
    fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    after = json.loads((data / ".ingest/store.json").read_text())["keys"]
    assert after == [derive(each).id for each in keys[:2]]


@pytest.mark.parametrize("away", [Path, lambda name: Path("below") / ".." / name], ids=["here", "around"])
def test_a_log_that_was_described_anew_says_where_its_store_is(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Callable[[str], Path]
) -> None:
    """Whichever way the repair was given: who compares it may stand elsewhere."""
    builder.put([FIRST])
    finish(builder)
    (tmp_path / "below").mkdir()
    (tmp_path / "store/.ingest/wal/log.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    fsck(away("store"), repair=True, segment_size=SMALL_SEGMENT)
    made_for = json.loads((tmp_path / "store/.ingest/wal/log.json").read_text())["made_for"]
    assert made_for == str(tmp_path / "store")


def test_an_export_that_was_cut_off_is_not_even_looked_at(builder: Builder) -> None:
    """A check of a configuration says what the start would."""
    data = finish(builder)
    (data / ".ingest/export.json").write_text("{}")
    for look in (Store.open, Store.read):
        with everything_of(data), pytest.raises(ConfigError, match="cut off"):
            look(data)


@pytest.mark.parametrize("name", ["obj", "0", "Z", "00", "ZZ", "A1"])
def test_a_directory_with_any_of_a_store_s_names_is_none_for_a_new_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds packs \\({name}\\)"):
        Store.open(tmp_path)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("state", ["whole", "a bad slot", "a bad batch", "no store.json", "locked"])
def test_no_tool_leaves_a_file_open(tmp_path: Path, layout: str, state: str) -> None:
    """A tree has as many files as chunks: one that each of them leaves open ends the check of a large store."""
    builder = Builder(tmp_path / "store", layout, random.Random(1), SMALL_SEGMENT)
    for slot in range(4):
        builder.put([FIRST + slot])
    builder.delete(FIRST + 9, 2)
    data = finish(builder)
    if state == "a bad slot":
        path = max(data.rglob("obj"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        change(path, 700 if layout == "tree" else slot_offset(FIRST) + 700, b"decay")
    elif state == "a bad batch":
        change(data / builder.batches[1].segment, builder.batches[1].offset + 900, b"decay")
    elif state == "no store.json":
        (data / ".ingest/store.json").unlink()
    held = Store.open(data, layout=layout) if state == "locked" else None
    before = open_files()
    for target in ("pack", "tree"):
        with suppress(IngestError):
            export(data, tmp_path / f"to {target}", target, segment_size=SMALL_SEGMENT)
        assert open_files() == before, target
    for repair in (False, True):
        with suppress(IngestError):
            fsck(data, repair=repair, segment_size=SMALL_SEGMENT)
        assert open_files() == before, repair
    for path in filter(Path.is_file, data.rglob("*")):
        with suppress(IngestError):
            inspect(path)
    assert open_files() == before
    if held is not None:
        held.close()


@pytest.mark.parametrize("what", ["put", "delete"])
def test_what_any_key_has_signed_is_saved_from_a_bad_batch(builder: Builder, what: str) -> None:
    """Each of its frames is authentic by itself, under a key of before a rotation too."""
    builder.put([FIRST, FIRST + 1])
    builder.settle()
    builder.append(b"", [])
    if what == "put":
        builder.put([FIRST + 2, FIRST + 3], apply=False)
    else:
        builder.delete(FIRST + 1, 4, apply=False)
    bad = builder.batches[-1]
    builder.put([FIRST + 7], apply=False)
    builder.close()
    data = builder.directory
    change(data / bad.segment, bad.offset + 8, b"decay")
    rotate(data)
    report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert [(problem.kind, problem.lost) for problem in report.problems] == [("log", False)]
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    for index, held in builder.truth.items():
        assert read[index] == ((Status.DELETED, b"") if held is None else (Status.SAVED, held))
