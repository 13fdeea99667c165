"""A name that is replaced between the look at its version and its first byte: what is answered is true of those bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateway_rig import Gateway, memory_gateway

PATH = "/objects/a"
OLD, NEW = b"the old bytes", b"those that replaced them"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """Each of its downloads finds that the name was replaced since it was looked at."""
    with memory_gateway() as running:
        store: Any = running.store
        opened = store.open

        async def replaced(namespace: str, name: str) -> Any:
            if store.live[namespace, name][1] == OLD:
                store.live[namespace, name] = store.live.pop((namespace, "new"))
            return await opened(namespace, name)

        monkeypatch.setattr(store, "open", replaced)
        yield running


@pytest.mark.parametrize("asked", ["alone", "with a date", "with a range", "with If-None-Match"])
@pytest.mark.parametrize("match", ["If-Match", "If-None-Match", "If-Range"])
def test_a_condition_is_one_on_the_bytes_that_are_sent(gateway: Gateway, match: str, asked: str) -> None:
    old = gateway.request("PUT", PATH, OLD).headers["etag"]
    new = gateway.request("PUT", "/objects/new", NEW).headers["etag"]
    headers = {
        "alone": {},
        "with a date": {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        "with a range": {"Range": "bytes=4-"},
        "with If-None-Match": {"If-None-Match": '"other"'},
    }[asked]
    headers = headers | {match: new if match == "If-None-Match" else old}
    answer = gateway.request("GET", PATH, headers=headers)
    if match == "If-Match":
        assert (answer.status, answer.code) == (412, "precondition_failed")
    elif match == "If-None-Match":
        assert (answer.status, answer.body) == (304, b"")
    else:
        assert (answer.status, answer.body) == (200, NEW), "no part of what the client does not have"
    assert answer.headers["etag"] == new
