"""A module imports only its own layer or one below: DESIGN, "The source tree".

"One below" is read as "any below, never above". The client (layer 4) signs and splits frames, so it needs layer 1 and has
no business with layers 2 and 3 between them; re-exporting the words of layer 1 through each layer would hide
that and help nobody. What the rule is for stays: nothing depends on what is built on top of it, and no two layers depend
on each other. Within one layer a cycle would be as bad, so that is checked too.

What a module needs for its annotations only (under ``if TYPE_CHECKING``) counts like any other import.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: ["errors", "limits", "status"],
    1: ["ticket", "frame", "_frame", "mac", "_hmac", "_seal", "sharding"],
    2: ["store", "store.*", "_failpoints"],
    3: ["failpoints", "_queue", "node", "config", "check_config", "listeners", "logs", "bad_peers", "child", "write_behind",
        "_committer", "_bulk", "_pending", "_stored", "workers", "pool", "metrics", "machine", "admin", "server",
        "_connections", "_port_keys", "_replies", "_submitted", "_put_server", "_get_server", "_deletes", "_outcomes",
        "reload", "tls", "announcement"],
    4: ["client", "loop_thread", "channel", "put_channel", "get_channel", "range_reader", "key", "loopback", "load_share",
        "_load", "_sink", "_bare_tree"],
    5: ["objects", "objects.*"],
    7: ["gateway", "gateway.*"],
    8: ["__init__", "__main__", "cli", "loopback_report", "store_commands", "gateway_commands", "object_commands",
        "object_files", "object_place", "object_node", "object_gateway", "gateway_client", "object_options",
        "catalog_commands", "config_commands", "options"],
}  # fmt: skip

CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+([^#\n(]+|\([^)]*\))|c?import\s+([\w.]+))", re.M)


def module_name(path: Path) -> str:
    """`ingest/store/pack.py` is `store.pack`, `ingest/store/__init__.py` is `store`, `ingest/__init__.py` is `__init__`."""
    name = ".".join(path.relative_to(ROOT / "ingest").with_suffix("").parts)
    return name.removesuffix(".__init__")


SOURCES = sorted(
    path
    for suffix in ("py", "pyx", "pxd", "pyi")
    for path in (ROOT / "ingest").rglob(f"*.{suffix}")
    if path.is_file()
)
MODULES = {module_name(path) for path in SOURCES}


def layer(module: str) -> int:
    for number, names in LAYERS.items():
        for name in names:
            if module == name or (name.endswith(".*") and module.startswith(name[:-1])):
                return number
    pytest.fail(
        f"ingest.{module} is in no layer: put it into tests/test_layers.py, and say in DESIGN what it is"
    )


def named(source: str, names: list[str]) -> set[str]:
    """The modules of ours that ``from source import names`` reaches: a name may be a module or something in one."""
    if source.split(".")[0] != "ingest":
        return set()
    names = [
        name for name in names if name != "__version__"
    ]  # a word like those of layer 0, wherever it stands
    if source == "ingest" and not names:
        return set()
    inside = source.removeprefix("ingest").removeprefix(".")
    reached = {f"{inside}.{name}".removeprefix(".").removesuffix(".__init__") for name in names} & MODULES
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


def imports(path: Path) -> set[str]:
    text = path.read_text()
    return imports_of_python(text) if path.suffix in (".py", ".pyi") else imports_of_cython(text)


def test_every_layer_has_modules():
    assert {layer(module) for module in MODULES} >= {0, 1}
    assert len(MODULES) > 8


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_its_own_layer_or_below(path):
    own = layer(module_name(path))
    above = {name: layer(name) for name in imports(path) if layer(name) > own}
    assert not above, f"layer {own} imports from above: {above}"


def test_no_cycle_within_a_layer():
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        module = module_name(path)
        graph.setdefault(module, set()).update(imports(path) - {module})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules that import each other: {' → '.join(error.args[1])}")


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
    text = "from libc.stdint cimport uint8_t\nfrom ingest._hmac cimport hmac_sign\ncimport ingest._queue\n"
    assert imports_of_cython(text) == {"_hmac", "_queue"}
    assert imports_of_cython("from ingest._queue cimport (Queue, queue_run)\nfrom ingest cimport _hmac") == {
        "_queue",
        "_hmac",
    }
