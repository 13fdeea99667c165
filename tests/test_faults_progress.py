"""What a long run says of itself on the way."""

from __future__ import annotations

import pytest

from faults import progress
from faults.progress import Progress


def test_a_short_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().done(3, ["AAA: gone"])
    assert capsys.readouterr() == ("", "")


def test_a_loss_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    run = Progress()
    run.begin()
    run.done(3, ["AAA: [expected] SAVED"])
    assert "LOSS: AAA: [expected] SAVED\n" in capsys.readouterr().err


def test_cases_and_losses_add_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    run = Progress()
    run.begin()
    run.done(1_000, ["AAA: gone"])
    run.done(234)
    assert capsys.readouterr().err.splitlines()[-1].endswith(" s: 1,234 cases, 1 losses")
