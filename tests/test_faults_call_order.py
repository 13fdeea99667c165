"""Part 4 of the proof in short, and its checker on logs that are wrong on purpose. `make faults PART=4` is the long run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faults import call_order, strace
from faults.call_rules import Checker, LoggedBatch, Session
from faults.strace import Call
from ingest import sharding, ticket
from ingest.limits import FRAME_SIZE
from ingest.store.layouts.pack_file import PackHeader, set_bits
from ingest.store.log.log_format import BLOCK_SIZE, BatchHeader, SegmentHeader, seal_batch

STORE = bytes(16)
LOG = "/data/.ingest/wal/0000.log"
PACK = "/data/OR/DE/R/obj"
A = ticket.parse("ORDER00")
PACK_ID = sharding.ticket_pack(A)


@pytest.mark.timeout(300)
def test_no_call_comes_before_what_it_needs(tmp_path: Path) -> None:
    outcome = call_order.run(1, 2000, tmp_path)
    if outcome.not_run:
        pytest.skip(outcome.not_run)
    assert outcome.passed, "\n".join(outcome.losses)
    looked_at = ("acks", "batches", "bits", "notes", "recycled")
    assert min(outcome.counts[name] for name in looked_at) > 0


# --- the checker -------------------------------------------------------------------------------------


def quoted(data: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in data[: strace.STRING_MAX]) + '"'


def pwrite(path: str, data: bytes, offset: int, thread: int = 2) -> Call:
    arguments = f"7<{path}>, {quoted(data)}, {len(data)}, {offset}"
    return Call(thread, "pwrite64", arguments, len(data), 0, 0)


def sync(path: str, name: str = "fdatasync", thread: int = 2) -> Call:
    return Call(thread, name, f"7<{path}>", 0, 0, 0)


def batch(number: int, synced_to: int = 0, puts: int = 1) -> bytes:
    buffer = memoryview(bytearray(8192))
    header = BatchHeader(number, 64 + puts * FRAME_SIZE, puts, 0, 0, synced_to)
    return bytes(buffer[: seal_batch(buffer, header, 5)])


def segment(synced_to: int = 0) -> bytes:
    return SegmentHeader(bytes(16), 1, 1, 5, synced_to).serialize()


def pack_header(*slots: int) -> bytes:
    header = PackHeader.of_pack(PACK_ID, STORE)
    for slot in slots:
        set_bits(header.present, slot)
    return header.serialize()[:512]


def receive(name: bytes) -> Call:
    data = name + bytes(FRAME_SIZE - 8)
    return Call(1, "recvfrom", f"5<socket:[9]>, {quoted(data)}, 9999, 64, NULL, NULL", FRAME_SIZE, 0, 0)


def send(size: int = 9) -> Call:
    return Call(1, "sendto", f'5<socket:[9]>, "", {size}, 64, NULL, 0', size, 0, 0)


def set_flags(flags: str, result: int = 0) -> Call:
    return Call(2, "fcntl", f"7<{PACK}>, F_SETFL, {flags}", result, 0, 0)


NAME = ticket.index_to_wire(A)


def good() -> dict[str, Call]:
    """One put on its way through the log, one note, and a flush, in an order that is right."""
    return {
        "receive": receive(NAME),
        "past the cache": set_flags("O_RDWR|O_DIRECT"),
        "header": pwrite(PACK, pack_header(), 0),
        "through the cache": set_flags("O_RDWR"),
        "segment": pwrite(LOG, segment(), 0),
        "segment synced": sync(LOG),
        "log": pwrite(LOG, batch(1), BLOCK_SIZE),
        "log synced": sync(LOG),
        "slots": pwrite(PACK, bytes(FRAME_SIZE), 4096),
        "bits": pwrite(PACK, pack_header(0), 0),
        "send": send(),
        "directory made": Call(2, "mkdirat", f"3</data>, {quoted(b'OR')}, 0700", 0, 0, 0),
        "bulk written": pwrite(PACK, bytes(4096), 8192, thread=3),
        "bulk synced": sync(PACK, thread=3),
        "directory synced": sync("/data", "fsync", thread=3),
        "note": pwrite(LOG, batch(2, puts=0), BLOCK_SIZE + 4096),
        "note synced": sync(LOG),
        "note's bits": pwrite(PACK, pack_header(0, *range(5, 9)), 0),
        "flushed": sync("/data", "syncfs", thread=4),
        "log says so": pwrite(LOG, batch(3, synced_to=2, puts=0), BLOCK_SIZE + 8192),
    }


BATCHES = {1: LoggedBatch(puts=[A]), 2: LoggedBatch(notes=[(PACK_ID, 5, 4)]), 3: LoggedBatch()}


def losses(calls: dict[str, Call]) -> list[str]:
    found = list(calls.values())
    for line, call in enumerate(found):
        call.began = call.ended = line
    session = Session([NAME], bytearray(NAME + b"\x01"))
    checker = Checker(found, [session], BATCHES, Path("/data"))
    checker.check()
    return [loss.partition(": ")[2] for loss in checker.losses]


def moved(calls: dict[str, Call], name: str, before: str) -> dict[str, Call]:
    order = [key for key in calls if key != name]
    order.insert(order.index(before), name)
    return {key: calls[key] for key in order}


def without(calls: dict[str, Call], name: str) -> dict[str, Call]:
    return {key: call for key, call in calls.items() if key != name}


def failed(calls: dict[str, Call], name: str) -> dict[str, Call]:
    calls[name].result = -1
    return calls


def of(calls: dict[str, Call], name: str, path: str) -> dict[str, Call]:
    return calls | {name: sync(path, calls[name].name)}


def test_what_is_right_passes() -> None:
    assert losses(good()) == []


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        (lambda calls: without(calls, "log synced"), "ORDER00 was acknowledged SAVED before batch 1"),
        (lambda calls: failed(calls, "log synced"), "ORDER00 was acknowledged SAVED before batch 1"),
        (lambda calls: of(calls, "log synced", "/data/.ingest/wal/0001.log"), "ORDER00 was acknowledged SAVED before"),
        (lambda calls: moved(calls, "send", "log synced"), "ORDER00 was acknowledged SAVED before batch 1"),
        (lambda calls: moved(calls, "log synced", "log"), "ORDER00 was acknowledged SAVED before batch 1"),
        (lambda calls: without(calls, "log"), "ORDER00 was acknowledged SAVED and no batch of the log has it"),
        (lambda calls: moved(calls, "receive", "slots"), "ORDER00 was acknowledged SAVED and was logged before"),
        (lambda calls: moved(calls, "bits", "log synced"), "slot 0 of /data/OR/DE/R/obj shows before"),
        (lambda calls: without(calls, "segment synced"), "batch 1 behind a segment header that was not synced"),
        (lambda calls: moved(calls, "note synced", "note"), "batch 3 before batch 2 was synced"),
        (lambda calls: moved(calls, "note's bits", "note synced"), "slot 5 of /data/OR/DE/R/obj shows before"),
        (lambda calls: without(calls, "bulk written"), "batch 2 notes slot 5 of /data/OR/DE/R/obj, which nobody wrote"),
        (lambda calls: without(calls, "bulk synced"), "batch 2 notes /data/OR/DE/R/obj before it was synced"),
        (lambda calls: moved(calls, "bulk synced", "bulk written"), "batch 2 notes /data/OR/DE/R/obj before it"),
        (lambda calls: without(calls, "past the cache"), "batch 2 notes slots of /data/OR/DE/R/obj, written"),
        (lambda calls: moved(calls, "header", "segment"), "batch 2 notes slots of /data/OR/DE/R/obj, written"),
        (lambda calls: moved(calls, "header", "bulk synced"), "batch 2 notes slots of /data/OR/DE/R/obj, written"),
        (lambda calls: without(calls, "directory synced"), "batch 2 notes /data/OR/DE/R/obj before its directory /data"),
        (lambda calls: moved(calls, "directory synced", "directory made"), "batch 2 notes /data/OR/DE/R/obj before its"),
        (lambda calls: without(calls, "flushed"), "the log says that the packs hold batch 2 durably"),
        (lambda calls: failed(calls, "flushed"), "the log says that the packs hold batch 2 durably"),
        (lambda calls: moved(calls, "flushed", "note's bits"), "the log says that the packs hold batch 2 durably"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(change: Callable[[dict[str, Call]], dict[str, Call]], loss: str) -> None:
    found = losses(change(good()))
    assert any(line.startswith(loss) for line in found), found


def test_a_header_in_the_page_cache_is_on_the_disk_once_it_is_synced() -> None:
    cached = without(good(), "past the cache")
    order = list(cached.items())
    at = list(cached).index("bulk written")
    assert losses(dict([*order[:at], ("pack synced", sync(PACK)), *order[at:]])) == []
    assert losses(dict([*order[:at], ("all synced", sync("/data", "syncfs")), *order[at:]])) == []


def test_a_file_system_without_direct_writes_is_not_held_to_them() -> None:
    refused = good() | {"past the cache": set_flags("O_RDWR|O_DIRECT", -1)}
    assert losses(refused) == []


def test_a_batch_written_in_two_pieces_counts_from_the_second() -> None:
    calls = good()
    first = calls["log"]
    first.result = 1024
    rest = pwrite(LOG, bytes(3072), BLOCK_SIZE + 1024)
    order = list(calls.items())
    at = list(calls).index("log synced")
    whole = dict([*order[:at], ("rest", rest), *order[at:]])
    assert losses(whole) == []
    early = dict([*order[: at + 1], ("rest", rest), *order[at + 1 :]])
    assert any("before batch 1 of the log was synced" in line for line in losses(early))


def test_lines_of_strace_become_calls() -> None:
    lines = [
        "12 pwrite64(7<\\x2f\\x61>, \"\\x49\\x4e\", 4096, 8192 <unfinished ...>",
        "13 fdatasync(8</b>) = -1 EIO (Input/output error)",
        "12 <... pwrite64 resumed>)  = 4096",
        "14 openat2(3</c>, \"\\x4f\", {flags=O_RDWR|O_CREAT}, 24) = 9</c/O>",
        "15 +++ exited with 0 +++",
    ]  # fmt: skip
    fdatasync, write, opened = strace.calls(iter(lines))
    assert (write.path, write.data, write.size, write.offset, write.result) == ("/a", b"IN", 4096, 8192, 4096)
    assert (write.began, write.ended) == (0, 2)
    assert (fdatasync.path, fdatasync.result, fdatasync.began) == ("/b", -1, 1)
    assert (opened.path, opened.data, opened.result) == ("/c", b"O", 9)
