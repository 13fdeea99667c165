"""Mutants of what is left of a connection or an owner before: the next one in its place gets it."""

from __future__ import annotations

from mutants.mutant import Edit, Mutant

WIRE = "ingest/runtime/wire.py"
LEFT = "tests/test_left_behind.py::"
SUBMITTED = "ingest/engine/ports/_submitted.pyx"
ACKED = "ingest/engine/ports/_acked_connections.pyx"

MUTANTS = (
    Mutant(
        "resubmitted-without-comparing-owners",
        "frames of two connections become one run for a new committer: one of them never gets its acks",
        (Edit(SUBMITTED, "self.arena.owner[end] == owner and", "self.arena.owner[end] != 0 and"),),
        (LEFT + "test_what_is_submitted_again_is_answered_to_whom_it_belongs[1-another connection]",),
    ),
    Mutant(
        "resubmitted-without-comparing-kinds",
        "a delete becomes a put when a committer starts anew",
        (Edit(SUBMITTED, "== owner and self.arena.kind[end] == kind:", "== owner:"),),
        (LEFT + "test_what_is_submitted_again_is_answered_to_whom_it_belongs",),
    ),
    Mutant(
        "acks-of-whoever-had-the-slot-before",
        "a connection gets the acks of the one before it in its slot",
        (
            Edit(
                "ingest/engine/ports/_connections.pyx",
                " or c.generation != <uint32_t>(cookie >> 32):",
                ":",
            ),
        ),
        (LEFT + "test_what_is_submitted_again_is_answered_to_whom_it_belongs",),
    ),
    Mutant(
        "unread-acks-of-a-connection-that-is-gone-count",
        "clients that went with acks unread take from the others, until nobody may leave anything unread",
        (Edit(ACKED, "self.unread_acks_total -= acks_unsent(&self.work[c.slot], c)", "pass"),),
        (LEFT + "test_a_put_connection_leaves_nothing_to_the_next[unread acks-close]",),
    ),
    Mutant(
        "acks-that-were-read-count",
        "the same, of acks that were sent and read",
        (Edit(ACKED, "            self.unread_acks_total -= sent\n", ""),),
        (LEFT + "test_acks_that_were_read_do_not_count",),
    ),
    Mutant(
        "bad-frames-of-whoever-had-the-slot-before",
        "a connection ends at its first bad frame, because another one had sent some",
        (
            Edit(
                "ingest/csrc/put_work.h",
                "    memset(w, 0, sizeof *w);\n",
                "    uint32_t bad = w->bad_frames;\n    memset(w, 0, sizeof *w);\n    w->bad_frames = bad;\n",
            ),
        ),
        (LEFT + "test_a_put_connection_leaves_nothing_to_the_next[nothing-send_bad_frames]",),
    ),
    Mutant(
        "requests-of-whoever-had-the-slot-before",
        "a get connection is sent what another one asked for",
        (
            Edit(
                "ingest/engine/ports/_get_server.pyx",
                "        get_clear(&self.work[c.slot])\n",
                "        pass\n",
            ),
        ),
        (LEFT + "test_a_get_connection_leaves_nothing_to_the_next",),
    ),
    Mutant(
        "lease-of-a-given-up-owner-kept",
        "an upload gets tickets that the collector deletes",
        (
            Edit(
                "ingest/objects/membership.py",
                "self.owner, self._lease = await self._catalog.enter(self._what), None",
                "self.owner = await self._catalog.enter(self._what)",
            ),
        ),
        (LEFT + "test_nothing_of_a_given_up_owner_is_given_to_an_upload",),
    ),
    Mutant(
        "idle-time-counts-as-taking-nothing",
        "uploads that take longer than a client may leave an answer unread are cut",
        (
            Edit(
                WIRE,
                "        if not waiting:\n            self._acked_at = None\n        elif self._acked_at is None",
                "        if self._acked_at is None",
            ),
        ),
        (LEFT + "test_a_client_that_is_owed_nothing_is_not_late",),
    ),
    Mutant(
        "connections-that-are-gone-count",
        "connections have ever less memory for what they receive",
        (Edit(WIRE, "        self._wires.open.discard(self)\n", ""),),
        (LEFT + "test_connections_that_are_gone_take_nobody_s_place[close]",),
    ),
    Mutant(
        "places-of-connections-that-are-gone-stay-taken",
        "a gateway refuses everybody after so many connections as it takes at a time",
        (Edit("ingest/runtime/wires.py", "        self.guests.leave(guest)\n", ""),),
        (LEFT + "test_connections_that_are_gone_take_nobody_s_place[close]",),
    ),
    Mutant(
        "refused-connections-that-are-gone-count",
        "a gateway tells nobody any more that it has too many connections",
        (Edit("ingest/runtime/wires.py", "        self.refused.discard(guest)\n", ""),),
        (LEFT + "test_connections_that_are_gone_take_nobody_s_place[close]",),
    ),
    Mutant(
        "memory-of-a-transfer-that-ended-stays-lent",
        "a gateway refuses uploads after some that broke",
        (
            Edit(
                "ingest/objects/memory_budget.py",
                "                self.give_back(self.borrowed)\n",
                "                pass\n",
            ),
        ),
        (LEFT + "test_what_transfers_borrowed_is_there_again_however_they_end",),
    ),
)
