"""Slots come after what says that they are there, and go after what says that they are gone."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import frame
from test_faults_call_order import PACK, A, good, pack_header, pwrite, quoted, sync

from faults import slot_rules, strace
from faults.call_rules import Checker, LoggedBatch, read_segments
from faults.call_shim import build
from faults.strace import Call
from ingest import sharding
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE, PACK_SLOTS
from ingest.runtime.durable_files import syncfs
from ingest.status import Status

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
STATES = ("new", "cached", "being flushed", "flushed", "opened again")


@pytest.mark.parametrize("state", STATES)
def test_a_batch_s_slots_are_written_beside_the_log_only_behind_a_durable_header(
    tmp_path: Path, state: str
) -> None:
    """The log never gets this batch: its slots are there or not when whoever writes them has ended."""
    with CommitterRig(tmp_path) as rig:
        if state != "new":
            rig.put(FIRST)
            rig.commit()
        if state in ("being flushed", "flushed"):
            rig.packs.flush_begins()
        if state == "flushed":
            syncfs(rig.data_fd)
            rig.packs.flush_done()
        if state == "opened again":
            rig.crash()
        rig.put_run(FIRST + 1, 20)
        rig.plan()
        rig.core.round.begin_slots()
        rig.packs.close()
        content = rig.path(FIRST).read_bytes()[sharding.slot_offset(1) :][: 20 * FRAME_SIZE]
        written = b"".join(frame(FIRST + 1 + i, b"data") for i in range(20))
        assert content.strip(b"\0") == (written.strip(b"\0") if state == "flushed" else b"")


@pytest.mark.parametrize("states", list(itertools.product(STATES[:-1], repeat=2)), ids="-".join)
def test_nor_where_one_pack_of_the_batch_has_such_a_header_and_another_has_none(
    tmp_path: Path, states: tuple[str, ...]
) -> None:
    firsts = [FIRST + i * PACK_SLOTS for i in range(len(states))]
    with CommitterRig(tmp_path) as rig:
        for begun in ("flushed", "being flushed", "cached"):
            for first, state in zip(firsts, states, strict=True):
                if state == begun:
                    rig.put(first)
            rig.commit()
            if begun != "cached":
                rig.packs.flush_begins()
            if begun == "flushed":
                rig.packs.flush_done()  # nobody cuts the power here
        for first in firsts:
            rig.put_run(first + 1, 20)
        rig.plan()
        rig.core.round.begin_slots()
        rig.packs.close()
        for first in firsts:
            content = rig.path(first).read_bytes()[sharding.slot_offset(1) :][: 20 * FRAME_SIZE]
            assert bool(content.strip(b"\0")) is (set(states) == {"flushed"})


def test_no_slot_comes_before_what_it_needs(tmp_path: Path) -> None:
    if reason := strace.unusable():
        pytest.skip(reason)
    log = tmp_path / "strace.log"
    done = subprocess.run(
        [*strace.command(log), sys.executable, str(Path(__file__).with_name("slot_scenario.py")), tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    batches: dict[int, LoggedBatch] = {}
    read_segments(tmp_path / "wal", batches)
    with log.open() as lines:
        checker = Checker(strace.calls(lines), [], batches, (tmp_path / "data").resolve())
    checker.check()
    slot_rules.check(checker)
    assert checker.losses == []
    looked_at = ("erased", "notes", "bits", "batches")
    assert all(checker.counts[name] for name in looked_at), checker.counts


# --- the rules


def punch(slots: range) -> Call:
    start, size = sharding.slot_offset(slots.start), FRAME_SIZE * len(slots)
    arguments = f"7<{PACK}>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, {start}, {size}"
    return Call(2, "fallocate", arguments, 0, 0, 0)


def truncate(path: str, size: int) -> Call:
    return Call(2, "ftruncate", f"7<{path}>, {size}", 0, 0, 0)


def attribute(path: str, name: bytes) -> Call:
    return Call(2, "fsetxattr", f'7<{path}>, {quoted(name)}, "\\x31", 1, 0', 0, 0, 0)


FILE = "/data/4F/FF/obj"


def early() -> dict[str, Call]:
    """The slot is written beside the log, behind a header that is there past the page cache."""
    calls = good()
    order = [name for name in calls if name != "slots"]
    order.insert(order.index("log"), "slots")
    return {name: calls[name] for name in order}


def erased() -> dict[str, Call]:
    return early() | {
        "tombstone": pwrite(PACK, pack_header(), 0),
        "punched": punch(range(1)),
        "cut": truncate(PACK, PACK_HEADER_SIZE),
        "buried": attribute(FILE, slot_rules.TOMBSTONE),
        "emptied": truncate(FILE, 0),
    }


def losses(calls: dict[str, Call]) -> list[str]:
    found = list(calls.values())
    for line, call in enumerate(found):
        call.began = call.ended = line
    pack = sharding.ticket_pack(A)
    batches = {1: LoggedBatch(puts=[A]), 2: LoggedBatch(notes=[(pack, 5, 4)]), 3: LoggedBatch()}
    checker = Checker(found, [], batches, Path("/data"))
    checker.check_log()
    slot_rules.check(checker)
    return [loss.partition(": ")[2] for loss in checker.losses]


def without(*names: str) -> Callable[[dict[str, Call]], dict[str, Call]]:
    return lambda calls: {name: call for name, call in calls.items() if name not in names}


def before(name: str, other: str) -> Callable[[dict[str, Call]], dict[str, Call]]:
    def move(calls: dict[str, Call]) -> dict[str, Call]:
        order = [key for key in calls if key != name]
        order.insert(order.index(other), name)
        return {key: calls[key] for key in order}

    return move


def test_what_is_right_passes() -> None:
    assert losses(good()) == losses(early()) == losses(erased()) == []
    # Through the page cache, and behind the log.
    assert losses(without("past the cache")(good())) == []


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        (without("past the cache"), f"slot 0 of {PACK} is written before the log has it"),
        (without("header"), f"slot 0 of {PACK} is written before the log has it"),
        (before("slots", "header"), f"slot 0 of {PACK} is written before the log has it"),
        (without("tombstone"), f"slot 0 of {PACK} is erased before it has a tombstone"),
        (before("punched", "tombstone"), f"slot 0 of {PACK} is erased before it has a tombstone"),
        (before("cut", "tombstone"), f"slot 0 of {PACK} is erased before it has a tombstone"),
        (without("buried"), f"{FILE} is emptied before it has a tombstone"),
        (before("emptied", "buried"), f"{FILE} is emptied before it has a tombstone"),
        (lambda calls: calls | {"buried": attribute(FILE, b"user.ingest.checksum")}, f"{FILE} is emptied before it has"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(change: Callable[[dict[str, Call]], dict[str, Call]], loss: str) -> None:
    found = losses(change(erased()))
    assert any(line.startswith(loss) for line in found), found


def test_a_flush_that_began_before_the_header_was_written_is_none_of_it() -> None:
    calls = early()
    del calls["past the cache"]
    order = list(calls.items())
    at = list(calls).index("header")
    flush = sync("/data", "syncfs")
    assert losses(dict([*order[:at], ("flush", flush), *order[at:]]))
    assert losses(dict([*order[: at + 1], ("flush", flush), *order[at + 1 :]])) == []


# --- syncs that fail


def test_a_long_run_is_saved_only_when_every_write_and_sync_of_it_has_succeeded(tmp_path: Path) -> None:
    """Of its packs, and of each directory on the way to them."""
    library = tmp_path / "failing_calls.so"
    if reason := build(library):
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("failing_bulk.py")), tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    for call, k, error, struck, counts_as_done, answers in cases:
        lost = [status for status in answers if status != Status.SAVED]
        if call == "pwrite":
            assert counts_as_done, "no sync failed: saving goes on"
            refused = Status.NO_SPACE if error in (errno.ENOSPC, errno.EDQUOT) else Status.ERROR
            assert lost == [refused] * struck, f"write number {k} failed with {errno.errorcode[error]}"
        else:
            assert counts_as_done is not struck, f"{call} number {k} failed, and the job counts as done"
            assert lost == [Status.ERROR] * len(answers) * struck, (call, k)
    struck_by = Counter(call for call, _, _, struck, *_ in cases if struck)
    # DATA and each directory below it; the header of the pack that was there, and four packs.
    assert struck_by["fsync"] >= 6 and struck_by["fdatasync"] == 5
    assert struck_by["pwrite"] == 3 * 4  # of each pack the whole blocks, and those at its ends


def test_a_long_run_that_is_saved_has_all_its_directories_synced_whatever_packs_were_before(
    tmp_path: Path,
) -> None:
    """Packs share directories, which are synced once: for the first of them that is written, not for one that is not,
    nor for one whose directory has a longer name."""
    if reason := strace.unusable():
        pytest.skip(reason)
    log = tmp_path / "strace.log"
    program = [sys.executable, str(Path(__file__).with_name("partial_bulk.py")), str(tmp_path)]
    traced = [str(shutil.which("strace")), "-f", "-qq", "-y", "-o", str(log), "-e", "trace=fsync,fdatasync"]
    done = subprocess.run(
        [*traced, *program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    synced = set(re.findall(r"f(?:data)?sync\(\d+<([^>]*)>\) += 0", log.read_text()))
    jobs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(jobs) == 8 + 3
    for data, answers in jobs:
        assert set(answers.values()) <= {Status.SAVED, Status.ERROR}
        saved = [Path(pack) for pack, status in answers.items() if status == Status.SAVED]
        for pack in saved:
            needed = {pack, *(above for above in pack.parents if above.is_relative_to(data))}
            assert not {str(path) for path in needed} - synced, (answers, "not all of this was synced")
    assert len({tuple(answers.values()) for _, answers in jobs}) == 8, "each choice of packs fails once"
