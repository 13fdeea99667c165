"""What anybody may ask without a token, as often as he likes: it fills no log, and costs the engine one look in a while."""

from __future__ import annotations

import asyncio
import logging

import pytest
from gateway_rig import memory_gateway

from ingest.errors import ConnectionLostError, ForeignStoreError, IngestError, NoSpaceError
from ingest.gateway.http import shared_look
from ingest.gateway.http.shared_look import SharedLook


def test_a_process_that_is_not_ready_says_so_once_for_all_who_ask(caplog: pytest.LogCaptureFixture) -> None:
    why: list[Exception] = [ForeignStoreError("the store of another catalog")]

    def check_ready() -> None:
        raise why[0]

    with memory_gateway(check_ready=check_ready) as gateway:
        for error, status in (
            (why[0], 503),
            (NoSpaceError("no room"), 507),
            (RuntimeError("a defect"), 500),
        ):
            why[0] = error
            assert {gateway.request("GET", "/healthz").status for _ in range(20)} == {status}
            lines = [line for line in caplog.records if "/healthz" in line.getMessage()]
            assert len(lines) == 1, lines
            caplog.clear()


def test_other_requests_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """It names the request, which its client knows by the same id."""
    caplog.set_level(logging.WARNING)
    with memory_gateway() as gateway:
        ids = [gateway.request("GET", "/node").headers["x-request-id"] for _ in range(3)]
    for id_ in ids:
        assert any(line.startswith(id_) for line in caplog.messages)


@pytest.mark.parametrize("error", [None, ForeignStoreError("foreign"), ConnectionLostError("away")])
@pytest.mark.parametrize(("kept", "looks"), [(1000.0, 1), (0.0, 20)])
def test_one_look_for_all(error: IngestError | None, kept: float, looks: int) -> None:
    made = 0

    async def look() -> str:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "found"

    async def ask() -> None:
        shared = SharedLook(look, kept)
        asking = [shared.read() for _ in range(20)]
        assert await asyncio.gather(*asking, return_exceptions=True) == [error or "found"] * 20

    asyncio.run(ask())
    assert made == looks


@pytest.mark.parametrize("error", [None, ForeignStoreError("foreign"), ConnectionLostError("away")])
def test_a_look_that_takes_long_is_told_to_all_who_waited(
    monkeypatch: pytest.MonkeyPatch, error: IngestError | None
) -> None:
    """What was found counts from when it was found: else each of them would take as long, one behind the other."""
    now, made = 100.0, 0
    monkeypatch.setattr(shared_look.time, "monotonic", lambda: now)

    async def look() -> str:
        nonlocal now, made
        made += 1
        await asyncio.sleep(0)
        now += 3.0
        if error is not None:
            raise error
        return "found"

    async def ask() -> None:
        nonlocal now
        shared = SharedLook(look, 1.0)
        for looks in (1, 2):
            asking = [shared.read() for _ in range(5)]
            assert await asyncio.gather(*asking, return_exceptions=True) == [error or "found"] * 5
            assert made == looks
            now += 1.0

    asyncio.run(ask())
