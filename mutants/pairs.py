"""Mutants that show only when two rare events meet."""

from __future__ import annotations

from mutants.mutant import Edit, Mutant

PAIRS = "tests/test_two_at_once.py::"
CHUNK_WRITER = "ingest/objects/chunk_writer.py"

MUTANTS = (
    Mutant(
        "conflict-forgotten-when-the-connection-is-lost",
        "a conflict is answered, then the connection is lost: a stranger's chunk is collected",
        (
            Edit(
                CHUNK_WRITER,
                "        except Exception:\n            await self._take_refused(batch, owner, refused, version)\n",
                "        except Exception:\n",
            ),
        ),
        (PAIRS + "test_a_conflict_and_what_comes_in_the_same_piece",),
    ),
    Mutant(
        "conflict-forgotten-when-the-upload-is-cancelled",
        "an upload is cancelled, then a conflict is answered: a stranger's chunk is collected",
        (
            Edit(
                CHUNK_WRITER,
                "            _keep(self._settling, asyncio.create_task(self._settle(batch, owner, refused, version)))\n",
                "",
            ),
        ),
        (PAIRS + "test_a_conflict_and_the_end_of_who_uploads",),
    ),
    Mutant(
        "conflict-forgotten-when-a-cancelled-upload-s-connection-is-lost",
        "the same, and the connection is lost behind the answer",
        (
            Edit(
                CHUNK_WRITER,
                "            try:\n                await self._client.finish(batch)\n            finally:\n",
                "            await self._client.finish(batch)\n            if batch.refused:\n",
            ),
        ),
        (PAIRS + "test_a_conflict_and_the_end_of_who_uploads",),
    ),
    Mutant(
        "conflict-forgotten-when-the-catalog-is-busy",
        "a conflict is answered while the catalog is busy: a stranger's chunk is collected",
        (
            Edit(
                CHUNK_WRITER,
                "self._catalog.conflicted(owner, conflicts[0], version)\n            conflicts.popleft()",
                "self._catalog.conflicted(owner, conflicts.popleft(), version)",
            ),
        ),
        (PAIRS + "test_a_conflict_and_what_comes_in_the_same_piece",),
    ),
    Mutant(
        "conflict-of-an-owner-that-was-given-up",
        "an owner is given up, then a conflict of its upload is answered: a stranger's chunk is collected",
        (
            Edit(
                "ingest/catalog/catalog_changes.py",
                "FROM garbage WHERE first <= ? AND first + count > ?",
                "FROM garbage WHERE first <= ? AND first + count > ? AND 0",
            ),
        ),
        (PAIRS + "test_a_conflict_and_the_end_of_who_uploads",),
    ),
    Mutant(
        "second-reload-forgotten",
        "keys that come in while a reload is under way are not taken over",
        (
            Edit(
                "ingest/engine/reload.py",
                "            self._again = True\n            return\n",
                "            return\n",
            ),
        ),
        (PAIRS + "test_a_second_reload_while_a_process_dies",),
    ),
    Mutant(
        "successor-without-the-keys-of-a-reload",
        "a committer that starts while a reload is under way cannot verify what the workers take",
        (
            Edit(
                "ingest/engine/node.py",
                "return self.known_keys or self.keys",
                "return self.keys",
            ),
        ),
        (PAIRS + "test_a_second_reload_while_a_process_dies",),
    ),
    Mutant(
        "death-and-line-in-one-look",
        "a server ends when a process dies in a reload and its parent sees it late",
        (
            Edit(
                "ingest/engine/pool.py",
                "        if child.line is None:  # it was reaped in the same round\n            return\n",
                "",
            ),
        ),
        (PAIRS + "test_a_parent_that_sees_a_death_and_its_line_at_once",),
    ),
    Mutant(
        "reload-told-to-the-dead",
        "a gateway ends when it is told to reload while one of its processes is being replaced",
        (
            Edit(
                "ingest/runtime/supervisor.py",
                "if child.reloads and child.state is State.RUNNING:",
                "if child.reloads:",
            ),
        ),
        (PAIRS + "test_a_reload_while_a_process_rests_between_two_lives",),
    ),
    Mutant(
        "death-is-no-answer",
        "a reload waits for ever for a process that died, and every later one with it",
        (
            Edit(
                "ingest/engine/pool.py",
                "        self._reloads.answered(child.name)\n        if child is self._committer:",
                "        if child is self._committer:",
            ),
        ),
        ("tests/test_pool_parts.py::test_a_reload_waits_for_nobody_who_has_ended",),
    ),
    Mutant(
        "condition-not-checked-after-the-open",
        "an object is replaced between the look and the open: the wrong version is sent despite If-Match",
        (
            Edit(
                "ingest/gateway/http/http_downloads.py",
                "    if check_read(asked, version):\n"
                "        return web.Response(status=304, headers=_validators(version, extra))\n"
                "    headers = _headers",
                "    headers = _headers",
            ),
        ),
        (PAIRS + "test_a_condition_holds_for_the_version_that_is_sent",),
    ),
)
