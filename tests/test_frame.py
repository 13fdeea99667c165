"""Frames, acks, requests and runs: golden bytes, streams cut anywhere, and every malformed record."""

import itertools

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from ingest import frame, sharding, ticket
from ingest.errors import ProtocolError, TicketError, UsageError
from ingest.frame import Ack, RecordSplitter, Request, RunHeader
from ingest.status import Status
from ingest.ticket import TicketRange

DATA = {
    "0": bytes(1458),
    "AABBCCDD": bytes(i % 251 for i in range(1458)),
    "ZZZZZZZZ": b"\xff" * 1458,
    "ABC": b"hello, chunk",
}
indices = st.one_of(st.integers(0, ticket.LAST), st.integers(0, 5000))


def built(first: int, data: bytes) -> bytearray:
    out = bytearray(frame.frames_needed(len(data)) * 1474)
    assert frame.build(first, data, out) == len(out) // 1474
    return out


def frames_of(*tickets: bytes) -> bytes:
    """Frames with these 8 bytes as tickets, each with other data."""
    return b"".join(raw + bytes(8) + bytes([i % 256]) * 1458 for i, raw in enumerate(tickets))


def wires(*texts: str) -> list[bytes]:
    return [ticket.to_wire(text) for text in texts]


# --- building ------------------------------------------------------------------------------------


def test_golden_frames(contract):
    key = bytes.fromhex(contract["put_key_hex"])
    assert len(contract["frames"]) == len(DATA)
    for golden in contract["frames"]:
        record = built(ticket.parse(golden["ticket"]), DATA[golden["ticket"]])
        assert record[8:16] == bytes(8)
        assert blake3(record[16:]).hexdigest() == golden["data_blake3_hex"]
        record[8:16] = blake3(record[:8] + record[16:], key=key).digest(8)
        assert record[8:16].hex() == golden["checksum_hex"]
        assert blake3(record).hexdigest() == golden["frame_blake3_hex"]


@given(indices, st.binary(max_size=5000))
def test_build_is_a_plain_loop(first, data):
    first = min(first, ticket.LAST - 3)
    expected = bytearray()
    for i in range(0, len(data), 1458):
        expected += ticket.index_to_wire(first + i // 1458) + bytes(8) + data[i : i + 1458].ljust(1458, b"\0")
    assert built(first, data) == expected


@given(st.binary(max_size=5000))
def test_extract_undoes_build(data):
    frames = built(7, data)
    out = bytearray(len(frames) // 1474 * 1458)
    assert frame.extract(frames, out) == len(out)
    assert out[: len(data)] == data
    assert not any(out[len(data) :])


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (1457, 1), (1458, 1), (1459, 2), (2916, 2), (2917, 3)]
)
def test_frames_needed(size, count):
    assert frame.frames_needed(size) == count
    assert len(built(0, bytes(size))) == count * 1474


def test_build_writes_into_the_middle_of_a_buffer_and_nowhere_else():
    arena = bytearray(b"\xee" * 5 * 1474)
    assert frame.build(0, b"x" * 1459, memoryview(arena)[1474:]) == 2
    assert arena[:1474] == b"\xee" * 1474
    assert arena[3 * 1474 :] == b"\xee" * 2 * 1474
    assert arena[1474 : 3 * 1474] == built(0, b"x" * 1459)


def test_build_up_to_the_last_ticket():
    assert frame.indices(built(ticket.LAST - 1, bytes(2 * 1458))).tolist() == [ticket.LAST - 1, ticket.LAST]
    assert built(ticket.LAST, b"") == b""


@pytest.mark.parametrize(
    ("first", "size"), [(-1, 1), (ticket.LAST, 1459), (ticket.LAST + 1, 1), (2**63, 1), (-(2**70), 0)]
)
def test_build_past_the_last_ticket(first, size):
    out = bytearray(b"\xee" * 4 * 1474)
    with pytest.raises(TicketError):
        frame.build(first, bytes(size), out)
    assert out == b"\xee" * 4 * 1474


@pytest.mark.parametrize("room", [0, 1473, 2 * 1474 - 1])
def test_build_into_too_small_a_buffer(room):
    out = bytearray(b"\xee" * room)
    with pytest.raises(UsageError, match="bytes"):
        frame.build(0, bytes(1459), out)
    assert out == b"\xee" * room


def test_build_into_what_cannot_be_written():
    with pytest.raises((BufferError, ValueError)):
        frame.build(0, b"x", bytes(1474))
    with pytest.raises(TypeError):
        frame.build(0, "text", bytearray(1474))
    with pytest.raises(TypeError):
        frame.build(0, b"x", None)


def test_extract_into_too_small_a_buffer():
    with pytest.raises(UsageError, match="bytes"):
        frame.extract(bytes(1474), bytearray(1457))


# --- indices and runs ----------------------------------------------------------------------------


def test_indices(contract):
    malformed = [bytes.fromhex(raw) for raw in contract["malformed_tickets_hex"]]
    good = contract["tickets"]
    frames = frames_of(*malformed, *wires(*(golden["ticket"] for golden in good)))
    found = frame.indices(frames)
    assert found.tolist() == [-1] * len(malformed) + [golden["index"] for golden in good]
    assert found.format == "q"
    assert found.itemsize == 8


@given(st.binary(min_size=8, max_size=8))
def test_index_of_any_eight_bytes(raw):
    try:
        expected = ticket.index_from_wire(raw)
    except TicketError:
        expected = -1
    assert frame.indices(frames_of(raw)).tolist() == [expected]


def plain_runs(found: list[int]) -> list[tuple[int, int, int]]:
    """The definition: neighbours belong together when ticket and slot count on in one pack."""
    runs = []
    for position, index in enumerate(found):
        if runs and index >= 0:
            start, count, first = runs[-1]
            if (
                first >= 0
                and index == first + count
                and sharding.ticket_pack(index) == sharding.ticket_pack(first)
                and sharding.ticket_slot(index) == sharding.ticket_slot(first) + count
            ):
                runs[-1] = (start, count + 1, first)
                continue
        runs.append((position, 1, index))
    return runs


def test_runs_of_one_buffer():
    frames = frames_of(
        *wires("Z", "00", "01", "03", "04"), b"a" + bytes(7), b"a" + bytes(7), *wires("05", "05")
    )
    assert frame.runs(frames) == [
        (0, 1, 35), (1, 2, 36), (3, 2, 39), (5, 1, -1), (6, 1, -1), (7, 1, 41), (8, 1, 41)
    ]  # fmt: skip


def test_a_run_ends_with_its_pack():
    frames = built(34, bytes(1458 * (2 + 1296 + 1296 + 3)))
    assert frame.runs(frames) == [(0, 2, 34), (2, 1296, 36), (1298, 1296, 1332), (2594, 3, 2628)]


def test_the_last_run():
    assert frame.runs(built(ticket.LAST - 1, bytes(2 * 1458))) == [(0, 2, ticket.LAST - 1)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2700), st.integers(1, 4)), st.tuples(st.just(-1), st.integers(1, 2))
        ),
        max_size=20,
    )
)
def test_runs_are_the_plain_loop(stretches):
    found = [first + i if first >= 0 else -1 for first, count in stretches for i in range(count)]
    frames = frames_of(*(ticket.index_to_wire(index) if index >= 0 else b"bad/bad/" for index in found))
    assert frame.runs(frames) == plain_runs(found)


@pytest.mark.parametrize("size", [1, 1473, 1475, 2 * 1474 + 9])
def test_partial_frames_are_refused(size):
    for refuse in (
        frame.indices,
        frame.runs,
        lambda b: frame.extract(b, bytearray(5000)),
        lambda b: frame.build_acks(b, 1),
    ):
        with pytest.raises(UsageError, match="whole frames"):
            refuse(bytes(size))


def test_nothing_is_fine():
    assert frame.indices(b"").tolist() == []
    assert frame.runs(b"") == []
    assert frame.extract(b"", bytearray()) == 0
    assert frame.build(0, b"", bytearray()) == 0
    assert frame.build_acks(b"", 1) == frame.build_acks(b"", b"") == b""
    found, statuses = frame.parse_acks(b"")
    assert (found.tolist(), statuses) == ([], b"")


# --- acks ----------------------------------------------------------------------------------------


def test_acks_of_one_status():
    frames = frames_of(*wires("A", "ZZ"), b"../../..")
    assert frame.build_acks(frames, Status.SAVED) == b"A" + bytes(7) + b"\1ZZ" + bytes(6) + b"\1../../..\1"


@given(st.lists(st.tuples(indices, st.integers(1, 9)), max_size=30))
def test_acks_lead_back(acks):
    frames = frames_of(*(ticket.index_to_wire(index) for index, _ in acks))
    raw = frame.build_acks(frames, bytes(status for _, status in acks))
    assert raw == b"".join(
        Ack(ticket.index_to_wire(index), Status(status)).serialize() for index, status in acks
    )
    found, statuses = frame.parse_acks(raw)
    assert list(zip(found.tolist(), statuses, strict=True)) == acks
    for i, (index, status) in enumerate(acks):
        ack = Ack.parse(raw[9 * i : 9 * i + 9])
        ack.check()
        assert (ticket.index_from_wire(ack.ticket), ack.status) == (index, status)


@pytest.mark.parametrize("statuses", [0, 10, -1, 256, b"", b"\1", b"\1\2\3", b"\1\0", b"\1\x0a"])
def test_acks_that_cannot_be(statuses):
    with pytest.raises(UsageError, match="status"):
        frame.build_acks(frames_of(*wires("A", "B")), statuses)


@pytest.mark.parametrize("status", [0, 10, 255])
def test_ack_with_an_unknown_status(status):
    with pytest.raises(ProtocolError, match="status"):
        frame.parse_acks(b"A" + bytes(7) + b"\1" + b"A" + bytes(7) + bytes([status]))
    with pytest.raises(ProtocolError, match="status"):
        Ack.parse(b"A" + bytes(7) + bytes([status]))


def test_ack_of_a_malformed_ticket():
    raw = b"a" + bytes(7)
    assert frame.parse_acks(raw + b"\4")[0].tolist() == [-1]
    Ack.parse(raw + b"\4").check()
    with pytest.raises(ProtocolError, match="malformed"):
        Ack.parse(raw + b"\1").check()


@pytest.mark.parametrize("size", [1, 8, 10, 17])
def test_partial_acks_are_refused(size):
    with pytest.raises(UsageError):
        frame.parse_acks(bytes(size))
    with pytest.raises(UsageError):
        Ack.parse(bytes(size))


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["get", "inventory"])
def test_golden_requests(contract, kind):
    key = bytes.fromhex(contract[f"{kind}_key_hex"])
    for golden in contract[f"{kind}_requests"]:
        raw = bytes.fromhex(golden["request_hex"])
        tickets = TicketRange(golden["ticket"], golden["count"])
        request = Request.of(tickets)
        assert request.signed_part == raw[:16]
        assert blake3(request.signed_part, key=key).digest(8) == raw[16:]
        parsed = Request.parse(raw)
        assert parsed.check() == tickets
        assert parsed.serialize() == raw


@given(st.binary(min_size=24, max_size=24))
def test_any_request_leads_back_and_is_judged(raw):
    request = Request.parse(raw)
    assert request.serialize() == raw
    try:
        tickets = request.check()
    except TicketError:
        return
    assert (ticket.to_wire(tickets.first), tickets.count) == (raw[:8], int.from_bytes(raw[8:16], "big"))


@pytest.mark.parametrize("count", [0, 65_537, 2**32, 2**63, 2**64 - 1])
def test_request_for_a_count_out_of_bounds(count):
    with pytest.raises(TicketError):
        Request(ticket.to_wire("0"), count).check()


def test_request_past_the_last_ticket(contract):
    assert Request(b"ZZZZZZZZ", 1).check().last == "ZZZZZZZZ"
    with pytest.raises(TicketError, match="past"):
        Request(b"ZZZZZZZZ", 2).check()
    for malformed in contract["malformed_tickets_hex"]:
        with pytest.raises(TicketError, match="malformed"):
            Request(bytes.fromhex(malformed), 1).check()


def test_request_for_too_many():
    assert Request.of(TicketRange("0", 65_536)).check().count == 65_536
    with pytest.raises(UsageError):
        Request.of(TicketRange("0", 65_537))


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_request_has_24_bytes(size):
    with pytest.raises(UsageError):
        Request.parse(bytes(size))


# --- runs of a reply -----------------------------------------------------------------------------


def test_golden_run_headers(contract):
    for golden in contract["run_headers"]:
        raw = bytes.fromhex(golden["hex"])
        header = RunHeader(ticket.to_wire(golden["ticket"]), Status(golden["status"]), golden["n"])
        assert header.serialize() == raw
        assert RunHeader.parse(raw) == header
        expected = TicketRange(golden["ticket"], golden["n"])
        assert header.check(expected) == expected


@pytest.mark.parametrize("position", [9, 10, 11])
def test_run_header_with_something_where_zeros_should_be(position):
    raw = bytearray(RunHeader(b"AAAAAAAA", Status.SAVED, 1).serialize())
    raw[position] = 1
    with pytest.raises(ProtocolError, match="zero"):
        RunHeader.parse(raw)


@pytest.mark.parametrize("status", [0, 10, 255])
def test_run_header_with_an_unknown_status(status):
    with pytest.raises(ProtocolError, match="status"):
        RunHeader.parse(b"AAAAAAAA" + bytes([status]) + b"\0\0\0" + b"\0\0\0\1")


@pytest.mark.parametrize("size", [0, 15, 17])
def test_run_header_has_16_bytes(size):
    with pytest.raises(UsageError):
        RunHeader.parse(bytes(size))


def test_run_has_to_start_where_the_reply_goes_on():
    expected = TicketRange("AB", 5)
    assert RunHeader(ticket.to_wire("AB"), Status.MISSING, 5).check(expected).count == 5
    for first, count in [("AA", 1), ("AC", 1), ("AB", 6), ("AB", 2**32 - 1)]:
        with pytest.raises(ProtocolError, match="expected"):
            RunHeader(ticket.to_wire(first), Status.SAVED, count).check(expected)
    with pytest.raises(ProtocolError, match="malformed"):
        RunHeader(b"ab" + bytes(6), Status.SAVED, 1).check(expected)


@pytest.mark.parametrize("status", [Status.BAD_CHECKSUM, Status.BAD_TICKET])
def test_refusal(status):
    header = RunHeader.parse(b"\xff" * 8 + bytes([status]) + bytes(7))
    assert header.is_refusal
    with pytest.raises(ProtocolError, match=status.name):
        header.check(TicketRange("A", 1))


# --- deletes -------------------------------------------------------------------------------------


def test_golden_deletes(contract):
    key = bytes.fromhex(contract["delete_key_hex"])
    for golden in contract["delete_frames"]:
        data = frame.delete_data(golden["count"])
        assert (
            blake3(ticket.to_wire(golden["ticket"]) + data, key=key).digest(8).hex() == golden["checksum_hex"]
        )
        assert frame.delete_count(data, golden["ticket"]) == golden["count"]


@pytest.mark.parametrize("count", [0, -1, 65_537, 2**64])
def test_delete_of_a_count_out_of_bounds(count):
    with pytest.raises(UsageError):
        frame.delete_data(count)


@pytest.mark.parametrize("count", [0, 65_537, 2**63, 2**64 - 1])
def test_delete_frame_with_a_count_out_of_bounds(count):
    with pytest.raises(TicketError):
        frame.delete_count(count.to_bytes(8, "big") + bytes(1450), "0")


def test_delete_frame_past_the_last_ticket():
    assert frame.delete_count(frame.delete_data(1), "ZZZZZZZZ") == 1
    with pytest.raises(TicketError, match="past"):
        frame.delete_count(frame.delete_data(2), "ZZZZZZZZ")


@pytest.mark.parametrize("position", [8, 700, 1457])
def test_delete_frame_with_something_after_the_count(position):
    data = bytearray(frame.delete_data(1))
    data[position] = 1
    with pytest.raises(TicketError, match="zeros"):
        frame.delete_count(data, "0")


# --- streams -------------------------------------------------------------------------------------


def joined(parts: list[memoryview]) -> bytes:
    return b"".join(bytes(part) for part in parts)


def test_a_stream_cut_once_at_every_byte():
    stream = bytes(built(0, bytes(i % 255 for i in range(1458 * 3)))) + b"tail of a frame"
    for cut in range(len(stream) + 1):
        splitter = RecordSplitter()
        parts = splitter.feed(stream[:cut]) + splitter.feed(stream[cut:])
        assert joined(parts) == stream[: 3 * 1474]
        assert all(len(part) % 1474 == 0 for part in parts)
        assert splitter.partial_size == len(b"tail of a frame")


def test_a_stream_one_byte_at_a_time():
    stream = built(0, b"x" * 1459)
    splitter = RecordSplitter()
    sizes = [len(joined(splitter.feed(stream[i : i + 1]))) for i in range(len(stream))]
    assert [i for i, size in enumerate(sizes) if size] == [1473, 2947]
    assert splitter.partial_size == 0


@given(st.integers(1, 30), st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=12))
def test_any_stream_in_any_pieces(size, stream, cuts):
    splitter = RecordSplitter(size)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = []
    for start, stop in itertools.pairwise(edges):
        fed = splitter.feed(stream[start:stop])
        assert len(fed) <= 2
        assert all(part and len(part) % size == 0 for part in fed)
        assert splitter.partial_size == stop % size
        parts += fed
    assert joined(parts) == stream[: len(stream) // size * size]


def test_whole_records_are_not_copied():
    arena = bytearray(built(0, bytes(3 * 1458)))
    (whole,) = RecordSplitter().feed(arena)
    arena[16] = 0xEE
    assert whole[16] == 0xEE


def test_what_was_handed_out_stays_as_it_is():
    splitter = RecordSplitter(4)
    splitter.feed(b"ab")
    (first,) = splitter.feed(b"cd12")
    (second,) = splitter.feed(b"34")
    assert (bytes(first), bytes(second)) == (b"abcd", b"1234")


def test_records_have_a_size():
    with pytest.raises(UsageError):
        RecordSplitter(0)


# --- acks and headers as the client takes them ---------------------------------------------------

malformed = st.sampled_from([b"a".ljust(8, b"\0"), bytes(8), b"A\0B".ljust(8, b"\0")])


@given(st.lists(st.tuples(st.integers(0, 40).map(ticket.index_to_wire) | malformed, st.integers(0, 255))))
def test_ack_runs_are_all_acks_in_order(acks):
    runs = frame.ack_runs(b"".join(wire + bytes([status]) for wire, status in acks))
    known = frame.indices(frames_of(*(wire for wire, _ in acks))).tolist()
    assert [(first + i, status) for first, count, status in runs for i in range(count)] == [
        (index, status) for index, (_, status) in zip(known, acks, strict=True)
    ]


@pytest.mark.parametrize(
    ("acks", "runs"),
    [
        ([("A", 1), ("B", 1), ("C", 1)], [(10, 3, 1)]),
        ([("A", 1), ("B", 2), ("C", 2)], [(10, 1, 1), (11, 2, 2)]),
        ([("A", 1), ("A", 1), ("9", 1)], [(10, 1, 1), (10, 1, 1), (9, 1, 1)]),
        ([("Z", 1), ("00", 1)], [(35, 2, 1)]),
        ([("ZZZZZZZZ", 1), ("0", 1)], [(ticket.LAST, 1, 1), (0, 1, 1)]),
    ],
)
def test_ack_runs_are_as_long_as_they_can_be(acks, runs):
    assert frame.ack_runs(b"".join(ticket.to_wire(name) + bytes([status]) for name, status in acks)) == runs


def test_ack_runs_of_malformed_tickets():
    assert frame.ack_runs(2 * (bytes(8) + b"\4") + b"0" + bytes(7) + b"\4") == [
        (-1, 1, 4),
        (-1, 1, 4),
        (0, 1, 4),
    ]
    assert frame.ack_runs(b"") == []
    with pytest.raises(UsageError):
        frame.ack_runs(bytes(10))


@given(indices, st.sampled_from(Status), st.integers(0, 2**32 - 1))
def test_run_headers_as_numbers(index, status, count):
    raw = RunHeader(ticket.index_to_wire(index), status, count).serialize()
    assert frame.parse_run_header(raw) == (index, status, count)


def test_bad_run_headers_as_numbers():
    good = RunHeader(ticket.to_wire("A"), Status.SAVED, 1).serialize()
    assert frame.parse_run_header(b"a" + good[1:]) == (-1, 1, 1)
    for at in (9, 10, 11):
        with pytest.raises(ProtocolError, match="zero"):
            frame.parse_run_header(good[:at] + b"\1" + good[at + 1 :])
    for status in (0, 10, 255):
        with pytest.raises(ProtocolError, match=f"{status} is not a status"):
            frame.parse_run_header(good[:8] + bytes([status]) + good[9:])
    with pytest.raises(UsageError):
        frame.parse_run_header(good[:15])
