"""Mutants of durability outside of the log's main path: names, headers, repairs, deletes."""

from __future__ import annotations

from mutants.mutant import Edit, Mutant

LOG = "ingest/store/log/log_writer.py"
OPEN_PACKS = "ingest/store/layouts/_open_packs.pyx"
SLOTS = "tests/test_faults_slot_order.py::"
FILES = "ingest/runtime/durable_files.py"
STARTS = "tests/test_faults_name_order.py::test_a_start_makes_the_names_of_the_segments_durable_that_it_finds"
CHANGES = "tests/test_faults_name_order.py::test_a_change_of_the_catalog_is_durable_when_it_is_through"
NAMES = "tests/test_faults_name_order.py::test_nothing_is_built_on_what_a_power_cut_may_take"

MUTANTS = (
    Mutant(
        "name-of-a-segment-not-synced",
        "batches are acknowledged in a segment whose name a power cut takes away",
        (Edit(LOG, "            os.fsync(self._directory_fd)\n", "            pass\n"),),
        (NAMES + "[make_segments]",),
    ),
    Mutant(
        "names-of-segments-that-were-found-not-synced",
        "batches are acknowledged in a segment whose maker died before its name was durable",
        (Edit("ingest/store/log/recovery.py", "        sync_directory(wal_dir)  #", "        pass  #"),),
        (STARTS,),
    ),
    Mutant(
        "rename-not-synced",
        "a copy of the catalog, or a rebuilt one, is gone after a power cut",
        (
            Edit(
                FILES,
                "    os.rename(source, target)\n    sync_directory(target.parent)\n",
                "    os.rename(source, target)\n",
            ),
        ),
        (NAMES + "[copy_catalog]", NAMES + "[rebuild_catalog]"),
    ),
    Mutant(
        "renamed-before-its-bytes-are-durable",
        "store.json is empty after a power cut",
        (Edit(FILES, "        if sync:\n            os.fsync(fd)\n", "        pass\n"),),
        (NAMES + "[describe_store]",),
    ),
    Mutant(
        "directory-above-a-new-one-not-synced",
        "a new store is gone after a power cut, with all that was acknowledged since",
        (
            Edit(
                FILES,
                "    path.mkdir(mode=0o700, exist_ok=True)\n    sync_directory(path.parent)\n",
                "    path.mkdir(mode=0o700, exist_ok=True)\n",
            ),
        ),
        (NAMES + "[make_store]",),
    ),
    Mutant(
        "key-linked-before-its-bytes-are-durable",
        "a key file is empty after a power cut, and with it the store unreadable",
        (
            Edit(
                "ingest/runtime/key_file.py",
                "                file.flush()\n                os.fsync(fd)\n",
                "                file.flush()\n",
            ),
        ),
        (NAMES + "[make_key]", NAMES + "[rotate_key]"),
    ),
    Mutant(
        "key-s-name-not-synced",
        "a rotated key is gone after a power cut, and what it signed fails its check",
        (Edit("ingest/runtime/key_file.py", "        os.fsync(directory)\n", "        pass\n"),),
        (NAMES + "[make_key]", NAMES + "[rotate_key]"),
    ),
    Mutant(
        "commits-of-the-catalog-not-synced",
        "an object that was stored is gone after a power cut, and its chunks become garbage",
        (Edit("ingest/catalog/database.py", '"synchronous", 2)  # FULL', '"synchronous", 1)  # FULL'),),
        (CHANGES,),
    ),
    Mutant(
        "new-catalog-s-name-not-synced",
        "a new catalog is gone after a power cut, with all objects that were committed",
        (Edit("ingest/catalog/database.py", "        sync_directory(path.parent)\n", "        pass\n"),),
        (NAMES + "[make_catalog]",),
    ),
    Mutant(
        "export-sealed-before-it-is-durable",
        "an export counts as a store while a power cut may take its chunks",
        (
            Edit(
                "ingest/store/check/export.py",
                "        sync_everything(self.path, self.fd)\n",
                "        pass\n",
            ),
        ),
        (NAMES + "[export_store]",),
    ),
    Mutant(
        "repair-before-its-copy-is-durable",
        "a power cut in a repair leaves neither what was damaged nor what was made of it",
        (
            Edit(
                FILES,
                "        yield fd\n        os.fsync(fd)\n    finally:",
                "        yield fd\n    finally:",
            ),
        ),
        tuple(NAMES + f"[repair {kind}]" for kind in ("header", "slot", "store.json")),
    ),
    Mutant(
        "log-put-aside-before-the-packs-are-synced",
        "a repair moves the log away while only the page cache has what it held",
        (
            Edit(
                "ingest/store/check/log_repair.py",
                "            sync_everything(self._exam.data_dir, self._exam.data_fd)\n",
                "            pass\n",
            ),
        ),
        (NAMES + "[repair log]",),
    ),
    Mutant(
        "name-of-what-a-repair-took-not-synced",
        "what a repair took away is there again after a power cut, beside what took its place",
        (
            Edit(
                "ingest/store/check/quarantine.py",
                "        sync_directory(moved.parent)\n        sync_directory(path.parent)\n",
                "        pass\n",
            ),
        ),
        (NAMES + "[keep_copies]", NAMES + "[repair stray]"),
    ),
    Mutant(
        "object-s-name-not-synced",
        "a file that `ingest get` wrote is gone after a power cut",
        (
            Edit(
                "ingest/commands/object_files.py",
                "            sync_directory(self._directory)\n",
                "            pass\n",
            ),
        ),
        (NAMES + "[write_an_object]",),
    ),
    # Headers that count as durable too early, and syncs that fail unheard.
    Mutant(
        "header-durable-when-its-flush-begins",
        "slots of a batch that the log does not have yet lie behind a header that a power cut takes",
        (
            Edit(
                OPEN_PACKS,
                "_advance_headers(HEADER_CACHED, HEADER_FLUSHING)",
                "_advance_headers(HEADER_CACHED, HEADER_DURABLE)",
            ),
        ),
        (
            SLOTS
            + "test_a_batch_s_slots_are_written_beside_the_log_only_behind_a_durable_header[being flushed]",
        ),
    ),
    Mutant(
        "header-durable-when-it-is-written",
        "the header of a new pack counts as durable while it is in the page cache",
        (
            Edit(
                OPEN_PACKS,
                "        p.header_cached = HEADER_CACHED\n        return 0\n",
                "        return 0\n",
            ),
        ),
        (SLOTS + "test_a_batch_s_slots_are_written_beside_the_log_only_behind_a_durable_header[cached]",),
    ),
    Mutant(
        "header-durable-when-it-is-read",
        "the header of a pack that a committer before this one wrote counts as durable",
        (
            Edit(
                OPEN_PACKS, "p.header_cached = HEADER_CACHED     #", "p.header_cached = HEADER_DURABLE     #"
            ),
        ),
        (
            SLOTS
            + "test_a_batch_s_slots_are_written_beside_the_log_only_behind_a_durable_header[opened again]",
        ),
    ),
    Mutant(
        "slots-of-a-new-pack-beside-the-log",
        "slots of a batch are written while the log is, behind any header",
        (
            Edit(
                "ingest/engine/commit/_round.pyx",
                "pack.fresh or self.batch[i].pack.header_cached",
                "pack.fresh",
            ),
        ),
        (SLOTS + "test_a_batch_s_slots_are_written_beside_the_log_only_behind_a_durable_header[cached]",),
    ),
    Mutant(
        "long-run-behind-a-header-being-flushed",
        "a long run is written behind a header whose flush is not over",
        (
            Edit(
                "ingest/csrc/bulk_write.h",
                "if (pack->header_cached) {",
                "if (pack->header_cached == HEADER_CACHED) {",
            ),
        ),
        (SLOTS + "test_no_slot_comes_before_what_it_needs",),
    ),
    Mutant(
        "failed-sync-of-a-directory-ignored",
        "a long run is acknowledged though the disk refused to make its pack's name durable",
        (Edit("ingest/engine/commit/_bulk.pyx", "error = bulk_sync_directories(", "bulk_sync_directories("),),
        (SLOTS + "test_a_long_run_is_saved_only_when_every_write_and_sync_of_it_has_succeeded",),
    ),
    Mutant(
        "failed-sync-of-data-ignored",
        "the same, of the topmost directory alone",
        (
            Edit(
                "ingest/csrc/file_syncs.h",
                "int error = *previous ? 0 : synced(fsync, root);",
                "int error = *previous ? 0 : synced(fsync, root) * 0;",
            ),
        ),
        (SLOTS + "test_a_long_run_is_saved_only_when_every_write_and_sync_of_it_has_succeeded",),
    ),
    Mutant(
        "erased-before-its-tombstone",
        "who reads a chunk that is being deleted gets zeros for it",
        (
            Edit(
                "ingest/engine/commit/_deletes.pyx",
                "error = self.packs.publish(r.pack)",
                "error = self.packs.erase(r.pack, r.slot, count) or self.packs.publish(r.pack)",
            ),
        ),
        (SLOTS + "test_no_slot_comes_before_what_it_needs",),
    ),
    Mutant(
        "emptied-before-its-tombstone",
        "the same in layout tree: a power cut leaves a file that is damaged, and not deleted",
        (
            Edit(
                "ingest/csrc/tree_file.h",
                "if (fsetxattr(fd, TREE_DELETED",
                "if (ftruncate(fd, 0) < 0 || fsetxattr(fd, TREE_DELETED",
            ),
        ),
        ("tests/test_faults_call_order.py::test_no_call_comes_before_what_it_needs",),
    ),
)
