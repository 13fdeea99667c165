"""Part 2 of the proof in short: SIGKILL at named steps. `make faults PART=2` is the long run."""

from pathlib import Path

from faults import steps


def test_nothing_acknowledged_is_lost_at_a_few_steps(tmp_path: Path) -> None:
    outcome = steps.run(5, 4, tmp_path)
    assert outcome.passed, "\n".join(outcome.losses)
    counts = outcome.counts
    assert counts["struck_log"] + counts["struck_bulk"] + counts["struck_recovery"] == 4


def test_the_long_run_has_each_step_so_many_times() -> None:
    cases = steps.all_cases(steps.EACH)
    for step in steps.WAYS["log"]:
        assert sum(case.step == step and case.way == "log" for case in cases) == 25
