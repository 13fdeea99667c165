"""`docs/protocol.md` is enough to write a client: the one in `independent_client` talks to a server that follows it."""

import ast
import sys
from pathlib import Path

import independent_client
import pytest
from reference_server import Faults, ReferenceServer

from ingest.status import Status

KEY = bytes(range(32))


@pytest.fixture
def served():
    """(put address, get address, shared key) of a running server."""
    with ReferenceServer([KEY]) as server:
        yield server.put_address, server.get_address, KEY


def test_one_chunk_goes_in_and_comes_back(served):
    client = independent_client.Client(*served)
    chunk = bytes(i % 251 for i in range(1458))
    assert client.put("INDEPEN", chunk) == Status.SAVED
    assert client.get("INDEPEN") == (Status.SAVED, chunk)


def test_a_short_chunk_comes_back_padded(served):
    client = independent_client.Client(*served)
    assert client.put("SHORT", b"hello, chunk") == Status.SAVED
    assert client.get("SHORT") == (Status.SAVED, b"hello, chunk".ljust(1458, b"\0"))


def test_tickets_are_written_once(served):
    client = independent_client.Client(*served)
    assert [client.put("ONCE", data) for data in (b"a", b"a", b"b")] == [
        Status.SAVED,
        Status.SAVED,
        Status.CONFLICT,
    ]
    assert client.get("ONCE") == (Status.SAVED, b"a".ljust(1458, b"\0"))


def test_what_was_never_put_is_missing(served):
    assert independent_client.Client(*served).get("NOTHING") == (Status.MISSING, b"")


def test_a_wrong_key_stores_nothing(served):
    put_address, get_address, key = served
    stranger = independent_client.Client(put_address, get_address, bytes(32))
    assert stranger.put("STRANGE", b"data") == Status.BAD_CHECKSUM
    assert independent_client.Client(put_address, get_address, key).get("STRANGE") == (Status.MISSING, b"")


def test_a_corrupt_frame_is_not_taken_for_data():
    with ReferenceServer([KEY], Faults(corrupt_always=True)) as server:
        client = independent_client.Client(server.put_address, server.get_address, KEY)
        assert client.put("CORRUPT", b"data") == Status.SAVED
        with pytest.raises(AssertionError):
            client.get("CORRUPT")


def test_it_is_independent_and_about_twenty_lines():
    text = Path(independent_client.__file__).read_text()
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - sys.stdlib_module_names == {"blake3"}
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 25
