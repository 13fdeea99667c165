"""Which names are a store's, in either layout: what is none of it is named, and moved away by a repair."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.store.check.walk import is_object, walk

FILES = {  # path: the layouts that it is a file of
    "obj": ("pack",),
    "0/obj": ("pack", "tree"),
    "ZZ/obj": ("pack", "tree"),
    "AA/0/obj": ("pack", "tree"),
    "AA/BB/obj": ("pack", "tree"),
    "AA/BB/C/obj": ("pack", "tree"),
    "AA/BB/CC/obj": ("pack", "tree"),
    "AA/BB/CC/D/obj": ("tree",),
    "AA/BB/CC/DD/obj": ("tree",),
    "AA/BB/CC/DD/E/obj": (),
    "A/BB/obj": (),
    "AA/B/CC/obj": (),
    "AA/OBJ": (),
    "AA/obj.new": (),
    "AA/xy/obj": (),
    "AA/BBB/obj": (),
    "AA/obj/obj": (),
    "Z": (),
    "AA/BB/X": (),
}


def make(data: Path, path: str) -> None:
    file = data / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    for each in (file, *file.parents):
        if each.is_relative_to(data):
            each.chmod(0o600 if each is file else 0o700)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data/.ingest").mkdir(mode=0o700, parents=True)
    return tmp_path / "data"


@pytest.mark.parametrize("kind", ["pack", "tree"])
@pytest.mark.parametrize("path", FILES)
def test_a_name_is_of_the_store_or_named(data: Path, kind: str, path: str) -> None:
    """The first part of it that no ticket leads to, so that a repair moves that whole, and once."""
    make(data, path)
    found = walk(data, kind)
    ours = kind in FILES[path]
    assert is_object(path, kind) == ours
    assert found.objects == [path] * ours
    assert [problem.kind for problem in found.problems] == ["unexpected"] * (not ours)
    for problem in found.problems:
        assert f"{path}/".startswith(f"{problem.path}/")
        assert problem.detail.endswith("that no ticket leads to") and problem.repair
        assert not any(f"{own}/".startswith(f"{problem.path}/") for own in FILES if kind in FILES[own])
    assert found.notes == []


@pytest.mark.parametrize("kind", ["pack", "tree"])
def test_all_of_them_at_once_in_order(data: Path, kind: str) -> None:
    ours = [path for path in FILES if kind in FILES[path]]
    for path in reversed(ours):
        make(data, path)
    found = walk(data, kind)
    assert (found.objects, found.problems) == (sorted(ours), [])


def link(path: Path) -> None:
    path.symlink_to("nowhere")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("kind", ["pack", "tree"])
@pytest.mark.parametrize("place", ["AA/obj", "AA/BB/obj"])
@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (link, "a symbolic link to nowhere: none is followed inside a store"),
        (fifo, "neither a file nor a directory"),
        (unix_socket, "neither a file nor a directory"),
        (directory, "a directory that no ticket leads to"),
    ],
)
def test_what_lies_where_a_file_should_is_said(
    data: Path, kind: str, place: str, make_it: Callable[[Path], None], said: str
) -> None:
    make(data, f"{place}x")
    (data / f"{place}x").unlink()
    make_it(data / place)
    (problem,) = walk(data, kind).problems
    assert (problem.kind, problem.path, problem.detail) == ("unexpected", place, said)


@pytest.mark.parametrize("name", ["lost+found", "readme", ".snapshot", "objects", "abc", "AAA", "a"])
def test_what_cannot_be_taken_for_ours_at_the_top_stays(data: Path, name: str) -> None:
    """Others' files beside the store are noted; what is below them is not looked at."""
    (data / name).mkdir()
    (data / name / "obj").touch(0o644)
    found = walk(data, "pack")
    assert (found.objects, found.problems) == ([], [])
    assert found.notes == [f"{name}: not a part of the store"]
