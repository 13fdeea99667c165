"""Mutants of comparisons: each stops one byte, one slot or one chunk short."""

from __future__ import annotations

from mutants.mutant import Edit, Mutant

WHOLE = "tests/test_compared_whole.py::"

MUTANTS = (
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
        (WHOLE + "test_one_taken_slot_is_seen_in_a_run_long_enough_to_pass_the_log[pack-deleted]",),
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
