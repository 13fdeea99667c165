"""The mutants. Each is one or a few replacements in the source, and the tests that must fail because of it.

What is searched for must be in the source exactly once, so that a mutant cannot quietly come to mean nothing:
`tests/test_mutants.py` holds that, and `make mutants CHECK=1` says which ones no longer fit. A path may be a glob.
"""

from __future__ import annotations

from mutants import comparisons, durability, leftovers, pairs, signatures
from mutants.mutant import Edit, Mutant

ORDER = "tests/test_faults_call_order.py::test_no_call_comes_before_what_it_needs"
WIRE = "tests/test_faults_wire.py::"
LOG = "ingest/store/log/log_writer.py"
FILES = "ingest/runtime/durable_files.py"
FILE_SYNCS = "tests/test_file_syncs.py::"
OPEN_PACKS = "ingest/store/layouts/_open_packs.pyx"
EACH_FILE = FILE_SYNCS + "test_the_log_counts_on_no_file_that_was_not_synced"
COMMITTER = "ingest/engine/commit/committer.py"
APPEND = "self.log.append(planned.buffer, puts, deletes, notes)"

MUTANTS = (
    Mutant(
        "trust-syncfs-everywhere",
        "on overlayfs and FUSE the log is used again after a syncfs that hears of no error",
        (Edit("ingest/store/layouts/layout.py", "table.sync_each_file()", "pass"),),
        (EACH_FILE,),
    ),
    Mutant(
        "sync-files-and-not-their-names",
        "where each file is synced, a new pack's directories are not",
        (
            Edit(
                "ingest/store/layouts/_open_packs.pyx",
                "unsynced_add(&self._syncing, p.id, p.fd, p.unnamed)",
                "unsynced_add(&self._syncing, p.id, p.fd, 0)",
            ),
        ),
        (EACH_FILE,),
    ),
    Mutant(
        "close-unsynced-packs",
        "a pack that was written to is closed before it was synced: nobody hears that its write failed",
        (Edit("ingest/csrc/pack_table.h", " || e->pack->unsynced)", ")"),),
        (FILE_SYNCS + "TestTables",),
    ),
    Mutant(
        "forget-what-a-flush-overlaps",
        "a pack that is written to while it is being synced counts as synced",
        (Edit(OPEN_PACKS, "p.unsynced &= ~<int>PACK_SYNCING", "p.unsynced = 0"),),
        (FILE_SYNCS + "TestTables",),
    ),
    Mutant(
        "drop-the-fdatasync",
        "a batch of the log is written and not synced",
        (Edit(LOG, "os.fdatasync(self._current.fd)", "pass"),),
        (ORDER,),
    ),
    Mutant(
        "ack-early",
        "frames are answered before their batch is written to the log",
        (Edit(COMMITTER, APPEND, f"(planned.apply(), planned.answer(), {APPEND})"),),
        (ORDER,),
    ),
    Mutant(
        "skip-directory-durability",
        "a long run is noted in the log while the directories of its pack are not durable",
        (
            Edit(
                "ingest/csrc/bulk_write.h",
                "static int bulk_sync_directories(int data_fd, int64_t pack, int64_t previous)\n{",
                "static int bulk_sync_directories(int data_fd, int64_t pack, int64_t previous)\n{\n    return 0;",
            ),
        ),
        (ORDER,),
    ),
    Mutant(
        "note-before-the-pack-is-synced",
        "a long run is noted in the log while its slots may be only in the drive's or the kernel's cache",
        (Edit("ingest/csrc/bulk_write.h", "return synced(fdatasync, fd); }", "return 0; }"),),
        (ORDER,),
    ),
    Mutant(
        "header-of-a-new-pack-in-the-page-cache",
        "slots of a long run are written while the header of their new pack may be only in the kernel's cache",
        (
            Edit(
                "ingest/csrc/pack_file.h", "fcntl(fd, F_SETFL, flags | O_DIRECT)", "fcntl(fd, F_SETFL, flags)"
            ),
        ),
        (ORDER,),
    ),
    Mutant(
        "retry-a-failed-sync",
        "a sync of the log that failed is tried again, and believed when it then succeeds",
        (
            Edit(
                LOG,
                "            os.fdatasync(self._current.fd)\n",
                "            try:\n                os.fdatasync(self._current.fd)\n"
                "            except OSError:\n                os.fdatasync(self._current.fd)\n",
            ),
        ),
        ("tests/test_commit_loop.py::TestFailingDisk::test_a_sync_of_the_log_that_fails",),
    ),
    Mutant(
        "ignore-a-short-write",
        "what a write to the log left over is not written",
        (Edit(FILES, "buffer = buffer[written:]", "buffer = buffer[:0]"),),
        ("tests/test_log_writer.py::test_short_writes_go_on_where_they_stopped",),
    ),
    Mutant(
        "segment-header-not-synced",
        "batches are written behind a segment header that may never reach the disk",
        (Edit(LOG, "            os.fdatasync(segment.fd)\n", "            pass\n"),),
        ("tests/test_log_writer.py::test_a_new_segment_s_header_is_durable_before_a_batch_is_written",),
    ),
    Mutant(
        "recycle-before-the-packs-are-synced",
        "the log is given free when the flush of the packs begins",
        (
            Edit(
                COMMITTER,
                "self._flush_began = time.monotonic_ns()",
                "self._flush_began = time.monotonic_ns()\n        self.log.recycle(self._flush_note)",
            ),
        ),
        (ORDER,),
    ),
    Mutant(
        "bits-before-the-log-is-synced",
        "readers see frames that a power cut can take back",
        (
            Edit(COMMITTER, "planned.apply()", "failure"),
            Edit(COMMITTER, APPEND, f"failure = planned.apply()\n            {APPEND}"),
        ),
        (ORDER,),
    ),
    Mutant(
        "settle-nothing",
        "recovery does not sync the last batch, which perhaps never reached the disk",
        (Edit("ingest/store/log/recovery.py", "os.fdatasync(batch.segment.fd)", "pass"),),
        ("tests/test_recovery.py::TestLog::test_the_last_batch_is_settled",),
    ),
    Mutant(
        "recovery-forgets-deletes",
        "a delete that only the log has is not done again",
        (Edit("ingest/store/log/recovery.py", "self._delete(payload[offset : offset + size])", "pass"),),
        ("tests/test_recovery.py::TestOrder::test_a_delete_after_a_put",),
    ),
    Mutant(
        "leave-the-ticket-out-of-the-checksum",
        "a frame is authentic under every ticket",
        (Edit("ingest/csrc/blake3_lanes.c", "memcpy(block, frame, 8);", "memset(block, 0, 8);"),),
        (WIRE + "test_flipped_bits_of_a_ticket",),
    ),
    Mutant(
        "accept-what-fails-its-checksum",
        "a frame that fits no key is stored",
        (Edit("ingest/engine/ports/_put_server.pyx", "verdicts[i] = FAILED_ALL", "verdicts[i] = PUT_FRAME"),),
        (WIRE + "test_the_limit_of_bad_frames",),
    ),
    Mutant(
        "no-limit-on-bad-frames",
        "a connection may send as many bad frames as it likes",
        (
            Edit(
                "ingest/engine/ports/_put_server.pyx",
                "if w.bad_frames >= self.bad_frame_limit:",
                "if w.bad_frames >= 1000000000:",
            ),
        ),
        (WIRE + "test_the_limit_of_bad_frames",),
    ),
    Mutant(
        "overwrite-on-conflict",
        "other bytes under a ticket that is taken replace what is there",
        (
            Edit(
                "ingest/engine/commit/_committer.pyx",
                "if state == SLOT_FREE and space:",
                "if (state == SLOT_FREE or state == SLOT_PRESENT) and space:",
            ),
        ),
        (WIRE + "test_each_round_of_these[rivals]",),
    ),
    Mutant(
        "forget-a-tombstone",
        "a deleted ticket can be put again",
        (
            Edit(
                "ingest/store/layouts/_*_table.pyx",
                "bits_fill(p.header + PACK_DELETED, slot, count, 1)",
                "pass",
            ),
        ),
        (WIRE + "test_each_round_of_these[replays]",),
    ),
    Mutant(
        "serve-without-checking-over-http",
        "the admin port shows whatever lies on the disk",
        (Edit("ingest/store/layouts/_*_reader.pyx", " and self._authentic(frame, index)", ""),),
        (WIRE + "test_http_shows_nothing_that_fails_its_checksum",),
    ),
    *durability.MUTANTS,
    *comparisons.MUTANTS,
    *leftovers.MUTANTS,
    *pairs.MUTANTS,
    *signatures.MUTANTS,
)

# It changes nothing: that it survives shows that the tests fail for the faults, and not by themselves.
CONTROL = Mutant(
    "change-nothing",
    "no fault: it must survive all tests that kill others",
    (
        Edit(
            FILES,
            "    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)\n",
            "    fd = os.open(path, os.O_DIRECTORY | os.O_RDONLY)\n",
        ),
    ),
    tuple(dict.fromkeys(test for mutant in MUTANTS for test in mutant.killed_by)),
)
