"""`ingest inspect`: one file of each kind, whole and damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from log_rig import SEGMENT_SIZE, append, new_log, puts
from node_rig import running_node
from packs import A0, Packs
from stores import Small, everything_of, template
from test_cli import complains, run

from ingest import ticket
from ingest.errors import UsageError
from ingest.limits import DATA_SIZE
from ingest.store.check.chunk_file import write_chunk_file
from ingest.store.check.inspection import inspect
from ingest.store.layouts import tree_file
from ingest.store.log.log_format import BLOCK_SIZE


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("inspected")
    made = template(root, "killed")
    made.copy(root / "copy")
    return Small(root / "copy", made)


def test_a_pack(store):
    found = inspect(store.path / "4/obj")
    alive, gone = store.slots(settled=False), store.slots(alive=False, settled=False)
    assert (found["kind"], found["prefix"], found["path"]) == ("pack", "4", "4/obj")
    assert (found["present"], found["deleted"]) == (len(alive), len(gone))
    assert found["present"] + found["deleted"] + found["free"] == found["slots"] == 1296
    shown = [
        index
        for first, last in found["present_tickets"]
        for index in range(ticket.parse(first), ticket.parse(last) + 1)
    ]
    assert shown == alive
    assert "problem" not in found


def test_runs_of_tickets_of_the_root_pack(tmp_path):
    with Packs(tmp_path) as packs:
        packs.put([0, 1, 35, 36, 37, 36 + 1295])
        packs.put([A0])
        found = inspect(tmp_path / "obj")
    assert found["present_tickets"] == [["00", "01"], ["ZZ", "ZZ"], ["0", "1"], ["Z", "Z"]]
    assert found["slots"] == 1332


def test_a_pack_in_another_place(store, tmp_path):
    other = tmp_path / "obj"
    other.write_bytes((store.path / "4/obj").read_bytes())
    assert inspect(other)["problem"] == "its place is 4/obj"


def test_a_lost_header(store, tmp_path):
    raw = bytearray((store.path / "4/obj").read_bytes())
    raw[20] ^= 1
    (tmp_path / "obj").write_bytes(raw)
    assert "fails its checksum" in inspect(tmp_path / "obj")["problem"]


def test_a_segment(store):
    batch = store.template.batches[-1]
    found = inspect(store.path / batch.segment)
    here = [b for b in store.template.batches if b.segment == batch.segment]
    assert [b["number"] for b in found["batches"]] == [b.number for b in here]
    assert [b["offset"] for b in found["batches"]] == [b.offset for b in here]
    assert found["end"] > here[-1].offset
    assert found["puts"] + found["deletes"] == sum(len(b.frames) for b in here)
    assert "problem" not in found


def test_a_bad_batch_before_a_whole_one(store, tmp_path):
    batch = store.template.batches[-1]
    raw = bytearray((store.path / batch.segment).read_bytes())
    raw[4096 + 70] ^= 1
    (tmp_path / "0007.log").write_bytes(raw)
    assert "corruption" in inspect(tmp_path / "0007.log")["problem"]


def test_a_segment_that_was_never_used(tmp_path):
    (tmp_path / "0001.log").write_bytes(bytes(8192))
    assert inspect(tmp_path / "0001.log")["used"] is False


@pytest.mark.parametrize(
    ("name", "kind", "member"),
    [("store.json", "store", "store_id"), ("wal/log.json", "log", "made_for")],
)
def test_descriptions(store, name, kind, member):
    found = inspect(store.path / ".ingest" / name)
    assert found["kind"] == kind and member in found["record"] and "problem" not in found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"store_id": "', '"store_id": "0', "expected"),
        ('"layout": "p', '"layout": "q', "check"),
        ('"format": 1', '"format": 9', "format version 9"),
    ],
)
def test_a_damaged_description_says_so(store, tmp_path, old, new, problem):
    path = tmp_path / "store.json"
    path.write_text((store.path / ".ingest/store.json").read_text().replace(old, new))
    found = inspect(path)
    assert problem in found["problem"] and found["record"]["log_id"]


def test_a_key_file_shows_identifiers_and_no_key(store):
    path = store.path / ".ingest/key"
    found = inspect(path)
    assert found["keys"] == [{"id": store.keys.id, "use": "signs and is accepted"}]
    secret = path.read_text().strip()
    for arguments in ((), ("--json",)):
        assert secret not in run("inspect", str(path), *arguments).stdout
    renamed = store.path.parent / "anything"
    renamed.write_text(secret)
    os.chmod(renamed, 0o600)
    assert inspect(renamed)["kind"] == "key"


def test_chunks_of_layout_tree(tmp_path):
    path = tmp_path / "AA/BB/C/obj"
    frame = b"AABBC\0\0\0" + b"checksum" + bytes(DATA_SIZE)
    try:
        write_chunk_file(path, frame, tmp_path / "staged")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    found = inspect(path)
    assert (found["kind"], found["ticket"], found["checksum"]) == ("chunk", "AABBC", b"checksum".hex())
    os.truncate(path, 5)
    assert "1458 bytes" in inspect(path)["problem"]
    write_chunk_file(path, None, tmp_path / "staged")
    found = inspect(path)
    assert (found["kind"], found["ticket"]) == ("tombstone", "AABBC")
    assert "problem" not in found


def test_what_is_no_file_of_ours(tmp_path):
    (tmp_path / "readme").write_text("hello")
    for path in (tmp_path / "readme", tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError):
            inspect(path)
    (tmp_path / "link").symlink_to(tmp_path / "readme")
    with pytest.raises(UsageError, match="symbolic link"):
        inspect(tmp_path / "link")


def test_the_command(store, tmp_path):
    with everything_of(store.path):
        result = run("inspect", str(store.path / "4/obj"))
        segment = run("inspect", str(store.path / store.template.batches[-1].segment))
    assert result.returncode == segment.returncode == 0
    assert "present tickets" in result.stdout
    assert str(store.template.batches[-1].number) in segment.stdout
    found = json.loads(run("inspect", str(store.path / ".ingest/store.json"), "--json").stdout)
    assert found["record"]["layout"] == "pack"
    (tmp_path / "readme").write_text("hello")
    complains(run("inspect", str(tmp_path / "readme")), 2, "no file that ingest writes")
    complains(run("inspect", str(tmp_path / "none")), 1, "No such file")


def test_a_live_store(tmp_path):
    with running_node(tmp_path / "data", "--workers=1", "--reserve=0") as rig:
        with rig.connect() as connection:
            connection.put(range(36, 36 + 300))
            assert inspect(tmp_path / "data/obj")["present"] == 300
            assert inspect(tmp_path / "data/.ingest/wal/0000.log")["batches"]
            lock = inspect(tmp_path / "data/.ingest/lock")
        assert lock["kind"] == "lock" and lock["record"]["pid"] == rig.pid
        rig.stop()


RENAMED = {
    "4/obj": "pack",
    ".ingest/wal/0000.log": "segment",
    ".ingest/store.json": "store",
    ".ingest/wal/log.json": "log",
    ".ingest/key": "key",
}


@pytest.mark.parametrize("name", RENAMED)
def test_a_file_is_what_its_bytes_say_wherever_it_lies(store, tmp_path, name):
    """One that came out of a backup or a quarantine has another name, and one with another one's name has its own bytes."""
    content = (store.path / name).read_bytes()
    for i, other in enumerate(("0001.copy", "obj")):
        path = tmp_path / str(i) / other
        path.parent.mkdir()
        path.write_bytes(content)
        path.chmod(0o600)
        found = inspect(path)
        assert found["kind"] == RENAMED[name], other
        assert "problem" not in found or name == "4/obj"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("0000.log", "segment"),
        ("9999.log", "segment"),
        ("store.json", "store"),
        ("log.json", "log"),
        ("lock", "lock"),
        ("key", "key"),
        ("obj", "pack"),
    ],
)
def test_where_its_bytes_say_nothing_a_file_is_what_its_name_says(tmp_path, name, kind):
    path = tmp_path / name
    path.write_bytes(b"\xff" * 8192)
    path.chmod(0o600)
    found = inspect(path)
    assert found["kind"] == kind and found["problem"]
    assert (found["file"], found["size"], found["mode"]) == (str(path), 8192, "0600")


@pytest.mark.parametrize(
    ("record", "kind"), [({"pid": 1}, "lock"), ({"log_id": "x"}, "log"), ({"pieces": []}, "quarantine")]
)
def test_descriptions_under_another_name(tmp_path, record, kind):
    (tmp_path / "copy").write_text(json.dumps(record))
    found = inspect(tmp_path / "copy")
    assert (found["kind"], found["record"]) == (kind, record)


@pytest.mark.parametrize("ending", range(1, 9))
def test_the_place_of_a_chunk_is_its_ticket(tmp_path, ending):
    """Of any length; directories above the store are none of it."""
    name = "0Z19AB8C"[:ending]
    path = tmp_path / "data" / ticket.tree_path(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(DATA_SIZE))
    found = inspect(path)
    assert (found["kind"], found["ticket"]) == ("chunk", name)
    assert "user.ingest.checksum" in found["problem"]


@pytest.mark.parametrize("size", [0, 1, DATA_SIZE - 1, DATA_SIZE, DATA_SIZE + 1])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_chunk_of_another_size_is_a_problem_and_a_tombstone_with_bytes(tmp_path, size, deleted):
    path = tmp_path / "A/obj"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    try:
        os.setxattr(path, tree_file.CHECKSUM, b"checksum")
        if deleted:
            os.setxattr(path, tree_file.DELETED, b"1")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    found = inspect(path)
    assert (found["kind"], found["ticket"]) == ("tombstone" if deleted else "chunk", "A")
    assert ("problem" in found) == (size != (0 if deleted else DATA_SIZE))


@pytest.mark.parametrize("bad", [(), (0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_a_segment_is_read_up_to_its_first_bad_batch(tmp_path, bad):
    """What is whole behind that says that it is no crash, also directly behind it; what a segment held before does not."""
    (tmp_path / "wal").mkdir()
    log = new_log(tmp_path / "wal", segments=3)
    for number in range(1, 16 * 3):
        append(log, puts(number))
        log.recycle(number)
    while log.ends_segment(4096) or log._offset != BLOCK_SIZE + 3 * BLOCK_SIZE:
        append(log, puts(log.number + 1))
        log.recycle(log.number)
    current = log._current
    log.close()
    raw = bytearray(current.path.read_bytes())
    for place in bad:
        raw[BLOCK_SIZE * (1 + place) + 70] ^= 1
    current.path.write_bytes(raw)
    found = inspect(current.path)
    whole = min(bad, default=3)
    assert len(found["batches"]) == whole and found["end"] == BLOCK_SIZE * (1 + whole)
    later = next((place for place in range(whole + 1, 3) if place not in bad), None)
    assert ("problem" in found) == (later is not None)
    if later is not None:
        assert f"at {BLOCK_SIZE * (1 + later)}: corruption" in found["problem"]
    assert [found["puts"], found["deletes"], found["notes"]] == [2 * whole, 0, 0]


def test_a_segment_that_is_full_to_its_end(tmp_path):
    log = new_log(tmp_path / "wal")
    for number in range(1, 16):
        append(log, puts(number))
    log.close()
    found = inspect(tmp_path / "wal/0000.log")
    assert (len(found["batches"]), found["end"], found["end_reason"]) == (
        15,
        SEGMENT_SIZE,
        "the segment is full",
    )
