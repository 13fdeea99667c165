"""`docs/http.md`: every command in it is run, against a gateway, and answers what stands below it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_rig import Gateway, NodeGateway, node_gateway

from ingest.gateway.http import failures
from ingest.gateway.process.api_table import APIS, shared_routes
from ingest.gateway.process.gateway_config import API_NAMES
from ingest.runtime import wire

DOCUMENT = (Path(__file__).parent.parent / "docs" / "http.md").read_text()
SOURCES = Path(failures.__file__).parent.parent


def examples() -> Iterator[tuple[str, str, str]]:
    """(heading, command, what it prints) of each, in their order."""
    for chapter in re.split(r"^## ", DOCUMENT, flags=re.M)[1:]:
        heading = chapter.splitlines()[0]
        for block in re.findall(r"^```console\n(.*?)^```$", chapter, re.M | re.S):
            for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
                command, _, output = part.partition("\n")
                yield heading, command, output


EXAMPLES = list(examples())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGateway]:
    with node_gateway(tmp_path_factory.mktemp("docs") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader sits: with two files."""
    directory = tmp_path_factory.mktemp("reader")
    (directory / "hello.txt").write_text("hello, world\n")
    (directory / "other.txt").write_text("other\n")
    return directory


def at_home(command: str, gateway: Gateway) -> str:
    """The same command with the ports of this gateway."""
    ports = {
        "8080": gateway.address[1],
        "7001": gateway.alone["files"][1],
        "5002": gateway.alone["stream"][1],
    }
    return re.sub(r"(127\.0\.0\.1[: ])(\d+)", lambda match: f"{match[1]}{ports[match[2]]}", command)


def pattern(output: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in output.strip("\n").split("…")), re.S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize(
    ("command", "output"),
    [(command, output) for _, command, output in EXAMPLES],
    ids=[c for _, c, _ in EXAMPLES],
)
def test_the_examples(node: NodeGateway, place: Path, command: str, output: str) -> None:
    """In the order of the document: some need what those before them stored."""
    if command.startswith("nc ") and shutil.which("nc") is None:
        pytest.skip("there is no nc")
    quiet = at_home(command, node.gateway).replace("curl ", "curl -sS ")
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {quiet}"],
        cwd=place, env=clean | {"HOME": str(place)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = result.stdout.replace("\r", "").strip("\n")
    assert pattern(output).fullmatch(printed), printed


def test_every_route_has_an_example() -> None:
    commands = [re.sub(r"\$\(.*?\)", "00/", command) for _, command, _ in EXAMPLES]
    for route in shared_routes():
        for method in route.handlers:
            assert any(uses(command, method, route.path) for command in commands), (method, route.path)
    heads = [command for command in commands if "curl -I " in command]
    for prefix in ("/blob/", "/fetch/", "/store/", "/objects/", ":7001/"):
        assert any(prefix in command for command in heads), prefix


def uses(command: str, method: str, path: str) -> bool:
    match = re.search(r"http://127\.0\.0\.1:8080(/[^ ?']*)", command)
    if match is None or not command.startswith("curl"):
        return False
    used = "GET"
    for option, meant in (
        ("-T ", "PUT"),
        ("--data-binary ", "POST"),
        ("-X DELETE", "DELETE"),
        ("-X POST", "POST"),
        ("-I ", "HEAD"),
    ):
        used = meant if f" {option}" in f" {command}" else used
    if path == "/*":
        return used == method and match[1].endswith("/obj")
    if path.endswith("/*"):
        return used == method and match[1].startswith(path[:-1]) and match[1] != path[:-1]
    return used == method and match[1] == path


def test_every_api_is_in_the_table() -> None:
    table = DOCUMENT[DOCUMENT.index("| NAME |") :]
    names = re.findall(r"^\| `([a-z-]+)` \|", table[: table.index("\n\n")], re.M)
    assert names == list(API_NAMES) and set(names) == {*APIS, "stream"}


def test_every_code_is_in_the_table() -> None:
    table = DOCUMENT[DOCUMENT.index("| status | code |") :]
    described = {
        (int(status), code)
        for status, codes in re.findall(r"^\| (\d{3}) \| (.*?) \|", table[: table.index("\n\n")], re.M)
        for code in re.findall(r"`(\w+)`", codes)
    }
    raised = {(status, code) for _, status, code in failures.ERRORS}
    raised |= {(status, code) for status, code, _ in failures.REFUSALS.values()}
    for path in SOURCES.rglob("*.py"):
        found = re.findall(r'Failure\(\s*(\d{3}),\s*"(\w+)"', path.read_text())
        raised |= {(int(status), code) for status, code in found}
    refused = re.findall(r'_refuse\((\d{3}), "(\w+)"', Path(wire.__file__).read_text())
    raised |= {(int(status), code) for status, code in refused}
    assert described == raised
