# distutils: depends = ingest/csrc/put_connection.h ingest/csrc/tls.h ingest/csrc/arena.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/counters.h
"""The put port of one worker: frames in, acks out, and in between runs for the committer.

The frame sockets of a worker live in an epoll of their own, nested in that of the event loop: the loop calls
``turn`` once for all of them that are ready, and a turn receives, verifies, hands over and answers without the GIL.
`asyncio.BufferedProtocol` was measured first: one Python callback for each socket event costs more than the
frame it brings, and it verifies connection by connection, which leaves the SIMD lanes empty at one frame in flight each.

One turn: take outcomes · see which sockets are ready · receive from each at most once, one behind the other into
the fill block of the arena · verify what came, whoever sent it, in one call for each stretch of one block · hand over
runs of consecutive tickets · send the acks of each connection with one call · look for outcomes once more, sleep.

All sockets are watched edge-triggered and for everything, once: a connection that is not to be read now (no place in
the arena, too many unread acks) stays in the queue of readable ones, and nothing spins or is registered anew.
`csrc/arena.h` says what is done with places, `csrc/put_connection.h` has the states of a connection.
"""

import os

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ingest._failpoints cimport (
    STEP_ACKED, STEP_RECEIVED, STEP_VERIFIED, WAY_LOG, failpoint_passed, failpoints_armed,
)
from ingest._hmac cimport hmac_verify
from ingest._queue cimport (
    C_ACK_LATENCY_BUCKET, C_ACK_MICROSECONDS, C_ACKS_SAVED, C_BYTES_RECEIVED, C_FOREIGN_TLS, C_FRAMES_RECEIVED,
    C_KEY_BAD_FRAMES, C_KEY_FRAMES, C_OUTSTANDING_FRAMES, C_PARTIAL_FRAMES, C_PUT_ACCEPTED, C_PUT_CLOSED_BAD,
    C_PUT_CLOSED_HANDSHAKE, C_PUT_CLOSED_NOT_TLS, C_PUT_CLOSED_UNREAD, C_PUT_REFUSED, KEY_COUNTERS,
    RUN_DELETE, RUN_PUT, Queue, full_fence, latency_bucket, monotonic_us, queue_outcome, queue_ring, queue_run,
    ring_load, ring_publish, ring_store, word_add_above_zero, word_load, word_store,
)

from ingest import limits, tls
from ingest._queue import ROW_WORKER
from ingest.status import Status

BAD_FRAMES = "bad frames"
UNREAD_ACKS = "unread acks"
PARTIAL_FRAME = "partial frame"
IDLE = "idle"
STRAY_OUTCOME = "outcome for places that are not outstanding"
SPEAKS_TLS = "speaks TLS"
SPEAKS_HTTP = "speaks HTTP"
_EVENT_NAMES = (
    BAD_FRAMES, UNREAD_ACKS, PARTIAL_FRAME, IDLE, SPEAKS_TLS, SPEAKS_HTTP,
    tls.HANDSHAKE, tls.SLOW_HANDSHAKE, tls.NOT_TLS,
)

cdef enum:
    KEY_SIZE = 32
    KEYS_MAX = 4  # two put keys, two delete keys
    RETIRED_MAX = 2 * (KEY_COUNTERS - 1)
    RETRY_FRAMES = 16  # frames that failed the first key and are tried with the others at once: the lanes of one call
    EVENTS_MAX = 1024  # sockets seen in one turn; the others wait in the kernel
    DISCARD_SIZE = 65536  # bytes
    DISCARDS_MAX = 16  # receives of a connection in one turn whose bytes are dropped
    OUTCOME_ROUNDS = 4  # looks at the outcomes in one turn
    ANSWERED_MAX = 64  # times of receipt whose acks are timed together
    BAD_CHECKSUM_STATUS = 3
    BAD_TICKET_STATUS = 4

cdef uint64_t DOORBELL = <uint64_t>-1
cdef double LINGER = limits.LINGER_S
cdef double UNREAD_ACKS_TIMEOUT = limits.UNREAD_ACKS_TIMEOUT_S
cdef double PARTIAL_FRAME_TIMEOUT = limits.PARTIAL_FRAME_TIMEOUT_S
cdef double IDLE_TIMEOUT = limits.IDLE_TIMEOUT_S
cdef double HANDSHAKE_TIMEOUT = limits.TLS_HANDSHAKE_TIMEOUT_S
cdef uint32_t HANDSHAKE_FRAMES = limits.TLS_HANDSHAKE_FRAMES

assert Status.BAD_CHECKSUM == BAD_CHECKSUM_STATUS and Status.BAD_TICKET == BAD_TICKET_STATUS


cdef class PutServer:
    """The put connections of worker ``slot``.

    ``keys``: one or two objects with ``put`` and ``delete`` (32 bytes each), the keys accepted from the network.
    ``bad_frame_limit`` ≥ 1: at so many bad frames a connection ends. Times are seconds of the clock given to ``tick``.
    ``turn``, ``tick`` and ``begin_drain`` return what is worth a line in the log, a list of (what, peer, number), or None.
    """

    cdef Queue queue
    cdef queue_ring *ring
    cdef queue_run *runs
    cdef queue_outcome *outcomes
    cdef uint8_t *frames
    cdef uint64_t *counters
    cdef uint64_t ring_mask, run_tail, outcome_head, epoch
    cdef arena arena
    cdef connection *table
    cdef read_queue to_read        # OPEN, with bytes to receive and acks not too far behind
    cdef read_queue to_discard     # REFUSED, DRAINING, LINGERING, with bytes to drop
    cdef uint32_t *dirty           # slots
    cdef uint32_t dirty_count
    cdef uint32_t *closed          # slots that wait for Python to forget their peer
    cdef uint32_t closed_count
    cdef rare_event *rare
    cdef uint32_t rare_count
    cdef uint32_t stray_outcomes
    cdef segment *segments         # of the stretch being received, all in the fill block
    cdef uint32_t segment_count
    cdef uint32_t stretch          # place where it starts
    cdef uint8_t *verdicts         # of its frames
    cdef uint8_t keys[KEYS_MAX * KEY_SIZE]
    cdef uint8_t key_verdicts[KEYS_MAX]  # PUT_FRAME or DELETE_FRAME; keys[0] is the first put key
    cdef int key_count
    cdef uint8_t key_numbers[KEYS_MAX]   # of their counters
    cdef uint8_t retired[RETIRED_MAX * KEY_SIZE]  # keys that are known and not accepted
    cdef uint8_t retired_numbers[RETIRED_MAX]
    cdef int retired_count
    cdef epoll_event *events
    cdef uint8_t *discarded
    cdef int epoll_fd, doorbell_fd, committer_fd
    cdef uint32_t slots_max, slots_used, bad_frame_limit, receive_frames_max, receive_frames_min
    cdef uint32_t turn_frames_max, turn_frames, unread_acks_max, acks_kept
    cdef uint64_t unread_acks_total, unread_acks_total_max  # bytes, of all connections
    cdef uint32_t turn_began       # microseconds of a clock that may wrap
    cdef answered answered[ANSWERED_MAX]  # acks of this turn that wait to be timed
    cdef uint32_t answered_count
    cdef double now
    cdef bint ticked, draining
    cdef bint acks_sent            # since the last flush began
    cdef readonly int connections
    cdef readonly int slot
    cdef list _peers
    cdef list _free_slots
    cdef object _tls

    def __cinit__(self):
        self.epoll_fd = -1

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
        self.queue = queue
        self.slot = slot
        self.ring = queue.ring(slot)
        self.runs = queue.runs(slot)
        self.outcomes = queue.outcomes(slot)
        self.frames = queue.arena(slot)
        self.counters = queue.counters(ROW_WORKER + slot)
        self.ring_mask = queue.ring_size - 1
        self.run_tail = ring_load(&self.ring.run_tail)
        self.outcome_head = ring_load(&self.ring.outcome_head)
        self.committer_fd = queue.committer_doorbell
        self.doorbell_fd = queue.worker_doorbells[slot]
        self.bad_frame_limit = bad_frame_limit
        self.slots_max = connections_max
        self.receive_frames_max = max(1, limits.RECEIVE_SIZE_MAX // FRAME_SIZE)
        self.receive_frames_min = min(<uint32_t>limits.RECEIVE_FRAMES_MIN, <uint32_t>block_places)
        self.turn_frames_max = limits.TURN_FRAMES_MAX
        self.unread_acks_max = unread_acks_max
        self.unread_acks_total_max = unread_acks_total_max
        self.acks_kept = limits.ACKS_KEPT_SIZE
        self._peers = []
        self._free_slots = []
        # Pages that no connection ever used are never touched: the tables cost address space, not memory.
        self.table = <connection *>calloc(connections_max, sizeof(connection))
        self.dirty = <uint32_t *>calloc(connections_max, sizeof(uint32_t))
        self.closed = <uint32_t *>calloc(connections_max, sizeof(uint32_t))
        self.rare = <rare_event *>calloc(3 * connections_max, sizeof(rare_event))
        self.segments = <segment *>calloc(block_places, sizeof(segment))
        self.verdicts = <uint8_t *>malloc(block_places)
        self.events = <epoll_event *>calloc(EVENTS_MAX, sizeof(epoll_event))
        self.discarded = <uint8_t *>malloc(DISCARD_SIZE)
        if (arena_init(&self.arena, queue.places, block_places) < 0 or self.table == NULL or self.dirty == NULL
                or self.closed == NULL or self.rare == NULL or self.segments == NULL or self.verdicts == NULL
                or self.events == NULL or self.discarded == NULL):
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._watch(self.doorbell_fd, EPOLLIN | EPOLLET, DOORBELL)

    def __dealloc__(self):
        cdef uint32_t i
        if self.table != NULL:
            for i in range(self.slots_used):
                if self.table[i].state != CONNECTION_FREE:
                    close_fd(self.table[i].fd)
                tls_free(self.table[i].tls)
                free(self.table[i].carry)
                free(self.table[i].acks)
        if self.epoll_fd >= 0:
            close_fd(self.epoll_fd)
        arena_close(&self.arena)
        free(self.table)
        free(self.dirty)
        free(self.closed)
        free(self.rare)
        free(self.segments)
        free(self.verdicts)
        free(self.events)
        free(self.discarded)

    cdef int _watch(self, int fd, uint32_t events, uint64_t data) except -1:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = events
        event.data.u64 = data
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef int _check_open(self) except -1:
        if self.epoll_fd < 0:
            raise ValueError("the server is closed")
        return 0

    # --- what Python sees

    def set_keys(self, keys, known=(), names=()):
        """From now on frames signed with these keys are accepted: one or two, the first tried first.

        ``known``: all keys of the server; a frame of one that is not accepted is counted under its name. ``names``: the
        identifiers (``id``) of the keys with counters of their own, by the counters' numbers.
        """
        accepted = list(keys)
        if not 1 <= len(accepted) <= 2:
            raise ValueError(f"one or two keys are accepted from the network, not {len(accepted)}")
        ordered = [(key, key.put, PUT_FRAME) for key in accepted] + [(key, key.delete, DELETE_FRAME) for key in accepted]
        if any(len(raw) != KEY_SIZE for _, raw, _ in ordered):
            raise ValueError(f"a key has {KEY_SIZE} bytes")
        retired = [key for key in known if key not in accepted and key.id in names][:KEY_COUNTERS - 1]
        cdef const uint8_t[::1] view
        cdef int i
        for i, (key, raw, kind) in enumerate(ordered):
            view = raw
            memcpy(self.keys + i * KEY_SIZE, &view[0], KEY_SIZE)
            self.key_verdicts[i] = kind
            self.key_numbers[i] = names.index(key.id) if key.id in names else KEY_COUNTERS - 1
        self.key_count = len(ordered)
        for i, (key, raw) in enumerate((key, raw) for key in retired for raw in (key.put, key.delete)):
            view = raw
            memcpy(self.retired + i * KEY_SIZE, &view[0], KEY_SIZE)
            self.retired_numbers[i] = names.index(key.id)
        self.retired_count = 2 * len(retired)

    def set_tls(self, context):
        """Connections adopted from now on speak TLS by this `tls.TlsContext` of a server; None: they speak plainly."""
        self._tls = context

    def fileno(self):
        """The descriptor to watch for reading; ``turn`` is to be called when it is readable."""
        self._check_open()
        return self.epoll_fd

    @property
    def outstanding(self):
        """Frames that the committer has not answered."""
        return self.arena.outstanding

    @property
    def drained(self):
        """After begin_drain: all connections are answered and closed."""
        return self.draining and self.connections == 0

    def adopt(self, int fd, str peer):
        """Takes ownership of a connected socket. False when it was closed instead: over the limit, or draining.

        Whoever gives a connection to this worker has counted it (``Queue.count_connection``); it is taken off that
        count here when it closes.
        """
        cdef connection *c
        cdef uint32_t slot
        self._check_open()
        if self.draining or <uint32_t>self.connections >= self.slots_max:
            close_fd(fd)
            word_add_above_zero(&self.ring.put_connections, -1)
            self.counters[<int>C_PUT_REFUSED] += 1
            return False
        if self._free_slots:
            slot = self._free_slots.pop()
            self._peers[slot] = peer
        else:
            slot = self.slots_used
            self._peers.append(peer)
            self.slots_used += 1
        c = &self.table[slot]
        c.fd = fd
        c.slot = slot
        c.generation += 1
        if c.generation == 0:  # so that no cookie is 0, which means that nobody owns a place
            c.generation = 1
        c.state = CONNECTION_OPEN
        c.readable = c.at_end = c.fast = c.foreign = 0
        c.writable = 1
        c.bad_frames = c.outstanding = c.carry_size = 0
        c.acks_start = c.acks_end = 0
        c.received_at = c.partial_at = c.sent_at = c.adopted_at = self.now
        c.linger_since = -1
        try:
            c.tls = self._new_session(fd)
            self._watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, connection_cookie(c))
        except (OSError, MemoryError):
            c.state = CONNECTION_FREE
            tls_free(c.tls)
            c.tls = NULL
            self._free_slots.append(slot)
            close_fd(fd)
            word_add_above_zero(&self.ring.put_connections, -1)
            self.counters[<int>C_PUT_REFUSED] += 1
            raise
        self.connections += 1
        self.counters[<int>C_PUT_ACCEPTED] += 1
        return True

    cdef tls_session *_new_session(self, int fd) except? NULL:
        """NULL without TLS."""
        cdef tls_session *session
        cdef void *ssl
        if self._tls is None:
            return NULL
        ssl = <void *><uintptr_t>self._tls.session(fd)
        session = tls_new(<const tls_library *><uintptr_t>self._tls.library, ssl, fd, True)
        if session == NULL:
            raise MemoryError
        return session

    def turn(self):
        """Does all that can be done now, without waiting."""
        self._check_open()
        with nogil:
            self._turn()
        return self._report()

    def tick(self, double now):
        """Looks at the deadlines; ``now`` in seconds, of a clock that never goes back. Call it about twice a second."""
        self._check_open()
        cdef uint32_t i
        with nogil:
            for i in range(self.slots_used):
                if self.table[i].state != CONNECTION_FREE:
                    if not self.ticked:
                        self.table[i].received_at = self.table[i].partial_at = self.table[i].sent_at = now
                        self.table[i].adopted_at = now
                    self._check_deadlines(&self.table[i], now)
            self.now = now
            self.ticked = True
            self._go_on_later()
        return self._report()

    def begin_drain(self):
        """Reads no more frames; each connection ends when what it sent whole is answered."""
        self._check_open()
        cdef uint32_t i
        self.draining = True
        with nogil:
            for i in range(self.slots_used):
                if self.table[i].state == CONNECTION_OPEN:
                    self._stop_reading(&self.table[i], CONNECTION_DRAINING)
            self._flush()
            self._go_on_later()
        return self._report()

    def close(self):
        """Closes all connections at once, whatever is in flight."""
        cdef uint32_t i
        if self.epoll_fd < 0:
            return
        for i in range(self.slots_used):
            self._drop(&self.table[i])
        self._report()
        close_fd(self.epoll_fd)
        self.epoll_fd = -1

    cdef object _report(self):
        """The rare events since the last report; forgets the peers of closed connections."""
        if self.rare_count == 0 and self.closed_count == 0 and self.stray_outcomes == 0:
            return None
        cdef uint32_t i
        events = []
        for i in range(self.rare_count):
            events.append((_EVENT_NAMES[self.rare[i].kind], self._peers[self.rare[i].slot], self.rare[i].value))
        if self.stray_outcomes:
            events.append((STRAY_OUTCOME, "committer", self.stray_outcomes))
        for i in range(self.closed_count):
            self._peers[self.closed[i]] = None
            self._free_slots.append(self.closed[i])
        self.rare_count = self.closed_count = self.stray_outcomes = 0
        return events or None

    # --- a turn

    cdef void _turn(self) noexcept nogil:
        cdef int round
        self.turn_frames = 0
        self.turn_began = <uint32_t>monotonic_us()
        for round in range(OUTCOME_ROUNDS):
            word_store(&self.ring.worker_sleeping, 0)
            self._follow_epoch()
            self._take_outcomes()
            if round == 0:
                self._poll()
                self._receive_all()
                self._discard_all()
            self._flush()
            if self.answered_count:
                self._time_acks()
            word_store(&self.ring.worker_sleeping, 1)
            full_fence()
            if ring_load(&self.ring.outcome_tail) == self.outcome_head:
                break
        self.counters[<int>C_OUTSTANDING_FRAMES] = self.arena.outstanding
        self._go_on_later()

    cdef void _note_answered(self, uint32_t received, uint32_t frames) noexcept nogil:
        """These acks are timed when they have been sent: a look at the clock for all of a turn, not for each."""
        cdef answered *last = &self.answered[self.answered_count - 1]
        if self.answered_count and last.received == received:
            last.frames += frames
            return
        if self.answered_count == ANSWERED_MAX:
            self._time_acks()
        self.answered[self.answered_count].received = received
        self.answered[self.answered_count].frames = frames
        self.answered_count += 1

    cdef void _time_acks(self) noexcept nogil:
        cdef uint32_t now = <uint32_t>monotonic_us()
        cdef uint32_t i, elapsed
        for i in range(self.answered_count):
            elapsed = now - self.answered[i].received
            self.counters[<int>C_ACK_MICROSECONDS] += <uint64_t>elapsed * self.answered[i].frames
            self.counters[<int>C_ACK_LATENCY_BUCKET + latency_bucket(elapsed)] += self.answered[i].frames
        self.answered_count = 0

    cdef void _go_on_later(self) noexcept nogil:
        """Has the event loop call ``turn`` again when there is more to do at once."""
        if (ring_load(&self.ring.outcome_tail) != self.outcome_head or self.to_discard.first != NULL
                or (self.to_read.first != NULL and arena_has_room(&self.arena))):
            eventfd_write(self.doorbell_fd, 1)

    cdef void _poll(self) noexcept nogil:
        cdef int n, i
        cdef uint32_t what
        cdef connection *c
        while True:
            n = epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, 0)
            if n >= 0 or errno != EINTR:
                break
        for i in range(n):
            if self.events[i].data.u64 == DOORBELL:
                continue  # watched by its edges: it needs no reading
            c = self._connection(self.events[i].data.u64)
            if c == NULL:
                continue
            what = self.events[i].events
            if what & EPOLLERR:
                self._drop(c)
                continue
            # HUP alone says that both sides have ended: what the peer sent before is still read, or closing would reset.
            if what & (EPOLLRDHUP | EPOLLHUP):
                c.at_end = 1
            if what & (EPOLLIN | EPOLLRDHUP | EPOLLHUP):
                c.readable = 1
                self._queue_reading(c)
            if what & EPOLLOUT and c.tls != NULL and c.tls.wants_write:
                c.readable = 1
                self._queue_reading(c)
            if what & EPOLLOUT and not c.writable:
                c.writable = 1
                self._mark_dirty(c)

    cdef connection *_connection(self, uint64_t cookie) noexcept nogil:
        cdef uint32_t slot = <uint32_t>cookie
        cdef connection *c
        if slot >= self.slots_used:
            return NULL
        c = &self.table[slot]
        if c.state == CONNECTION_FREE or c.generation != <uint32_t>(cookie >> 32):
            return NULL
        return c

    cdef void _queue_reading(self, connection *c) noexcept nogil:
        """Queues a connection to be read, if it is to be read at all. Outstanding frames need no bound here: the
        arena holds fewer than the 65,536 that a client may send ahead."""
        if not c.readable or c.state == CONNECTION_FREE or c.state == CONNECTION_FINISHED:
            return
        if c.state != CONNECTION_OPEN:
            read_queue_push(&self.to_discard, c)
        elif not self._leaves_too_much_unread(c):
            read_queue_push(&self.to_read, c)

    cdef bint _leaves_too_much_unread(self, const connection *c) noexcept nogil:
        """Whether a connection is not read because of its acks: its own limit is the contract's, the one for all together is
        what keeps thousands of such connections from taking the memory of the others."""
        cdef uint32_t unsent = connection_unsent(c)
        return unsent > self.unread_acks_max or (
            self.unread_acks_total > self.unread_acks_total_max and unsent > self.acks_kept)

    cdef void _unqueue(self, connection *c) noexcept nogil:
        read_queue_remove(&self.to_read if c.state == CONNECTION_OPEN else &self.to_discard, c)

    cdef void _mark_dirty(self, connection *c) noexcept nogil:
        if not c.dirty:
            c.dirty = 1
            self.dirty[self.dirty_count] = c.slot
            self.dirty_count += 1

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
        cdef uint32_t whole
        cdef uint32_t carried = c.carry_size
        cdef uint8_t *base
        cdef ssize_t wanted, n
        if room == 0 or (c.fast and room < self.receive_frames_min):
            self._hand_over()
            if not arena_next_block(&self.arena) and room == 0:
                return False
            self.stretch = self.arena.fill
            room = arena_room(&self.arena)
        self._unqueue(c)
        base = self.frames + <size_t>self.arena.fill * FRAME_SIZE
        wanted = <ssize_t>min(room, self.receive_frames_max) * FRAME_SIZE - c.carry_size
        if c.carry_size:
            memcpy(base, c.carry, c.carry_size)
        if tls_in_handshake(c.tls):
            self.turn_frames += HANDSHAKE_FRAMES
        n = connection_receive(c, base + c.carry_size, wanted)
        if n <= 0:
            if n == 0:
                self._end_of_stream(c)
            elif n == -EAGAIN:
                c.readable = c.fast = 0
            elif tls_in_handshake(c.tls):
                self._refuse_handshake(c)
            else:
                self._drop(c)
            return True
        self.counters[<int>C_BYTES_RECEIVED] += n
        c.received_at = self.now
        c.fast = n == wanted
        c.readable = n == wanted or c.at_end or tls_at_end(c.tls)
        n += c.carry_size
        whole = <uint32_t>(n / FRAME_SIZE)
        c.carry_size = <uint32_t>(n % FRAME_SIZE)
        if c.carry_size:
            if c.carry == NULL:
                c.carry = <uint8_t *>malloc(FRAME_SIZE)
            if c.carry == NULL:
                self._drop(c)
                return True
            memcpy(c.carry, base + <size_t>whole * FRAME_SIZE, c.carry_size)
            if whole or not carried:
                c.partial_at = self.now
                self._look_for_foreign(c, c.carry, c.carry_size)
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

    cdef void _look_for_foreign(self, connection *c, const uint8_t *start, uint32_t size) noexcept nogil:
        cdef int protocol = foreign_protocol(start, size)
        if protocol != FOREIGN_NONE and not c.foreign:
            c.foreign = 1
            self.counters[<int>C_FOREIGN_TLS + protocol - 1] += 1
            self._note(<rare_kind>(SPOKE_TLS + protocol - 1), c, 0)

    cdef void _end_of_stream(self, connection *c) noexcept nogil:
        c.readable = 0
        self._forget_partial(c)
        c.state = CONNECTION_FINISHED
        self._mark_dirty(c)

    cdef void _refuse_handshake(self, connection *c) noexcept nogil:
        """Not closed at once: a reset would destroy the alert that tells the peer why."""
        if c.tls.state == TLS_PLAIN:
            self.counters[<int>C_PUT_CLOSED_NOT_TLS] += 1
            self._note(CLOSED_NOT_TLS, c, 0)
        else:
            self.counters[<int>C_PUT_CLOSED_HANDSHAKE] += 1
            self._note(CLOSED_HANDSHAKE, c, c.tls.error)
        self._stop_reading(c, CONNECTION_REFUSED)

    cdef void _forget_partial(self, connection *c) noexcept nogil:
        if c.carry_size:
            self.counters[<int>C_PARTIAL_FRAMES] += 1
            c.carry_size = 0

    cdef void _stop_reading(self, connection *c, uint8_t state) noexcept nogil:
        """From OPEN to REFUSED or DRAINING: what else comes is dropped."""
        self._unqueue(c)
        self._forget_partial(c)
        c.state = state
        self._queue_reading(c)
        self._mark_dirty(c)

    cdef void _discard_all(self) noexcept nogil:
        cdef uint32_t n = self.to_discard.count
        cdef int i
        cdef ssize_t received
        cdef connection *c
        while n > 0:
            n -= 1
            c = self.to_discard.first
            self._unqueue(c)
            for i in range(DISCARDS_MAX):
                received = connection_receive(c, self.discarded, DISCARD_SIZE)
                if received < DISCARD_SIZE and not (received > 0 and c.at_end):
                    break
            if received > 0:
                c.readable = received == DISCARD_SIZE or c.at_end
                self._queue_reading(c)
            elif received == -EAGAIN:
                c.readable = 0
            elif received == 0 and c.state != CONNECTION_LINGERING:
                c.readable = 0
                c.state = CONNECTION_FINISHED  # nothing is left that a reset could be sent for
                self._mark_dirty(c)
            else:
                self._drop(c)

    # --- judging what came

    cdef void _hand_over(self) noexcept nogil:
        """Verifies the stretch of frames received last and submits or answers each of them."""
        cdef uint32_t count = self.arena.fill - self.stretch
        cdef uint32_t i
        if count == 0:
            return
        if failpoints_armed:
            failpoint_passed(STEP_RECEIVED, WAY_LOG)
        self.counters[<int>C_KEY_FRAMES + self.key_numbers[0]] += hmac_verify(
            self.keys, self.frames + <size_t>self.stretch * FRAME_SIZE, count, self.verdicts)
        if failpoints_armed:
            failpoint_passed(STEP_VERIFIED, WAY_LOG)
        for i in range(self.segment_count):
            self._judge(&self.segments[i])
        self.segment_count = 0
        self.stretch = self.arena.fill
        self._submit()

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
        for key in range(1, self.key_count):
            left -= <uint32_t>hmac_verify(self.keys + key * KEY_SIZE, frames, n, good)
            for i in range(n):
                if good[i] and verdicts[i] == FAILED_FIRST:
                    verdicts[i] = self.key_verdicts[key]
                    self.counters[<int>C_KEY_FRAMES + self.key_numbers[key]] += 1
            if left == 0:
                return
        for i in range(n):
            if verdicts[i] == FAILED_FIRST:
                verdicts[i] = FAILED_ALL

    cdef void _answer_bad(self, connection *c, const uint8_t *frame, uint8_t status) noexcept nogil:
        c.bad_frames += 1
        if status == BAD_CHECKSUM_STATUS:
            self._count_bad(frame)
        self._look_for_foreign(c, frame, FRAME_SIZE)
        if not self._ack(c, frame, 1, status):
            return
        self._note_answered(self.turn_began, 1)
        if c.bad_frames >= self.bad_frame_limit:
            self.counters[<int>C_PUT_CLOSED_BAD] += 1
            self._note(CLOSED_BAD_FRAMES, c, c.bad_frames)
            self._stop_reading(c, CONNECTION_REFUSED)

    cdef void _count_bad(self, const uint8_t *frame) noexcept nogil:
        """Under the key that signed it, if that is known and not accepted any more. A connection has few such frames."""
        cdef int number = KEY_COUNTERS - 1
        cdef int i
        cdef uint8_t good
        for i in range(self.retired_count):
            if hmac_verify(self.retired + i * KEY_SIZE, frame, 1, &good):
                number = self.retired_numbers[i]
                break
        self.counters[<int>C_KEY_BAD_FRAMES + number] += 1

    cdef bint _ack(self, connection *c, const uint8_t *frames, uint32_t n, uint8_t status) noexcept nogil:
        """Acks wait in the connection's buffer for the end of the turn. False when it had to be dropped."""
        cdef uint8_t *acks
        if connection_unsent(c) == 0:
            c.sent_at = self.now
        acks = connection_acks(c, n)
        if acks == NULL:
            self._drop(c)
            return False
        acks_write(acks, frames, n, status)
        c.acks_end += n * ACK_SIZE
        self.unread_acks_total += n * ACK_SIZE
        self.counters[<int>C_ACKS_SAVED + status - 1] += n
        self._mark_dirty(c)
        return True

    # --- the committer

    cdef void _push(self, connection *c, int64_t first, uint32_t place, uint32_t n, uint32_t kind) noexcept nogil:
        arena_take(&self.arena, place, n, connection_cookie(c), kind, self.turn_began)
        c.outstanding += n
        self._write_run(first, connection_cookie(c), place, n, kind)

    cdef void _write_run(self, int64_t first, uint64_t cookie, uint32_t place, uint32_t n,
                         uint32_t kind) noexcept nogil:
        cdef queue_run *run = self.runs + (self.run_tail & self.ring_mask)
        run.first = first
        run.cookie = cookie
        run.place = place
        run.count = n
        run.kind = kind
        run.reserved = 0
        self.run_tail += 1

    cdef void _submit(self) noexcept nogil:
        """Shows the committer the runs written since the last time, and wakes it if it sleeps."""
        if self.run_tail == ring_load(&self.ring.run_tail):
            return
        ring_publish(&self.ring.run_tail, self.run_tail)
        full_fence()
        if word_load(&self.queue.header.committer_sleeping):
            eventfd_write(self.committer_fd, 1)

    cdef void _take_outcomes(self) noexcept nogil:
        cdef uint64_t tail = ring_load(&self.ring.outcome_tail)
        cdef queue_outcome outcome
        cdef connection *c
        if self.outcome_head == tail:
            return
        while self.outcome_head != tail:
            outcome = self.outcomes[self.outcome_head & self.ring_mask]
            self.outcome_head += 1
            # The entry was written by another process: one that names other places than those handed out is dropped.
            if (not arena_owned(&self.arena, outcome.place, outcome.count, outcome.cookie)
                    or outcome.status < 1 or outcome.status > 9):
                self.stray_outcomes += 1
                continue
            c = self._connection(outcome.cookie)
            if c != NULL:
                c.outstanding -= outcome.count
                if self._ack(c, self.frames + <size_t>outcome.place * FRAME_SIZE, outcome.count, outcome.status):
                    self._note_answered(self.arena.received[outcome.place], outcome.count)
            arena_release(&self.arena, outcome.place, outcome.count)
        ring_store(&self.ring.outcome_head, self.outcome_head)

    cdef void _follow_epoch(self) noexcept nogil:
        """Submits all that is outstanding to a committer that started anew: csrc/queue.h, epoch."""
        cdef uint64_t epoch = ring_load(&self.queue.header.epoch)
        if epoch == self.epoch or epoch & 1:
            return
        self._take_outcomes()  # of the one that died: they are true
        # Until worker_epoch is stored the new committer does not look at this ring: all four indices are ours.
        self.run_tail = self.outcome_head = 0
        ring_store(&self.ring.run_head, 0)
        ring_store(&self.ring.run_tail, 0)
        ring_store(&self.ring.outcome_head, 0)
        ring_store(&self.ring.outcome_tail, 0)
        self._write_outstanding()
        ring_publish(&self.ring.run_tail, self.run_tail)
        self.epoch = epoch
        ring_store(&self.ring.worker_epoch, epoch)
        full_fence()
        eventfd_write(self.committer_fd, 1)

    cdef void _write_outstanding(self) noexcept nogil:
        """Builds the runs of all outstanding places again."""
        cdef uint32_t place = 0
        cdef uint32_t end, n, block_end
        cdef uint64_t owner
        cdef uint8_t kind
        cdef int64_t first
        while place < self.arena.places:
            owner = self.arena.owner[place]
            if owner == 0:
                place += 1
                continue
            kind = self.arena.kind[place]
            first = ticket_index(self.frames + <size_t>place * FRAME_SIZE)
            n = 1
            if kind == RUN_PUT:
                block_end = (place / self.arena.block_places + 1) * self.arena.block_places
                end = place + 1
                while end < block_end and self.arena.owner[end] == owner and self.arena.kind[end] == kind:
                    end += 1
                n = frames_run(self.frames + <size_t>place * FRAME_SIZE, end - place, first)
            self._write_run(first, owner, place, n, kind)
            place += n

    # --- sending and closing

    cdef void _flush(self) noexcept nogil:
        """Sends what the connections marked dirty have for their peers, and moves on those that are done."""
        cdef uint32_t i
        cdef connection *c
        for i in range(self.dirty_count):
            c = &self.table[self.dirty[i]]
            c.dirty = 0
            if c.state != CONNECTION_FREE:
                self._settle(c)
        self.dirty_count = 0
        if failpoints_armed and self.acks_sent:
            failpoint_passed(STEP_ACKED, WAY_LOG)
        self.acks_sent = False

    cdef void _settle(self, connection *c) noexcept nogil:
        cdef uint32_t sent
        cdef int error
        if c.writable and connection_unsent(c):
            error = connection_send(c, &sent)
            self.unread_acks_total -= sent
            if error:
                self._drop(c)
                return
            if sent:
                c.sent_at = self.now
                self.acks_sent = True
        if c.state == CONNECTION_OPEN:
            self._queue_reading(c)  # it may have been waiting for its acks to be read
        elif c.outstanding == 0 and connection_unsent(c) == 0:
            if c.state != CONNECTION_LINGERING:
                tls_end(c.tls)
            if c.state == CONNECTION_FINISHED:
                self._drop(c)
            elif c.state != CONNECTION_LINGERING:
                if shutdown(c.fd, SHUT_WR) < 0:
                    self._drop(c)
                else:
                    c.state = CONNECTION_LINGERING

    cdef void _check_deadlines(self, connection *c, double now) noexcept nogil:
        cdef int kind = -1
        cdef double moved
        if c.state == CONNECTION_LINGERING:
            if c.linger_since < 0:
                c.linger_since = now
            elif now - c.linger_since >= LINGER:
                self._drop(c)
            return
        if c.readable and c.state == CONNECTION_OPEN:
            c.received_at = c.partial_at = now  # it is we who do not read: the peer is not late
        if tls_in_handshake(c.tls):
            if now - c.adopted_at >= HANDSHAKE_TIMEOUT:
                kind = CLOSED_SLOW_HANDSHAKE
        elif connection_unsent(c):
            # Up to the limit a client may send on and read later: it is late only when nothing moves either way.
            moved = c.sent_at if self._leaves_too_much_unread(c) else max(c.received_at, c.sent_at)
            if now - moved >= UNREAD_ACKS_TIMEOUT:
                kind = CLOSED_UNREAD_ACKS
        elif c.state == CONNECTION_OPEN and c.carry_size == 0 and c.outstanding == 0:
            if now - max(c.received_at, c.sent_at) >= IDLE_TIMEOUT:
                kind = CLOSED_IDLE
        if kind < 0 and c.state == CONNECTION_OPEN and c.carry_size and now - c.partial_at >= PARTIAL_FRAME_TIMEOUT:
            kind = CLOSED_PARTIAL_FRAME  # however it grows: a byte a minute holds a connection as well as none
        if kind >= 0:
            if kind == CLOSED_SLOW_HANDSHAKE:
                self.counters[<int>C_PUT_CLOSED_HANDSHAKE] += 1
            else:
                self.counters[<int>C_PUT_CLOSED_UNREAD + kind - CLOSED_UNREAD_ACKS] += 1
            self._note(<rare_kind>kind, c, connection_unsent(c) if kind == CLOSED_UNREAD_ACKS else c.carry_size)
            self._drop(c)
        else:
            connection_shrink(c, self.acks_kept)
            if c.state == CONNECTION_OPEN:
                self._queue_reading(c)  # it may have been waiting for others to leave less unread

    cdef void _note(self, rare_kind kind, connection *c, uint32_t value) noexcept nogil:
        # Three times as many as connections: one may speak another protocol, be refused, and reach a deadline before
        # Python hears of it.
        self.rare[self.rare_count].kind = kind
        self.rare[self.rare_count].slot = c.slot
        self.rare[self.rare_count].value = value
        self.rare_count += 1

    cdef void _drop(self, connection *c) noexcept nogil:
        """Closes a connection now. Its outstanding places stay taken until their outcomes come."""
        if c.state == CONNECTION_FREE:
            return
        self._unqueue(c)
        self._forget_partial(c)
        # Not left to close(): a sibling that passed the socket here may still hold its own copy.
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, c.fd, NULL)
        close_fd(c.fd)
        c.fd = -1
        c.state = CONNECTION_FREE
        self.unread_acks_total -= connection_unsent(c)
        tls_free(c.tls)
        c.tls = NULL
        c.acks_start = c.acks_end = 0
        connection_shrink(c, 0)
        self.connections -= 1
        word_add_above_zero(&self.ring.put_connections, -1)
        self.closed[self.closed_count] = c.slot
        self.closed_count += 1
