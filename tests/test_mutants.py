"""The mutants fit the source and their tests exist; what is judged of them is `make mutants`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mutants.catalogue import CONTROL, MUTANTS
from mutants.mutant import Edit, Mutant
from mutants.scratch import ROOT, read_report

DEMANDED = 12  # and the control


@pytest.mark.parametrize("mutant", [CONTROL, *MUTANTS], ids=lambda mutant: mutant.name)
def test_it_fits_the_source(mutant: Mutant) -> None:
    for edit in mutant.edits:
        assert edit.search != edit.replacement
        edit.find(ROOT)


@pytest.mark.parametrize("test", CONTROL.killed_by)
def test_its_test_is_there(test: str) -> None:
    path, *names = re.sub(r"\[.*", "", test).split("::")
    text = (ROOT / path).read_text()
    for name in names:
        assert re.search(rf"^ *(?:def|class) {name}\b", text, re.M), test


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= DEMANDED


def test_an_edit_that_fits_twice_or_not_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("x = 1\ny = 2\n")
    assert Edit("*.py", "y = 2", "y = 3").apply(tmp_path) == tmp_path / "b.py"
    assert (tmp_path / "b.py").read_text() == "x = 1\ny = 3\n"
    for search in ("x = 1", "y = 2"):
        with pytest.raises(ValueError, match="times in"):
            Edit("*.py", search, "").apply(tmp_path)


def test_only_an_assertion_kills(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase classname="t" name="good"/>'
        '<testcase classname="t" name="a"><failure message="AssertionError: no">x</failure></testcase>'
        '<testcase classname="t" name="b"><failure message="assert 1 == 2">x</failure></testcase>'
        '<testcase classname="t" name="c"><failure message="Failed: Timeout (&gt;120.0s)">x</failure></testcase>'
        '<testcase classname="t" name="d"><error message="collection failure">x</error></testcase>'
        '<testcase classname="t" name="e"><skipped message="no strace"/></testcase></testsuite></testsuites>'
    )
    tested = read_report(tmp_path / "report.xml")
    assert tested.passed == ["t::good"]
    assert [line.split(":")[2] for line in tested.asserted] == ["a", "b"]
    assert [line.split(":")[2] for line in tested.broken] == ["c", "d"]
    assert tested.skipped == ["t::e: no strace"]
