# distutils: sources = ingest/csrc/blake3_lanes.c
# distutils: depends = ingest/csrc/blake3_lanes.h ingest/csrc/blake3_lanes_group.h ingest/csrc/blake3_lanes_row.h
"""Checksums of frames and requests, many at a time: keyed BLAKE3 truncated to 8 bytes (`docs/protocol.md`, "Keys and checksums").

``csrc/blake3_lanes.h`` computes; this module owns the choice of its path and what Python sees. The environment
variable ``INGEST_MAC_PATH`` (avx512, avx2 or portable) forces a path for tests and benchmarks; it is read at import.
Buffers may be any C-contiguous object with the buffer protocol. The GIL is released while checksums are computed.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from ingest.errors import ConfigError, UsageError


cdef extern from "csrc/blake3_lanes.h" nogil:
    enum: LANES_PORTABLE
    enum: LANES_AVX2
    enum: LANES_AVX512
    int lanes_available(int path)
    int lanes_path()
    int lanes_use(int path)
    void lanes_frame_tags(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags)
    void lanes_request_tags(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
    void lanes_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags)
    void lanes_frames_sign(const uint8_t *key, uint8_t *frames, size_t n)
    size_t lanes_frames_verify(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *good)


cdef enum:
    KEY_BYTES = 32
    TAG_BYTES = 8
    FRAME_BYTES = 1474
    REQUEST_BYTES = 24
    REQUEST_SIGNED_BYTES = 16
    HEADER_BYTES = 504

_PATHS = {"avx512": LANES_AVX512, "avx2": LANES_AVX2, "portable": LANES_PORTABLE}  # fastest first


cdef void hmac_tags(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags) noexcept nogil:
    lanes_frame_tags(key, frames, n, tags)


cdef void hmac_sign(const uint8_t *key, uint8_t *frames, size_t n) noexcept nogil:
    lanes_frames_sign(key, frames, n)


cdef size_t hmac_verify(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *good) noexcept nogil:
    return lanes_frames_verify(key, frames, n, good)


cdef void hmac_requests(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags) noexcept nogil:
    lanes_request_tags(key, requests, n, stride, tags)


cdef void hmac_digest504(const uint8_t *header, uint8_t *tag) noexcept nogil:
    lanes_digests504(&header, 1, tag)


cdef void hmac_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags) noexcept nogil:
    lanes_digests504(headers, n, tags)


def paths():
    """Names of the paths that this CPU can run, the fastest first."""
    return tuple([name for name, path in _PATHS.items() if lanes_available(path)])


def path():
    """Name of the path in use."""
    cdef int used = lanes_path()
    return next(name for name, path in _PATHS.items() if path == used)


def force_path(name):
    """Uses the path ``name`` in this process from now on, in all threads; None means the fastest again.

    Raises UsageError for a name that is unknown or that this CPU cannot run; nothing changes then."""
    if name is None:
        name = paths()[0]
    if name not in _PATHS:
        raise UsageError(f"checksum path {name!r} is not known; known are {', '.join(_PATHS)}")
    if lanes_use(_PATHS[name]) != 0:
        raise UsageError(f"checksum path {name!r} cannot run on this CPU; it can run {', '.join(paths())}")


cdef class _Bytes:
    """The bytes of a buffer, held until this object dies: nobody can resize or free it meanwhile."""

    cdef Py_buffer view
    cdef uint8_t *start
    cdef size_t size

    def __cinit__(self, what, owner, bint writable):
        try:
            PyObject_GetBuffer(owner, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        except BufferError as e:
            kind = "writable contiguous" if writable else "contiguous"
            raise UsageError(f"{what} must be a {kind} buffer: {e}") from None
        self.start = <uint8_t *>self.view.buf
        self.size = <size_t>self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)  # does nothing where __cinit__ took nothing


cdef _Bytes _key(owner):
    cdef _Bytes key = _Bytes("key", owner, False)
    if key.size != KEY_BYTES:
        raise UsageError(f"a key has {KEY_BYTES} bytes, not {key.size}")
    return key


cdef _Bytes _rows(what, owner, size_t row, bint writable):
    cdef _Bytes rows = _Bytes(what, owner, writable)
    if rows.size % row != 0:
        raise UsageError(f"{what}: {rows.size} bytes are not a multiple of {row}")
    return rows


def tags(key, frames):
    """The checksums that ``frames`` (n · 1474 bytes) should carry under ``key`` (32 bytes): n · 8 bytes.

    Raises UsageError for a wrong size."""
    cdef _Bytes k = _key(key)
    cdef _Bytes f = _rows("frames", frames, FRAME_BYTES, False)
    cdef size_t n = f.size // FRAME_BYTES
    result = PyBytes_FromStringAndSize(NULL, n * TAG_BYTES)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(result)
    with nogil:
        hmac_tags(k.start, f.start, n, out)
    return result


def sign(key, frames):
    """Writes its checksum into each of ``frames`` (writable, n · 1474 bytes). Raises UsageError for a wrong size."""
    cdef _Bytes k = _key(key)
    cdef _Bytes f = _rows("frames", frames, FRAME_BYTES, True)
    with nogil:
        hmac_sign(k.start, f.start, f.size // FRAME_BYTES)


def verify(key, frames):
    """One byte for each of ``frames`` (n · 1474 bytes): 1 when it carries the right checksum, else 0.

    The time does not depend on the frames' bytes. Raises UsageError for a wrong size."""
    cdef _Bytes k = _key(key)
    cdef _Bytes f = _rows("frames", frames, FRAME_BYTES, False)
    cdef size_t n = f.size // FRAME_BYTES
    result = PyBytes_FromStringAndSize(NULL, n)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(result)
    with nogil:
        hmac_verify(k.start, f.start, n, out)
    return result


def request_tags(key, requests, Py_ssize_t stride=REQUEST_BYTES):
    """The checksums over the first 16 bytes of each of ``requests`` (n · stride bytes): n · 8 bytes.

    Raises UsageError for a wrong size or a stride below 16."""
    if stride < REQUEST_SIGNED_BYTES:
        raise UsageError(f"requests lie at least {REQUEST_SIGNED_BYTES} bytes apart, not {stride}")
    cdef _Bytes k = _key(key)
    cdef _Bytes r = _rows("requests", requests, stride, False)
    cdef size_t n = r.size // <size_t>stride
    result = PyBytes_FromStringAndSize(NULL, n * TAG_BYTES)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(result)
    with nogil:
        hmac_requests(k.start, r.start, n, stride, out)
    return result


def digest504(header):
    """The checksum of a pack header: 8 bytes of BLAKE3 over the first 504 of ``header``. UsageError when it is shorter."""
    cdef _Bytes h = _Bytes("header", header, False)
    if h.size < HEADER_BYTES:
        raise UsageError(f"a pack header has at least {HEADER_BYTES} bytes, not {h.size}")
    cdef uint8_t tag[TAG_BYTES]
    hmac_digest504(h.start, tag)
    return PyBytes_FromStringAndSize(<char *>tag, TAG_BYTES)


def digests504(headers):
    """The same of each of ``headers``, a list of at most 64: 8 bytes each. UsageError when one is shorter."""
    cdef const uint8_t *starts[64]
    cdef uint8_t tags[64 * TAG_BYTES]
    cdef list held = [_Bytes("header", header, False) for header in headers]
    cdef Py_ssize_t i
    cdef Py_ssize_t n = len(held)
    if n > 64:
        raise UsageError(f"{n} headers at once; 64 are possible")
    for i in range(n):
        if (<_Bytes>held[i]).size < HEADER_BYTES:
            raise UsageError(f"a pack header has at least {HEADER_BYTES} bytes, not {(<_Bytes>held[i]).size}")
        starts[i] = (<_Bytes>held[i]).start
    with nogil:
        hmac_digests504(starts, n, tags)
    return PyBytes_FromStringAndSize(<char *>tags, n * TAG_BYTES)


def _read_environment():
    name = os.environ.get("INGEST_MAC_PATH")
    if not name:
        return
    try:
        force_path(name)
    except UsageError as e:
        raise ConfigError(f"INGEST_MAC_PATH: {e}") from None


_read_environment()
