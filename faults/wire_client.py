"""A client that sends any bytes, and a model of what a server must hold after what it acknowledged."""

from __future__ import annotations

import re
import socket
import struct
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3
from node_rig import NodeRig, data_of, get_range, read_exactly

from ingest import sharding, ticket
from ingest._hmac import sign
from ingest.limits import ACK_SIZE, FRAME_SIZE, RUN_HEADER_SIZE
from ingest.status import Status
from ingest.store.layouts.pack_file import PackHeader, bits_of

TIMEOUT_S = 60.0
WELL_FORMED = re.compile(rb"[0-9A-Z]{1,8}\x00*")
Acks = Counter[tuple[bytes, Status]]


def well_formed(name: bytes) -> bool:
    """Whether 8 bytes are a ticket: docs/protocol.md, "Tickets"."""
    return WELL_FORMED.fullmatch(name) is not None


def frame_of(name: bytes, data: bytes, key: bytes) -> bytes:
    """A signed frame for any 8 bytes of ticket."""
    frame = bytearray(name + bytes(8) + data.ljust(1458, b"\0"))
    sign(key, frame)
    return bytes(frame)


def request_of(name: bytes, count: int, key: bytes) -> bytes:
    """A signed get or inventory request for any 8 bytes of ticket and any count below 2^64."""
    head = name + struct.pack(">Q", count)
    return head + blake3(head, key=key).digest(8)


def flipped(record: bytes, bit: int) -> bytes:
    changed = bytearray(record)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class Talk:
    """One connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def end(self) -> None:
        """The end of what this side sends."""
        self.sock.shutdown(socket.SHUT_WR)

    def acks(self, count: int) -> Acks:
        return split(read_exactly(self.sock, count * ACK_SIZE))

    def rest(self) -> bytes:
        """Everything up to the end of the stream. ConnectionResetError after a reset."""
        data = bytearray()
        while part := self.sock.recv(1 << 16):
            data += part
        return bytes(data)

    def run(self) -> tuple[bytes, Status, int, bytes]:
        """One run of a reply: ticket, status, count, frames (none for an inventory: read those with `header`)."""
        name, status, count = self.header()
        frames = read_exactly(self.sock, count * FRAME_SIZE) if status is Status.SAVED else b""
        return name, status, count, frames

    def header(self) -> tuple[bytes, Status, int]:
        raw = read_exactly(self.sock, RUN_HEADER_SIZE)
        assert raw[9:12] == bytes(3), raw.hex(" ")
        return raw[:8], Status(raw[8]), int.from_bytes(raw[12:], "big")


def split(raw: bytes) -> Acks:
    assert len(raw) % ACK_SIZE == 0, f"{len(raw)} bytes of acks"
    return Counter((raw[i : i + 8], Status(raw[i + 8])) for i in range(0, len(raw), ACK_SIZE))


class Target:
    """A server, and what it must hold: `stored` is {ticket's index: its data, None when it was deleted}.

    `take` hands out tickets that nobody had, four of each five never used, so that what is stored by mistake shows.
    """

    def __init__(self, directory: Path, layout: str, *flags: str, strict: bool) -> None:
        self.rig = NodeRig(directory / "data", f"--layout={layout}", "--reserve=0", "--workers=2", *flags)
        self.rig.start()
        self.keys = self.rig.keys
        self.layout = layout
        self.strict = strict  # the third bad frame ends a connection
        self.stored: dict[int, bytes | None] = {}
        self.touched: set[int] = set()  # since the last look
        self._next = ticket.parse("WIRE000")

    def take(self) -> int:
        self._next += 5
        self.touched.update(range(self._next - 2, self._next + 3))
        return self._next

    def put_frame(self, index: int, version: int = 0) -> bytes:
        return frame_of(ticket.index_to_wire(index), data_of(index, version), self.keys.put)

    def delete_frame(self, index: int, count: int = 1) -> bytes:
        return frame_of(ticket.index_to_wire(index), struct.pack(">Q", count), self.keys.delete)

    def saved(self, index: int, version: int = 0) -> None:
        """An ack said so."""
        assert index not in self.stored or self.stored[index] == data_of(index, version)
        self.stored[index] = data_of(index, version)

    def deleted(self, index: int, count: int = 1) -> None:
        self.stored.update(dict.fromkeys(range(index, index + count)))

    def talk(self) -> Talk:
        return Talk(self.rig.put_address)

    def ask(self) -> Talk:
        return Talk(self.rig.get_address)

    def counter(self, name: str) -> int:
        """The sum of a metric over all processes."""
        host, port = self.rig.admin_address
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.M)
        assert found, f"there is no metric {name}"
        return int(sum(map(float, found)))

    def wrong(self, indices: Iterable[int]) -> Iterator[str]:
        """What of these tickets is not as the model says."""
        wanted = sorted(set(indices))
        with socket.create_connection(self.rig.get_address, TIMEOUT_S) as sock:
            while wanted:
                count = sum(index < wanted[0] + 4096 for index in wanted[:4096])
                first, last = wanted[0], wanted[count - 1]
                found = get_range(sock, self.keys, first, last - first + 1)
                for index in wanted[:count]:
                    status, data = found[index - first]
                    if index not in self.stored:
                        expected, bytes_ = Status.MISSING, b""
                    else:
                        held = self.stored[index]
                        expected, bytes_ = (Status.DELETED, b"") if held is None else (Status.SAVED, held)
                    if (status, data) != (expected, bytes_):
                        yield f"{ticket.format(index)}: {expected.name} expected, {status.name} found" + (
                            " with other bytes" if status is expected else ""
                        )
                wanted = wanted[count:]

    def look(self) -> list[str]:
        """Whether the tickets that were touched since the last look hold what was acknowledged, and nothing else."""
        losses = list(self.wrong(self.touched | {index for index in self.stored if index in self.touched}))
        self.touched.clear()
        return losses

    def on_disk(self) -> set[int]:
        """The indices of all tickets of which the disk says something; after a clean stop."""
        found = set()
        for path in self.rig.data_dir.rglob("obj"):
            relative = str(path.relative_to(self.rig.data_dir))
            if self.layout == "tree":
                found.add(ticket.parse(ticket.from_tree_path(relative)))
                continue
            header = PackHeader.parse(path.read_bytes()[:512])
            pack = sharding.pack_of_path(relative)
            slots = {*bits_of(header.present), *bits_of(header.deleted)}
            found |= {sharding.slot_ticket(pack, slot) for slot in slots}
        return found

    def finish(self) -> list[str]:
        """After a clean stop the disk has what was acknowledged and no other ticket, and a new start serves it."""
        if code := self.rig.stop():
            return [f"a clean stop ended with {code}:\n{self.rig.log()}"]
        found, expected = self.on_disk(), set(self.stored)
        losses = [
            f"{ticket.format(index)} is on the disk and was never acknowledged" for index in found - expected
        ]
        losses += [
            f"{ticket.format(index)} was acknowledged and is not on the disk" for index in expected - found
        ]
        self.rig.start()
        losses += self.wrong(self.stored)
        self.rig.stop()
        return losses

    def close(self) -> None:
        self.rig.close()
