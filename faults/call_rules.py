"""The order of system calls, as strace saw them, held against what may be acknowledged when.

The rules (docs/architecture.md, "Guarantees, and what they rest on"):

    ack         SAVED or DELETED is sent after an fdatasync of the segment that has the frame's batch returned 0; it began
                after the batch was written whole, and that began after the frame was received
    log         a batch is written after the sync of the one before it; the first one of a segment after that of its header
    bit         a pack's header shows a slot present or deleted only after the sync of the batch that says so
    bulk        a note is written after its pack's fdatasync, which began after the last direct write; and after each
                directory in which something was made on the way to the pack was synced
    header      a long run's first direct write into a pack begins after its header is on the disk: written with O_DIRECT, or
                synced since. (A file system that refuses O_DIRECT is not held to it.)
    recycle     the log says "synced to N" only after a syncfs that began when the packs had all of the batches up to N; and
                where each file is synced by itself, after a sync of each file that these batches wrote to, and of each
                directory in which something was made on the way to it

What the log holds is read from its segments, what went through the sockets is known to the client.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from faults.strace import Call
from ingest import limits, sharding, ticket
from ingest.limits import ACK_SIZE, FRAME_SIZE
from ingest.status import Status
from ingest.store.layouts.pack_file import PackHeader, bits_of
from ingest.store.log.log_format import BATCH_HEADER_SIZE, BLOCK_SIZE, NOTE_SIZE, Note, padded

FAR = 1 << 60  # a line number behind every line


@dataclass
class Session:
    """One put connection as its client saw it: the tickets of the frames that it sent, the acks that it got, in order."""

    sent: list[bytes] = field(default_factory=list)
    acks: bytearray = field(default_factory=bytearray)

    @cached_property
    def places(self) -> dict[bytes, int]:
        """Which of the frames that were sent was the first one of a ticket."""
        return {name: i for i, name in reversed(list(enumerate(self.sent)))}


@dataclass
class LoggedBatch:
    """What one batch of the log says. `deletes` are the tickets of delete frames, `notes` (pack, first slot, count)."""

    puts: list[int] = field(default_factory=list)
    deletes: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    notes: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Written:
    """How a batch came to the log: lines where its write began and ended, and where its sync was over."""

    number: int
    path: str
    thread: int
    synced_to: int
    began: int
    ended: int
    synced: int = FAR


class Checker:
    """Holds the calls of one server's life against the rules. `losses` are what broke them; `counts` what was looked at.
    `each_file`: on this file system a syncfs is not enough."""

    def __init__(
        self,
        found: list[Call],
        sessions: list[Session],
        batches: dict[int, LoggedBatch],
        data: Path,
        *,
        each_file: bool = False,
    ) -> None:
        self.each_file = each_file
        self.calls = found
        self.sessions = sessions
        self.batches = batches
        self.data = str(data)
        self.losses: list[str] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.written: dict[int, Written] = {}
        self.claimed: dict[int, int] = {}  # "synced to N": the line of the first write that says so
        self.syncs: dict[str, list[Call]] = defaultdict(list)  # that returned 0, by path, by where they began
        for call in sorted(found, key=lambda call: call.began):
            if call.name in ("fdatasync", "fsync", "syncfs") and call.result == 0:
                self.syncs["syncfs" if call.name == "syncfs" else call.path].append(call)

    def check(self) -> None:
        self.check_log()
        self.check_acks()
        self.check_bits()
        self.check_notes()
        self.check_recycling()

    def lose(self, line: int, text: str) -> None:
        self.losses.append(f"line {line + 1} of the strace log: {text}")

    def synced_after(self, path: str, line: int) -> int:
        """The line at which the first sync of `path` ended that began after `line`; FAR when there is none."""
        syncs = self.syncs[path]
        start = bisect.bisect_right([call.began for call in syncs], line)
        return min((call.ended for call in syncs[start : start + 64]), default=FAR)

    # --- the log

    def check_log(self) -> None:
        partial: dict[
            str, tuple[Written, int, int]
        ] = {}  # by path: a batch whose rest is still to be written
        header_synced: dict[str, int] = {}
        previous: Written | None = None
        for call in self.calls:
            if call.name != "pwrite64" or not call.path.endswith(".log") or call.result <= 0:
                continue
            data = call.data
            if data.startswith(b"INGWAL01"):
                header_synced[call.path] = self.synced_after(call.path, call.ended)
                self.claims(call, int.from_bytes(data[56:64], "big"))
                self.counts["segments"] += 1
            elif data.startswith(b"INGBATCH") and call.offset:
                written = Written(
                    int.from_bytes(data[8:16], "big"), call.path, call.thread,
                    int.from_bytes(data[40:48], "big"), call.began, call.ended,
                )  # fmt: skip
                self.claims(call, written.synced_to)
                if header_synced.get(call.path, -1) > call.began:
                    self.lose(
                        call.began, f"batch {written.number} behind a segment header that was not synced"
                    )
                if previous is not None and previous.synced > call.began:
                    self.lose(call.began, f"batch {written.number} before batch {previous.number} was synced")
                if call.result < call.size:
                    partial[call.path] = (written, call.offset + call.result, call.offset + call.size)
                written.synced = self.synced_after(call.path, call.ended)
                # One that recovery settles is written twice under its number: the first time counts.
                self.written.setdefault(written.number, written)
                previous = written
                self.counts["batches"] += 1
            elif call.path in partial and call.offset == partial[call.path][1]:
                written, position, end = partial.pop(call.path)
                written.ended = call.ended
                written.synced = self.synced_after(call.path, call.ended)
                if position + call.result < end:
                    partial[call.path] = (written, position + call.result, end)

    def claims(self, call: Call, synced_to: int) -> None:
        """A record of the log says how far the packs are: who reads it may rely on that from its write on."""
        self.claimed.setdefault(synced_to, call.began)

    # --- acks

    def check_acks(self) -> None:
        where: dict[bytes, int] = {}
        for number, batch in sorted(self.batches.items()):
            for index in (*batch.puts, *batch.deletes):
                where.setdefault(ticket.index_to_wire(index), number)
            for pack, slot, count in batch.notes:
                for i in range(count):
                    where.setdefault(ticket.index_to_wire(sharding.slot_ticket(pack, slot + i)), number)
        by_first = {session.sent[0]: session for session in self.sessions if session.sent}
        sockets: dict[str, Session] = {}
        arrived: dict[str, int] = defaultdict(int)
        left: dict[str, int] = defaultdict(int)
        received: dict[tuple[int, int], int] = {}
        acked = 0
        for call in self.calls:
            if call.result <= 0:
                continue
            if call.name == "recvfrom":
                session = sockets.get(call.path) or by_first.pop(call.data[:8], None)
                if session is None:
                    continue
                sockets[call.path] = session
                before = arrived[call.path] // FRAME_SIZE
                arrived[call.path] += call.result
                for frame in range(before, arrived[call.path] // FRAME_SIZE):
                    received[id(session), frame] = call.ended
            elif call.name == "sendto" and call.path in sockets:
                session = sockets[call.path]
                start = -(-left[call.path] // ACK_SIZE)
                left[call.path] += call.result
                for i in range(start, -(-left[call.path] // ACK_SIZE)):
                    acked += self.check_ack(call, session, i, where, received)
        self.counts["acks"] = acked

    def check_ack(
        self,
        call: Call,
        session: Session,
        i: int,
        where: dict[bytes, int],
        received: dict[tuple[int, int], int],
    ) -> bool:
        """The ack number `i` of a session, which `call` sent. Whether it was one that promises something."""
        ack = bytes(session.acks[i * ACK_SIZE : (i + 1) * ACK_SIZE])
        if not ack or ack[8] not in (Status.SAVED, Status.DELETED):
            return False
        name = ack[:8]
        written = self.written.get(where.get(name, -1))
        text = f"{name.rstrip(bytes(1)).decode()} was acknowledged {Status(ack[8]).name}"
        if written is None:
            self.lose(call.began, f"{text} and no batch of the log has it")
        elif written.synced > call.began:
            self.lose(call.began, f"{text} before batch {written.number} of the log was synced")
        else:
            if received.get((id(session), session.places[name]), FAR) > written.began:
                self.lose(call.began, f"{text} and was logged before it was received")
        return True

    # --- bits

    def check_bits(self) -> None:
        synced: dict[tuple[int, int], int] = {}  # (pack, slot): line from which its bit may be set
        for number, batch in sorted(self.batches.items()):
            line = self.written[number].synced if number in self.written else FAR
            for index in (*batch.puts, *batch.deleted):
                place = sharding.ticket_pack(index), sharding.ticket_slot(index)
                synced.setdefault(place, line)
            for pack, slot, count in batch.notes:
                for i in range(count):
                    synced.setdefault((pack, slot + i), line)
        shown: set[tuple[int, int]] = set()
        for call in self.calls:
            for place in self.places_shown(call) - shown:
                shown.add(place)
                self.counts["bits"] += 1
                if synced.get(place, FAR) > call.began:
                    self.lose(
                        call.began, f"slot {place[1]} of {call.path} shows before the log has it durably"
                    )

    def places_shown(self, call: Call) -> set[tuple[int, int]]:
        """The (pack, slot) of all that a call lets readers see, present or deleted: a header, or an attribute of a file."""
        if call.name == "pwrite64" and call.data.startswith(b"INGPACK1") and call.offset == 0:
            header = PackHeader.parse(call.data)
            pack = sharding.pack_id(header.prefix)
            return {(pack, slot) for bits in (header.present, header.deleted) for slot in bits_of(bits)}
        path = call.path
        if call.name == "fsetxattr" and path.startswith(self.data) and path.endswith("/obj"):
            index = ticket.parse(ticket.from_tree_path(path[len(self.data) + 1 :]))
            return {(sharding.ticket_pack(index), sharding.ticket_slot(index))}
        return set()

    # --- the bulk path

    def check_notes(self) -> None:
        writes: dict[str, list[Call]] = defaultdict(list)
        made: dict[str, list[int]] = defaultdict(list)  # by directory: lines at which an entry was made in it
        seen: set[str] = set()
        headers = self.headers_on_disk()
        for call in self.calls:
            if call.name == "pwrite64" and call.path.startswith(self.data) and call.path.endswith("obj"):
                writes[call.path].append(call)
            elif call.name == "mkdirat" and call.result == 0:
                made[call.path].append(call.ended)
            elif call.name == "openat2" and "O_CREAT" in call.arguments and call.result >= 0:
                path = f"{call.path}/{call.data.decode()}"
                if path not in seen:
                    made[path.rpartition("/")[0]].append(call.ended)
                    seen.add(path)
        for number, batch in self.batches.items():
            written = self.written.get(number)
            if written is None:
                continue
            for pack, slot, count in batch.notes:
                self.counts["notes"] += 1
                path = f"{self.data}/{sharding.pack_path(pack)}"
                start, end = sharding.slot_offset(slot), sharding.slot_offset(slot + count - 1) + FRAME_SIZE
                direct = [
                    call
                    for call in writes[path]
                    if call.ended < written.began
                    and call.thread != written.thread
                    and call.offset < end
                    and call.offset + call.size > start
                ]
                if not direct:
                    self.lose(
                        written.began, f"batch {number} notes slot {slot} of {path}, which nobody wrote"
                    )
                elif self.synced_after(path, max(call.ended for call in direct)) > written.began:
                    self.lose(written.began, f"batch {number} notes {path} before it was synced")
                if direct and headers.get(path, FAR) > min(call.began for call in direct):
                    self.lose(
                        written.began,
                        f"batch {number} notes slots of {path}, written before its header was on the disk",
                    )
                self.check_directories(number, written, path, made)

    def headers_on_disk(self) -> dict[str, int]:
        """By path of a pack: the first line at which a header of it was on the disk, whatever a power cut takes."""
        found: dict[str, int] = {}
        direct: set[str] = set()  # descriptors, with their paths, that are past the page cache now
        for call in self.calls:
            descriptor = call.arguments.partition(",")[0]
            if call.name == "fcntl" and "F_SETFL" in call.arguments:
                direct.discard(descriptor)
                if "O_DIRECT" in call.arguments and call.result == 0:
                    direct.add(descriptor)
                elif "O_DIRECT" in call.arguments:
                    found.setdefault(call.path, call.ended)  # not to be had on this file system
            elif (
                call.name == "pwrite64"
                and call.data.startswith(b"INGPACK1")
                and call.offset == 0
                and call.result == call.size
                and found.get(call.path, FAR) > call.began
            ):
                line = call.ended
                if descriptor not in direct:
                    enough = (call.path,) if self.each_file else (call.path, "syncfs")
                    line = min(self.synced_after(path, line) for path in enough)
                found[call.path] = min(line, found.get(call.path, FAR))
                self.counts["direct_headers"] += descriptor in direct
        return found

    def check_directories(self, number: int, written: Written, path: str, made: dict[str, list[int]]) -> None:
        directory = path.rpartition("/")[0]
        while len(directory) >= len(self.data):
            entries = [line for line in made[directory] if line < written.began]
            # Of entries that others make meanwhile nothing is known: only those on the way to this pack count.
            if entries and self.synced_after(directory, min(entries)) > written.began:
                self.lose(
                    written.began, f"batch {number} notes {path} before its directory {directory} was synced"
                )
            self.counts["directories"] += 1
            directory = directory.rpartition("/")[0]

    # --- recycling

    def check_recycling(self) -> None:
        applied: list[tuple[int, int]] = []  # (batch, line at which the packs had it)
        order = sorted(self.written.values(), key=lambda written: written.began)
        stores = [
            call
            for call in self.calls
            if call.name in ("pwrite64", "fsetxattr", "setxattr", "renameat2", "linkat")
            and call.path.startswith(self.data)
            and not call.path.endswith(".log")
            # A new pack's header is made for a batch that is not written yet.
            and not (call.name == "pwrite64" and call.offset == 0 and call.size == limits.PACK_HEADER_SIZE)
        ]
        for written, after in zip(order, [*order[1:], None], strict=True):
            end = after.began if after is not None else FAR
            mine = [
                call.ended
                for call in stores
                if call.thread == written.thread and written.ended < call.began < end
            ]
            applied.append((written.number, max(mine, default=written.ended)))
        for synced_to, line in sorted(self.claimed.items()):
            needed = max((end for number, end in applied if number <= synced_to), default=-1)
            if needed < 0:
                continue
            self.counts["recycled"] += 1
            if self.synced_after("syncfs", needed) > line:
                self.lose(
                    line, f"the log says that the packs hold batch {synced_to} durably: no syncfs says so"
                )
            if self.each_file:
                self.check_each_file(synced_to, line, [call for call in stores if call.ended <= needed])

    def check_each_file(self, synced_to: int, line: int, stores: list[Call]) -> None:
        """What the committer's own thread has written, which is last in each file, and the names on the way to it. (What a
        bulk job writes meanwhile is not the log's matter before it is noted.)"""
        threads = {written.thread for written in self.written.values()}
        last = {call.path: call.ended for call in stores if call.thread in threads}
        made = self.names_made
        for path, ended in last.items():
            self.counts["files"] += 1
            missing = [path] if self.synced_after(path, ended) > line else []
            while len(path) > len(self.data):
                directory = path.rpartition("/")[0]
                if path in made and self.synced_after(directory, made[path]) > line:
                    missing.append(directory)
                path = directory
            for name in missing:
                self.lose(
                    line, f"the log says that the packs hold batch {synced_to} durably: {name} was not synced"
                )

    @cached_property
    def names_made(self) -> dict[str, int]:
        """By path of a file or directory: the line at which this server made it."""
        made: dict[str, int] = {}
        for call in self.calls:
            new = call.name == "mkdirat" or (call.name == "openat2" and "O_CREAT" in call.arguments)
            if new and call.result >= 0:
                made.setdefault(f"{call.path}/{call.data.decode()}", call.ended)
        return made


def read_segments(directory: Path, batches: dict[int, LoggedBatch]) -> None:
    """Adds what the log's segments hold now. To be called when all is answered, more often than the log goes round."""
    for path in sorted(directory.glob("*.log")):
        content = path.read_bytes()
        number, offset = int.from_bytes(content[40:48], "big"), BLOCK_SIZE
        while content[offset : offset + 16] == b"INGBATCH" + number.to_bytes(8, "big"):
            length, puts, deletes, notes = (
                int.from_bytes(content[offset + at : offset + at + 4], "big") for at in (24, 28, 32, 36)
            )
            batches[number] = parse_payload(
                content[offset + BATCH_HEADER_SIZE : offset + length], puts, deletes, notes
            )
            offset += padded(length)
            number += 1


def parse_payload(payload: bytes, puts: int, deletes: int, notes: int) -> LoggedBatch:
    batch = LoggedBatch()
    for i in range(puts + deletes):
        index = ticket.index_from_wire(payload[i * FRAME_SIZE : i * FRAME_SIZE + 8])
        if i < puts:
            batch.puts.append(index)
        else:
            count = int.from_bytes(payload[i * FRAME_SIZE + 16 : i * FRAME_SIZE + 24], "big")
            batch.deletes.append(index)
            batch.deleted += range(index, index + count)
    for i in range(notes):
        at = (puts + deletes) * FRAME_SIZE + i * NOTE_SIZE
        note = Note.parse(payload[at : at + NOTE_SIZE])
        batch.notes.append((sharding.pack_id(note.prefix), note.slot, note.count))
    return batch
