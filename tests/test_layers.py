"""A module imports only from its own floor or a lower one (`tools/floors.py` has their order), and no name stands twice.

Any lower floor will do, not only the next one: the client signs and splits frames, so it needs the words and bytes of the
lowest, and re-exporting those through each floor would hide that and help nobody. What the rule is for stays: nothing
depends on what is built on top of it, and no two floors depend on each other. Within one floor a cycle would be as
bad, so that is checked too.

What a module needs for its annotations only (under ``if TYPE_CHECKING``) counts like any other import.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import floors
import pytest
from floors import FLOORS, PACKAGE, floor_of

CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+([^#\n(]+|\([^)]*\))|c?import\s+([\w.]+))", re.M)


def module_name(path: Path) -> str:
    """`store/store.py` below `ingest/` is `store.store`, `store/__init__.py` is `store`, `__init__.py` is `__init__`."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


SOURCES = floors.sources()
MODULES = {module_name(path): path for path in SOURCES}


def height(path: Path) -> int:
    return FLOORS.index(floor_of(path))


def named(source: str, names: list[str]) -> set[str]:
    """The modules of ours that ``from source import names`` reaches: a name may be a module or something in one."""
    if source.split(".")[0] != "ingest":
        return set()
    names = [name for name in names if name != "__version__"]  # a word, wherever it stands
    if source == "ingest" and not names:
        return set()
    inside = source.removeprefix("ingest").removeprefix(".")
    reached = {f"{inside}.{name}".removeprefix(".").removesuffix(".__init__") for name in names} & set(
        MODULES
    )
    if len(reached) < len(names):
        reached.add(inside or "__init__")
    return reached


def imported_whole(module: str, attributes: set[str]) -> set[str]:
    """What ``import module`` reaches: the package itself is only as high as what is taken from it."""
    parent, _, name = module.rpartition(".")
    return named(parent, [name]) if parent else named(module, sorted(attributes))


def imports_of_python(text: str) -> set[str]:
    found: set[str] = set()
    tree = ast.parse(text)
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ingest"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= named(node.module or "", [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found |= imported_whole(alias.name, attributes)
    return found


def imports_of_cython(text: str) -> set[str]:
    found: set[str] = set()
    for source, names, whole in CIMPORT.findall(text):
        if source:
            parts = [
                part.split()[0] for part in names.strip("() \n").replace("\n", " ").split(",") if part.strip()
            ]
            found |= named(source, parts)
        else:
            found |= imported_whole(whole, set(re.findall(r"\bingest\.(\w+)", text)))
    return found


def imports(path: Path, text: str | None = None) -> set[str]:
    text = path.read_text() if text is None else text
    return imports_of_python(text) if path.suffix in (".py", ".pyi") else imports_of_cython(text)


def imported_from_above(path: Path, text: str | None = None) -> set[str]:
    return {module for module in imports(path, text) if height(MODULES[module]) > height(path)}


def names_that_stand_twice(paths: Iterable[Path]) -> dict[str, list[str]]:
    """``x.py``, ``x.pyi`` and ``x.pxd`` of one folder are one module."""
    places: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        if path.stem != "__init__":
            places[path.stem].add(path.parent.relative_to(PACKAGE).as_posix())
    return {name: sorted(found) for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_its_own_floor_or_lower_ones(path):
    assert not imported_from_above(path)


@pytest.mark.parametrize(
    ("place", "text", "above"),
    [
        ("limits.py", "from ingest.runtime import logs", "runtime.logs"),
        ("_hmac.pyx", "from ingest.store.layouts._slot_table cimport SlotTable", "store.layouts._slot_table"),
        ("store/store.py", "from ingest.store.check import fsck", "store.check.fsck"),
        ("store/check/fsck.py", "import ingest.engine.pool", "engine.pool"),
        ("engine/pool.py", "def f():\n    from ingest.engine.commit.committer import committer_main", None),
        ("client/channel.py", "if TYPE_CHECKING:\n    from ingest.objects.receiver import Receiver", None),
        ("gateway/http/app.py", "from ingest.gateway.apis import blob_api", "gateway.apis.blob_api"),
        ("errors.py", "from ingest import Client", "__init__"),
    ],
)
def test_an_import_from_above_is_noticed(place, text, above):
    path = PACKAGE / place
    assert path.exists()
    found = imported_from_above(path, text)
    assert found == {above} if above else len(found) == 1


def test_every_floor_is_there():
    assert {floor_of(path) for path in SOURCES} == set(FLOORS)
    with pytest.raises(ValueError, match=r"ingest/new/room is no floor"):
        floor_of(PACKAGE / "new" / "room" / "chair.py")


def test_no_cycle_within_a_floor():
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        module = module_name(path)
        graph.setdefault(module, set()).update(imports(path) - {module})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules that import each other: {' → '.join(error.args[1])}")


def test_a_name_stands_once():
    assert names_that_stand_twice(SOURCES) == {}


def test_a_name_that_stands_twice_is_noticed():
    planted = [*SOURCES, PACKAGE / "engine" / "manifest.py"]
    assert names_that_stand_twice(planted) == {"manifest": ["engine", "objects"]}


def test_the_document_shows_the_floors():
    """`python tools/floors.py` writes the table."""
    text = floors.DOCUMENT.read_text()
    assert floors.BEGIN in text
    assert text == floors.with_table(text)
    assert all(floors.about(floor) for floor in FLOORS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ingest import limits, ticket", {"limits", "ticket"}),
        ("from ingest import Client", {"__init__"}),
        ("from ingest.limits import FRAME_SIZE as F, ACK_SIZE", {"limits"}),
        ("import ingest.frame", {"frame"}),
        ("import ingest\ningest.Client()", {"__init__"}),
        ("import ingest\nprint(ingest.__version__)", set()),
        ("from ingest import __version__", set()),
        ("from ingest.store import pack_of_nothing", {"store"}),
        ("import os, struct\nfrom numpy import array", set()),
        ("    from ingest.frame import (\n    a,\n    b,\n)", {"frame"}),
    ],
)
def test_imports_are_found(text, expected):
    assert imports_of_cython(text) == expected
    assert imports_of_python(text.strip()) == expected


def test_cimports_are_found():
    text = "from libc.stdint cimport uint8_t\nfrom ingest._hmac cimport hmac_sign\ncimport ingest.engine._queue\n"
    assert imports_of_cython(text) == {"_hmac", "engine._queue"}
    text = "from ingest.engine._queue cimport (Queue, queue_run)\nfrom ingest cimport _hmac"
    assert imports_of_cython(text) == {"engine._queue", "_hmac"}
