# distutils: depends = ingest/csrc/connection.h ingest/csrc/put_work.h ingest/csrc/tls.h ingest/csrc/arena.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/counters.h
"""The put port of one worker: frames in, acks out, and in between runs for the committer.

One turn: take outcomes · see which sockets are ready · receive from each at most once, one behind the other into
the fill block of the arena · verify what came, whoever sent it, in one call for each stretch of one block · hand over
runs of consecutive tickets · send the acks of each connection with one call · look for outcomes once more, sleep.

`_submitted` has what the committer has not answered, `_acked_connections` the acks, `_connections` what a put port shares
with a get port; `csrc/arena.h` says what is done with places.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ingest.engine.ports._acked_connections cimport AckedConnections, put_work
from ingest.engine.ports._connections cimport (
    CONNECTION_OPEN, CONNECTION_REFUSED, connection, connection_cookie, connection_receive, eventfd_write, port_counters,
    tls_at_end, tls_in_handshake,
)
from ingest.engine.ports._rare_events cimport CLOSED_BAD
from ingest.runtime._failpoints cimport STEP_RECEIVED, STEP_VERIFIED, WAY_LOG, failpoint_passed, failpoints_armed
from ingest._hmac cimport hmac_verify
from ingest.engine.ports._port_keys cimport KEY_SIZE, KEY_UNNAMED, port_keys, port_keys_set
from ingest.engine._queue cimport (
    C_BYTES_RECEIVED, C_FRAMES_RECEIVED, C_KEY_BAD_FRAMES, C_KEY_FRAMES, C_OUTSTANDING_FRAMES, C_PARTIAL_FRAMES,
    C_PUT_ACCEPTED, C_PUT_CLOSED_BAD, C_PUT_CLOSED_HANDSHAKE, C_PUT_CLOSED_NOT_TLS, C_PUT_REFUSED, RUN_DELETE, RUN_PUT,
    Queue, monotonic_us, queue_outcome,
)
from ingest.engine.ports._submitted cimport (
    Submitted, arena, arena_close, arena_has_room, arena_init, arena_next_block, arena_release, arena_rewind, arena_room,
)

from ingest import limits
from ingest.engine.ports._rare_events import IDLE, SPEAKS_HTTP, SPEAKS_TLS  # names of events, with those below
from ingest.status import Status

BAD_FRAMES = "bad frames"
UNREAD_ACKS = "unread acks"
PARTIAL_FRAME = "partial frame"
STRAY_OUTCOME = "outcome for places that are not outstanding"

cdef enum:
    RETRY_FRAMES = 16  # frames that failed the first key and are tried with the others at once: the lanes of one call
    OUTCOME_ROUNDS = 4  # looks at the outcomes in one turn
    BAD_CHECKSUM_STATUS = 3
    BAD_TICKET_STATUS = 4

cdef uint32_t HANDSHAKE_FRAMES = limits.TLS_HANDSHAKE_FRAMES

cdef port_counters PORT = port_counters(
    accepted=C_PUT_ACCEPTED, refused=C_PUT_REFUSED, closed=C_PUT_CLOSED_BAD, handshake=C_PUT_CLOSED_HANDSHAKE,
    not_tls=C_PUT_CLOSED_NOT_TLS,
)

assert Status.BAD_CHECKSUM == BAD_CHECKSUM_STATUS and Status.BAD_TICKET == BAD_TICKET_STATUS


cdef class PutServer(AckedConnections):
    """The put connections of worker ``slot``.

    ``keys``: one or two objects with ``put`` and ``delete`` (32 bytes each), the keys accepted from the network.
    ``bad_frame_limit`` ≥ 1: at so many bad frames a connection ends.
    """

    cdef uint8_t *frames           # of the arena
    cdef arena arena
    cdef Submitted submitted
    cdef segment *segments         # of the stretch being received, all in the fill block
    cdef uint32_t segment_count
    cdef uint32_t stretch          # place where it starts
    cdef uint8_t *verdicts         # of its frames
    cdef port_keys keys
    cdef uint32_t bad_frame_limit, receive_frames_max, receive_frames_min
    cdef uint32_t turn_frames_max, turn_frames
    cdef uint32_t turn_began       # microseconds of a clock that may wrap

    def __init__(self, Queue queue, int slot, keys, *, int bad_frame_limit=limits.BAD_FRAME_LIMIT,
                 int connections_max=limits.CONNECTIONS_MAX, int block_places=limits.BLOCK_PLACES,
                 uint32_t unread_acks_max=limits.UNREAD_ACKS_MAX,
                 uint64_t unread_acks_total_max=limits.UNREAD_ACKS_TOTAL_MAX):
        if not 0 <= slot < queue.workers:
            raise ValueError(f"worker {slot} of {queue.workers}")
        if bad_frame_limit < 1 or connections_max < 1:
            raise ValueError("a connection needs a slot and one frame that may be bad")
        if block_places < 1 or queue.places % block_places:
            raise ValueError(f"{queue.places} places are not whole blocks of {block_places}")
        if self.epoll_fd >= 0:
            raise ValueError("made twice")
        self.set_keys(keys)
        self.frames = queue.arena(slot)
        self.bad_frame_limit = bad_frame_limit
        self.receive_frames_max = max(1, limits.RECEIVE_SIZE_MAX // FRAME_SIZE)
        self.receive_frames_min = min(<uint32_t>limits.RECEIVE_FRAMES_MIN, <uint32_t>block_places)
        self.turn_frames_max = limits.TURN_FRAMES_MAX
        self._open_acks(connections_max, unread_acks_max, unread_acks_total_max)
        self.segments = <segment *>calloc(block_places, sizeof(segment))
        self.verdicts = <uint8_t *>malloc(block_places)
        if arena_init(&self.arena, queue.places, block_places) < 0 or self.segments == NULL or self.verdicts == NULL:
            raise MemoryError
        self.submitted = Submitted.over(queue, slot, &self.arena)
        self._open(queue, slot, connections_max, queue.worker_doorbells[slot], &queue.ring(slot).put_connections,
                   PORT, BAD_FRAMES, UNREAD_ACKS, PARTIAL_FRAME)

    def __dealloc__(self):
        arena_close(&self.arena)
        free(self.segments)
        free(self.verdicts)

    # --- what Python sees

    def set_keys(self, keys, known=(), names=()):
        """From now on frames signed with these keys are accepted: one or two, the first tried first.

        ``known``: all keys of the server; a frame of one that is not accepted is counted under its name. ``names``: the
        identifiers (``id``) of the keys with counters of their own, by the counters' numbers.
        """
        port_keys_set(&self.keys, keys, known, names, (("put", PUT_FRAME), ("delete", DELETE_FRAME)))

    @property
    def outstanding(self):
        """Frames that the committer has not answered."""
        return self.arena.outstanding

    cdef object _report(self):
        events = AckedConnections._report(self)
        if self.submitted.stray_outcomes:
            events = events or []
            events.append((STRAY_OUTCOME, "committer", self.submitted.stray_outcomes))
            self.submitted.stray_outcomes = 0
        return events

    # --- a turn

    cdef void _turn(self) noexcept nogil:
        cdef int round
        self.turn_frames = 0
        self.turn_began = <uint32_t>monotonic_us()
        for round in range(OUTCOME_ROUNDS):
            self.submitted.wake()
            self._follow_epoch()
            self._take_outcomes()
            if round == 0:
                self._poll()
                self._receive_all()
                self._discard_all()
            self._flush()
            if self.answered_count:
                self._time_acks()
            self.submitted.sleep()
            if not self.submitted.has_outcomes():
                break
        self.counters[<int>C_OUTSTANDING_FRAMES] = self.arena.outstanding
        self._go_on_later()

    cdef void _go_on_later(self) noexcept nogil:
        """Has the event loop call ``turn`` again when there is more to do at once."""
        if (self.submitted.has_outcomes() or self.to_discard.first != NULL
                or (self.to_read.first != NULL and arena_has_room(&self.arena))):
            eventfd_write(self.doorbell_fd, 1)

    cdef bint _may_read(self, const connection *c) noexcept nogil:
        """Outstanding frames need no bound here: the arena holds fewer than the 65,536 that a client may send ahead."""
        return not self._leaves_too_much_unread(c)

    # --- receiving

    cdef void _receive_all(self) noexcept nogil:
        """Reads each queued connection once; those with more to read go to the end of the queue."""
        cdef uint32_t n = self.to_read.count
        if n == 0:
            return
        arena_rewind(&self.arena)
        self.stretch = self.arena.fill
        while n > 0 and self.turn_frames < self.turn_frames_max and self._receive(self.to_read.first):
            n -= 1
        self._hand_over()

    cdef bint _receive(self, connection *c) noexcept nogil:
        """Receives once, behind what is in the fill block. False when the arena has no place."""
        cdef uint32_t room = arena_room(&self.arena)
        cdef put_work *w = &self.work[c.slot]
        cdef uint32_t whole
        cdef uint32_t carried = c.carry_size
        cdef uint8_t *base
        cdef ssize_t wanted, n
        if room == 0 or (w.fast and room < self.receive_frames_min):
            self._hand_over()
            if not arena_next_block(&self.arena) and room == 0:
                return False
            self.stretch = self.arena.fill
            room = arena_room(&self.arena)
        self._unqueue_reading(c)
        base = self.frames + <size_t>self.arena.fill * FRAME_SIZE
        wanted = <ssize_t>min(room, self.receive_frames_max) * FRAME_SIZE - c.carry_size
        if c.carry_size:
            memcpy(base, w.carry, c.carry_size)
        if tls_in_handshake(c.tls):
            self.turn_frames += HANDSHAKE_FRAMES
        n = connection_receive(c, base + c.carry_size, wanted)
        if n <= 0:
            w.fast = 0
            self._received_none(c, n)
            return True
        self.counters[<int>C_BYTES_RECEIVED] += n
        c.received_at = self.now
        w.fast = n == wanted
        c.readable = n == wanted or c.at_end or tls_at_end(c.tls)
        n += c.carry_size
        if self._begins_foreign(c, base, <uint32_t>n):
            return True
        whole = <uint32_t>(n / FRAME_SIZE)
        c.carry_size = <uint32_t>(n % FRAME_SIZE)
        if c.carry_size:
            if w.carry == NULL:
                w.carry = <uint8_t *>malloc(FRAME_SIZE)
            if w.carry == NULL:
                self._drop(c)
                return True
            memcpy(w.carry, base + <size_t>whole * FRAME_SIZE, c.carry_size)
            if whole or not carried:
                c.partial_at = self.now
                self._look_for_foreign(c, w.carry, c.carry_size)
        if whole:
            self.segments[self.segment_count].source = c
            self.segments[self.segment_count].place = self.arena.fill
            self.segments[self.segment_count].count = whole
            self.segment_count += 1
            self.arena.fill += whole
            self.turn_frames += whole
            self.counters[<int>C_FRAMES_RECEIVED] += whole
        self._queue_reading(c)
        return True

    # --- judging what came

    cdef void _hand_over(self) noexcept nogil:
        """Verifies the stretch of frames received last and submits or answers each of them."""
        cdef uint32_t count = self.arena.fill - self.stretch
        cdef uint32_t i
        if count == 0:
            return
        if failpoints_armed:
            failpoint_passed(STEP_RECEIVED, WAY_LOG)
        self.counters[<int>C_KEY_FRAMES + self.keys.numbers[0]] += hmac_verify(
            self.keys.raw, self.frames + <size_t>self.stretch * FRAME_SIZE, count, self.verdicts)
        if failpoints_armed:
            failpoint_passed(STEP_VERIFIED, WAY_LOG)
        for i in range(self.segment_count):
            self._judge(&self.segments[i])
        self.segment_count = 0
        self.stretch = self.arena.fill
        self.submitted.show()

    cdef void _judge(self, segment *s) noexcept nogil:
        """In the order of the bytes: runs of good frames go to the committer, bad ones are answered, up to the limit."""
        cdef connection *c = s.source
        cdef uint8_t *frames = self.frames + <size_t>s.place * FRAME_SIZE
        cdef uint8_t *verdicts = self.verdicts + (s.place - self.stretch)
        cdef uint32_t i = 0
        cdef uint32_t same = 0  # end of the frames with the verdict of frame i
        cdef uint32_t n
        cdef int64_t first
        while i < s.count:
            if i >= same:
                same = i + 1
                while same < s.count and verdicts[same] == verdicts[i]:
                    same += 1
                if verdicts[i] == FAILED_FIRST:
                    n = min(same - i, <uint32_t>RETRY_FRAMES)
                    self._try_other_keys(frames + <size_t>i * FRAME_SIZE, n, verdicts + i)
                    same = i
                    continue
            n = 1
            first = ticket_index(frames + <size_t>i * FRAME_SIZE)
            if first < 0:
                self._answer_bad(c, frames + <size_t>i * FRAME_SIZE, BAD_TICKET_STATUS)
            elif verdicts[i] == PUT_FRAME:
                n = frames_run(frames + <size_t>i * FRAME_SIZE, same - i, first)
                self._push(c, first, s.place + i, n, RUN_PUT)
            elif verdicts[i] == FAILED_ALL:
                self._answer_bad(c, frames + <size_t>i * FRAME_SIZE, BAD_CHECKSUM_STATUS)
            elif frame_delete_count(frames + <size_t>i * FRAME_SIZE, first) < 0:
                self._answer_bad(c, frames + <size_t>i * FRAME_SIZE, BAD_TICKET_STATUS)
            else:
                self._push(c, first, s.place + i, 1, RUN_DELETE)
            if c.state != CONNECTION_OPEN:
                return  # refused: nothing behind the last bad frame is stored or answered
            i += n

    cdef void _try_other_keys(self, const uint8_t *frames, uint32_t n, uint8_t *verdicts) noexcept nogil:
        """Turns FAILED_FIRST of `n` ≤ RETRY_FRAMES frames into what they are. So few at a time, because a connection
        whose frames are all bad ends at the third."""
        cdef uint8_t good[RETRY_FRAMES]
        cdef uint32_t i
        cdef uint32_t left = n
        cdef int key
        for key in range(1, self.keys.count):
            left -= <uint32_t>hmac_verify(self.keys.raw + key * KEY_SIZE, frames, n, good)
            for i in range(n):
                if good[i] and verdicts[i] == FAILED_FIRST:
                    verdicts[i] = self.keys.kinds[key]
                    self.counters[<int>C_KEY_FRAMES + self.keys.numbers[key]] += 1
            if left == 0:
                return
        for i in range(n):
            if verdicts[i] == FAILED_FIRST:
                verdicts[i] = FAILED_ALL

    cdef void _answer_bad(self, connection *c, const uint8_t *frame, uint8_t status) noexcept nogil:
        cdef put_work *w = &self.work[c.slot]
        w.bad_frames += 1
        if status == BAD_CHECKSUM_STATUS:
            self._count_bad(frame)
        self._look_for_foreign(c, frame, FRAME_SIZE)
        if not self._ack(c, frame, 1, status):
            return
        self._note_answered(self.turn_began, 1)
        if w.bad_frames >= self.bad_frame_limit:
            self.counters[<int>C_PUT_CLOSED_BAD] += 1
            self._note(CLOSED_BAD, c, w.bad_frames)
            self._stop_reading(c, CONNECTION_REFUSED)

    cdef void _count_bad(self, const uint8_t *frame) noexcept nogil:
        """Under the key that signed it, if that is known and not accepted any more. A connection has few such frames."""
        cdef int number = KEY_UNNAMED
        cdef int i
        cdef uint8_t good
        for i in range(self.keys.retired_count):
            if hmac_verify(self.keys.retired + i * KEY_SIZE, frame, 1, &good):
                number = self.keys.retired_numbers[i]
                break
        self.counters[<int>C_KEY_BAD_FRAMES + number] += 1

    # --- the committer

    cdef void _push(self, connection *c, int64_t first, uint32_t place, uint32_t n, uint32_t kind) noexcept nogil:
        c.proved = 1
        self.submitted.push(first, place, n, connection_cookie(c), kind, self.turn_began)
        self.work[c.slot].outstanding += n

    cdef void _take_outcomes(self) noexcept nogil:
        cdef queue_outcome outcome
        cdef connection *c
        while self.submitted.next_outcome(&outcome):
            c = self._connection(outcome.cookie)
            if c != NULL:
                self.work[c.slot].outstanding -= outcome.count
                if self._ack(c, self.frames + <size_t>outcome.place * FRAME_SIZE, outcome.count, outcome.status):
                    self._note_answered(self.arena.received[outcome.place], outcome.count)
            arena_release(&self.arena, outcome.place, outcome.count)

    cdef void _follow_epoch(self) noexcept nogil:
        """Submits all that is outstanding to a committer that started anew."""
        if self.submitted.committer_is_new():
            self._take_outcomes()  # of the one that died: they are true
            self.submitted.submit_again()

    cdef void _forget_partial(self, connection *c) noexcept nogil:
        if c.carry_size:
            self.counters[<int>C_PARTIAL_FRAMES] += 1
            c.carry_size = 0
