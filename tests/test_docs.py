"""`docs/protocol.md` and `docs/format.md` against constants and golden bytes: their tables and worked examples."""

import json
import re
from pathlib import Path

import pytest
from blake3 import blake3

from ingest import limits, mac, record, sharding, ticket
from ingest.engine import exposition, metrics
from ingest.engine._queue import Queue
from ingest.errors import CorruptionError
from ingest.runtime.heartbeat import Heart
from ingest.status import Status
from ingest.store import store_json
from ingest.store.layouts.tree_file import CHECKSUM, DELETED, TreeFile
from ingest.store.log import log_format

ROOT = Path(__file__).parent.parent
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
FORMAT = (ROOT / "docs" / "format.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

HEX_LINE = re.compile(r"((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: {2,}.*)?")
FILL_LINE = re.compile(r"(\d+) \u00d7 ([0-9a-f]{2})(?: {2,}.*)?")


def section(text: str, heading: str) -> str:
    """What stands under one heading, up to the next of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.M)
    assert match, heading
    end = re.search(rf"^#{{1,{len(match[1])}}} ", text[match.end() :], re.M)
    return text[match.end() :][: end.start() if end else None]


def table(text: str, heading: str, *columns: str) -> list[list[str]]:
    """The rows of the first table with these columns in a section, backticks removed."""
    lines = section(text, heading).splitlines()
    head = "| " + " | ".join(columns) + " |"
    assert head in lines, f"no table {head} under {heading}"
    rows = []
    for line in lines[lines.index(head) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    assert rows and all(len(row) == len(columns) for row in rows)
    return rows


def blocks(text: str) -> dict[str, list[str]]:
    """The worked examples: their lines under their titles."""
    return {
        title: body.splitlines() for title, body in re.findall(r"^```\n(.*)\n((?:.+\n)+?)```$", text, re.M)
    }


def example(text: str, title: str) -> bytes:
    raw = bytearray()
    for line in blocks(text)[title]:
        if fill := FILL_LINE.fullmatch(line):
            raw += bytes.fromhex(fill[2]) * int(fill[1])
        else:
            match = HEX_LINE.fullmatch(line)
            assert match, line
            raw += bytes.fromhex(match[1])
    return bytes(raw)


def numbers(cell: str) -> int:
    return int(cell.replace(",", ""))


@pytest.mark.parametrize(
    ("text", "heading", "last"),
    [(PROTOCOL, "Sizes and limits", "what it bounds"), (FORMAT, "Packs", "what")],
)
def test_limits(text, heading, last):
    for name, value, _, _ in table(text, heading, "name", "value", "unit", last):
        assert getattr(limits, name) == float(value), name


def test_statuses():
    rows = table(PROTOCOL, "Statuses", "status", "name", "meaning", "what to do")
    assert {row[1]: int(row[0]) for row in rows} == {status.name: status.value for status in Status}


def test_judgement_names_only_statuses_and_only_bad_ones_count():
    for case, answer, bad in table(PROTOCOL, "Statuses", "the frame", "answer", "counts as bad"):
        names = re.findall(r"[A-Z_]{4,}", answer)
        assert names and all(name in Status.__members__ for name in names), case
        assert (bad == "yes") == (names[0] in ("BAD_CHECKSUM", "BAD_TICKET")), case


def test_contexts():
    rows = dict(table(PROTOCOL, "Keys and checksums", "purpose", "context"))
    assert rows == {
        "put": mac.PUT_CONTEXT,
        "delete": mac.DELETE_CONTEXT,
        "get": mac.GET_CONTEXT,
        "inventory": mac.INVENTORY_CONTEXT,
    }


def test_keys(contract):
    names = ["shared key", "put key", "delete key", "get key", "inventory key", "key identifier"]
    block = re.search(r"^```\n(shared key (?:.+\n)+)```$", PROTOCOL, re.M)
    assert block
    found = dict(re.split(r" {2,}", line) for line in block[1].splitlines())
    golden = [
        contract[key]
        for key in ("key_hex", "put_key_hex", "delete_key_hex", "get_key_hex", "inventory_key_hex")
    ]
    assert found.keys() == set(names)
    assert [bytes.fromhex(found[name]).hex() for name in names] == [*golden, contract["key_id_hex"]]


def test_tickets_on_the_wire():
    for text, index, wire in table(PROTOCOL, "Tickets", "ticket", "index", "on the wire"):
        assert ticket.parse(text) == int(index)
        assert ticket.to_wire(text) == bytes.fromhex(wire)


@pytest.mark.parametrize(
    ("heading", "sizes"),
    [("Frames", [8, 8, 1458]), ("Acks", [8, 1]), ("Requests", [8, 8, 8]), ("Runs", [8, 1, 3, 4, "1474 · N"])],
)
def test_records_have_no_gap(heading, sizes):
    offset = 0
    rows = table(PROTOCOL, heading, "offset", "bytes", "what")
    assert [row[1] for row in rows] == [str(size) for size in sizes]
    for row in rows:
        assert int(row[0]) == offset
        offset += numbers(row[1]) if row[1].isdigit() else 0
    size = {"Frames": "FRAME_SIZE", "Acks": "ACK_SIZE", "Requests": "REQUEST_SIZE", "Runs": "RUN_HEADER_SIZE"}
    assert offset == getattr(limits, size[heading])


def test_frame_examples(contract):
    put = {golden["ticket"]: golden["checksum_hex"] for golden in contract["frames"]}
    delete = {
        (golden["ticket"], golden["count"]): golden["checksum_hex"] for golden in contract["delete_frames"]
    }
    hello, gone = example(PROTOCOL, "put frame"), example(PROTOCOL, "delete frame")
    assert hello == b"ABC" + bytes(5) + bytes.fromhex(put["ABC"]) + b"hello, chunk".ljust(1458, b"\0")
    assert gone == b"AABBCCDD" + bytes.fromhex(delete["AABBCCDD", 1]) + (1).to_bytes(8, "big") + bytes(1450)
    keys = mac.derive(bytes.fromhex(contract["key_hex"]))
    assert mac.frame_ok(keys.put, hello)
    assert mac.frame_ok(keys.delete, gone)


def test_record_example():
    data = example(PROTOCOL, "data of the record hello and a zero")
    assert len(data) == limits.DATA_SIZE
    assert record.serialize(b"hello\0") == data
    assert record.parse(data, "ABC") == b"hello\0"


def test_ack_example():
    assert example(PROTOCOL, "ack") == ticket.to_wire("ABC") + bytes([Status.SAVED])


def test_request_examples(contract):
    gets = [golden["request_hex"] for golden in contract["get_requests"]]
    inventories = [golden["request_hex"] for golden in contract["inventory_requests"]]
    assert example(PROTOCOL, "get request for the ticket 0").hex() == gets[0]
    assert example(PROTOCOL, "inventory request for AABBCC00 to AABBCCZZ").hex() == inventories[0]


def test_run_header_examples(contract):
    golden = [header["hex"] for header in contract["run_headers"]]
    assert example(PROTOCOL, "run header: one frame follows").hex() == golden[0]
    assert example(PROTOCOL, "run header: nothing follows").hex() == golden[1]


def test_no_example_goes_unchecked():
    assert {title for title in blocks(PROTOCOL) if not title.startswith("shared key ")} == {
        "put frame",
        "delete frame",
        "data of the record hello and a zero",
        "ack",
        "get request for the ticket 0",
        "inventory request for AABBCC00 to AABBCCZZ",
        "run header: one frame follows",
        "run header: nothing follows",
    }
    assert set(blocks(FORMAT)) == {
        "pack header",
        "AB/C/obj",
        "user.ingest.checksum of AB/C/obj",
        "store.json",
        "what its check is over",
        "segment header",
        "batch",
    }


# --- format.md -----------------------------------------------------------------------------------


def test_paths(contract):
    columns = ("ticket", "index", "layout tree", "layout pack", "slot", "offset")
    golden = {row["ticket"]: row for row in contract["tickets"]}
    for text, index, tree, pack, slot, offset in table(FORMAT, "From tickets to paths", *columns):
        row = golden[text]
        assert [int(index), tree, pack] == [row["index"], row["tree"], row["pack"]]
        assert [int(slot), int(offset)] == [row["slot"], row["offset"]]


def test_tree_example(contract):
    file = TreeFile(
        example(FORMAT, "AB/C/obj"), example(FORMAT, "user.ingest.checksum of AB/C/obj"), deleted=False
    )
    assert ticket.tree_path("ABC") == "AB/C/obj"
    assert file.frame("ABC") == example(PROTOCOL, "put frame")
    attributes = [row[0] for row in table(FORMAT, "Layout tree", "attribute", "bytes", "what")]
    assert attributes == [CHECKSUM, DELETED]


def test_what_a_tree_file_means():
    """Each row of the table, with files made after it."""
    values = {
        "there": [True],
        "any": [None, bytes(8), b"x"],
        "none": [None],
        "8 bytes": [bytes(8)],
        "of other length": [b"x"],
    }
    sizes = {"any": [0, 7, 1458, 1459], "1458 bytes": [1458], "more or fewer": [0, 1457, 1459]}
    rows = table(FORMAT, "Layout tree", "deleted", "checksum", "data", "the ticket")
    for deleted, checksum, data, meaning in rows:
        for value in values[checksum]:
            for size in sizes[data]:
                file = TreeFile(bytes(size), value, deleted == "there")
                if meaning.startswith("corruption"):
                    with pytest.raises(CorruptionError):
                        _ = file.status
                else:
                    word = {
                        Status.DELETED: "deleted",
                        Status.MISSING: "holds nothing",
                        Status.SAVED: "stored",
                    }
                    assert meaning.startswith(word[file.status]), (file, meaning)
    assert len(rows) == 5


def test_pack_header_has_no_gap():
    offset = 0
    for start, size, _ in table(FORMAT, "Packs", "offset", "bytes", "what"):
        assert int(start) == offset
        offset += int(size)
    assert offset == limits.PACK_HEADER_SIZE


def test_pack_header_example(contract):
    (golden,) = (header for header in contract["pack_headers"] if header["prefix"] == "AABBCC")
    header = example(FORMAT, "pack header")
    assert len(header) == limits.PACK_HEADER_SIZE
    assert header[:512].hex() == golden["first_512_hex"]
    assert not any(header[512:])


def test_pack_sizes():
    text = section(FORMAT, "Packs")
    assert f"{sharding.slot_offset(limits.PACK_SLOTS):,}" in text
    assert f"{sharding.slot_offset(limits.ROOT_PACK_SLOTS):,}" in text


def test_store_json(contract):
    raw = "\n".join(blocks(FORMAT)["store.json"])
    record = json.loads(raw)
    columns = table(FORMAT, "The data directory", "member", "what")
    assert list(record) == [row[0] for row in columns]
    assert record["keys"] == [contract["key_id_hex"]]
    (covered,) = blocks(FORMAT)["what its check is over"]
    assert record["check"] == blake3(covered.encode()).hexdigest(8) == store_json.store_check(record)
    assert json.loads(covered) == {name: value for name, value in record.items() if name != "check"}
    assert {*record} - {"check"} == store_json.MEMBERS


SEGMENT = log_format.SegmentHeader(bytes(range(0x20, 0x30)), 7, 41, 0x1122334455667788, 38)


def test_segment_header():
    offset = 0
    rows = table(FORMAT, "The log", "offset", "bytes", "what")
    assert [row[0] for row in rows].count("0") == 1
    for start, size, _ in rows:
        assert int(start) == offset
        offset += int(size)
    assert offset == log_format.BLOCK_SIZE
    assert example(FORMAT, "segment header") == SEGMENT.serialize()
    assert log_format.SegmentHeader.parse(example(FORMAT, "segment header")) == SEGMENT


def test_batch():
    raw = example(FORMAT, "batch")
    header = log_format.BatchHeader(41, log_format.BATCH_HEADER_SIZE + log_format.NOTE_SIZE, 0, 0, 1, 38)
    assert log_format.parse_batch(memoryview(raw), SEGMENT.seed) == header
    again = bytearray(raw)
    again[:64] = bytes(64)
    assert log_format.seal_batch(memoryview(again), header, SEGMENT.seed) == len(raw)
    assert bytes(again) == raw
    assert log_format.Note.parse(raw[64:80]) == log_format.Note("AABBCC", 0, 1296)


def test_segment_size():
    assert f"{limits.LOG_SEGMENT_SIZE:,}" in section(FORMAT, "The log")


# --- operations.md ---------------------------------------------------------------------------------


def test_every_metric_is_described():
    queue = Queue(1, 1)
    shown = {}
    hearts = {"parent": Heart()}
    hearts["parent"].beat()
    disk = exposition.DiskUse(Path("/"), Path("/"), 0, 0, 0)
    for metric in exposition.Exposition(queue, disk, (), hearts).collect():
        labels = {name for sample in metric.samples for name in sample.labels} - {"le"}
        suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
        shown[metric.name + suffix] = "gauge" if metric.type == "info" else metric.type, labels
    # Nobody has started processes here: what is told of each has no sample, and so no label to be seen.
    for name in ("resident_memory_bytes", "open_fds"):
        shown[f"ingest_process_{name}"] = "gauge", {"process"}
    queue.close()
    rows = table(OPERATIONS, "Metrics", "metric", "type", "labels", "meaning", "worth an alert")
    described = {
        name: (kind, set(labels.split(", ")) - {""}) for name, kind, labels, meaning, _ in rows if meaning
    }
    assert len(described) == len(rows)
    assert described == shown


def test_the_numbers_of_the_metrics():
    text = section(OPERATIONS, "Metrics")
    latency = metrics.HISTOGRAMS[1]
    assert latency.unit == 16e-6 and f"16 µs, doubled {latency.buckets - 2} times" in " ".join(text.split())
    assert f"{2 ** (metrics.HISTOGRAMS[0].buckets - 2):,}" in text
    assert f"{limits.CONNECTIONS_MAX:,} for each worker" in text
    assert f"{limits.PEER_LINES_MAX} in {limits.PEER_LINES_INTERVAL_S:g} s" in text
