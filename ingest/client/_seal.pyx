"""What the client signs and checks: frames of consecutive tickets, their data in, signed frames out, and back; requests.

Each function is one call for a whole run, without the GIL; a frame is signed or copied while it is still in the processor's
cache.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from ingest._frame cimport DATA_SIZE, FRAME_DATA, FRAME_SIZE, TICKET_INDEX_LAST, frames_build, ticket_index, ticket_write
from ingest._hmac cimport hmac_requests, hmac_sign, hmac_verify

from ingest.errors import TicketError, UsageError

cdef enum:
    GROUP = 16  # frames of a step, 23 KiB: as many as have a lane of their own
    KEY_SIZE = 32
    REQUEST_SIZE = 24
    REQUEST_SIGNED_SIZE = 16  # ticket and count


cdef void frames_seal(const uint8_t *key, int64_t first, const uint8_t *data, size_t size, uint8_t *out) noexcept nogil:
    cdef size_t at = 0, here, n
    while at < size:
        here = min(size - at, <size_t>(GROUP * DATA_SIZE))
        n = frames_build(first, data + at, here, out)
        hmac_sign(key, out, n)
        first += <int64_t>n
        out += n * FRAME_SIZE
        at += here


cdef size_t frames_unseal(const uint8_t *key, int64_t first, const uint8_t *frames, size_t n, uint8_t *out, uint8_t *good) noexcept nogil:
    """Marks the frames that are as they should be and copies their data; returns how many they are in all. Those that
    were good before stay so."""
    cdef uint8_t flags[GROUP]
    cdef size_t at = 0, here, i, k, total = 0
    while at < n:
        here = min(n - at, <size_t>GROUP)
        hmac_verify(key, frames + at * FRAME_SIZE, here, flags)
        for i in range(here):
            k = at + i
            if flags[i] and not good[k] and ticket_index(frames + k * FRAME_SIZE) == first + <int64_t>k:
                good[k] = 1
                memcpy(out + k * DATA_SIZE, frames + k * FRAME_SIZE + FRAME_DATA, DATA_SIZE)
            total += good[k]
        at += here
    return total


cdef const uint8_t *_key(bytes key) except NULL:
    if len(key) != KEY_SIZE:
        raise UsageError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
    return <const uint8_t *>PyBytes_AS_STRING(key)


def seal(bytes key not None, first, const uint8_t[::1] data not None):
    """The signed frames that put ``data`` under consecutive tickets from index ``first`` on, 1458 bytes in each, the last
    one padded with zeros. ``key``: the put key. No data is no frame. TicketError when the tickets go past the last one."""
    cdef const uint8_t *k = _key(key)
    cdef size_t size = <size_t>data.shape[0]
    cdef size_t n = (size + DATA_SIZE - 1) // DATA_SIZE
    if not 0 <= first <= TICKET_INDEX_LAST or n > TICKET_INDEX_LAST - first + 1:
        raise TicketError(f"{n} tickets from index {first} on: they go from 0 to {TICKET_INDEX_LAST} (ZZZZZZZZ)")
    cdef int64_t start = first
    frames = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(n * FRAME_SIZE))
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(frames)
    if n:
        with nogil:
            frames_seal(k, start, &data[0], size, out)
    return frames


def unseal(tuple keys not None, first, const uint8_t[::1] frames not None, uint8_t[::1] out not None):
    """Checks whole frames, which should be signed with one of ``keys`` (put keys) and carry consecutive tickets from index
    ``first`` on, and writes their data, 1458 bytes each, one after the other to the start of ``out``.

    Returns the positions of those that are not so: their place in ``out`` is left as it was. The buffers must not
    overlap. UsageError for a partial frame, or when ``out`` is too small.
    """
    cdef size_t n = <size_t>frames.shape[0] // FRAME_SIZE
    if <size_t>frames.shape[0] != n * FRAME_SIZE:
        raise UsageError(f"{frames.shape[0]} bytes are not whole frames of {FRAME_SIZE} bytes each")
    if <size_t>out.shape[0] < n * DATA_SIZE:
        raise UsageError(f"the data of {n} frames are {n * DATA_SIZE} bytes, the buffer has {out.shape[0]}")
    if n == 0:
        return []
    cdef int64_t start = first
    cdef bytearray flags = bytearray(n)
    cdef uint8_t[::1] good = flags
    cdef const uint8_t *k
    cdef size_t total = 0
    for key in keys:
        k = _key(key)
        with nogil:
            total = frames_unseal(k, start, &frames[0], n, &out[0], &good[0])
        if total == n:
            return []
    return [i for i in range(n) if not flags[i]]


def seal_request(bytes key not None, first, uint64_t count):
    """The signed request (24 bytes) for ``count`` tickets from index ``first`` on; the get key or the inventory key says what
    is asked for. TicketError when there is no such ticket; the count is for the server to judge."""
    cdef const uint8_t *k = _key(key)
    if not 0 <= first <= TICKET_INDEX_LAST:
        raise TicketError(f"no ticket has the index {first}: they go from 0 to {TICKET_INDEX_LAST} (ZZZZZZZZ)")
    cdef uint8_t request[REQUEST_SIZE]
    cdef int i
    ticket_write(first, request)
    for i in range(8):
        request[8 + i] = <uint8_t>(count >> (8 * (7 - i)))
    hmac_requests(k, request, 1, REQUEST_SIZE, request + REQUEST_SIGNED_SIZE)
    return PyBytes_FromStringAndSize(<char *>request, REQUEST_SIZE)
