"""A list of names is all of them, each once and in order, wherever its pages meet and whatever they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from gateway_rig import Gateway, memory_gateway
from msgspec.structs import replace

from ingest.limits import LIST_PAGE_MAX


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


def fill(gateway: Gateway, namespace: str, names: list[str]) -> None:
    """So that these are all of the namespace. What they are is no matter."""
    assert gateway.run is not None and gateway.store is not None
    gateway.request("PUT", "/objects/other", b"x")
    live = gateway.store.live
    one, data = live["objects", "other"]

    def add() -> None:
        for key in [key for key in live if key[0] in ("blob", namespace)]:
            del live[key]
        for name in names:
            live[namespace, name] = replace(one, namespace=namespace, name=name), data

    gateway.run(add)


SIZES = [0, 1, LIST_PAGE_MAX - 1, LIST_PAGE_MAX, LIST_PAGE_MAX + 1, 2 * LIST_PAGE_MAX, 2 * LIST_PAGE_MAX + 1]


@pytest.mark.parametrize("count", SIZES)
def test_names_of_any_number_are_one_array(gateway: Gateway, count: int) -> None:
    names = [f"{number:06d}" for number in range(count)]
    fill(gateway, "blob", names)
    for path in ("/blob", "/blobs"):
        with gateway.connect() as connection:
            for _ in range(2):  # the first one has ended where the second begins
                answer = connection.request("GET", path)
                assert answer.status == 200 and json.loads(answer.body) == names
            head = connection.request("HEAD", path)
            assert (head.status, head.headers["content-type"]) == (200, "application/json")
            assert connection.request("GET", "/alive").body == b"alive"


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_pages_of_any_size_are_all_names(gateway: Gateway, limit: int) -> None:
    """Each page says after which name the next one begins, and no name is passed over for what it looks like."""
    names = sorted(["a", "a&after=b", "a b", "a%20b", "a+b", "é", "a/b"])
    fill(gateway, "objects", names)
    for path in ("/objects/?", "/catalog/objects?namespace=objects&"):
        got: list[str] = []
        after: str | None = ""
        while after is not None:
            page = gateway.request("GET", f"{path}limit={limit}&after={quote(after, safe='')}").json
            got += (found := [entry["name"] for entry in page["objects"]])
            after = page["next"]
            assert after == (found[-1] if len(found) == limit else None)
            assert len(got) <= len(names)
        assert got == names
