"""The order of system calls, as strace saw them: no SAVED before the sync of the log that has the frame.

For each ack SAVED that a worker sends there must be, in this order and without overlap: the receive that completed the
frame, the committer's write of a batch with that frame to a segment, an fdatasync of the same descriptor that returned
0, the send.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from node_rig import NodeRig, put_frames

from ingest import ticket
from ingest.limits import ACK_SIZE, FRAME_SIZE

STRACE = shutil.which("strace")
LINE = re.compile(r"(\d+) +(\d+\.\d+) (\w+)\((.*)\) += (-?\d+)(?: .*)? <(\d+\.\d+)>")
UNFINISHED = re.compile(r"(\d+) +(\d+\.\d+) (\w+)\((.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"(\d+) +(\d+\.\d+) <\.\.\. (\w+) resumed>(.*)\) += (-?\d+)(?: .*)? <(\d+\.\d+)>")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass
class Call:
    process: int
    name: str
    began: float
    ended: float
    arguments: str
    result: int

    @property
    def descriptor(self) -> int:
        return int(self.arguments.split(",")[0])

    @property
    def data(self) -> bytes:
        match = STRING.search(self.arguments)
        if match is None:
            return b""
        assert match[2] is None, "strace cut the data short"
        return bytes.fromhex(match[1].replace("\\x", ""))


def calls(path: Path) -> list[Call]:
    """The finished calls of a log of ``strace -f -ttt -T -xx``, in the order in which they began."""
    found: list[Call] = []
    open_: dict[int, tuple[float, str]] = {}
    for line in path.read_text().splitlines():
        if match := LINE.fullmatch(line):
            process, began, name, arguments, result, took = match.groups()
            found.append(
                Call(int(process), name, float(began), float(began) + float(took), arguments, int(result))
            )
        elif match := UNFINISHED.fullmatch(line):
            open_[int(match[1])] = (float(match[2]), match[4])
        elif match := RESUMED.fullmatch(line):
            process, _, name, rest, result, took = match.groups()
            began, start = open_.pop(int(process))
            found.append(Call(int(process), name, began, began + float(took), start + rest, int(result)))
    return sorted(found, key=lambda call: call.began)


def check_order(found: list[Call], key_of: dict[bytes, bytes]) -> int:
    """Asserts the order for every ack; `key_of`: the first 16 bytes of each frame by its ticket. Returns the acks seen."""
    received: dict[bytes, float] = {}
    streams: dict[tuple[int, int], bytearray] = {}
    for call in found:
        if call.name in ("recvfrom", "recvmsg", "read") and call.result > 0 and (data := call.data):
            stream = streams.setdefault((call.process, call.descriptor), bytearray())
            stream += data[: call.result]
            while len(stream) >= FRAME_SIZE and bytes(stream[:8]) in key_of:
                received.setdefault(bytes(stream[:8]), call.ended)
                del stream[:FRAME_SIZE]
    logged: dict[bytes, Call] = {}
    for call in found:
        if call.name == "pwrite64" and call.data.startswith(b"INGBATCH"):
            data = call.data
            count = int.from_bytes(data[28:32], "big")
            for start in range(64, 64 + count * FRAME_SIZE, FRAME_SIZE):
                name = data[start : start + 8]
                assert data[start : start + 16] == key_of[name]
                logged.setdefault(name, call)
    syncs = [call for call in found if call.name == "fdatasync" and call.result == 0]
    acks = 0
    for call in found:
        if call.name not in ("sendto", "sendmsg", "write") or call.result <= 0:
            continue
        data = call.data[: call.result]
        for start in range(0, len(data) - len(data) % ACK_SIZE, ACK_SIZE):
            name = data[start : start + 8]
            if name not in key_of or data[start + 8] != 1:
                continue
            write = logged[name]
            assert received[name] <= write.began, f"{name!r} was logged before it was received"
            covered = [
                sync
                for sync in syncs
                if sync.descriptor == write.descriptor
                and write.ended <= sync.began
                and sync.ended <= call.began
            ]
            assert covered, f"{name!r} was acked before its log was synced"
            acks += 1
    return acks


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.timeout(300)
def test_no_ack_before_the_sync_of_its_frame(tmp_path: Path, layout: str) -> None:
    trace = tmp_path / "strace.log"
    assert STRACE
    probe = subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"strace cannot trace here: {probe.stderr.strip()}")
    names = "recvfrom,recvmsg,read,sendto,sendmsg,write,pwrite64,fdatasync"
    wrapper = [STRACE, "-f", "-ttt", "-T", "-xx", "-s", "8000000", "-e", f"trace={names}", "-o", str(trace)]
    rig = NodeRig(tmp_path / "data", f"--layout={layout}", wrapper=wrapper)
    first = ticket.parse("ORDER00")
    try:
        rig.start()
        key_of = {}
        for round_, count in enumerate((1, 1, 7, 1, 300, 2, 1, 500)):
            indices = range(first + round_ * 2000, first + round_ * 2000 + count)
            frames = put_frames(rig.keys, indices)
            for start in range(0, len(frames), FRAME_SIZE):
                key_of[bytes(frames[start : start + 8])] = bytes(frames[start : start + 16])
            with rig.connect() as one, rig.connect() as two:
                half = count // 2 * FRAME_SIZE
                one.send(frames[:half])
                two.send(frames[half:])
                one.acks(half // FRAME_SIZE)
                two.acks(count - half // FRAME_SIZE)
        assert rig.stop(60) == 0, rig.log()
    finally:
        rig.close()
    assert check_order(calls(trace), key_of) == len(key_of)


def test_the_checker_sees_an_early_ack() -> None:
    """What it must refuse: the same calls with the send before the sync, and with the sync of another file."""
    name = b"ORDER00\0"
    frame = name + b"checksum" + bytes(FRAME_SIZE - 16)
    head = b"INGBATCH" + bytes(20) + (1).to_bytes(4, "big") + bytes(32)

    def quoted(data: bytes) -> str:
        return '"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'

    receive = Call(1, "recvfrom", 1.0, 1.1, f"5, {quoted(frame)}, 9999, 0, NULL, NULL", len(frame))
    write = Call(2, "pwrite64", 2.0, 2.1, f"7, {quoted(head + frame)}, 4096, 4096", 4096)
    sync = Call(2, "fdatasync", 3.0, 3.1, "7", 0)
    send = Call(1, "sendto", 4.0, 4.1, f"5, {quoted(name + bytes([1]))}, 9, 0, NULL, 0", 9)
    key_of = {name: frame[:16]}
    assert check_order([receive, write, sync, send], key_of) == 1
    for wrong in (
        Call(2, "fdatasync", 3.0, 4.05, "7", 0),  # returned after the ack
        Call(2, "fdatasync", 2.05, 3.1, "7", 0),  # began before the write was over
        Call(2, "fdatasync", 3.0, 3.1, "8", 0),  # of another file
        Call(2, "fdatasync", 3.0, 3.1, "7", -1),  # failed
    ):
        with pytest.raises(AssertionError, match="before its log was synced"):
            check_order([receive, write, wrong, send], key_of)
