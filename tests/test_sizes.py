"""A module is one idea, and a function fits a screen: how long they may be, and that nothing is longer.

A module that is longer has a page in `docs/decisions/` that names it and says why.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ingest", "bench", "faults", "mutants", "tests", "tools")
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60

DEFINITION = re.compile(r"^( *)(?:async def|def|cdef|cpdef) +(?!class )[^=\n]*?(\w+)\([^=]*")


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py*")]
    return sorted(path for path in [*found, ROOT / "setup.py"] if path.suffix in (".py", ".pyx", ".pxd"))


def functions_of_python(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of each."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def functions_of_cython(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of each: to the last line before the next one that is not indented more than its first."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        found = DEFINITION.match(line)
        if found is None:
            continue
        body = start + 1
        while not lines[body - 1].split("#")[0].rstrip().endswith(":"):
            if body == len(lines) or body - start > 20:
                break  # a declaration, not a definition
            body += 1
        else:
            last = start
            for number in range(body, len(lines)):
                indent = len(lines[number]) - len(lines[number].lstrip())
                if lines[number].strip() and indent <= len(found[1]):
                    break
                if lines[number].strip():
                    last = number
            yield found[2], last - start + 1


def functions(path: Path) -> Iterator[tuple[str, int]]:
    text = path.read_text()
    return functions_of_python(text) if path.suffix == ".py" else functions_of_cython(text)


def excused() -> set[str]:
    """The paths in the pages of `docs/decisions/` that begin with `Longer: `, one a line; a glob is one of many."""
    named = [
        path
        for page in (ROOT / "docs" / "decisions").glob("*.md")
        for path in re.findall(r"^Longer: `([^`]+)`$", page.read_text(), re.M)
    ]
    return {str(path.relative_to(ROOT)) for name in named for path in ROOT.glob(name)}


def test_no_module_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    long = {name for name, lines in lengths.items() if lines > MODULE_LINES_MAX}
    assert long - excused() == set()
    assert not {name for name in excused() if name.startswith("ingest/")} - long, (
        "no longer so: mend the page"
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_long(folder):
    long = {
        f"{path.relative_to(ROOT)}: {name}": lines
        for path in sources()
        if path.is_relative_to(ROOT / folder)
        for name, lines in functions(path)
        if lines > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_functions_are_measured():
    text = "def f(a,\n      b):\n    x\n\n    y\n\n\nasync def g(): pass\n"
    assert dict(functions_of_python(text)) == {"f": 5, "g": 1}
    text = (
        "cdef class C:\n    cdef int a\n    cdef int f(self, int b,\n               int c) except -1 nogil:\n        x\n\n"
        "    def g(self):  # why\n        y\n        z\n    cdef inline void h(self) noexcept: pass\n"
        "cdef extern from 'x.h':\n    int k(int)\n"
    )
    assert dict(functions_of_cython(text))["f"] == 3
    assert dict(functions_of_cython(text))["g"] == 3
