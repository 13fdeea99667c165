"""The mutants. Each is one or a few replacements in the source, and the tests that must fail because of it.

What is searched for must be in the source exactly once, so that a mutant cannot quietly come to mean nothing:
`tests/test_mutants.py` holds that, and `make mutants CHECK=1` says which ones no longer fit. A path may be a glob.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """`search` stands exactly once in the files below the root that match the glob `path`."""

    path: str
    search: str
    replacement: str

    def find(self, root: Path) -> Path:
        """The file that has it. ValueError when it is not there exactly once."""
        found = [
            path for path in sorted(root.glob(self.path)) for _ in range(path.read_text().count(self.search))
        ]
        if len(found) != 1:
            raise ValueError(f"{self.search!r} is {len(found)} times in {self.path}, and must be there once")
        return found[0]

    def apply(self, root: Path) -> Path:
        """Replaces it; returns the file."""
        path = self.find(root)
        path.write_text(path.read_text().replace(self.search, self.replacement))
        return path


@dataclass(frozen=True)
class Mutant:
    """A deliberate fault. `killed_by`: ids of pytest, of which at least one must fail by an assertion, none by an error."""

    name: str
    fault: str
    edits: tuple[Edit, ...]
    killed_by: tuple[str, ...]


ORDER = "tests/test_faults_call_order.py::test_no_call_comes_before_what_it_needs"
WIRE = "tests/test_faults_wire.py::"
WHOLE = "tests/test_compared_whole.py::"
LOG = "ingest/store/log/log_writer.py"
FILES = "ingest/runtime/durable_files.py"
COMMITTER = "ingest/engine/commit/committer.py"
APPEND = "self.log.append(planned.buffer, puts, deletes, notes)"

MUTANTS = (
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
        (Edit("ingest/csrc/bulk_write.h", "return synced(fdatasync, pack->fd);", "return 0;"),),
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
    # --- comparisons that stop short
    Mutant(
        "last-byte-of-a-chunk-not-compared",
        "other bytes under a ticket that is taken are SAVED if only their last one differs",
        (
            Edit(
                "ingest/engine/commit/_duplicates.pyx",
                "frames + at, DATA_BYTES)",
                "frames + at, DATA_BYTES - 1)",
            ),
        ),
        (WHOLE + "test_chunks_that_differ_in_one_byte_are_a_conflict_whichever_it_is",),
    ),
    Mutant(
        "deleted-overlooked-in-a-step-of-eight",
        "a long run of puts is acked over a slot that is deleted",
        (Edit("ingest/csrc/pack_file.h", " | p->header[PACK_DELETED + (s >> 3)] |", " |"),),
        (WHOLE + "test_one_taken_slot_is_seen_in_a_run_long_enough_to_pass_the_log",),
    ),
    Mutant(
        "claim-overlooked-in-a-step-of-eight",
        "a run of puts is written over a slot that another put is under way to",
        (Edit("ingest/csrc/pack_file.h", "(p->claimed[s >> 3] | p->header", "(p->header"),),
        (WHOLE + "test_claims_of_a_job_that_runs_are_seen_from_the_first_one_on",),
    ),
    Mutant(
        "reader-overlooks-a-deleted-slot",
        "a get of a long run shows a deleted chunk, as zeros",
        (
            Edit(
                "ingest/csrc/pack_cache.h",
                "header[PACK_PRESENT + (s >> 3)] == present &&\n            header[PACK_DELETED + (s >> 3)] == deleted",
                "header[PACK_PRESENT + (s >> 3)] == present",
            ),
        ),
        (WHOLE + "test_a_reader_sees_one_slot_among_others",),
    ),
    Mutant(
        "pack-of-another-place-is-read",
        "the last byte of where a pack belongs is not compared: gets answer from a pack of another store",
        (
            Edit(
                "ingest/csrc/pack_cache.h",
                "memcmp(header + 24, store_id, 16)",
                "memcmp(header + 24, store_id, 15)",
            ),
        ),
        (WHOLE + "test_each_byte_of_a_store_and_of_a_place_says_whose_pack_it_is",),
    ),
    Mutant(
        "pack-of-another-store-is-written",
        "the last byte of a store's id is not compared: frames are written into a pack of another store",
        (
            Edit(
                "ingest/store/layouts/_open_packs.pyx",
                "memcmp(expected, header, PACK_GENERATION)",
                "memcmp(expected, header, PACK_GENERATION - 1)",
            ),
        ),
        (WHOLE + "test_each_byte_of_a_store_and_of_a_place_says_whose_pack_it_is",),
    ),
    Mutant(
        "last-chunk-of-an-extent-not-looked-for",
        "a rebuilt catalog has versions that are not whole",
        (
            Edit(
                "ingest/objects/rebuild.py",
                "self.stops[run] < place.stop:",
                "self.stops[run] < place.stop - 1:",
            ),
        ),
        (WHOLE + "test_a_version_lacks_any_chunk_that_is_not_stored",),
    ),
    Mutant(
        "chunk-of-two-objects-overlooked",
        "a rebuilt catalog has two objects that share a chunk",
        (Edit("ingest/objects/rebuild.py", "before[0] > place.first", "before[0] > place.first + 1"),),
        (WHOLE + "test_a_version_with_one_chunk_of_another_object_is_not_whole",),
    ),
    Mutant(
        "page-goes-one-name-too-far",
        "a listing has a name that does not begin with its prefix",
        (Edit("ingest/catalog/catalog_reader.py", " AND name < ?", " AND name <= ?"),),
        (WHOLE + "test_a_page_has_what_begins_with_its_prefix_and_nothing_else",),
    ),
    Mutant(
        "etag-compared-in-part",
        "If-Match lets another version through, whose ETag ends otherwise",
        (
            Edit(
                "ingest/gateway/http/preconditions.py",
                "(not weak and tag == version.etag)",
                "(not weak and tag[:62] == version.etag[:62])",
            ),
        ),
        (WHOLE + "test_an_etag_that_differs_in_one_byte_is_another_one",),
    ),
    Mutant(
        "token-compared-in-part",
        "a token lets in whoever knows all but its last characters",
        (
            Edit(
                "ingest/gateway/http/token_file.py",
                'hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()',
                'hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()\n'
                "        digest = next((known for known, _ in self.rights if known[:1] == digest[:1]), digest)",
            ),
        ),
        (WHOLE + "test_a_token_that_differs_in_one_character_is_none",),
    ),
    Mutant(
        "digest-of-a-body-compared-in-part",
        "an upload with other bytes than its sender says is stored",
        (
            Edit(
                "ingest/gateway/http/body_digests.py",
                "compare_digest(self._hashes[name].digest(), expected)",
                "compare_digest(self._hashes[name].digest()[:15], expected[:15])",
            ),
        ),
        (WHOLE + "test_a_digest_of_a_body_that_differs_in_one_byte_is_wrong",),
    ),
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
