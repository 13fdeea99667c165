"""What an earlier key signed is as good as what the first one did: in a recovery, a check, a repair and a copy.

After two rotations most of what a store holds was signed by a key that signs no more. A place that tries the first key alone
takes all of that for lost.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import KEYS, OTHER_KEYS, frame
from stores import Small, slot_offset, template
from test_fsck import PACK

from faults.damaged_store import Batch
from ingest.limits import FRAME_SIZE
from ingest.mac import derive, format_keys, frame_ok, parse_keys
from ingest.store.log.log_format import BATCH_HEADER_SIZE

FIRST = 36 + 5 * 1296
LATER = [bytes([i]) * 32 for i in range(1, 4)]
DAMAGE = ("nothing", "misplaced", "in the log", "batch", "batch with a delete", "header", "log header")


@pytest.fixture(params=[1, 3], ids="signed by key {}".format)
def store(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """One whose key became the nth of its key file, of four."""
    made = template(tmp_path_factory.getbasetemp(), "cut")
    made.copy(tmp_path / "store")
    path = tmp_path / "store/.ingest/key"
    keys = LATER[:]
    keys[request.param : request.param] = parse_keys(path.read_text())
    path.write_text(format_keys(keys))
    return Small(tmp_path / "store", made)


def deletes(store: Small, batch: Batch) -> bool:
    raw = (store.path / batch.segment).read_bytes()
    return any(frame_ok(store.keys.delete, raw[place : place + FRAME_SIZE]) for place in batch.frames)


def damage(store: Small, kind: str) -> None:
    logged = {i for batch in store.template.batches for some in batch.frames.values() for i in some}
    raw = (store.path / PACK).read_bytes()
    if kind == "misplaced":
        one, other = [i for i in store.slots() if i not in logged][:2]
        for to, source in ((one, other), (other, one)):
            store.patch(PACK, slot_offset(to), raw[slot_offset(source) :][:FRAME_SIZE])
    elif kind == "in the log":
        store.patch(PACK, slot_offset(next(i for i in store.slots() if i in logged)) + 700, b"decay")
    elif kind.startswith("batch"):  # its header alone: all of its frames are whole, and the packs lack them
        batch = next(b for b in store.template.batches[:-1] if b.frames and b.number > store.template.settled
                     and deletes(store, b) == ("delete" in kind))  # fmt: skip
        store.patch(batch.segment, min(batch.frames) - BATCH_HEADER_SIZE + 20, b"\xff\xff")
    elif kind == "header":
        store.patch(PACK, 100, b"\xff" * 8)
    elif kind == "log header":
        store.patch(store.template.batches[-1].segment, 8, b"\xff" * 8)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_repair_brings_all_of_it_back(store: Small, kind: str) -> None:
    damage(store, kind)
    report = store.fsck(repair=True)
    assert all(problem.repaired and not problem.lost for problem in report.problems), report.problems
    assert (kind == "nothing") == report.clean
    assert store.fsck().clean
    assert store.shows_all()


def test_a_copy_has_all_of_it(store: Small, tmp_path: Path) -> None:
    exported = store.export(tmp_path / "copy")
    assert exported.problems == []
    assert Small(tmp_path / "copy", store.template).shows_all()


def test_a_lost_header_is_made_of_all_frames(tmp_path: Path) -> None:
    keys = [KEYS.put, OTHER_KEYS.put, *(derive(key).put for key in LATER)]
    with CommitterRig(tmp_path, layout="pack", put_keys=keys) as rig:
        for slot in range(3 * len(keys)):
            rig.put(FIRST + slot, b"data", key=keys[slot % len(keys)])
            rig.commit()
        rig.flush()
        rig.put(FIRST + 99)
        rig.commit()
        rig.packs.close()
        with (rig.data / PACK).open("r+b") as file:
            file.write(b"x" * 512)
        rig.crash()
        for slot in range(3 * len(keys)):
            assert rig.stored(FIRST + slot) == frame(FIRST + slot, b"data", keys[slot % len(keys)]), slot
