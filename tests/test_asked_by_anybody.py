"""What anybody may ask without a token, as often as he likes: it fills no log, and costs the engine one look in a while."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from gateway_rig import memory_gateway

from ingest.errors import BusyError, ConnectionLostError, ForeignStoreError, IngestError, NoSpaceError
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.shared_look import SharedLook
from ingest.gateway.http.token_file import parse_tokens

TOKEN = "writer-0123456789"


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


REFUSED = [
    (400, "GET", "/objects/%ff", {"Authorization": f"Bearer {TOKEN}"}),
    (401, "PUT", "/objects/a", {}),
    (401, "GET", "/nothing", {}),
    (403, "GET", "/alive", {"Host": "evil.example"}),
    (403, "PUT", "/objects/a", {"Origin": "http://evil.example"}),
    (404, "GET", "/nothing", {"Authorization": f"Bearer {TOKEN}"}),
    (405, "PUT", "/alive", {"Authorization": f"Bearer {TOKEN}"}),
    (417, "PUT", "/objects/a", {"Authorization": f"Bearer {TOKEN}", "Expect": "more"}),
    (501, "PUT", "/objects/a", {"x-amz-acl": "public-read"}),  # before anybody looks for a token
    (501, "GET", "/objects/a", {"Authorization": "AWS key:c2lnbmF0dXJl"}),
    (501, "PUT", "/objects/a", {"Authorization": f"Bearer {TOKEN}", "Trailer": "Digest"}),
]


def test_what_a_client_does_wrong_is_told_to_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Of whatever kind it is, and whether it has a token: a log that strangers can fill says nothing of anybody else."""
    access = Access(Hosts.of([]), parse_tokens(f"read-write {TOKEN}".encode(), "tokens"))
    caplog.set_level(logging.INFO)
    with memory_gateway(access) as gateway:
        for status, method, path, headers in REFUSED:
            body = b"x" if method == "PUT" else None
            assert gateway.request(method, path, body, headers).status == status, (method, path, headers)
    assert [line for line in caplog.messages if "/" in line] == []


@pytest.mark.parametrize("size", [1, 150, 1000, 7000])
def test_a_line_of_a_request_is_short_however_long_its_path(
    caplog: pytest.LogCaptureFixture, size: int
) -> None:
    caplog.set_level(logging.WARNING)
    with memory_gateway() as gateway:
        assert gateway.store is not None
        gateway.store.full, gateway.store.error = True, BusyError("busy")
        path = "/objects/" + "%61" * (size // 3) + "a" * (size % 3)
        answer = gateway.request("PUT", path, b"x", {"X-Request-Id": "mine"})
        assert answer.status in (503, 400)  # no name is as long as the last ones
        if answer.status == 503:
            (line,) = [line for line in caplog.messages if line.startswith("mine: PUT /objects/")]
            assert len(line) < 300 and (size > 150 or path in line)


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


class Looks:
    """``found``: what each look finds, or raises, in turn. It takes ``long`` seconds of a clock of its own."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, found: list[str | BaseException], long: float
    ) -> None:
        self.now = 1000.0
        self.found = found
        self.long = long
        self.made = 0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("ingest.gateway.http.shared_look.time", clock)

    async def __call__(self) -> str:
        found = self.found[self.made]
        self.made += 1
        self.now += self.long
        await asyncio.sleep(0)
        if isinstance(found, BaseException):
            raise found
        return found


@pytest.mark.parametrize("first", ["first", ConnectionLostError("away"), ForeignStoreError("foreign")])
@pytest.mark.parametrize("long", [0.0, 7.0])
def test_what_was_found_is_told_from_the_end_of_the_look_on(
    monkeypatch: pytest.MonkeyPatch, first: str | IngestError, long: float
) -> None:
    """However long that took: who waited behind it would look as long again. Then the next one looks, whatever was found."""

    async def ask() -> None:
        look = Looks(monkeypatch, [first, "second", "third"], long)
        shared = SharedLook(look, 5.0)
        asking = [shared.read() for _ in range(4)]
        assert await asyncio.gather(*asking, return_exceptions=True) == [first] * 4
        begun = look.now
        for after, found in ((4.9, first), (5.0, "second"), (9.9 + long, "second"), (10.0 + long, "third")):
            look.now = begun + after
            assert await asyncio.gather(shared.read(), return_exceptions=True) == [found], after

    asyncio.run(ask())


def test_a_look_that_broke_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect, or the end of who looked, is nobody else's answer: the next one looks."""

    async def ask() -> None:
        broken = [RuntimeError("ours"), asyncio.CancelledError()]
        look = Looks(monkeypatch, ["old", *broken, "found"], 0.0)
        shared = SharedLook(look, 5.0)
        assert await shared.read() == "old"
        look.now += 5.0
        looking = [asyncio.create_task(shared.read()) for _ in range(4)]
        await asyncio.sleep(0)
        found = await asyncio.gather(*looking, return_exceptions=True)
        assert [type(one) for one in found[:2]] == [RuntimeError, asyncio.CancelledError]
        assert found[2:] == ["found", "found"] and look.made == 4

    asyncio.run(ask())


def test_an_error_that_is_told_to_many_does_not_grow() -> None:
    error = ConnectionLostError("away")

    async def look() -> str:
        raise error

    async def ask() -> list[int]:
        shared, lengths = SharedLook(look, 1000.0), []
        for _ in range(5):
            with pytest.raises(ConnectionLostError) as caught:
                await shared.read()
            lengths.append(len(caught.traceback))
        return lengths

    lengths = asyncio.run(ask())
    assert len(set(lengths)) == 1
