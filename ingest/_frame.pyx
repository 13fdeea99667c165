"""Batches of frames and acks in buffers. `frame` is the module to use; each function here is one pass without the GIL."""

from cpython.array cimport array, clone
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from ingest.errors import ProtocolError, TicketError, UsageError

cdef array INT64S = array("q")
cdef int STATUS_LAST = 9
cdef enum:
    RUN_HEADER_SIZE = 16


cdef size_t frames_build(int64_t first, const uint8_t *data, size_t size, uint8_t *out) noexcept nogil:
    cdef size_t n = (size + DATA_SIZE - 1) // DATA_SIZE
    cdef size_t i, used
    for i in range(n):
        used = size - i * DATA_SIZE
        if used > DATA_SIZE:
            used = DATA_SIZE
        ticket_write(first + <int64_t>i, out)
        memset(out + 8, 0, 8)
        memcpy(out + FRAME_DATA, data + i * DATA_SIZE, used)
        memset(out + FRAME_DATA + used, 0, DATA_SIZE - used)
        out += FRAME_SIZE
    return n


cdef void frames_extract(const uint8_t *frames, size_t n, uint8_t *out) noexcept nogil:
    cdef size_t i
    for i in range(n):
        memcpy(out + i * DATA_SIZE, frames + i * FRAME_SIZE + FRAME_DATA, DATA_SIZE)


cdef void tickets_index(const uint8_t *records, size_t n, size_t stride, int64_t *indices) noexcept nogil:
    cdef size_t i
    for i in range(n):
        indices[i] = ticket_index(records + i * stride)


cdef size_t frames_runs(const uint8_t *frames, size_t n, int64_t *runs) noexcept nogil:
    cdef size_t position = 0, found = 0, left
    cdef int64_t first
    cdef int count
    while position < n:
        left = n - position
        first = ticket_index(frames + position * FRAME_SIZE)
        count = 1
        if first >= 0:  # no run is longer than a pack, so the cast to int is safe
            count = frames_run(frames + position * FRAME_SIZE, <int>min(left, <size_t>PACK_SLOTS), first)
        runs[3 * found] = <int64_t>position
        runs[3 * found + 1] = count
        runs[3 * found + 2] = first
        found += 1
        position += <size_t>count
    return found


cdef size_t _whole(size_t size, size_t record, str what) except? 0:
    """How many records of ``record`` bytes there are in ``size``, which must be whole ones."""
    if size % record:
        raise UsageError(f"{size} bytes are not whole {what} of {record} bytes each")
    return size // record


def build(first, const uint8_t[::1] data not None, uint8_t[::1] out not None):
    """Writes the frames that carry ``data``, with consecutive tickets from index ``first`` on, to the start of ``out``.

    Each frame takes 1458 bytes, the last one is padded with zeros; no data is no frame. The checksums are left
    zero, for `mac` to sign. ``data`` and ``out`` must not overlap. Returns the number of frames. TicketError when the
    tickets go past the last one, UsageError when ``out`` is smaller than 1474 bytes a frame.
    """
    cdef size_t size = <size_t>data.shape[0]
    cdef size_t n = (size + DATA_SIZE - 1) // DATA_SIZE
    if not 0 <= first <= TICKET_INDEX_LAST or n > TICKET_INDEX_LAST - first + 1:
        raise TicketError(f"{n} tickets from index {first} on: they go from 0 to {TICKET_INDEX_LAST} (ZZZZZZZZ)")
    if <size_t>out.shape[0] < n * FRAME_SIZE:
        raise UsageError(f"{n} frames need {n * FRAME_SIZE} bytes, the buffer has {out.shape[0]}")
    cdef int64_t start = first
    if n:
        with nogil:
            frames_build(start, &data[0], size, &out[0])
    return n


def extract(const uint8_t[::1] frames not None, uint8_t[::1] out not None):
    """Writes the data of whole frames, 1458 bytes each, one after the other to the start of ``out``.

    The buffers must not overlap. Returns the number of bytes written. UsageError for a partial frame, or when ``out``
    is too small.
    """
    cdef size_t n = _whole(<size_t>frames.shape[0], FRAME_SIZE, "frames")
    if <size_t>out.shape[0] < n * DATA_SIZE:
        raise UsageError(f"the data of {n} frames are {n * DATA_SIZE} bytes, the buffer has {out.shape[0]}")
    if n:
        with nogil:
            frames_extract(&frames[0], n, &out[0])
    return n * DATA_SIZE


def indices(const uint8_t[::1] frames not None):
    """The ticket index of each frame, -1 for a malformed ticket: a memoryview of signed 64-bit numbers.
    UsageError for a partial frame."""
    cdef size_t n = _whole(<size_t>frames.shape[0], FRAME_SIZE, "frames")
    cdef array found = clone(INT64S, <Py_ssize_t>n, False)
    if n:
        with nogil:
            tickets_index(&frames[0], n, FRAME_SIZE, <int64_t *>found.data.as_longlongs)
    return memoryview(found)


def runs(const uint8_t[::1] frames not None):
    """Cuts frames into runs: consecutive tickets that lie in consecutive slots of one pack.

    Returns [(position of the first frame, number of frames, index of the first ticket)], in order, together all
    frames. A malformed ticket is a run of its own with index -1. UsageError for a partial frame.
    """
    cdef size_t n = _whole(<size_t>frames.shape[0], FRAME_SIZE, "frames")
    if n == 0:
        return []
    cdef array found = clone(INT64S, <Py_ssize_t>(3 * n), False)
    cdef int64_t *run = <int64_t *>found.data.as_longlongs
    cdef size_t count, i
    with nogil:
        count = frames_runs(&frames[0], n, run)
    return [(run[3 * i], run[3 * i + 1], run[3 * i + 2]) for i in range(count)]


def build_acks(const uint8_t[::1] frames not None, statuses):
    """The acks of whole frames, 9 bytes each, in their order. ``statuses`` is one status for all of them, or a buffer
    of one byte for each. The tickets are echoed as they are, malformed or not. UsageError when sizes do not fit
    or a status is not 1 to 9."""
    cdef size_t n = _whole(<size_t>frames.shape[0], FRAME_SIZE, "frames")
    cdef const uint8_t[::1] each
    cdef const uint8_t *status_of
    cdef uint8_t status = 0
    cdef size_t i, unknown = 0
    cdef bytearray acks = bytearray(n * ACK_SIZE)
    cdef uint8_t[::1] out = acks
    if isinstance(statuses, int):
        if not 1 <= statuses <= STATUS_LAST:
            raise UsageError(f"{statuses} is not a status: they go from 1 to {STATUS_LAST}")
        status = statuses
        if n:
            with nogil:
                acks_write(&out[0], &frames[0], <int>n, status)
        return bytes(acks)
    each = statuses
    if <size_t>each.shape[0] != n:
        raise UsageError(f"{each.shape[0]} statuses for {n} frames")
    if n:
        status_of = &each[0]
        with nogil:
            for i in range(n):
                unknown += not 1 <= status_of[i] <= STATUS_LAST
                acks_write(&out[i * ACK_SIZE], &frames[i * FRAME_SIZE], 1, status_of[i])
        if unknown:
            raise UsageError(f"{unknown} of the statuses are not 1 to {STATUS_LAST}")
    return bytes(acks)


def parse_acks(const uint8_t[::1] acks not None):
    """(indices, statuses) of whole acks: a memoryview of signed 64-bit ticket indices, -1 where the echoed ticket is
    malformed, and one byte of status for each. ProtocolError when a status is not 1 to 9, UsageError for a partial ack."""
    cdef size_t n = _whole(<size_t>acks.shape[0], ACK_SIZE, "acks")
    cdef array found = clone(INT64S, <Py_ssize_t>n, False)
    cdef bytearray statuses = bytearray(n)
    cdef uint8_t[::1] status = statuses
    cdef int64_t *index = <int64_t *>found.data.as_longlongs
    cdef size_t i, unknown = 0
    if n:
        with nogil:
            for i in range(n):
                index[i] = ticket_index(&acks[i * ACK_SIZE])
                status[i] = acks[i * ACK_SIZE + 8]
                unknown += not 1 <= status[i] <= STATUS_LAST
        if unknown:
            raise ProtocolError(f"{unknown} of {n} acks carry a status that is not 1 to {STATUS_LAST}")
    return memoryview(found), bytes(statuses)


cdef size_t acks_runs(const uint8_t *acks, size_t n, int64_t *runs) noexcept nogil:
    cdef size_t i, found = 0
    cdef int64_t index, following = -1
    cdef int status, last = -1
    for i in range(n):
        index = ticket_index(acks + i * ACK_SIZE)
        status = acks[i * ACK_SIZE + 8]
        if index >= 0 and index == following and status == last:
            runs[3 * found - 2] += 1
        else:
            runs[3 * found] = index
            runs[3 * found + 1] = 1
            runs[3 * found + 2] = status
            found += 1
        following = index + 1 if index >= 0 else -1
        last = status
    return found


def ack_runs(const uint8_t[::1] acks not None):
    """Cuts whole acks into runs: consecutive tickets, one after the other, with one status.

    Returns [(index of the first ticket, number of acks, status byte)], in order, together all acks. A malformed ticket is a
    run of its own with index -1; statuses are as they came, 0 to 255. UsageError for a partial ack.
    """
    cdef size_t n = _whole(<size_t>acks.shape[0], ACK_SIZE, "acks")
    if n == 0:
        return []
    cdef array found = clone(INT64S, <Py_ssize_t>(3 * n), False)
    cdef int64_t *run = <int64_t *>found.data.as_longlongs
    cdef size_t count, i
    with nogil:
        count = acks_runs(&acks[0], n, run)
    return [(run[3 * i], run[3 * i + 1], run[3 * i + 2]) for i in range(count)]


def parse_run_header(const uint8_t[::1] header not None):
    """(index of the first ticket, status byte, count) of a run's header, 16 bytes: what `frame.RunHeader` holds. A malformed
    ticket is -1. ProtocolError for an unknown status, or where zeros should be; UsageError for another size."""
    if header.shape[0] != RUN_HEADER_SIZE:
        raise UsageError(f"the header of a run has {RUN_HEADER_SIZE} bytes, not {header.shape[0]}")
    cdef uint8_t status = header[8]
    if not 1 <= status <= STATUS_LAST:
        raise ProtocolError(f"{status} is not a status: they go from 1 to {STATUS_LAST}")
    if header[9] or header[10] or header[11]:
        raise ProtocolError("bytes 9 to 11 of the header of a run are not zero")
    cdef uint32_t count = (
        <uint32_t>header[12] << 24 | <uint32_t>header[13] << 16 | <uint32_t>header[14] << 8 | <uint32_t>header[15]
    )
    return ticket_index(&header[0]), status, count
