"""Every file, section and module that a comment, a docstring or a document names is there.

Looked at are whole documents, and of code the comments and docstrings: in a string that is data any name may stand.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (".md", ".toml", ".js", ".css", ".html", ".c", ".h")
SUFFIXES = r"(?:pyx|pxd|pyi|py|h|c|md|js|css|html)"

PATH = re.compile(
    rf"(?<![\w/.*-])((?:ingest|docs|tests|tools|bench|faults|mutants|csrc)/[\w./*{{}}-]*\.{SUFFIXES})\b"
)
NAME = re.compile(rf"(?<![\w/.*<-])([A-Za-z_][\w-]*\.{SUFFIXES})(?![\w/]|\.\w)")
DOTTED = re.compile(r"(?<![\w./-])ingest((?:\.[A-Za-z_]\w*)+)(?!\w)(?!\()")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
# A page's own words: the files that its users have, and those that others make.
NOT_OURS = frozenset({"Python.h", "index.html"})
ANY = re.compile(r"(?:.*/)?(?:test_)?x\.\w+")  # stands for whichever file
GENERATED = re.compile(r"(?:ingest/(?!csrc/).*|[a-z_]+)\.c$")  # by Cython, or by whoever reads this
PLANTED = "test_references.py"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    return [path for name in listed.stdout.split("\n") if name and (path := ROOT / name).is_file()]


FILES = tracked()
NAMES = {path.name for path in FILES}


def comments_of_python(text: str) -> str:
    tree = ast.parse(text)
    found = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
    return "\n".join(found)


def comments_of_cython(text: str) -> str:
    docstrings = re.findall(r'"""(.*?)"""', text, re.S)
    return "\n".join([*re.findall(r"#.*", text), *docstrings])


def prose(path: Path) -> str:
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        return comments_of_python(text)
    return comments_of_cython(text) if path.suffix in (".pyx", ".pxd") else text


def exists(name: str) -> bool:
    """Of a path from the root, or below `ingest/`; a star, or what stands in braces, is one of many."""
    name = re.sub(r"\{[^}]*\}", "*", name)
    return any(any(place.glob(name)) for place in (ROOT, ROOT / "ingest"))


def is_module(dotted: str) -> bool:
    """`.a.b.Name` behind `ingest`: packages, then a module, then what is in it."""
    place = ROOT / "ingest"
    for number, part in enumerate(parts := dotted.strip(".").split(".")):
        if (place / part).is_dir():
            place = place / part
            continue
        files = [place / f"{part}{suffix}" for suffix in (".py", ".pyx", ".pyi")]
        if any(file.exists() for file in files):
            rest = parts[number + 1 :]
            return not rest or any(
                re.search(rf"\b{rest[0]}\b", file.read_text()) for file in files if file.exists()
            )
        return re.search(rf"\b{part}\b", (place / "__init__.py").read_text()) is not None
    return True


def missing(text: str) -> Iterator[str]:
    for name in PATH.findall(text):
        if not exists(name) and not GENERATED.match(name) and not ANY.fullmatch(name):
            yield name
    for name in NAME.findall(text):
        if name not in NAMES | NOT_OURS and not GENERATED.match(name) and not ANY.fullmatch(name):
            yield name
    for dotted in DOTTED.findall(text):
        if dotted not in (".toml", ".json") and not is_module(dotted):
            yield f"ingest{dotted}"


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> Iterator[str]:
    for name, anchor in LINK.findall(text):
        target = (path.parent / name) if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{name}#{anchor}"


def no_modules(text: str) -> list[str]:
    """Of a document's tables that have a column of modules: what stands there in backticks, and is none."""
    modules = {path.stem for path in FILES if path.is_relative_to(ROOT / "ingest")}
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
        columns = [number for number, cell in enumerate(header) if cell in ("module", "modules")]
        cells = [row[number] for row in rows for number in columns if number < len(row)]
        found += [name for cell in cells for name in re.findall(r"`([\w/]+?)(?:\.py)?`", cell)]
    return [name for name in found if name.rpartition("/")[2] not in modules]


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if (path.suffix in (".py", ".pyx", ".pxd", ".pyi", *DOCUMENTS) or path.name in ("Makefile", "run"))
        and path.name not in ("CHANGELOG.md", "LICENSE", PLANTED)  # the first tells of what was
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_what_is_named_is_there(path: Path) -> None:
    text = prose(path)
    assert sorted(set(missing(text))) == []
    if path.suffix == ".md":
        assert list(broken_links(path, text)) == []


def test_no_paper_is_cited_that_is_not_here() -> None:
    """A word in capitals with a page's or section's number, or a file that only its author has."""
    cited = re.compile(r"\b(?:DESIGN|HOUSE|LOOKS|STYLE)\b|[Cc]ontract,? A\d\b")
    found = {path.name for path in FILES if path.suffix in (".json", ".py", ".pyx", ".pxd", ".h", ".c", ".md")
             and path.name != PLANTED and cited.search(path.read_text())}  # fmt: skip
    assert found == set()


@pytest.mark.parametrize("name", ["architecture.md"])
def test_modules_in_tables_are_modules(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert "| module" in text
    assert no_modules(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see docs/nowhere.md, and docs/format.md", ["docs/nowhere.md"]),
        ("`ingest/store/pack.py`", ["ingest/store/pack.py"]),
        ("csrc/queue.h and csrc/queues.h", ["csrc/queues.h"]),
        ("all of tests/test_*.py, none of tests/exam_*.py", ["tests/exam_*.py"]),
        ("what pool.py does and puddle.py does not", ["puddle.py"]),
        ("`frame.pyx` is `_frame.pyx`", ["frame.pyx"]),
        ("ingest.client.AsyncClient, ingest.client.NoClient", ["ingest.client.NoClient"]),
        ("ingest.engine.pool, `ingest.pool`", ["ingest.pool"]),
        ("user.ingest.checksum is an attribute; linux/tcp.h is the system's; ingest/_frame.c is made", []),
    ],
)
def test_what_is_not_there_is_noticed(text: str, found: list[str]) -> None:
    assert list(missing(text)) == found


def test_links_that_lead_nowhere_are_noticed() -> None:
    text = "[a](architecture.md) [b](nowhere.md) [c](format.md#the-log) [d](format.md#the-fog) [e](https://x.y/z)"
    assert list(broken_links(ROOT / "docs" / "x.md", text)) == ["nowhere.md#", "format.md#the-fog"]


def test_what_is_no_module_is_noticed() -> None:
    text = "| where | modules |\n|---|---|\n| here | `pool`, `puddle`, `store/log_writer` |\n"
    assert no_modules(text) == ["puddle"]


def test_comments_and_docstrings_are_what_is_read() -> None:
    text = '"""Of a.py."""\nx = "b.py"  # of c.py\n\n\ndef f():\n    """Of d.py."""\n    return "e.py"\n'
    assert NAME.findall(comments_of_python(text)) == ["c.py", "a.py", "d.py"]
    assert NAME.findall(comments_of_cython(text)) == ["c.py", "a.py", "d.py"]
