"""The floors of the source tree, from the lowest to the highest: a module imports only from its own and from lower ones.

`tests/test_layers.py` holds the tree to this list. The table in `docs/architecture.md` is made from it, and from what each
folder says of itself: `python tools/floors.py` writes it there.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ingest"
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- floors: written by tools/floors.py -->\n", "<!-- end of floors -->\n"

# A folder below `ingest/`, without those in it that stand in the list themselves, or a module of the top: the names of
# those there are fixed, others import them. "" is all the rest of the top.
FLOORS = (
    "",
    "runtime",
    "store/layouts",
    "store/log",
    "store",
    "store/check",
    "engine",
    "engine/ports",
    "engine/commit",
    "workers",
    "client",
    "loadgen",
    "catalog",
    "objects",
    "gateway",
    "gateway/http",
    "gateway/apis",
    "gateway/page",
    "gateway/process",
    "commands",
    "__init__",
    "__main__",
)
TOP = "Words and bytes: limits, errors, tickets, frames and their checksums; contexts for TLS."
SUFFIXES = (".py", ".pyx", ".pxd", ".pyi")


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.*") if path.suffix in SUFFIXES)


def floor_of(path: Path) -> str:
    """The floor of a source file below `ingest/`. ValueError when its folder is in no floor."""
    inside = path.relative_to(PACKAGE).with_suffix("")
    place = inside.parent.as_posix().removeprefix(".")
    if not place and inside.name in FLOORS:
        return inside.name
    if place not in FLOORS:
        raise ValueError(f"ingest/{place} is no floor: put it into tools/floors.py")
    return place


def about(floor: str) -> str:
    """The first paragraph of what a floor's module, or the `__init__.py` of its folder, says of itself."""
    if not floor:
        return TOP
    folder = PACKAGE / floor
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def names_on(floor: str) -> list[str]:
    """Its modules; `frame` stands for `_frame` too, where both are there."""
    names = sorted({path.stem for path in sources() if floor_of(path) == floor and path.stem != "__init__"})
    return [name for name in names if name.lstrip("_") not in names or not name.startswith("_")]


def table() -> str:
    rows = ["| floor | is about | modules |", "|---|---|---|"]
    for floor in FLOORS:
        place = floor and (f"{floor}/" if (PACKAGE / floor).is_dir() else f"{floor}.py")
        names = ", ".join(f"`{name}`" for name in names_on(floor) if place != f"{name}.py")
        rows.append(f"| `ingest/{place}` | {about(floor)} | {names} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """The document with the table of today."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
