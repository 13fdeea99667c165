"""Checksums and keys: every path of the kernel against PyPI ``blake3``, and golden values."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from ingest import _hmac, mac
from ingest.errors import KeyFileError, UsageError

FRAME = 1474
REQUEST = 24
ROOT = Path(__file__).parent.parent
GOLDEN = json.loads((Path(__file__).parent / "vectors" / "contract.json").read_text())
SHARED = bytes.fromhex(GOLDEN["key_hex"])
KEY = bytes(range(100, 132))
DATA = {
    "1458 zero bytes": bytes(1458),
    "byte i is i mod 251": bytes(i % 251 for i in range(1458)),
    "1458 bytes of 0xff": b"\xff" * 1458,
    "'hello, chunk' padded with zeros": b"hello, chunk",
}


def wire(ticket: str) -> bytes:
    return ticket.encode().ljust(8, b"\0")


def plain_tags(key: bytes, frames: bytes) -> bytes:
    """The reference: one call of the library for each frame."""
    return b"".join(
        blake3(frames[i : i + 8] + frames[i + 16 : i + FRAME], key=key).digest(8)
        for i in range(0, len(frames), FRAME)
    )


def plain_request_tags(key: bytes, requests: bytes, stride: int) -> bytes:
    return b"".join(blake3(requests[i : i + 16], key=key).digest(8) for i in range(0, len(requests), stride))


def random_bytes(seed: int, n: int) -> bytes:
    return random.Random(seed).randbytes(n)


def signed(seed: int, n: int) -> bytearray:
    frames = bytearray(random_bytes(seed, n * FRAME))
    tags = plain_tags(KEY, frames)
    for i in range(n):
        frames[i * FRAME + 8 : i * FRAME + 16] = tags[8 * i : 8 * i + 8]
    return frames


@pytest.fixture(autouse=True)
def same_path_afterwards():
    before = _hmac.path()
    yield
    _hmac.force_path(before)


# --- memory with nothing around it ----------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def fenced(size: int, at_end: bool) -> memoryview:
    """``size`` writable bytes that end where an inaccessible page begins, or begin where one ends."""
    inner = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (address, address + mmap.PAGESIZE + inner):
        if _libc.mprotect(page, mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    start = mmap.PAGESIZE + (inner - size if at_end else 0)
    return memoryview(area)[start : start + size]


def exit_code_of(work, *arguments: object) -> int:
    """Runs ``work`` in a child, because a read outside of its memory ends the process; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    child.join(60)
    hangs = child.is_alive()
    child.kill()
    child.join()
    assert not hangs
    return child.exitcode


def read_behind(size: int) -> None:
    faulthandler.disable()
    view = fenced(size, True)
    ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(view)) + size, 1)


def read_before(size: int) -> None:
    faulthandler.disable()
    view = fenced(size, False)
    ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(view)) - 1, 1)


def use_fenced(path: str, at_end: bool) -> None:
    _hmac.force_path(path)
    for n in (*range(1, 20), 30, 33):
        frames = fenced(n * FRAME, at_end)
        frames[:] = signed(n, n)
        assert _hmac.tags(KEY, frames) == plain_tags(KEY, bytes(frames))
        _hmac.sign(KEY, frames)
        assert _hmac.verify(KEY, frames) == b"\1" * n
        for stride in (16, REQUEST, 1474):
            requests = fenced(n * stride, at_end)
            requests[:] = random_bytes(n, n * stride)
            assert _hmac.request_tags(KEY, requests, stride) == plain_request_tags(
                KEY, bytes(requests), stride
            )
    header = fenced(504, at_end)
    header[:] = random_bytes(1, 504)
    assert _hmac.digest504(header) == blake3(bytes(header)).digest(8)


def test_the_fence_stops_what_leaves_it():
    assert exit_code_of(read_behind, FRAME) == -signal.SIGSEGV
    assert exit_code_of(read_before, FRAME) == -signal.SIGSEGV


# --- the kernel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", _hmac.paths())
class TestEveryPath:
    """PyPI ``blake3`` is the oracle; each path must agree with it bit for bit."""

    @pytest.fixture(autouse=True)
    def forced(self, path: str, same_path_afterwards: None):
        _hmac.force_path(path)
        assert _hmac.path() == path

    @pytest.mark.parametrize("n", range(71))
    def test_tags_of_n_frames(self, path, n):
        frames = random_bytes(n, n * FRAME)
        assert _hmac.tags(KEY, frames) == plain_tags(KEY, frames)

    @given(
        n=st.integers(0, 70),
        seed=st.integers(0, 2**32),
        key=st.binary(min_size=32, max_size=32),
        data=st.data(),
    )
    def test_sign_then_verify(self, path, n, seed, key, data):
        _hmac.force_path(path)
        before = random_bytes(seed, n * FRAME)
        frames = bytearray(before)
        _hmac.sign(key, frames)
        tags = plain_tags(key, before)
        for i in range(n):
            start = i * FRAME
            assert frames[start : start + 8] == before[start : start + 8]
            assert frames[start + 8 : start + 16] == tags[8 * i : 8 * i + 8]
            assert frames[start + 16 : start + FRAME] == before[start + 16 : start + FRAME]
        assert _hmac.verify(key, frames) == b"\1" * n
        bad = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
        for i in bad:
            frames[i * FRAME + data.draw(st.integers(0, FRAME - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert _hmac.verify(key, frames) == bytes(i not in bad for i in range(n))

    @given(n=st.integers(0, 40), seed=st.integers(0, 2**32), stride=st.integers(16, 100))
    def test_request_tags(self, path, n, seed, stride):
        _hmac.force_path(path)
        requests = random_bytes(seed, n * stride)
        assert _hmac.request_tags(KEY, requests, stride) == plain_request_tags(KEY, requests, stride)

    @given(header=st.binary(min_size=504, max_size=600))
    def test_digest504(self, path, header):
        _hmac.force_path(path)
        assert _hmac.digest504(header) == blake3(header[:504]).digest(8)

    @given(n=st.integers(0, 64), seed=st.integers(0, 2**32))
    def test_digests504_of_many_headers(self, path, n, seed):
        _hmac.force_path(path)
        headers = [random_bytes(seed + i, 504) for i in range(n)]
        assert _hmac.digests504(headers) == b"".join(blake3(header).digest(8) for header in headers)

    def test_every_flipped_bit_is_refused(self, path):
        frame = bytes(signed(1, 1))
        frames = bytearray(frame * (FRAME * 8))
        for bit in range(FRAME * 8):
            frames[bit * FRAME + bit // 8] ^= 1 << (bit % 8)
        assert not any(_hmac.verify(KEY, frames))
        assert _hmac.verify(KEY, frame) == b"\1"

    @pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
    def test_every_flipped_bit_of_the_key_is_refused(self, path, n):
        frames = signed(2, n)
        for bit in range(256):
            key = bytearray(KEY)
            key[bit // 8] ^= 1 << (bit % 8)
            assert not any(_hmac.verify(key, frames))

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 16, 17])
    def test_each_lane_answers_for_its_own_frame(self, path, n):
        for bad in range(n):
            frames = signed(3, n)
            frames[bad * FRAME + FRAME - 1] ^= 0x80
            assert _hmac.verify(KEY, frames) == bytes(i != bad for i in range(n))

    def test_swapped_frames_keep_their_own_checksums_and_swapped_checksums_do_not(self, path):
        frames = signed(4, 2)
        swapped = frames[FRAME:] + frames[:FRAME]
        assert _hmac.verify(KEY, swapped) == b"\1\1"
        frames[8:16], frames[FRAME + 8 : FRAME + 16] = frames[FRAME + 8 : FRAME + 16], frames[8:16]
        assert _hmac.verify(KEY, frames) == b"\0\0"

    @pytest.mark.parametrize("n", [1, 4, 16, 30])
    def test_buffers_of_any_alignment(self, path, n):
        frames = signed(5, n)
        key = bytes(1) + KEY
        for offset in range(65):
            shifted = bytearray(offset) + frames
            view = memoryview(shifted)[offset:]
            assert _hmac.verify(memoryview(key)[1:], view) == b"\1" * n

    def test_verify_and_tags_leave_the_frames_alone(self, path):
        frames = signed(6, 33)
        before = bytes(frames)
        _hmac.verify(KEY, frames)
        _hmac.tags(KEY, frames)
        assert frames == before

    @pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
    def test_nothing_outside_of_the_buffer_is_touched(self, path, at_end):
        assert exit_code_of(use_fenced, path, at_end) == 0

    @pytest.mark.parametrize("call", ["verify", "tags", "sign", "request_tags"])
    def test_the_gil_is_released(self, path, call):
        """No thread is ever made to give up the GIL here: the other one runs only where it is released."""
        frames = bytearray(400 * 9 * FRAME)  # also a multiple of 24
        go = threading.Event()
        ran: list[int] = []
        other = threading.Thread(target=lambda: (go.wait(), ran.append(1)))
        interval = sys.getswitchinterval()
        other.start()
        function = getattr(_hmac, call)
        try:
            sys.setswitchinterval(1000.0)
            go.set()
            for _ in range(2000):
                function(KEY, frames)
                if ran:
                    break
            released = bool(ran)
        finally:
            sys.setswitchinterval(interval)
            other.join()
        assert released

    def test_threads_do_not_disturb_each_other(self, path):
        batches = [signed(seed, 40) for seed in range(4)]
        wrong: list[int] = []

        def work(batch: bytearray) -> None:
            for _ in range(50):
                if _hmac.verify(KEY, batch) != b"\1" * 40:
                    wrong.append(1)

        threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_golden_frames(self, path):
        keys = mac.derive(SHARED)
        for golden in GOLDEN["frames"]:
            frame = mac.build_frame(keys.put, wire(golden["ticket"]), DATA[golden["data"]])
            assert frame[8:16].hex() == golden["checksum_hex"]
            assert blake3(frame).hexdigest() == golden["frame_blake3_hex"]
            assert mac.frame_ok(keys.put, frame)
            for key in (keys.delete, keys.get, keys.inventory, SHARED):
                assert not mac.frame_ok(key, frame)

    def test_golden_deletes(self, path):
        keys = mac.derive(SHARED)
        for golden in GOLDEN["delete_frames"]:
            frame = mac.build_delete(keys.delete, wire(golden["ticket"]), golden["count"])
            assert frame[8:16].hex() == golden["checksum_hex"]
            assert int.from_bytes(frame[16:24], "big") == golden["count"]
            assert not any(frame[24:])
            assert not mac.frame_ok(keys.put, frame)

    @pytest.mark.parametrize("kind", ["get", "inventory"])
    def test_golden_requests(self, path, kind):
        keys = mac.derive(SHARED)
        right, other = (keys.get, keys.inventory) if kind == "get" else (keys.inventory, keys.get)
        for golden in GOLDEN[f"{kind}_requests"]:
            request = mac.build_request(right, wire(golden["ticket"]), golden["count"])
            assert request.hex() == golden["request_hex"]
            assert mac.request_ok(right, request)
            assert not mac.request_ok(other, request)

    def test_golden_pack_headers(self, path):
        for golden in GOLDEN["pack_headers"]:
            header = bytes.fromhex(golden["first_512_hex"])
            assert _hmac.digest504(header) == header[504:]


# --- what Python may hand over ----------------------------------------------------------------------


@pytest.mark.parametrize("call", [_hmac.tags, _hmac.verify, _hmac.sign])
@pytest.mark.parametrize("size", [1, 16, FRAME - 1, FRAME + 1, 3 * FRAME - 8])
def test_half_frames_are_an_error(call, size):
    with pytest.raises(UsageError, match=f"{size} bytes are not a multiple of 1474"):
        call(KEY, bytearray(size))


@pytest.mark.parametrize("call", [_hmac.tags, _hmac.verify, _hmac.sign, _hmac.request_tags])
@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_size_is_an_error(call, size):
    with pytest.raises(UsageError, match=f"a key has 32 bytes, not {size}"):
        call(bytes(size), bytearray(FRAME * REQUEST))


@pytest.mark.parametrize("call", [_hmac.tags, _hmac.verify, _hmac.sign, _hmac.request_tags])
@pytest.mark.parametrize("wrong", [None, "0" * FRAME, 5, [0] * FRAME])
def test_what_is_no_buffer_is_a_type_error(call, wrong):
    with pytest.raises(TypeError):
        call(KEY, wrong)
    with pytest.raises(TypeError):
        call(wrong, bytearray(FRAME * REQUEST))


def test_frames_that_cannot_be_written_cannot_be_signed():
    frames = bytes(FRAME)
    with pytest.raises(UsageError, match="frames must be a writable contiguous buffer"):
        _hmac.sign(KEY, frames)
    assert frames == bytes(FRAME)


def test_a_view_with_gaps_is_an_error():
    with pytest.raises(UsageError, match="contiguous"):
        _hmac.verify(KEY, memoryview(bytearray(2 * FRAME))[::2])


@pytest.mark.parametrize("stride", [15, 0, -24])
def test_requests_that_overlap_are_an_error(stride):
    with pytest.raises(UsageError, match="at least 16 bytes apart"):
        _hmac.request_tags(KEY, bytes(48), stride)


def test_half_requests_are_an_error():
    with pytest.raises(UsageError, match="47 bytes are not a multiple of 24"):
        _hmac.request_tags(KEY, bytes(47))


def test_a_short_header_is_an_error():
    with pytest.raises(UsageError, match="at least 504 bytes, not 503"):
        _hmac.digest504(bytes(503))
    with pytest.raises(UsageError):
        _hmac.digests504([bytes(504), bytes(503)])
    with pytest.raises(UsageError):
        _hmac.digests504([bytes(504)] * 65)


def test_a_buffer_is_free_again_after_a_call_and_after_an_error():
    frames = bytearray(FRAME)
    _hmac.sign(KEY, frames)
    _hmac.verify(KEY, frames)
    with pytest.raises(UsageError):
        _hmac.verify(b"", frames)
    frames += b"x"  # BufferError while anyone holds it
    with pytest.raises(UsageError):
        _hmac.verify(KEY, frames)
    frames += b"x"


# --- the choice of the path -------------------------------------------------------------------------


def test_the_portable_path_is_always_there_and_the_fastest_is_the_default():
    assert _hmac.paths()[-1] == "portable"
    _hmac.force_path("portable")
    _hmac.force_path(None)
    assert _hmac.path() == _hmac.paths()[0]


@pytest.mark.parametrize("name", ["", "sse9", "AVX2", " avx2", 2])
def test_an_unknown_path_is_refused_and_changes_nothing(name):
    before = _hmac.path()
    with pytest.raises(UsageError, match="is not known; known are avx512, avx2, portable"):
        _hmac.force_path(name)
    assert _hmac.path() == before


def import_with(path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from ingest import _hmac; print(_hmac.path())"],
        env={**os.environ, "INGEST_MAC_PATH": path, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
def test_the_environment_forces_a_path_or_says_why_not(name):
    child = import_with(name)
    if name in _hmac.paths():
        assert child.stdout == f"{name}\n"
    else:
        assert child.returncode != 0
        assert "INGEST_MAC_PATH" in child.stderr and "cannot run on this CPU" in child.stderr


def test_an_empty_variable_means_the_fastest():
    assert import_with("").stdout == f"{_hmac.paths()[0]}\n"


def test_an_unknown_path_in_the_environment_is_a_clear_error():
    child = import_with("avx1024")
    assert child.returncode != 0
    assert child.stderr.splitlines()[-1] == (
        "ingest.errors.ConfigError: INGEST_MAC_PATH: checksum path 'avx1024' is not known; "
        "known are avx512, avx2, portable"
    )


# --- keys -------------------------------------------------------------------------------------------


def test_golden_keys():
    keys = mac.derive(SHARED)
    assert keys.put.hex() == GOLDEN["put_key_hex"]
    assert keys.delete.hex() == GOLDEN["delete_key_hex"]
    assert keys.get.hex() == GOLDEN["get_key_hex"]
    assert keys.inventory.hex() == GOLDEN["inventory_key_hex"]
    assert keys.id == GOLDEN["key_id_hex"]


def test_no_key_is_printed():
    ring = mac.KeyRing([SHARED])
    for text in (repr(ring), repr(ring.signing)):
        assert GOLDEN["key_id_hex"] in text
        for key in (SHARED, ring.signing.put, ring.signing.delete, ring.signing.get, ring.signing.inventory):
            assert key.hex() not in text
            assert repr(key) not in text


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_shared_key_has_32_bytes(size):
    with pytest.raises(UsageError, match=f"a shared key has 32 bytes, not {size}"):
        mac.derive(bytes(size))
    with pytest.raises(UsageError):
        mac.KeyRing([SHARED, bytes(size)])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_ring_signs_with_the_first_and_accepts_two(n):
    shared = [bytes([i]) * 32 for i in range(n)]
    ring = mac.KeyRing(iter(shared))
    assert ring.all == tuple(mac.derive(key) for key in shared)
    assert ring.signing == ring.all[0]
    assert ring.accepted == ring.all[:2]
    assert ring.ids == tuple(blake3(key).hexdigest(8) for key in shared)


@pytest.mark.parametrize(
    "keys", [[], [SHARED, SHARED], [SHARED, bytes(32), bytearray(SHARED)], SHARED, "00" * 32]
)
def test_what_makes_no_ring(keys):
    with pytest.raises(UsageError):
        mac.KeyRing(keys)


def test_a_stored_frame_is_good_under_any_key_of_the_ring_for_puts_only():
    shared = [bytes([i]) * 32 for i in range(4)]
    ring = mac.KeyRing(shared)
    for keys in ring.all:
        assert ring.stored_frame_ok(mac.build_frame(keys.put, b"A" * 8, b"x"))
        assert not ring.stored_frame_ok(mac.build_frame(keys.delete, b"A" * 8, b"x"))
    assert not ring.stored_frame_ok(mac.build_frame(mac.derive(b"z" * 32).put, b"A" * 8, b"x"))


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5, unique=True))
def test_a_key_file_comes_back(keys):
    text = mac.format_keys(keys)
    assert mac.parse_keys(text) == keys
    assert mac.parse_keys(text.upper().replace("\n", " \r\n\n")) == keys


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        (" \n\n", "holds no key"),
        ("00" * 31, "line 1: expected one key of 64 hex digits"),
        ("00" * 33, "line 1: expected"),
        ("\n" + "0g" * 32, "line 2: expected"),
        ("00 " * 32, "line 1: expected"),
        ("\u0660" * 64, "line 1: expected"),
        ("11" * 32 + "\n" + "AA" * 32 + "\n" + "aa" * 32, "line 3: the same key stands in line 2"),
        ("11" * 32 + "\n\n\n" + "11" * 32, "line 4: the same key stands in line 1"),
    ],
)
def test_bad_key_files_are_refused_without_printing_them(text, says):
    with pytest.raises(KeyFileError, match=says) as caught:
        mac.parse_keys(text, "the/key")
    assert str(caught.value).startswith("the/key")
    assert not any(word in str(caught.value) for word in text.split())


# --- one frame, one request --------------------------------------------------------------------------


@given(data=st.binary(max_size=1458), ticket=st.binary(min_size=8, max_size=8))
def test_a_frame_is_ticket_checksum_and_padded_data(data, ticket):
    frame = mac.build_frame(KEY, ticket, data)
    assert frame[:8] == ticket
    assert frame[8:16] == blake3(ticket + data.ljust(1458, b"\0"), key=KEY).digest(8)
    assert frame[16:] == data.ljust(1458, b"\0")
    assert mac.frame_ok(KEY, frame)
    assert mac.frame_ok(KEY, memoryview(bytearray(frame)))


@pytest.mark.parametrize("ticket", [b"", b"A", b"A" * 7, b"A" * 9])
def test_a_ticket_has_8_bytes_on_the_wire(ticket):
    for build in (
        lambda: mac.build_frame(KEY, ticket, b""),
        lambda: mac.build_delete(KEY, ticket, 1),
        lambda: mac.build_request(KEY, ticket, 1),
    ):
        with pytest.raises(UsageError, match="a ticket has 8 bytes on the wire"):
            build()


def test_a_chunk_that_is_too_long_is_an_error():
    with pytest.raises(UsageError, match="at most 1458 bytes, not 1459"):
        mac.build_frame(KEY, b"A" * 8, bytes(1459))


@pytest.mark.parametrize("count", [0, -1, 65_537, 2**64])
def test_a_count_out_of_bounds_is_an_error(count):
    with pytest.raises(UsageError, match="between 1 and 65536"):
        mac.build_request(KEY, b"A" * 8, count)
    with pytest.raises(UsageError, match="between 1 and 65536"):
        mac.build_delete(KEY, b"A" * 8, count)


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME + 1, 2 * FRAME])
def test_one_frame_is_one_frame(size):
    with pytest.raises(UsageError, match="a frame has 1474 bytes"):
        mac.frame_ok(KEY, bytes(size))


@pytest.mark.parametrize("size", [0, 16, 23, 25, 48])
def test_one_request_is_one_request(size):
    with pytest.raises(UsageError, match="a request has 24 bytes"):
        mac.request_ok(KEY, bytes(size))


def test_every_flipped_bit_of_a_request_is_refused():
    request = mac.build_request(KEY, b"ABC" + bytes(5), 77)
    for bit in range(REQUEST * 8):
        bad = bytearray(request)
        bad[bit // 8] ^= 1 << (bit % 8)
        assert not mac.request_ok(KEY, bad)


def test_an_empty_key_file_is_put_back_before_a_new_key_is_made():
    with pytest.raises(KeyFileError, match=r"put back what stood in it.*new store.*keygen"):
        mac.parse_keys("\n", "the/key")
