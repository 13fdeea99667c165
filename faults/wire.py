"""Part 7: the wire. Every record, broken in every way, against real servers; the store then holds what was acknowledged.

Each kind of case is a list of parameters and a function that takes some of them at once; a case counts when its answers
are exactly those of docs/protocol.md. One server has the default limit of bad frames, which ends a connection at the third,
the other one has none to speak of, so that thousands of bad frames fit into one connection.
"""

from __future__ import annotations

import random
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_rig import data_of

from faults import progress
from faults.outcome import Outcome
from faults.wire_client import Acks, Talk, Target, flipped, frame_of, request_of, split, well_formed
from ingest import ticket
from ingest.limits import BAD_FRAME_LIMIT, FRAME_SIZE, RANGE_COUNT_MAX, REQUEST_SIZE
from ingest.status import Status
from ingest.store.layouts.layout import LAYOUTS
from ingest.ticket import LAST

NUMBER, TITLE = 7, "the wire, bit by bit"
FRAME_BITS = range(FRAME_SIZE * 8)
REQUEST_BITS = range(REQUEST_SIZE * 8)
ROUNDS = 100  # of cases that have no natural number: duplicates, rivals

Run = Callable[[Target, Sequence[Any]], None]


def wanted(found: object, expected: object, what: str) -> None:
    assert found == expected, f"{what}: {found}, expected {expected}"


def verdict(record: bytes) -> Status:
    """What is wrong with a frame or request that does not check."""
    return Status.BAD_CHECKSUM if well_formed(record[:8]) else Status.BAD_TICKET


def answers(records: Sequence[bytes]) -> Acks:
    return Counter((record[:8], verdict(record)) for record in records)


# --- flipped bits ----------------------------------------------------------------------------------


def flip_frames(target: Target, frame: bytes, bits: Sequence[int]) -> None:
    """Bad frames, as many in one connection as its limit lets, with a good one behind the last."""
    limit = BAD_FRAME_LIMIT if target.strict else 512
    for start in range(0, len(bits), limit):
        bad = [flipped(frame, bit) for bit in bits[start : start + limit]]
        index = target.take()
        with target.talk() as talk:
            talk.send(b"".join(bad) + target.put_frame(index))
            talk.end()
            if target.strict and len(bad) == limit:
                wanted(split(talk.rest()), answers(bad), "acks of flipped frames up to the limit")
            else:
                expected = answers(bad) + Counter([(ticket.index_to_wire(index), Status.SAVED)])
                wanted(talk.acks(len(bad) + 1), expected, "acks of flipped frames and a good one")
                target.saved(index)


def flip_put(target: Target, bits: Sequence[int]) -> None:
    index = target.take()
    target.touched |= neighbours(target.put_frame(index), bits)
    flip_frames(target, target.put_frame(index), bits)


def flip_delete(target: Target, bits: Sequence[int]) -> None:
    """The ticket is stored, so that a delete that gets through shows."""
    index = target.take()
    put(target, index)
    target.touched |= neighbours(target.delete_frame(index), bits)
    flip_frames(target, target.delete_frame(index), bits)


def neighbours(frame: bytes, bits: Sequence[int]) -> set[int]:
    """The tickets that a flip of a bit makes of a frame's own."""
    names = [flipped(frame, bit)[:8] for bit in bits if bit < 64]
    return {ticket.index_from_wire(name) for name in names if well_formed(name)}


def flip_get(target: Target, bits: Sequence[int]) -> None:
    flip_requests(target, bits, target.keys.get)


def flip_inventory(target: Target, bits: Sequence[int]) -> None:
    flip_requests(target, bits, target.keys.inventory)


def flip_requests(target: Target, bits: Sequence[int], key: bytes) -> None:
    """A request that is not taken gets one run with N = 0, and the end."""
    index = target.take()
    put(target, index)
    good = request_of(ticket.index_to_wire(index), 1, key)
    for bit in bits:
        bad = flipped(good, bit)
        with target.ask() as talk:
            talk.send(good + bad + good)
            reply = talk.header()
            wanted(reply, (good[:8], Status.SAVED, 1), "the reply to the good request before")
            rest = talk.rest()
        if key == target.keys.get:
            wanted(
                rest[16:FRAME_SIZE], data_of(index)[: FRAME_SIZE - 16], "the frame of the good request before"
            )
            rest = rest[FRAME_SIZE:]
        # A count out of bounds is BAD_TICKET too, and of two that apply either may come.
        allowed = {verdict(bad)} | ({Status.BAD_TICKET} if 64 <= bit < 128 else set())
        assert len(rest) == 16 and rest[:8] == bad[:8] and rest[9:] == bytes(7), f"bit {bit}: {rest.hex(' ')}"
        assert rest[8] in allowed, f"bit {bit}: {Status(rest[8]).name}"


def put(target: Target, index: int) -> None:
    with target.talk() as talk:
        talk.send(target.put_frame(index))
        wanted(talk.acks(1), ack(index, Status.SAVED), "the ack of a put")
    target.saved(index)


def ack(index: int, status: Status, times: int = 1) -> Acks:
    return Counter({(ticket.index_to_wire(index), status): times})


# --- cuts ------------------------------------------------------------------------------------------


def cut_put(target: Target, cuts: Sequence[int]) -> None:
    """The end of the stream inside a frame: dropped, counted, never acked; the whole ones before it are acked."""
    cut_frames(target, cuts, lambda index: target.put_frame(index))


def cut_delete(target: Target, cuts: Sequence[int]) -> None:
    def frame(index: int) -> bytes:
        put(target, index)
        return target.delete_frame(index)

    cut_frames(target, cuts, frame)


def cut_frames(target: Target, cuts: Sequence[int], second: Callable[[int], bytes]) -> None:
    before = target.counter("ingest_partial_frames_total")
    for cut in cuts:
        whole, partial = target.take(), target.take()
        frame = second(partial)
        with target.talk() as talk:
            talk.send(target.put_frame(whole) + frame[:cut])
            talk.end()
            wanted(split(talk.rest()), ack(whole, Status.SAVED), f"acks of one frame and {cut} bytes")
        target.saved(whole)
    counted = target.counter("ingest_partial_frames_total") - before
    wanted(counted, sum(cut > 0 for cut in cuts), "partial frames counted")


def cut_gets(target: Target, cuts: Sequence[int]) -> None:
    """Three pipelined requests, cut anywhere: the whole ones are answered in their order, then comes the end."""
    indices = [target.take() for _ in range(3)]
    for index in indices[:2]:
        put(target, index)
    requests = [request_of(ticket.index_to_wire(index), 1, target.keys.get) for index in indices]
    expected = [
        (ticket.index_to_wire(index), Status.SAVED, 1, target.put_frame(index)) for index in indices[:2]
    ]
    expected.append((ticket.index_to_wire(indices[2]), Status.MISSING, 1, b""))
    for cut in cuts:
        with target.ask() as talk:
            talk.send(b"".join(requests)[:cut])
            talk.end()
            found = [talk.run() for _ in range(cut // REQUEST_SIZE)]
            wanted(found, expected[: cut // REQUEST_SIZE], f"the replies to {cut} bytes of requests")
            wanted(talk.rest(), b"", "what follows the last reply")


def split_in_two(target: Target, cuts: Sequence[int]) -> None:
    """Two sends with a pause between them that the server sees: the first frame is answered before the second part goes."""
    for cut in cuts:
        first, second = target.take(), target.take()
        frames = target.put_frame(first) + target.put_frame(second)
        with target.talk() as talk:
            talk.send(frames[: FRAME_SIZE + cut])
            wanted(talk.acks(1), ack(first, Status.SAVED), "the first ack")
            talk.send(frames[FRAME_SIZE + cut :])
            wanted(talk.acks(1), ack(second, Status.SAVED), f"the ack of a frame in two pieces, cut at {cut}")
        target.saved(first)
        target.saved(second)


def byte_by_byte(target: Target, kinds: Sequence[str]) -> None:
    for kind in kinds:
        index = target.take()
        if kind == "put":
            dribble(target.talk(), target.put_frame(index), ack(index, Status.SAVED))
            target.saved(index)
            continue
        put(target, index)
        if kind == "delete":
            dribble(target.talk(), target.delete_frame(index), ack(index, Status.DELETED))
            target.deleted(index)
        else:
            name = ticket.index_to_wire(index)
            with target.ask() as talk:
                for byte in request_of(name, 1, target.keys.get):
                    talk.send(bytes([byte]))
                wanted(talk.run(), (name, Status.SAVED, 1, target.put_frame(index)), "a get byte by byte")


def dribble(talk: Talk, frame: bytes, expected: Acks) -> None:
    with talk:
        for byte in frame:
            talk.send(bytes([byte]))
        wanted(talk.acks(1), expected, "the ack of a frame that came byte by byte")


# --- replay, duplicates, rivals ----------------------------------------------------------------------


def replay(target: Target, rounds: Sequence[int]) -> None:
    """What somebody recorded, sent again: over the same connection and over another one."""
    for _ in rounds:
        index = target.take()
        kept, gone = target.put_frame(index), target.delete_frame(index)
        with target.talk() as one, target.talk() as two:
            for talk in (one, one, two):
                talk.send(kept)
                wanted(talk.acks(1), ack(index, Status.SAVED), "a put, replayed")
            for talk in (one, one, two):
                talk.send(gone)
                wanted(talk.acks(1), ack(index, Status.DELETED), "a delete, replayed")
            for talk in (one, two):
                talk.send(kept)
                wanted(talk.acks(1), ack(index, Status.DELETED), "a put, replayed after the delete")
        target.deleted(index)


def duplicates(target: Target, rounds: Sequence[int]) -> None:
    """One frame many times in one batch, and from many connections at once: SAVED each time."""
    for number in rounds:
        index, copies, connections = target.take(), 2 + number % 30, 1 + number % 6
        talks = [target.talk() for _ in range(connections)]
        for talk in talks:
            talk.send(target.put_frame(index) * copies)
        for talk in talks:
            with talk:
                wanted(talk.acks(copies), ack(index, Status.SAVED, copies), "acks of copies")
        target.saved(index)


def rivals(target: Target, rounds: Sequence[int]) -> None:
    """Other bytes under the same tickets at the same moment: each ticket has one winner, whose bytes stay."""
    for number in rounds:
        tickets = [target.take() for _ in range(1 + number % 8)]
        got: dict[int, Acks] = {}
        start = threading.Barrier(2 + number % 3)

        def put_version(
            version: int,
            tickets: list[int] = tickets,
            got: dict[int, Acks] = got,
            start: threading.Barrier = start,
        ) -> None:
            with target.talk() as talk:
                start.wait()
                talk.send(b"".join(target.put_frame(index, version) for index in tickets))
                got[version] = talk.acks(len(tickets))

        threads = [threading.Thread(target=put_version, args=(version,)) for version in range(start.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index in tickets:
            name = ticket.index_to_wire(index)
            winners = [version for version, acks in got.items() if acks[name, Status.SAVED]]
            losers = [version for version, acks in got.items() if acks[name, Status.CONFLICT]]
            assert len(winners) == 1 and len(losers) == start.parties - 1, (
                f"{name!r}: {winners} won, {losers} lost"
            )
            target.saved(index, winners[0])


# --- malformed tickets, counts out of bounds ----------------------------------------------------------

BASE = b"WIRED\0\0\0"
MALFORMED = [
    name
    for name in {
        *(BASE[:at] + bytes([value]) + BASE[at + 1 :] for at in range(8) for value in range(256)),
        *(b"ABCDEFGH"[:at] + bytes([value]) + b"ABCDEFGH"[at + 1 :] for at in range(8) for value in range(256)),
        bytes(8), b"\xff" * 8, b"../../..", b"A\0B\0C\0D\0", b"\0ABCDEFG",
    }
    if not well_formed(name)
]  # fmt: skip
BAD_COUNTS = [0, 65_537, 1 << 17, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1]


def malformed(target: Target, names: Sequence[bytes]) -> None:
    """Signed by who holds the key, and all the same no ticket: in a put, a delete, a get and an inventory."""
    step = 1 if target.strict else 128
    for start in range(0, len(names), step):
        frames = [
            frame_of(name, data, key)
            for name in names[start : start + step]
            for data, key in ((b"data", target.keys.put), (struct.pack(">Q", 1), target.keys.delete))
        ]
        with target.talk() as talk:
            talk.send(b"".join(frames))
            expected = Counter((frame[:8], Status.BAD_TICKET) for frame in frames)
            wanted(talk.acks(len(frames)), expected, "acks of malformed tickets")
    for name in names:
        refuse_requests(target, name, 1)


def refuse_requests(target: Target, name: bytes, count: int) -> None:
    for key in (target.keys.get, target.keys.inventory):
        with target.ask() as talk:
            talk.send(request_of(name, count, key))
            wanted(talk.header(), (name, Status.BAD_TICKET, 0), f"the reply to {name!r}, {count}")
            wanted(talk.rest(), b"", "what follows a refusal")


def bad_counts(target: Target, counts: Sequence[tuple[int, int]]) -> None:
    """(ticket, count) pairs out of bounds; ticket -1 stands for one of ours, stored."""
    for first, count in counts:
        index = target.take() if first < 0 else first
        if first < 0:
            put(target, index)
        with target.talk() as talk:
            talk.send(target.delete_frame(index, count))
            wanted(talk.acks(1), ack(index, Status.BAD_TICKET), f"a delete of {count} tickets")
        refuse_requests(target, ticket.index_to_wire(index), count)


def not_all_zeros(target: Target, places: Sequence[int]) -> None:
    """A byte after the count of a delete that is not zero; the rest of the frame is right and signed."""
    index = target.take()
    put(target, index)
    step = BAD_FRAME_LIMIT - 1 if target.strict else 256
    for start in range(0, len(places), step):
        with target.talk() as talk:
            some = places[start : start + step]
            for place in some:
                data = bytearray(struct.pack(">Q", 1) + bytes(1450))
                data[place] = 1
                talk.send(frame_of(ticket.index_to_wire(index), bytes(data), target.keys.delete))
            wanted(
                talk.acks(len(some)),
                ack(index, Status.BAD_TICKET, len(some)),
                "deletes with more than a count",
            )


# --- the run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    name: str
    run: Run
    cases: Sequence[Any]


KINDS = (
    Kind("put_bits_flipped", flip_put, FRAME_BITS),
    Kind("delete_bits_flipped", flip_delete, FRAME_BITS),
    Kind("get_bits_flipped", flip_get, REQUEST_BITS),
    Kind("inventory_bits_flipped", flip_inventory, REQUEST_BITS),
    Kind("puts_cut", cut_put, range(FRAME_SIZE)),
    Kind("deletes_cut", cut_delete, range(FRAME_SIZE)),
    Kind("frames_in_two_pieces", split_in_two, range(1, FRAME_SIZE)),
    Kind("gets_cut", cut_gets, range(3 * REQUEST_SIZE + 1)),
    Kind("byte_by_byte", byte_by_byte, ("put", "delete", "get")),
    Kind("replays", replay, range(ROUNDS)),
    Kind("duplicates", duplicates, range(ROUNDS)),
    Kind("rivals", rivals, range(2 * ROUNDS)),
    Kind("malformed_tickets", malformed, MALFORMED),
    Kind(
        "counts_out_of_bounds",
        bad_counts,
        [*((-1, count) for count in BAD_COUNTS), *((LAST + 2 - n, n) for n in (2, 3, 1000, RANGE_COUNT_MAX))],
    ),
    Kind("deletes_with_more_than_a_count", not_all_zeros, range(8, 1458)),
)
# Each case on both servers, of one layout: the layouts take turns.
CASES = 2 * sum(len(kind.cases) for kind in KINDS)


def run(seed: int, cases: int, directory: Path) -> Outcome:
    """All cases; or about `cases` of them, some of each kind."""
    chance = random.Random(seed)
    share = min(1.0, cases / CASES)
    counts = dict.fromkeys((kind.name for kind in KINDS), 0)
    losses: list[str] = []
    for strict in (False, True):
        for turn, layout in enumerate(LAYOUTS):
            name = f"{layout}-{'strict' if strict else 'lenient'}"
            (directory / name).mkdir()
            flags = [] if strict else ["--bad-frame-limit=1000000"]
            target = Target(directory / name, layout, *flags, strict=strict)
            try:
                for kind in KINDS:
                    mine = list(kind.cases[(turn + strict) % len(LAYOUTS) :: len(LAYOUTS)])
                    if share < 1:
                        mine = chance.sample(mine, max(1, int(len(mine) * share))) if mine else []
                    if mine:
                        found = one_kind(target, kind, mine, name)
                        losses += found
                        progress.done(len(mine), found)
                        counts[kind.name] += len(mine)
                if not losses:
                    losses += [f"{name}: {loss}" for loss in target.finish()]
            finally:
                target.close()
    return Outcome(seed, sum(counts.values()), losses[:20], counts)


def one_kind(target: Target, kind: Kind, cases: Sequence[Any], name: str) -> list[str]:
    try:
        kind.run(target, cases)
    except (AssertionError, OSError, ValueError) as error:
        return [f"{name}, {kind.name}: {type(error).__name__}: {error}"]
    return [f"{name}, {kind.name}: {loss}" for loss in target.look()]
