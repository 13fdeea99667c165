"""The short form of part 5 of the proof: calls that fail. First those that once led to a wrong answer."""

from __future__ import annotations

import errno

import pytest

from faults import failing_calls
from faults.failing_series import COMMITTER_NAME, SHORT, WORKER_NAME, Series
from faults.outcome import Outcome

FOUND = [
    # A header read in two parts was taken for no header: MISSING instead of the chunk.
    (Series("fresh", WORKER_NAME, "pread", SHORT, True), 1),
    # After a short send the acks waited for an event of a socket that was not full.
    (Series("fresh", WORKER_NAME, "send", SHORT, True), 2),
    # Interrupted, and taken for failed: a sync of the bulk path, and opening a pack.
    (Series("fresh", COMMITTER_NAME, "fdatasync", errno.EINTR, False), 5),
    (Series("fresh", COMMITTER_NAME, "openat2", errno.EINTR, False), 5),
    # The log did not say what had failed: "Bad message" of a pack that could not be looked at, and no reason of a sync.
    (Series("fresh", COMMITTER_NAME, "fstat", errno.EIO, True), 1),
    (Series("again", COMMITTER_NAME, "fsync", errno.EDQUOT, False), 3),
]


def check(outcome: Outcome) -> None:
    if outcome.not_run:
        pytest.skip(outcome.not_run)
    assert outcome.passed, "\n".join(outcome.losses)
    assert outcome.counts["faults_that_struck"] > 0


def test_calls_that_once_led_to_a_wrong_answer(tmp_path):
    check(failing_calls.run_cases(FOUND, tmp_path))


def test_a_sample_of_failing_calls(tmp_path):
    check(failing_calls.run(seed=5, cases=4, directory=tmp_path))


def test_each_series_ends_when_its_fault_does_not_strike(tmp_path, monkeypatch):
    """The long form, of one kind of call."""
    one = Series("again", COMMITTER_NAME, "syncfs", errno.EIO, False)
    monkeypatch.setattr(failing_calls, "all_series", lambda: [one])
    outcome = failing_calls.run(seed=1, cases=100, directory=tmp_path)
    check(outcome)
    assert outcome.counts["faults_that_struck"] == outcome.cases - 1
