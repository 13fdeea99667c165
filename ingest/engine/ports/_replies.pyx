# distutils: depends = ingest/csrc/connection.h ingest/csrc/get_work.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/tls.h ingest/csrc/counters.h
"""The replies of a get port: runs of frames, read from the files and sent, one connection after the other.

Frames are read into one buffer of the worker, run after run and request after request, and leave with one send. sendfile
was measured first: on loopback it is a third slower than this, also for whole packs, because the other end then
gathers its bytes from scattered pages that no cache holds. What a socket does not take is not kept: the
connection remembers the run and how many bytes of it were sent, and reads the rest again later
(`csrc/get_work.h`).

What N announces is delivered: when a file shrinks or fails under a run that is on its way, zeros take the place of its
frames, and the reader's own check finds them. Checksums are not verified here: every reader does that (docs/protocol.md),
and it would cost as much as all the rest. That frames carry their tickets is looked at: it costs next to nothing, and
tells slots that were deleted just now, or lost.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ingest.engine.ports._connections cimport connection_send, tls_flush, tls_unsent
from ingest.engine._queue cimport C_GET_BYTES, C_GET_ERRORS, C_GET_FRAMES
from ingest.store.layouts._slot_reader cimport extent

from ingest.disk_wait import DiskWait
from ingest.engine._queue import ROW_WORKER
from ingest.runtime import heartbeat
from ingest.status import Status


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    int64_t ticket_index(const uint8_t *ticket)
    void ticket_write(int64_t index, uint8_t *ticket)


cdef enum:
    PIECES_MAX = 4096  # runs in the collecting buffer
    SAVED = 1
    ERROR = 2

cdef enum:
    HEART_SINCE = 1
    HEART_WAIT = 2
    NOTHING = 0
    STORED_READS = 8

assert (Status.SAVED, Status.ERROR) == (SAVED, ERROR)
assert (heartbeat.SINCE, heartbeat.WAIT) == (HEART_SINCE, HEART_WAIT)
assert (DiskWait.NOTHING, DiskWait.STORED_READS) == (NOTHING, STORED_READS)


cdef class Replies:

    def __cinit__(self, Queue queue, int slot, SlotReader reader not None, int collect_size, int turn_bytes_max,
                  int turn_looks_max):
        if collect_size < RUN_HEADER_SIZE + FRAME_SIZE:
            raise ValueError("the collecting buffer must hold one frame and its header")
        self.queue = queue
        self.reader = reader
        self.counters = queue.counters(ROW_WORKER + slot)
        self.heart = heartbeat.own().words
        self.out_size = collect_size
        self.turn_bytes_max = turn_bytes_max
        self.looks_max = turn_looks_max
        self.out = <uint8_t *>malloc(collect_size)
        self.pieces = <piece *>malloc(PIECES_MAX * sizeof(piece))
        if self.out == NULL or self.pieces == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.out)
        free(self.pieces)

    cdef int send(self, connection *c, get_work *w, double now) noexcept nogil:
        cdef int64_t budget = self.turn_bytes_max
        cdef uint32_t looks = self.looks_max
        cdef int sent
        self.now = now
        if tls_unsent(c.tls):
            sent = self._send_held(c)
            if sent <= 0:
                return sent
        while get_has_work(w, c) and c.writable:
            if budget <= 0 or looks == 0:
                return 1
            if w.sending:
                sent = self._send_run(c, w, &budget)
            else:
                self._begin_reading()
                self._collect(w, &looks, budget)
                self._end_reading()
                sent = self._send_collected(c, w, &budget)
            if sent <= 0:
                return sent
        return 0

    cdef void _begin_reading(self) noexcept nogil:
        self.heart[HEART_SINCE] = <uint64_t>(self.now * 1e9)
        self.heart[HEART_WAIT] = STORED_READS

    cdef void _end_reading(self) noexcept nogil:
        self.heart[HEART_WAIT] = NOTHING

    cdef int _send_held(self, connection *c) noexcept nogil:
        """Sends the rest of the last record. As the next ones: 1, 0 when the connection takes no more now, -1 when it broke."""
        cdef uint32_t before = tls_unsent(c.tls)
        if tls_flush(c.tls) < 0:
            return -1
        if tls_unsent(c.tls) < before:
            c.sent_at = self.now
        if tls_unsent(c.tls):
            c.writable = 0
        return c.writable

    cdef void _collect(self, get_work *w, uint32_t *looks, int64_t budget) noexcept nogil:
        """Fills the buffer with replies."""
        cdef get_request *request
        cdef extent found
        cdef bint suspicious = False
        cdef uint32_t room, good
        cdef uint32_t most = self.out_size  # frames to read at once: few behind one that was not what it should be
        cdef int64_t first
        self.out_used = self.piece_count = 0
        while w.head != w.tail and (looks[0] > 0 or suspicious) and self.out_used < budget:
            room = self.out_size - self.out_used
            if room < RUN_HEADER_SIZE + FRAME_SIZE or self.piece_count == PIECES_MAX:
                return
            request = get_head(w)
            if request.status:
                run_header(self.out + self.out_used, request.ticket, request.status, 0)
                self._add_piece(w, -1, 0, request.status)
                continue
            first = request.first + w.answered
            self.reader.look(first, request.count - w.answered, &found)
            if looks[0] > 0:
                looks[0] -= min(looks[0], <uint32_t>found.looks)
            if found.status == SAVED and request.kind == GET_FRAMES:
                good = self._read_checked(first, &found, min(most, (room - RUN_HEADER_SIZE) / FRAME_SIZE))
                if good:
                    found.count = good
                    most = min(2 * most, self.out_size)
                    suspicious = False
                    self._add_run(w, first, &found)
                    self.out_used += good * FRAME_SIZE
                    continue
                most = 1
                if found.status == SAVED and not suspicious:
                    # Not its frame: deleted since the header was read, or corrupt. The header, read again, tells.
                    suspicious = True
                    self.reader.doubt(&found)
                    continue
                found.status = ERROR
            suspicious = False
            if not self._merge(w, first, &found):
                self._add_run(w, first, &found)

    cdef uint32_t _read_checked(self, int64_t first, extent *found, uint32_t n) noexcept nogil:
        """Reads at most `n` frames to behind the header to come; how many of them, from the first on, carry their ticket.
        When there are none, `found` is one ticket, whose status is ERROR after an I/O error."""
        cdef uint8_t *frames = self.out + self.out_used + RUN_HEADER_SIZE
        cdef uint32_t i
        n = min(<uint32_t>found.count, n)
        if self.reader.read(found, n, frames) != 0:
            found.status = ERROR
            found.count = 1
            return 0
        for i in range(n):
            if ticket_index(frames + <size_t>i * FRAME_SIZE) != first + i:
                if i == 0:
                    found.count = 1
                return i
        return n

    cdef void _add_run(self, get_work *w, int64_t first, const extent *found) noexcept nogil:
        """A run whose frames, if it has any, lie where they belong already."""
        cdef piece *p = &self.pieces[self.piece_count]
        cdef uint8_t ticket[8]
        cdef bint inventory = get_head(w).kind == GET_INVENTORY
        ticket_write(first, ticket)
        run_header(self.out + self.out_used, ticket, found.status, found.count)
        p.frames = 0
        if found.status == SAVED and not inventory:
            p.frames = found.count
        elif found.status == ERROR:
            self.counters[<int>C_GET_ERRORS] += 1
        self._add_piece(w, first, found.count, found.status)

    cdef void _add_piece(self, get_work *w, int64_t first, uint32_t n, uint8_t status) noexcept nogil:
        cdef piece *p = &self.pieces[self.piece_count]
        p.start = self.out_used
        p.first = first
        p.n = n
        p.status = status
        if first < 0:
            p.frames = 0
        self.piece_count += 1
        self.out_used += RUN_HEADER_SIZE
        self._advance(w, n, p)

    cdef void _advance(self, get_work *w, uint32_t n, piece *p) noexcept nogil:
        w.answered += n
        if w.answered >= get_head(w).count or get_head(w).status:
            w.head += 1
            w.answered = 0
        p.head = w.head
        p.answered = w.answered

    cdef bint _merge(self, get_work *w, int64_t first, const extent *found) noexcept nogil:
        """Lengthens the last run in the buffer, if this goes on where that one ends, in the same request."""
        cdef piece *p
        cdef uint8_t ticket[8]
        if self.piece_count == 0 or w.answered == 0:
            return False
        p = &self.pieces[self.piece_count - 1]
        if p.frames or p.status != found.status or p.first < 0 or p.first + p.n != first:
            return False
        p.n += found.count
        ticket_write(p.first, ticket)
        run_header(self.out + p.start, ticket, p.status, p.n)
        self._advance(w, found.count, p)
        return True

    cdef int _send_collected(self, connection *c, get_work *w, int64_t *budget) noexcept nogil:
        """Sends the buffer. A connection that takes no more now stands where the bytes that were sent end."""
        cdef piece *last
        cdef ssize_t n
        if self.piece_count == 0:
            return 1
        n = connection_send(c, self.out, self.out_used)
        if n < 0:
            return -1
        self._sent(c, n, budget)
        if <uint32_t>n == self.out_used:
            self._count_frames(self.piece_count)
            return 1
        last = &self.pieces[self.piece_count - 1]
        while last.start > <uint32_t>n:
            last -= 1
        self._count_frames(<uint32_t>(last - self.pieces) + 1)
        w.head = last.head
        w.answered = last.answered
        self._set_run(w, last, n - last.start)
        c.writable = 0
        return 0

    cdef void _count_frames(self, uint32_t pieces) noexcept nogil:
        cdef uint32_t i
        for i in range(pieces):
            self.counters[<int>C_GET_FRAMES] += self.pieces[i].frames

    cdef void _sent(self, connection *c, ssize_t n, int64_t *budget) noexcept nogil:
        if n > 0:
            if tls_unsent(c.tls):
                c.writable = 0
            c.sent_at = self.now
            budget[0] -= n
            self.counters[<int>C_GET_BYTES] += n

    cdef void _set_run(self, get_work *w, const piece *p, uint64_t sent) noexcept nogil:
        memcpy(w.run.header, self.out + p.start, RUN_HEADER_SIZE)
        w.run.frames = p.frames
        w.run.first = p.first
        w.run.failed = 0
        w.run_sent = sent
        w.sending = 1

    cdef int _send_run(self, connection *c, get_work *w, int64_t *budget) noexcept nogil:
        """Goes on with the run that is on its way."""
        cdef uint64_t size = RUN_HEADER_SIZE + <uint64_t>w.run.frames * FRAME_SIZE
        cdef size_t wanted
        cdef ssize_t n
        while w.run_sent < size and budget[0] > 0:
            if w.run_sent < RUN_HEADER_SIZE:
                wanted = RUN_HEADER_SIZE - w.run_sent
                n = connection_send(c, w.run.header + w.run_sent, wanted)
            else:
                wanted = <size_t>min(size - w.run_sent, <uint64_t>self.out_size)
                self._read_again(w, wanted)
                n = connection_send(c, self.out, wanted)
            if n < 0:
                return -1
            self._sent(c, n, budget)
            w.run_sent += n
            if <size_t>n < wanted:
                c.writable = 0
                return 0
        if w.run_sent == size:
            w.sending = 0
        return 1

    cdef void _read_again(self, get_work *w, size_t wanted) noexcept nogil:
        """The next bytes of the run that is on its way, to the start of the buffer: zeros when they are lost."""
        cdef int failed
        self._begin_reading()
        failed = self.reader.read_bytes(w.run.first, w.run_sent - RUN_HEADER_SIZE, wanted, self.out)
        self._end_reading()
        if not failed:
            return
        memset(self.out, 0, wanted)
        if not w.run.failed:
            w.run.failed = 1
            self.counters[<int>C_GET_ERRORS] += 1
