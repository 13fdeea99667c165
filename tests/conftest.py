"""What all tests share: the golden values of the documents, and the layouts of a store."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import ConfigError
from ingest.store.layouts.tree_file import check_file_system

LAYOUTS = ("pack", "tree")
VECTORS = Path(__file__).parent / "vectors" / "contract.json"


def pytest_configure() -> None:
    """Whoever runs the tests in the background of a shell ignores SIGINT, and a program that is started would inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def contract() -> dict[str, Any]:
    """`tests/vectors/contract.json`, made outside of this program from docs/protocol.md and docs/format.md."""
    return json.loads(VECTORS.read_text())


@pytest.fixture(scope="session")
def layout(request: pytest.FixtureRequest) -> str:
    """What uses this runs once in each layout, or in those that a mark `layout` names."""
    if request.param == "tree":
        try:
            check_file_system(request.getfixturevalue("tmp_path_factory").mktemp("attributes"))
        except ConfigError as error:
            pytest.skip(str(error))
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layout" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("layout")
        metafunc.parametrize("layout", mark.args if mark else LAYOUTS, indirect=True, scope="session")
