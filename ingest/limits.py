"""Every limit, with its unit and its reason. Values marked "wire" or "disk" stand in
`docs/protocol.md` and `docs/format.md`, and must not change."""

# --- wire and disk -------------------------------------------------------------------------------
TICKET_SIZE = 8  # bytes, wire: a ticket as it travels, NUL-padded
CHECKSUM_SIZE = 8  # bytes, wire: a truncated keyed BLAKE3
DATA_SIZE = 1458  # bytes, wire: what one frame carries
RECORD_LENGTH_SIZE = 2  # bytes, wire: of a record's length, which stands last in its chunk's data
RECORD_SIZE_MAX = DATA_SIZE - RECORD_LENGTH_SIZE  # 1456 bytes, wire: what a client may store with its length
FRAME_SIZE = TICKET_SIZE + CHECKSUM_SIZE + DATA_SIZE  # 1474 bytes, wire
ACK_SIZE = 9  # bytes, wire: ticket and status
REQUEST_SIZE = 24  # bytes, wire: a get or inventory request
RUN_HEADER_SIZE = 16  # bytes, wire: what precedes the frames of a run
IN_FLIGHT_MAX = 65_536  # frames that a client may send before it reads their acks, wire
RANGE_COUNT_MAX = 65_536  # tickets of one get, inventory or delete, wire: bounds the work of one request
TICKET_LENGTH_MAX = 8  # characters, wire
PACK_SLOTS = 1296  # disk: 36², what two characters can tell apart
ROOT_PACK_SLOTS = 1332  # disk: and 36 more for the one-character tickets
PACK_HEADER_SIZE = 4096  # bytes, disk: one page before the slots, so that slots start aligned

# --- a connection --------------------------------------------------------------------------------
CONNECTIONS_MAX = 8192  # of one worker and port: each may hold one partial frame and its acks
# A worker keeps acks in memory until the client's machine takes them. Two limits say when it stops reading a connection.
UNREAD_ACKS_MAX = 1 << 20  # bytes, wire: of this connection
# Bytes: of all connections of the worker. Then it reads none that leaves more than ACKS_KEPT_SIZE unread.
UNREAD_ACKS_TOTAL_MAX = 256 << 20
UNREAD_ACKS_TIMEOUT_S = 60.0  # wire: it closes a connection with unread acks after so long without progress
IDLE_TIMEOUT_S = (
    600.0  # a connection with nothing in flight that says nothing is forgotten by its NAT by then
)
PARTIAL_FRAME_TIMEOUT_S = (
    60.0  # from a frame's first byte to its last: 25 bytes/s, or a sender that died without a FIN
)
BAD_FRAME_LIMIT = 3  # at this many bad frames the connection is closed
LINGER_S = 1.0  # after our FIN the peer's bytes are read so long, so that no reset eats acks
RECEIVE_SIZE_MAX = 512 << 10  # bytes of one recv: a fast sender leaves a turn to the others
RECEIVE_FRAMES_MIN = 64  # a fast sender gets a new block rather than a receive smaller than this
TURN_FRAMES_MAX = 2816  # frames received in one turn, about 1 ms of work: acks and accepts wait no longer
ACKS_KEPT_SIZE = 4096  # bytes of ack buffer that a quiet connection may keep
REQUESTS_PIPELINED_MAX = 4096  # get requests parsed ahead of one connection: bounds its memory

# --- TLS -------------------------------------------------------------------------------------------
TLS_HANDSHAKE_TIMEOUT_S = 10.0  # a client that has not shown who it is by then
TLS_HANDSHAKE_FRAMES = (
    704  # what one step of a handshake counts for in TURN_FRAMES_MAX: its signature takes 0.1 to 1 ms
)
TLS_READ_BUFFER_SIZE = (
    64 << 10
)  # bytes of one recv: four records; larger ones would be mapped and unmapped each time
CERTIFICATE_FILE_SIZE_MAX = 1 << 20  # bytes: all that a system trusts is half of that

# --- a worker -----------------------------------------------------------------------------------------
ACCEPTS_PER_TURN = 64  # connections: a flood of them does not starve those that are open
ACCEPT_PAUSE_S = 0.2  # out of descriptors: until some are closed there is nothing to do but spin
TICK_INTERVAL_S = 0.5  # between looks at the deadlines of connections
BAD_PEER_DELAY_MAX_S = 3600.0  # --bad-peer-delay doubles with each offence up to this
PEER_LINES_MAX = 50  # log lines of one worker about what peers did wrong …
PEER_LINES_INTERVAL_S = 10.0  # … in so long: a flood of bad frames does not fill the disk with its story
BAD_PEERS_MAX = 4096  # addresses remembered, about 1 MB: the one whose refusal ends first makes room

# --- the write-behind queue ----------------------------------------------------------------------
BLOCK_PLACES = 704  # frames of one receive block, about 1 MiB: large enough for runs, small enough to recycle
ARENA_BLOCKS = 24  # blocks of one worker, 24.9 MB: what may be received and not yet acked

# --- the log -------------------------------------------------------------------------------------
LOG_SEGMENT_SIZE = 32 << 20  # bytes: 16 of them make the default log; one is written in about 20 ms
LOG_SIZE_DEFAULT = 512 << 20  # bytes: recovery reads at most this much
LOG_SIZE_MIN = 3 * LOG_SEGMENT_SIZE  # bytes: one being written, one full, one being recycled
LOG_GROW_RETRY_S = 5.0  # after a disk without room for a segment: each try writes up to one of them in vain
LOG_START_RETRY_S = 1.0  # the same, of a log that has no segment yet: nothing is stored until it has
LOG_DESCRIPTOR_RETRY_S = (
    0.25  # after a process without a descriptor for a segment, or for a flush: nothing failed
)
BATCH_FRAMES_MAX = (
    4096  # frames of one log batch, 6 MB: bounds the staging buffer and the latency of a commit
)
DIRTY_PACKS_MAX = 4096  # packs that the log covers: bounds the random writes of a recovery
# Where each file is synced by itself, with its directories: a clean stop waits for two flushes, at about 5 ms a sync.
UNSYNCED_PACKS_MAX = 1024
UNSYNCED_FILES_MAX = 512
DIRTY_FILES_MAX = 65_536  # of layout tree, the same: a recovery makes about 15,000 of them in a second
BATCH_ERASED_FILES_MAX = (
    512  # of layout tree at once, about 30 ms: a delete of 65,536 tickets leaves others a turn
)
DELETE_LOOKS_MAX = (
    4096  # of layout tree: files that deletes look at in one commit, about 20 ms when they are cached
)
FLUSH_INTERVAL_S = 1.0  # packs reach the disk at the latest so long after their frames (docs/format.md: 5 s)
RESERVE_DEFAULT = 256 << 20  # bytes kept free, so that the log, headers and deletes still work on a full disk
RESERVE_INODES = 8192  # kept free: the dirty packs of one checkpoint with their directories
RESERVE_INODES_TREE = (
    12_288  # kept free in layout tree: a file and a directory for each frame of a batch, and half as much
)
TREE_FILE_SIZE = (
    8192  # bytes that a file and its directory take on most file systems: what a tombstone may need
)
OPEN_PACKS_MAX = 8192  # descriptors of the committer: the dirty packs of two flushes
OPEN_PACKS_MIN = 16  # however few the process may have: the packs of all bulk jobs
COMMITTER_DESCRIPTORS = (
    8  # that packs give back when the committer lacks one: other threads of it take some as well
)
REPLAYED_PACKS_MAX = 1024  # packs that recovery keeps open until their headers are written
BULK_PENDING_MIN = 2048  # frames waiting from which on the bulk path is taken: below, the log answers sooner
BULK_JOB_FRAMES_MAX = 4 * PACK_SLOTS  # frames of one bulk job, 8 MB: about 8 ms of a fast disk
BULK_JOBS = (
    4  # at a time: some write while others sync; measured: 20 % more than 2 at 64 connections, as much as 6
)
BULK_HOLD_MIN = 64  # frames of a run that waits for a running bulk job to grow into one itself
BULK_HOLD_JOBS = 8  # bulk jobs that a run long enough for one waits for at most: others take turns with it
BULK_RUN_MIN = 128  # consecutive frames from which writing the pack at once is no slower than the log, and half the bytes

SPACE_CHECK_INTERVAL_S = (
    0.05  # a fast disk takes 100 MB meanwhile, less than half of the smallest sensible reserve
)
RECOVERY_RETRY_S = (
    5.0  # between recoveries that find no room: each reads the log, and meanwhile all is refused
)
RECOVERY_RETRY_MIN_S = 1.0  # the same where there seems to be room
FULL_DISK_LOOK_S = 0.25  # between looks for room meanwhile
SETTINGS_INTERVAL_S = 0.1  # how often a committer that never sleeps looks whether the parent wants something

# --- reading ---------------------------------------------------------------------------------------
READ_PACKS_MAX = (
    1024  # packs that one reader keeps open, 0.6 MB; at most an eighth of the process's descriptors
)
HEADER_READS_MAX = 5  # of a header that fails its check: it may be read while it is being written
HEADER_READ_PAUSE_US = 50  # between them: longer than any write of 512 bytes whose writer kept its processor
GET_COLLECT_SIZE = (
    128 << 10
)  # bytes of replies collected for one send, of one worker: they stay in its core's cache
GET_TURN_BYTES_MAX = 2 << 20  # sent on one connection before the others have their turn
GET_TURN_LOOKS_MAX = 512  # runs looked up for one connection before the others have their turn
GET_TURN_REQUESTS_MAX = 4096  # requests received and verified together; of one worker

# --- processes -----------------------------------------------------------------------------------
WORKERS_MAX = 256  # each has an arena of 25 MB and two sockets
PORT_TRIES = (
    20  # of ports that the system chooses on one address of a host, until one is free on the others too
)
LISTEN_BACKLOG = 4096  # connections of one socket that wait while its worker is replaced
DRAIN_TIMEOUT_S = 10.0  # default of --drain-timeout
RESTART_DELAY_MIN_S = 0.05  # back-off of a process that died: first …
RESTART_DELAY_MAX_S = 5.0  # … and last
RESTART_FORGET_S = 30.0  # a process that lived so long starts with the first delay again
SUPERVISION_INTERVAL_S = (
    0.01  # how often the parent looks for what only shared memory tells, while it waits for that
)

# --- processes that stand still ------------------------------------------------------------------
HEART_INTERVAL_S = 0.5  # between beats of a process that has nothing else to do: six in HEART_UNREADY_S
HEART_LISTEN_INTERVAL_S = 1.0  # between looks of a parent at its children's
HEART_LATE_S = (
    2.0  # a parent whose look comes so much too late did not run itself: that time says nothing of others
)
HEART_UNREADY_S = (
    3.0  # of silence: then a node is not ready. Longer than a sync of a busy disk, shorter than time-outs
)
HEART_SILENCE_MAX_S = (
    30.0  # … then all are replaced but a committer and the catalog's process: a debugger has as long
)

# --- a data directory that is gone ---------------------------------------------------------------
POSSESSION_INTERVAL_S = 0.05  # how old a look may be after which something is saved: 20 stat() take 0.1 ms
POSSESSION_SEGMENTS = (
    16  # of the log, that one look is at in turn: all of the default log, and 64 GiB in 6.4 s
)
POSSESSION_IDLE_INTERVAL_S = 1.0  # between looks of a process that has nothing to save

# --- the operator's side -------------------------------------------------------------------------
STDERR_QUEUE_SIZE = 256 << 10  # bytes of lines of one process that nobody has taken yet, some 2,000
STDERR_FLUSH_TIMEOUT_S = 0.5  # that the end of a process waits for who reads its stderr
STDERR_RETRY_INTERVAL_S = (
    10.0  # between tries to say what was lost, where nothing else is said: a disk may have room again
)
KEY_FILE_SIZE_MAX = 64 << 10  # bytes: about a thousand keys, a key a day for three years
SETTINGS_SIZE_MAX = 4 << 20  # bytes that a reload hands over: a key file and three of certificates
KEYS_COUNTED = 15  # keys with counters of their own; of all others together there is one more
ADMIN_SHUTDOWN_TIMEOUT_S = 0.5  # a scrape under way when the server ends may finish
LOCK_TRIES = 3  # of a server for its data directory: somebody may just look whether one runs there
LOCK_TRY_INTERVAL_S = 0.02

# --- the client ----------------------------------------------------------------------------------
RETRY_DELAY_MIN_S = 0.02  # back-off of a client that tries again: first …
RETRY_DELAY_MAX_S = 2.0  # … and last
WAIT_TOLD_S = 2.0  # a gateway that waits for its engine says so: one that starts beside it is there by then
CLIENT_TIMEOUT_S = 30.0  # for a connection to open, and of silence with something unanswered
CLIENT_RETRY_S = (
    60.0  # a client gives up what could not be settled for so long: longer than a restart with recovery
)
SEND_FRAMES = 176  # frames of one send, 253 KiB: whole lanes of the checksum kernel
GET_FRAMES = 512  # frames of one get request of the client, 755 KB: what it holds in memory of a range
SEAL_FRAMES = 3 * SEND_FRAMES  # frames built and signed at once, 0.2 ms: then others have their turn
ACKS_RECEIVE_SIZE = 64 << 10  # bytes of one receive: the acks of 7,281 frames
FRAMES_RECEIVE_SIZE = 256 << 10  # bytes of one receive: they are still in the cache when they are checked
GET_AHEAD = 2  # get requests that a reader of a range has out beyond the one it works on, 1.5 MB: the server never waits
GETS_IN_FLIGHT_MAX = 64  # requests of one client connection: bounds the replies that wait for their readers

# --- objects -----------------------------------------------------------------------------------------
NAME_SIZE_MAX = 1024  # bytes of UTF-8: what object stores in the field allow
NAMESPACE_SIZE_MAX = 64  # bytes of UTF-8
OWNER_DEADLINE_S = (
    30.0  # an upload whose process has not renewed for so long has failed; a download's pin ends
)
OWNER_LIFE_MAX_S = (
    120.0  # a deadline further away is of a clock that has begun anew since: the machine was restarted
)
OWNER_RENEW_S = 8.0  # between renewals: three may be lost
OWNER_ENTER_RETRY_S = 1.0  # between tries of a process that the catalog could not take, because of the disk
CATALOG_BUSY_S = (
    30.0  # wait for another process's transaction: one takes milliseconds, a busy disk may make it seconds
)
HISTORY_KEPT_S = 30 * 86_400.0  # of versions that are gone: so long their history can be asked for
HISTORY_VERSIONS_MAX = 1000  # versions of one name whose history is told
LIST_PAGE_MAX = 1000  # names of one page of a listing
CATALOG_CACHE_SIZE = (
    16 << 20
)  # bytes of the catalog in memory, of each connection: the upper levels of its trees
CATALOG_CHECKPOINT_PAGES = 8192  # 32 MiB of SQLite's WAL before it goes into the file: two syncs for each
CATALOG_WAL_KEPT_SIZE = 64 << 20  # bytes of SQLite's WAL that stay behind when a long reader made it longer
CATALOG_RESERVE_SIZE = 8 << 20  # bytes taken in advance: the deletes of some 20,000 objects on a full disk
CATALOG_RESERVE_STEP = (
    256 << 10  # bytes given back at a time, so that whoever fills the disk gets no more of it than that
)
CATALOG_RESERVE_FILES = 4  # inodes: for SQLite's two files, the service's socket, and a draft of gateway.json
CATALOG_RESERVE_RETRY_S = 1.0  # between tries to make it whole again
CATALOG_BATCH_MAX = 1024  # calls of one commit: bounds how long the first of them waits
CATALOG_MESSAGE_MAX = 16 << 20  # bytes of one call: a commit with a million extents
CATALOG_UNREAD_MAX = 4 << 20  # bytes of answers that a process leaves unread before its calls wait
CATALOG_RETRY_S = (
    15.0  # a call that nobody answered is tried again so long: a new service starts within a second
)
LEASE_TICKETS = (
    1296 * 8
)  # that a process takes in advance for small objects: one transaction for thousands of them
LEASE_TICKETS_COMMAND = 256  # … that a command takes, which ends soon: 128 small files or fewer
FILE_READ_SIZE = 1 << 20  # bytes of a file that a command reads at a time
VERSIONS_RESERVED = 1000  # numbers that a process takes in advance for small objects
SMALL_OBJECT_MAX = 256 << 10  # bytes: stored in one call and one transaction, read whole before it is sent
PIECE_CHUNKS = 512  # chunks of a large object that are signed, put and settled together, 746 kB
PIECES_IN_FLIGHT = 32  # of one upload, 24 MB of frames: the engine has enough for all its jobs on the disk
TRANSFERS_MEMORY = 28 << 20  # bytes that all transfers of a process borrow: data, and frames made of it
TRANSFER_ALLOWANCE_CHUNKS = (
    16  # of a transfer that borrows nothing, 23 kB and as much again in frames: whole lanes
)
PIECE_PATIENCE_S = (
    1.0  # for what is borrowed to be filled by the client of an upload, or taken by that of a download
)
HTTP_HEAP_KEPT = (
    8 << 20
)  # bytes that an HTTP process does not give back to the system: pieces of two transfers
PIECES_READ_AHEAD = 2  # of one download, 1.5 MB: the engine never waits for the client
RANGE_TICKETS_MIN = 4 * PIECE_CHUNKS  # the first range of an upload of unknown size; the next ones double …
RANGE_TICKETS_MAX = 64 * 1296  # … up to 121 MB: what an upload that breaks may have to delete in vain
RELOCATIONS_MAX = (
    100  # of one piece, each after a CONFLICT or DELETED: whoever has more foreign tickets there is asked
)
BINDING_OBJECTS_MAX = (
    64  # the newest objects of a catalog, one of which has to be in a store that does not say whose it is
)
GATEWAY_SILENCE_S = (
    90.0  # a gateway that says nothing, or takes nothing, to a command: it waits for its engine up to 60 s
)
GATEWAY_COLLECT_SILENCE_S = 3600.0  # … that collects garbage for a command: 100 GB take minutes
GATEWAY_ANSWER_MAX = 64 << 20  # bytes of an answer but an object: the description of one in a million extents
GC_RETRY_S = 0.5  # between looks whether another collector has ended
UPLOAD_SETTLE_S = (
    5.0  # who uploads waits so long for an upload that broke to be settled, a process that ends likewise
)
COLLECT_INTERVAL_S = 5.0  # between runs of the collector
COLLECT_BATCH = 256  # entries of garbage that are deleted before the catalog is told
COLLECT_REFUSED_MAX = (
    10_000  # entries that one run passes by: of so many it is the disk that is ill, and the run ends
)
COLLECT_REFUSED_TOLD = 10  # of them in the log, for each run; of the others their number

# --- the gateway -------------------------------------------------------------------------------------
HTTP_LINE_SIZE_MAX = (
    16 << 10
)  # bytes of a request line: a name of 1024 bytes takes 3072 when all of it is percent-encoded
HTTP_FIELD_SIZE_MAX = 8190  # bytes of one header
HTTP_FIELDS_MAX = 100  # headers of one request
HTTP_HEAD_SIZE_MAX = 32 << 10  # bytes of a request's line and headers: browsers with many cookies send 16 kB
HTTP_BODY_DIGITS_MAX = (
    18  # of a Content-Length: larger ones are no length to every reader of it, and no disk is
)
HTTP_CHUNKS_EXCESS_MAX = (
    16 << 10
)  # bytes of a body's chunk sizes and extensions beyond those of its data: 4096 chunks of one
HTTP_HEAD_SIZE_OWN = 4 << 10  # bytes of a head that each connection may have; what is beyond it counts in …
HTTP_HEADS_SIZE_MAX = 8 << 20  # … bytes, of all heads of a process: parsed, each takes up to five
HTTP_CONNECTIONS_MAX = (
    1024  # of a process: each may hold 50 kB of state, what it received, and a transfer's allowance twice
)
HTTP_SHARE_MAX = 768  # of them, of one address: a proxy has enough, and others have a quarter
HTTP_DESCRIPTORS_KEPT = 64  # of a process: for the engine, the catalog, files, and what closes
HTTP_FRESH_S = 1.0  # without a request, and not evicted by others of its address: its head may be on the way
HTTP_HEAD_TIMEOUT_S = (
    15.0  # for a head, from its first byte; for the first one, from the beginning of its connection
)
HTTP_RECEIVE_SIZE = 64 << 10  # bytes of one receive, but for large bodies: they go where they are signed from
HTTP_RECEIVE_SIZE_MIN = 4 << 10  # … when there are many connections
HTTP_RECEIVED_MAX = 4 << 20  # bytes of one receive of each connection, together
HTTP_READ_SIZE = 16 << 10  # bytes of a body that wait in a connection, at most as many as one receive
HTTP_DIRECT_MIN = 4 << 20  # bytes of such a body: its connection ends with it, which costs a new one
HTTP_REFUSED_MAX = 256  # connections beyond HTTP_CONNECTIONS_MAX that are told so; more are closed at once
HTTP_TLS_WRITE_SIZE = (
    80 << 10
)  # bytes that TLS encrypts at a time, all that it gets; after 64 KiB or less aiohttp goes on at once
CYCLES_THRESHOLD = (
    20_000  # objects made before cycles are looked for: 5 % of the CPU for a small object less than with 700
)
HTTP_IDLE_TIMEOUT_S = (
    75.0  # a connection without a request: longer than the minute after which proxies let one go
)
HTTP_STALL_TIMEOUT_S = (
    60.0  # a body that gives not one byte for so long; for a client that takes none: HTTP_UNREAD_TIMEOUT_S
)
# After an answer that came before the end of a body the rest is read, so that no reset eats the answer.
HTTP_LINGER_S = 5.0  # until nothing comes for so long
HTTP_LINGER_MAX_S = 30.0  # and so long in all: who sends slowly looks for an answer at some time
HTTP_LINGER_SIZE = 64 << 10  # bytes of such a rest: behind more of them no other request is taken
RETRY_AFTER_S = 1  # what a client is told to wait after BUSY: commits take milliseconds, a restart a second
KEPT_HEADERS_SIZE_MAX = 8 << 10  # bytes of headers that are kept with an object: they are in its manifest too
FORM_HEAD_SIZE_MAX = 16 << 10  # bytes of the head of one part of a form: a file's name and its type
FORM_BESIDE_SIZE_MAX = 64 << 10  # bytes of a form beside its file: heads, and fields that are passed over
FORM_TAKE_SIZE = 4 << 10  # bytes of a form that are taken at a time where its boundary may stand
FORM_SEARCH_SIZE = 64 << 10  # bytes of a file that are searched for the form's boundary at a time
TOKEN_FILE_SIZE_MAX = 64 << 10  # bytes
TOKEN_LENGTH_MIN = 16  # characters: shorter ones can be guessed
TOKEN_LENGTH_MAX = 512  # characters
STREAM_HEAD_MAX = 16 << 10  # bytes of a raw stream that are looked at: longer words are no HTTP request
GATEWAY_WORKERS_MAX = 64  # processes, each with a connection to the engine
HTTP_UNREAD_TIMEOUT_S = (
    600.0  # a download of which the client's machine acknowledges not one byte for so long
)
SERVE_MARGIN_S = (
    2.0  # beyond both drain time-outs, before the parent of server and gateway kills what is left
)
LINK_LIFE_S = 300.0  # of a link to a download: it is followed at once; a browser that goes on with one later needs it again
FIGURES_KEPT_S = 1.0  # figures of the node that are shown to all who look: pages ask every two seconds
FIGURES_TIMEOUT_S = 3.0  # of a request for them to the admin port, which reads /proc and the file system
FIGURES_SIZE_MAX = 4 << 20  # bytes of its answer: a node with 256 workers says a tenth of that
KEY_SWITCH_DELAY_S = (
    10.0  # before a gateway signs with a new key whose server can't be asked whether it accepts it
)
KEY_LOOK_INTERVAL_S = 0.2  # between looks whether the server accepts a new key
