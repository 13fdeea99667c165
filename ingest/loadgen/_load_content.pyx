# distutils: depends = ingest/csrc/load.h ingest/csrc/frame.h
"""What the load generator sends: the data under each ticket, which whoever knows the seed can make again and compare."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

from ingest._hmac cimport hmac_sign, hmac_verify

from ingest.errors import UsageError


cdef extern from "csrc/load.h" nogil:
    enum: FRAME_SIZE
    enum: FRAME_DATA
    enum: DATA_SIZE
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *t)
    void load_table(uint64_t seed, uint64_t *table)
    void load_data(const uint64_t *table, uint64_t seed, int64_t index, uint8_t *data)
    void load_frames(const uint64_t *table, uint64_t seed, int64_t first, int n, uint8_t *frames)


cdef class Content:
    """The data that the load generator puts under each ticket, drawn from ``seed`` (0 to 2⁶⁴ - 1)."""

    def __init__(self, uint64_t seed):
        self.seed = seed
        load_table(seed, self.table)

    def data(self, int64_t index):
        """The 1458 bytes of the ticket with this index."""
        cdef uint8_t out[DATA_SIZE]
        load_data(self.table, self.seed, index, out)
        return (<char *>out)[:DATA_SIZE]

    def frames(self, const uint8_t[::1] put_key, int64_t first, int n):
        """``n`` signed frames with consecutive tickets from ``first`` on, as a bytearray."""
        if put_key.shape[0] != 32 or n < 0 or first < 0 or first + n - 1 > TICKET_INDEX_LAST:
            raise UsageError("a key of 32 bytes and a range of tickets are needed")
        out = bytearray(n * FRAME_SIZE)
        cdef uint8_t[::1] view = out
        if n:
            with nogil:
                self.write(first, n, &view[0])
                hmac_sign(&put_key[0], &view[0], n)
        return out

    cdef void write(self, int64_t first, int n, uint8_t *frames) noexcept nogil:
        load_frames(self.table, self.seed, first, n, frames)

    def check(self, tuple put_keys, const uint8_t[::1] frames, int64_t first):
        """Compares whole frames that were read back with what was put from ``first`` on.

        Returns one byte for each: 1 when ticket, data and the checksum under one of ``put_keys`` are right, else 0.
        """
        cdef const uint8_t[::1] key
        cdef size_t n = <size_t>frames.shape[0] // FRAME_SIZE
        if frames.shape[0] % FRAME_SIZE:
            raise UsageError(f"{frames.shape[0]} bytes are not whole frames")
        good = bytearray(n)
        if n == 0:
            return good
        cdef uint8_t[::1] flags = good
        cdef uint8_t[::1] of_key = bytearray(n)
        cdef size_t i
        for item in put_keys:
            key = item
            if key.shape[0] != 32:
                raise UsageError("a key has 32 bytes")
            with nogil:
                hmac_verify(&key[0], &frames[0], n, &of_key[0])
                for i in range(n):
                    flags[i] |= of_key[i]
            if 0 not in good:
                break
        with nogil:
            for i in range(n):
                if flags[i]:
                    flags[i] = self._equal(&frames[0] + i * FRAME_SIZE, first + <int64_t>i)
        return good

    cdef bint _equal(self, const uint8_t *frame, int64_t index) noexcept nogil:
        cdef uint8_t expected[DATA_SIZE]
        load_data(self.table, self.seed, index, expected)
        return ticket_index(frame) == index and memcmp(frame + FRAME_DATA, expected, DATA_SIZE) == 0
