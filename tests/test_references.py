"""What a comment, a docstring or a document names is there: files, folders, modules, sections, and what is in them.

Whoever moves a module finds here where its old name still stands. Looked at are comments and docstrings of code, and all of
documents, of the Makefile and the like; strings of code, which run, show by themselves what is wrong with them.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from keyword import kwlist
from pathlib import Path
from posixpath import normpath

import pytest

ROOT = Path(__file__).parent.parent
SUFFIX = r"(?:pyx|pxd|pyi|py|md|c|h|toml|json|js|css|html|png)"
CODE = (".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".js", ".css")
PLAIN = (".md", ".toml", ".html")  # all of the text counts
BY_NAME = ("Makefile", "MANIFEST.in", "run", "contract.json")  # here too
ABOUT_MODULES = ("README.md", "docs/architecture.md")  # words of other pages are bytes, commands and metrics

# A docstring is what stands in three quotes at the start of a line: other strings of three quotes are assigned or passed.
PYTHON = re.compile(
    r'(?P<prose>^[ \t]*[rR]?"""(?:\\.|[^\\])*?"""|\#.*)'
    r'|(?P<string>"""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')',
    re.M,
)
C = re.compile(
    r'(?P<prose>/\*(?:.|\n)*?\*/|(?<!:)//.*)|(?P<string>"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`[^`]*`)'
)
LEADER = re.compile(r"^[ \t]*(?:#+|/?\*+(?!\*))[ \t]?", re.M)  # of a comment that goes on

PATH = re.compile(
    rf"(?<![\w/.*{{}}$<>:-])((?:\.{{1,2}}/)*(?:[\w.-]+/)*[\w-]+\.{SUFFIX})\b(?![\w(/-]|\.\w)((?:::\w+)*)"
)
PLACE = re.compile(r"(?<!`)`([a-z_][\w-]*(?:/[\w-]+)+/?|[a-z_]\w*/)`")
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
SECTIONS = re.compile(r'([\w/]+\.md)[`)]*((?:(?:,|,? and) "[^"]+")+)')
NUMBERED = re.compile(r"\b(?:[Cc]ontract|[Dd]esign|[Ss]pec) [A-Z]\d\b")  # sections have no numbers here
DOTTED = re.compile(r"(?<![\w./-])((?:ingest|bench|faults|mutants)(?:\.\w+)+)")
WORD = re.compile(r"(?<!`)`(_*[a-z]\w*)`(?!`)")
OF_MODULE = re.compile(r"(?<!`)`(_?[a-z]\w*)\.([A-Z]\w+)`")


@dataclass(frozen=True)
class Text:
    """Of one file, what is said, what runs, and the strings in that."""

    path: str
    prose: str
    code: str = ""
    strings: str = ""

    @classmethod
    def of(cls, path: str, text: str) -> "Text":
        if path == "CHANGELOG.md":  # chapters of releases are history, with the names of their time
            return cls(path, re.split(r"^## \[\d", text, maxsplit=1, flags=re.M)[0])
        if not path.endswith(CODE):
            return cls(path, text)
        prose, code, strings, end = [], [], [], 0
        for found in (PYTHON if Path(path).suffix.startswith(".p") else C).finditer(text):
            code.append(text[end : found.start()])
            end = found.end()
            if found["prose"]:
                prose.append(LEADER.sub("", found[0]))
            else:
                code.append(found[0])
                strings.append(found[0])
        if not path.startswith("tests/"):  # messages send the reader to a page
            prose += re.findall(r"docs/\w+\.md", "\n".join(strings))
        return cls(path, "\n".join(prose), "".join([*code, text[end:]]), "\n".join(strings))

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self.code))


@dataclass(frozen=True)
class Tree:
    files: frozenset[str]

    @cached_property
    def code(self) -> dict[str, Text]:
        return {path: Text.of(path, (ROOT / path).read_text()) for path in self.files if path.endswith(CODE)}

    @cached_property
    def folders(self) -> frozenset[str]:
        return frozenset(str(parent) for path in self.files for parent in Path(path).parents) - {"."}

    @cached_property
    def modules(self) -> dict[str, set[str]]:
        """The words in the code of each module, by its name alone; a folder has none."""
        found: dict[str, set[str]] = {Path(folder).name: set() for folder in self.folders}
        for path, text in self.code.items():
            found.setdefault(Path(path).stem, set()).update(text.words)
        return found

    @cached_property
    def owners(self) -> frozenset[str]:
        """Folders of the root and of `ingest/`: a path that begins with one of them is no example."""
        return frozenset(
            Path(folder).name for folder in self.folders if re.fullmatch(r"(ingest/)?\w+", folder)
        )

    @cached_property
    def defined(self) -> frozenset[str]:
        """Functions, classes, attributes, fields and words of strings, except of tests; no variables of functions."""
        found = set(kwlist)
        for text in self.code.values():
            if not text.path.startswith("tests/"):
                found.update(re.findall(r"(?:\.|\bdef |\bclass )(\w+)", text.code))
                found.update(re.findall(r"\b\w+(?=[(;\[])", text.code))
                found.update(re.findall(r"\w+", text.strings))
        return frozenset(found)

    @cached_property
    def written(self) -> frozenset[str]:
        """Names that the program gives to files of a store, `store.json` for one: strings of its own."""
        ours = (text.strings for path, text in self.code.items() if path.startswith("ingest/"))
        return frozenset(re.findall(rf'"([\w.-]+\.{SUFFIX})"', "\n".join(ours)))

    def has(self, named: str, beside: str) -> bool:
        """Whether a file or folder is there: from the root, beside the file that names it, or as the end of a path."""
        named = named.rstrip("/")
        if named.startswith("."):
            named = normpath(f"{Path(beside).parent}/{named}")
            return named in self.files or named in self.folders
        if named in self.files or named in self.folders:
            return True
        if named.split("/")[0] in self.top and "/" in named:
            return False
        return any(path.endswith(f"/{named}") for path in self.files | self.folders)

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Folders that git ignores: what programs write."""
        return tuple(line for line in (ROOT / ".gitignore").read_text().split() if line.endswith("/"))

    @cached_property
    def top(self) -> frozenset[str]:
        return frozenset(folder for folder in self.folders if "/" not in folder)


def headings(document: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", document, flags=re.M | re.S), re.M)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def is_no_file_of_ours(named: str, tree: Tree) -> bool:
    """What looks like a file of the repository and is none."""
    path = Path(named)
    if path.suffix in (".c", ".html") and tree.has(str(path.with_suffix(".pyx")), ""):
        return True  # Cython writes it
    if path.suffix == ".h" and "/" in named and named.split("/")[0] not in tree.owners:
        return True  # linux/tcp.h is the system's
    if path.suffix != ".md" and path.stem == path.stem.upper():
        return True  # RESULTS.json is whatever the reader calls it, 0001.json one of many
    if re.search(r"(^|_)[a-z]$", path.stem):
        return True  # x.py, test_x.py: any module
    return path.name in tree.written or named.startswith(tree.ignored)


def dead_paths(text: Text, tree: Tree) -> Iterator[str]:
    for named, test in PATH.findall(text.prose):
        if not tree.has(named, text.path):
            if not is_no_file_of_ours(named, tree):
                yield named
        elif not all(name in tree.modules[Path(named).stem] for name in test.split("::")[1:]):
            yield named + test
    for named in PLACE.findall(text.prose):
        file = re.compile(rf"(^|/){re.escape(named)}\.\w+$")
        known = tree.has(named, text.path) or any(file.search(one) for one in tree.files)
        if not known and named.split("/")[0] in tree.owners and not named.startswith(tree.ignored):
            yield named


def dead_links(text: Text, tree: Tree) -> Iterator[str]:
    if not text.path.endswith(".md"):
        return
    for target, at in LINK.findall(text.prose):
        place = normpath(f"{Path(text.path).parent}/{target}") if target else text.path
        if place not in tree.files | tree.folders:
            yield target
        elif at and at not in map(
            anchor, headings(text.prose if place == text.path else (ROOT / place).read_text())
        ):
            yield f"{target}#{at}"


def dead_sections(text: Text, tree: Tree) -> Iterator[str]:
    """Of `docs/x.md`, "Section" and "Another"."""
    yield from NUMBERED.findall(text.prose)
    for document, sections in SECTIONS.findall(" ".join(text.prose.split())):
        there = [one for one in tree.files if one in (document, f"docs/{document}")]
        known = [heading for one in there for heading in headings((ROOT / one).read_text())]
        yield from (
            f'{document}, "{name}"'
            for name in re.findall(r'"([^"]+)"', sections)
            if there and name not in known
        )


def dead_modules(text: Text, tree: Tree) -> Iterator[str]:
    """Of a dotted path of modules, with or without a name in the last of them; and of `module.Name`."""
    for dotted in DOTTED.findall(text.prose):
        parts = dotted.split(".")
        place, rest = parts[0], parts[1:]
        while rest and any(
            f"{place}/{rest[0]}{end}" in tree.files | tree.folders for end in ("", ".py", ".pyx")
        ):
            place, rest = f"{place}/{rest[0]}", rest[1:]
        source = f"{place}/__init__" if place in tree.folders else place
        files = [f"{source}{end}" for end in (".py", ".pyx")]
        if rest and not any(file in tree.code and rest[0] in tree.code[file].words for file in files):
            yield dotted
    for module, name in OF_MODULE.findall(text.prose):
        if name not in tree.modules.get(module, {name}):
            yield f"{module}.{name}"


def dead_words(text: Text, tree: Tree) -> Iterator[str]:
    """Of backticked words: a module, or a name in the code of the same file, or one that is defined elsewhere."""
    if text.path.endswith(".md") and text.path not in ABOUT_MODULES:
        return
    for word in WORD.findall(text.prose):
        if word not in tree.modules and word not in text.words and word not in tree.defined:
            yield word


def dead_cells(text: Text, tree: Tree) -> Iterator[str]:
    """Of tables with a column that says that it has modules, or the process that a module is."""
    columns: list[int] = []
    for line in text.prose.splitlines() if text.path.endswith(".md") else ():
        cells = [cell.strip() for cell in line.split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = [i for i, cell in enumerate(cells) if cell in ("module", "modules", "process")] or [-1]
        elif columns != [-1]:
            named = [word for i in columns for word in WORD.findall(cells[i])]
            yield from (word for word in named if word not in tree.modules)


RULES: tuple[Callable[[Text, Tree], Iterator[str]], ...] = (
    dead_paths,
    dead_links,
    dead_sections,
    dead_modules,
    dead_words,
    dead_cells,
)


def dead_references(path: str, text: str, tree: Tree) -> list[str]:
    """What the file of that path and text names and is not there."""
    return sorted({found for rule in RULES for found in rule(Text.of(path, text), tree)})


def listed(*more: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *more], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("this is no checkout")
    return [path for path in done.stdout.splitlines() if (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(frozenset(listed("--cached", "--others", "--exclude-standard")))


def test_what_is_named_is_there(tree: Tree) -> None:
    texts = [path for path in listed() if path.endswith((*CODE, *PLAIN)) or Path(path).name in BY_NAME]
    assert len(texts) > 300
    found = {path: dead_references(path, (ROOT / path).read_text(), tree) for path in texts}
    assert {path: names for path, names in found.items() if names} == {}


DOC, MODULE = "docs/operations.md", "ingest/engine/pool.py"


@pytest.mark.parametrize(
    ("path", "text", "dead"),
    [
        # paths and bare names, in each kind of text
        (DOC, "see `docs/nothing.md`", "docs/nothing.md"),
        (DOC, "see docs/nothing.md.", "docs/nothing.md"),
        (DOC, "the rules of HOUSE.md", "HOUSE.md"),
        (MODULE, '"""As `ingest/nothing/here.py` says."""', "ingest/nothing/here.py"),
        (MODULE, "x = 1  # as in pack_place.py", "pack_place.py"),
        (MODULE, "# `csrc/nothing.h` has it", "csrc/nothing.h"),
        (MODULE, 'raise UsageError("see docs/nothing.md")', "docs/nothing.md"),
        ("ingest/engine/_queue.pyx", 'cdef int f():\n    """Of `_place.pxd`."""', "_place.pxd"),
        ("ingest/csrc/queue.h", "int a; /* as in\n * nothing_here.c */", "nothing_here.c"),
        ("ingest/csrc/queue.h", "int a; // tests/test_nothing.py", "tests/test_nothing.py"),
        ("ingest/gateway/page/static/main.js", "/** From nothing.js. */", "nothing.js"),
        ("ingest/gateway/page/static/index.html", '<script src="nothing.js">', "nothing.js"),
        ("Makefile", "demo:\n\t@$(RUN) tools/nothing.py", "tools/nothing.py"),
        (".ci/run", '"$python" tools/nothing.py', "tools/nothing.py"),
        ("tests/vectors/contract.json", '{"about": "From DESIGN.md"}', "DESIGN.md"),
        ("README.md", "the run in bench/results/nothing.json", "bench/results/nothing.json"),
        (DOC, "held by `tests/test_pool.py::test_nothing`", "tests/test_pool.py::test_nothing"),
        ("CHANGELOG.md", "## [Unreleased]\n- nothing.py", "nothing.py"),
        # places without a suffix
        (DOC, "the process `gateway/nothing` does", "gateway/nothing"),
        (DOC, "in `ingest/nothing/`", "ingest/nothing/"),
        (MODULE, "# `objects/nothing` asks for it", "objects/nothing"),
        # links and their anchors
        (DOC, "[keys](nothing.md#keys)", "nothing.md"),
        (DOC, "[a picture](nothing.svg)", "nothing.svg"),
        (DOC, "[runs](protocol.md#walks)", "protocol.md#walks"),
        (DOC, "# Page\n\n[here](#there)", "#there"),
        # sections
        (MODULE, '"""`docs/protocol.md`, "Walks"."""', 'docs/protocol.md, "Walks"'),
        (MODULE, '"""`docs/protocol.md`, "Runs" and "Walks"."""', 'docs/protocol.md, "Walks"'),
        (
            MODULE,
            '# docs/protocol.md, "How a\n# connection begins"',
            'docs/protocol.md, "How a connection begins"',
        ),
        (DOC, '([protocol](protocol.md), "Walks")', 'protocol.md, "Walks"'),
        (MODULE, "x = 3  # contract A2", "contract A2"),
        # modules, and what is in them
        (MODULE, "# `ingest.engine.nothing` does", "ingest.engine.nothing"),
        (MODULE, "# ingest.engine.pool.Nothing does", "ingest.engine.pool.Nothing"),
        ("Makefile", "\t$(RUN) -m bench.nothing", "bench.nothing"),
        ("tests/test_pool.py", "# `pool.Nothing` does", "pool.Nothing"),
        # words
        (MODULE, '"""The loop of `nothing_here` calls it."""', "nothing_here"),
        (MODULE, "def write_behind():\n    pass  # `_nothing_here` has the rest", "_nothing_here"),
        ("docs/architecture.md", "the deletes (`_nothing_here`)", "_nothing_here"),
        ("docs/architecture.md", "| module | has |\n|---|---|\n| `pool` | a |\n| `stop` | b |", "stop"),
        ("docs/architecture.md", "| process | owns |\n|---|---|\n| parent (`stop`) | `x` |", "stop"),
    ],
)
def test_what_is_not_there_is_noticed(tree: Tree, path: str, text: str, dead: str) -> None:
    assert dead_references(path, text, tree) == [dead]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            DOC,
            "`docs/format.md`, `ingest/csrc/queue.h`, csrc/queue.h, queue.h and `engine/pool` in `ingest/engine/`",
        ),
        (
            DOC,
            "`DATA/.ingest/store.json`, export.json, x.py, `tests/test_x.py`, RESULTS.json, 0001.json, <time.h>",
        ),
        (DOC, "ingest/_frame.c, `bench/results/local/`, http://127.0.0.1:8080/page/nothing.css, linux/tcp.h"),
        (DOC, "`tests/test_*.py`, `objects/photos/1.jpg`, [there](https://example.org/nothing.md)"),
        (DOC, '[runs](protocol.md#runs), [protocol](protocol.md), "Runs"; `tests/test_pool.py::Stage`'),
        (MODULE, '"""`docs/protocol.md`, "Runs" and "Tickets": `_queue`, `pool.Pool`, `self`."""'),
        (MODULE, 'x = "ingest/nothing.py"  # what runs shows by itself'),
        (MODULE, "def f(nothing_here):\n    # `nothing_here` is the parameter\n    pass"),
        ("ingest/csrc/queue.h", '#include "nothing.h"'),
        ("CHANGELOG.md", "## [Unreleased]\n\n## [0.2.0] - 2026-11-30\n- `ingest.load_share` and nothing.py"),
    ],
)
def test_what_is_there_and_what_is_an_example_is_not(tree: Tree, path: str, text: str) -> None:
    assert dead_references(path, text, tree) == []
