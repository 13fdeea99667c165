"""What may happen to a slot, or to a chunk's file, when: more rules for the calls that `faults.call_rules` judges.

early       a slot is written before the log has its frame durably only behind a header that is on the disk: a power cut
            would leave a pack without a header that no record of the log names
erase       a chunk is given back to the file system after its tombstone was written: who reads zeros finds it then
            (and a tombstone is a bit, which `faults.call_rules` has behind the sync of its batch)
"""

from __future__ import annotations

import re

from faults.call_rules import FAR, Checker
from faults.strace import Call
from ingest import limits, sharding
from ingest.limits import FRAME_SIZE
from ingest.store.layouts.pack_file import PackHeader, bits_of

_RANGE = re.compile(r", (\d+), (\d+)$")  # of a fallocate: offset, length
_LENGTH = re.compile(r", (\d+)$")  # of an ftruncate
TOMBSTONE = b"user.ingest.deleted"


def check(checker: Checker) -> None:
    """Adds to its losses and counts. After `Checker.check`."""
    check_early_slots(checker)
    check_erasing(checker)


def check_early_slots(checker: Checker) -> None:
    logged: dict[tuple[int, int], int] = {}
    for number, batch in sorted(checker.batches.items()):
        line = checker.written[number].synced if number in checker.written else FAR
        for index in batch.puts:
            logged.setdefault((sharding.ticket_pack(index), sharding.ticket_slot(index)), line)
    headers = checker.headers_on_disk()
    for call in checker.calls:
        if call.name != "pwrite64" or not call.path.endswith("/obj") or call.result <= 0:
            continue
        if call.offset < limits.PACK_HEADER_SIZE:
            continue
        pack = sharding.pack_of_path(call.path[len(checker.data) + 1 :])
        early = [slot for slot in _slots(call.offset, call.size) if logged.get((pack, slot), -1) > call.began]
        if early:
            checker.counts["early_slots"] += len(early)
            if headers.get(call.path, FAR) > call.began:
                checker.lose(
                    call.began,
                    f"slot {early[0]} of {call.path} is written before the log has it, and the header may be lost",
                )


def _slots(offset: int, size: int) -> range:
    """Those that so many bytes of a pack touch."""
    first = (offset - limits.PACK_HEADER_SIZE) // FRAME_SIZE
    return range(max(0, first), -(-(offset + size - limits.PACK_HEADER_SIZE) // FRAME_SIZE))


def check_erasing(checker: Checker) -> None:
    present: dict[str, set[int]] = {}  # by path of a pack: what its last header shows
    buried: set[str] = set()  # files of layout tree with a tombstone
    for call in checker.calls:
        path = call.path
        # A file system without holes refuses fallocate, and zeros are written then: the order is the same.
        if (
            (call.result < 0 and call.name != "fallocate")
            or not path.startswith(checker.data)
            or not path.endswith("/obj")
        ):
            continue
        if call.name == "pwrite64" and call.offset == 0 and call.data.startswith(b"INGPACK1"):
            present[path] = set(bits_of(PackHeader.parse(call.data).present))
        elif call.name == "fsetxattr" and call.data == TOMBSTONE:
            buried.add(path)
        elif call.name in ("fallocate", "ftruncate"):
            _check_erased(checker, call, present.get(path), buried)


def _check_erased(checker: Checker, call: Call, present: set[int] | None, buried: set[str]) -> None:
    if call.name == "fallocate":
        match = _RANGE.search(call.arguments)
        assert match, call.arguments
        gone = set(_slots(int(match[1]), int(match[2])))
    else:
        match = _LENGTH.search(call.arguments)
        assert match, call.arguments
        if present is None and int(match[1]):
            return  # a file of layout tree that gets its length back
        gone = set(_slots(int(match[1]), FRAME_SIZE * limits.ROOT_PACK_SLOTS))
    checker.counts["erased"] += 1
    if present is None and call.path not in buried:
        checker.lose(call.began, f"{call.path} is emptied before it has a tombstone")
    elif present is not None and gone & present:
        checker.lose(
            call.began, f"slot {min(gone & present)} of {call.path} is erased before it has a tombstone"
        )
