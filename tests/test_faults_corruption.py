"""The short form of part 6 of the proof (docs/faults.md): damaged copies of small stores."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from faults import corruption, damage
from faults.damage import Damage, differences
from faults.damage_effects import like_a_crash, recovery_rewrites, touched, within
from faults.damaged_store import build
from ingest.store.layouts.pack_file import SECTOR_SIZE


def test_corruption(tmp_path):
    outcome = corruption.run(seed=20261121, cases=150, directory=tmp_path)
    assert outcome.passed, "\n".join(outcome.losses)
    counts = outcome.counts
    assert counts["found"] > 75
    assert counts["served"] > 20 and counts["refused_to_start"] > 20
    assert counts["harmless"] < 50


def test_a_loss_is_seen(tmp_path, monkeypatch):
    """A check that finds nothing fails this part."""
    monkeypatch.setattr(corruption, "check", lambda *_, **__: [])
    monkeypatch.setattr(corruption, "ProcessPoolExecutor", Here)
    outcome = corruption.run(seed=1, cases=12, directory=tmp_path)
    assert any("fsck found nothing" in loss for loss in outcome.losses)
    assert any("repeat with the seed 1" in loss for loss in outcome.losses)


class Here:
    """Does in this process what a pool would do in others."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function, items, chunksize: int = 1):
        return map(function, items)


def test_differences_are_exact_at_their_ends():
    assert differences(b"abc", b"abc") == []
    assert differences(bytes(200), bytes(100) + b"x" + bytes(99)) == [(100, 101)]
    assert differences(bytes(70), bytes(64)) == [(64, 70)]
    assert within([(5, 6)], [(0, 4), (4, 9)]) and not within([(5, 10)], [(0, 4), (4, 9)])


@pytest.mark.parametrize("fault", damage.FAULTS)
def test_faults_are_their_seed_s(fault):
    contents = [bytearray(random.Random(1).randbytes(9000)) for _ in range(2)]
    texts = [fault(random.Random(2), content) for content in contents]
    assert texts[0] == texts[1] and contents[0] == contents[1]
    before = random.Random(1).randbytes(9000)
    assert Damage("pack", Path("obj"), texts[0], before, bytes(contents[0])).changed


def test_a_lost_header_is_excused_only_where_the_log_has_all_of_its_pack(tmp_path):
    template = build(tmp_path / "store", "pack", "begun", seed=1)
    excused = {}
    for path in (Path("AA/BB/C/obj"), Path("4/obj")):  # only pending batches name the first one
        before = (template.directory / path).read_bytes()
        zeroed = Damage("pack header", path, "zeroed", before, bytes(SECTOR_SIZE) + before[SECTOR_SIZE:])
        wrong = Damage("pack header", path, "one bit", before, bytes([before[0] ^ 1]) + before[1:])
        excused[str(path)] = recovery_rewrites(template, zeroed), recovery_rewrites(template, wrong)
    assert excused == {"AA/BB/C/obj": (True, False), "4/obj": (False, False)}


def test_the_end_of_the_log_is_cut_as_after_a_crash(tmp_path):
    """Also when more than one batch is hit, if none behind them is whole. What fsck says is what the part expects."""
    template = build(tmp_path / "store", "pack", "cut", seed=1)
    *_, before_last, last = template.batches
    assert before_last.segment == last.segment
    content = (template.directory / last.segment).read_bytes()
    copy = tmp_path / "copy"
    excused = []
    for hit in ([last], [before_last, last], [before_last]):
        bad = bytearray(content)
        for batch in hit:
            bad[batch.offset + 70] ^= 1
        damaged = Damage("segment", last.segment, "a bit", content, bytes(bad))
        shutil.copytree(template.directory, copy)
        (copy / last.segment).write_bytes(bad)
        found = corruption.check(copy, template.segment_size, repair=False)
        shutil.rmtree(copy)
        assert like_a_crash(template, damaged) is (not found)
        excused.append(not found)
        lost = {index for batch in hit for indices in batch.frames.values() for index in indices}
        assert touched(template, damaged) >= lost
    assert excused == [True, True, False]
