"""What an answer says of itself to caches and to pages of other sites: each kind of answer of both ports that speak HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_rig import Gateway, memory_gateway
from test_admin import Port

from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.routes import Routes
from ingest.gateway.http.token_file import parse_tokens
from ingest.gateway.process.api_table import shared_routes
from ingest.runtime.cache_policy import of_an_answer

READ, WRITE = "reader-0123456789", "writer-0123456789"
HTML = {"Accept": "text/html"}
NO_STORE, NO_CACHE = "no-store", "no-cache"


def fill(running: Gateway, who: dict[str, str]) -> None:
    lasting = {"Cache-Control": "max-age=60, immutable"} | who
    for method, path, body, headers in (
        ("PUT", "/objects/plain", b"plain", who),
        ("PUT", "/objects/large", bytes(1 << 20), who),
        ("PUT", "/objects/lasting", b"lasting", lasting),
        ("PUT", "/objects/large-lasting", bytes(1 << 20), lasting),
        ("POST", "/blob/abc", b"blob", who),
    ):
        assert running.request(method, path, body, headers).status == 200


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        fill(running, {})
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Gateway]:
    tokens = parse_tokens(f"read-only {READ}\nread-write {WRITE}\n".encode(), "tokens")
    with memory_gateway(Access(Hosts.of([("127.0.0.1", 0)]), tokens)) as running:
        fill(running, {"Authorization": f"Bearer {WRITE}"})
        yield running


@pytest.fixture(scope="module")
def admin() -> Iterator[Port]:
    port = Port("127.0.0.1")
    yield port
    assert port.end() == 0


KINDS: list[tuple[int, str, str, dict[str, str], str]] = [
    (200, "GET", "/objects/plain", {}, NO_CACHE),
    (200, "GET", "/objects/large", {}, NO_CACHE),
    (206, "GET", "/objects/plain", {"Range": "bytes=1-2"}, NO_CACHE),
    (206, "GET", "/objects/large", {"Range": "bytes=1-"}, NO_CACHE),
    (200, "GET", "/objects/large-lasting", {}, "max-age=60, immutable"),
    (206, "GET", "/objects/large-lasting", {"Range": "bytes=1-"}, "max-age=60, immutable"),
    (200, "GET", "/catalog/object?namespace=objects&name=large-lasting", {}, "max-age=60, immutable"),
    (200, "HEAD", "/objects/plain", {}, NO_CACHE),
    (304, "GET", "/objects/plain", {"If-None-Match": "*"}, NO_CACHE),
    (304, "HEAD", "/objects/plain", {"If-None-Match": "*"}, NO_CACHE),
    (200, "GET", "/objects/lasting", {}, "max-age=60, immutable"),
    (200, "HEAD", "/objects/lasting", {}, "max-age=60, immutable"),
    (304, "GET", "/objects/lasting", {"If-None-Match": "*"}, "max-age=60, immutable"),
    (200, "GET", "/catalog/object?namespace=objects&name=lasting", {}, "max-age=60, immutable"),
    (412, "GET", "/objects/plain", {"If-Match": '"other"'}, NO_STORE),
    (416, "GET", "/objects/plain", {"Range": "bytes=99-"}, NO_STORE),
    (200, "GET", "/blob/abc", {}, NO_CACHE),
    (404, "GET", "/blob/nothing", {}, NO_STORE),
    (400, "GET", "/blob/ABC", {}, NO_STORE),
    (404, "GET", "/objects/nothing", {}, NO_STORE),
    (404, "GET", "/nothing/at/all", {}, NO_STORE),
    (405, "DELETE", "/blob/abc", {}, NO_STORE),
    (400, "GET", "/objects/%ff", {}, NO_STORE),
    (403, "GET", "/objects/plain", {"Host": "evil.example"}, NO_STORE),
    (403, "DELETE", "/objects/plain", {"Origin": "http://evil.example"}, NO_STORE),
    (501, "GET", "/objects/plain?X-Amz-Date=1", {}, NO_STORE),
    (200, "GET", "/objects/", {}, NO_STORE),
    (200, "GET", "/blob", {}, NO_STORE),
    (200, "GET", "/catalog/namespaces", {}, NO_STORE),
    (200, "GET", "/catalog/objects?namespace=objects", {}, NO_STORE),
    (200, "GET", "/catalog/version?namespace=objects&name=plain", {}, NO_STORE),
    (200, "GET", "/catalog/link?namespace=objects&name=plain", {}, NO_STORE),
    (403, "GET", "/download?namespace=objects&name=plain", {}, NO_STORE),
    (503, "GET", "/node", {}, NO_STORE),
    (200, "GET", "/alive", {}, NO_STORE),
    (200, "GET", "/healthz", {}, NO_STORE),
    (200, "GET", "/", {}, NO_STORE),
    (200, "GET", "/", HTML, NO_CACHE),
    (200, "GET", "/page/page.css", {}, NO_CACHE),
    (304, "GET", "/page/page.css", {"If-None-Match": "*"}, NO_CACHE),
]


@pytest.mark.parametrize(("status", "method", "path", "headers", "policy"), KINDS)
def test_each_kind_of_answer(
    gateway: Gateway, status: int, method: str, path: str, headers: dict[str, str], policy: str
) -> None:
    answer = gateway.request(method, path, headers=headers)
    assert answer.status == status, answer.body
    assert answer.headers["cache-control"] == policy
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "authorization" not in answer.headers.get("vary", "").lower()


def test_changes(gateway: Gateway) -> None:
    for method, path in (
        ("PUT", "/objects/changed"),
        ("POST", "/store/made"),
        ("DELETE", "/objects/changed"),
    ):
        answer = gateway.request(method, path, b"1" if method != "DELETE" else None)
        assert answer.status in (200, 204)
        assert answer.headers["cache-control"] == NO_STORE
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_list_of_several_pages(gateway: Gateway, guarded: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.gateway.http.listing.LIST_PAGE_MAX", 1)  # then the list is streamed
    for asked, varies in ((gateway, None), (guarded, "Authorization")):
        answer = asked.request("GET", "/blobs", headers={"Authorization": f"Bearer {READ}"})
        assert answer.json == ["abc"]
        assert answer.headers["cache-control"] == NO_STORE
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers.get("vary") == varies


def test_a_link_is_not_kept_whatever_the_object_says(gateway: Gateway) -> None:
    url = gateway.request("GET", "/catalog/link?namespace=objects&name=lasting").json["url"]
    for headers in ({}, {"If-None-Match": "*"}):
        answer = gateway.request("GET", url, headers=headers)
        assert answer.status in (200, 304)
        assert answer.headers["cache-control"] == NO_STORE


@pytest.mark.parametrize(
    "raw", [b"\x01\x03\x01\x02\x00\n\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 20_000]
)
def test_what_is_no_http(gateway: Gateway, admin: Port, raw: bytes) -> None:
    for address in (gateway.address, admin.address):
        with Gateway(address, {}).connect() as connection:
            connection.send(raw + b" HTTP/1.1\r\n\r\n")
            answer = connection.answer("GET")
            assert answer.status in (400, 431)
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["cache-control"] == NO_STORE


def test_too_many_connections(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 1)
    with memory_gateway() as running, running.connect() as first:
        first.send(first.head("PUT", "/objects/begun", {"Content-Length": "1", "Expect": "100-continue"}))
        assert first.answer_head()[0] == 100  # it has a request, and does not give way
        with running.connect() as second:
            answer = second.answer("GET")
            assert answer.status == 503
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["cache-control"] == NO_STORE


def test_http_on_the_raw_port(gateway: Gateway) -> None:
    answer = gateway.request("GET", "/", api="stream")
    assert answer.status == 403
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == NO_STORE


def is_public(path: str) -> bool:
    return Routes(shared_routes()).find(path.partition("?")[0])[0].public


@pytest.mark.parametrize(("status", "method", "path", "headers", "policy"), KINDS)
def test_each_kind_of_answer_where_tokens_decide(
    guarded: Gateway, status: int, method: str, path: str, headers: dict[str, str], policy: str
) -> None:
    """Else a cache that several clients share gives what one of them got to the others, whatever their tokens."""
    with_token = {"Authorization": f"Bearer {WRITE}"} | headers
    answer = guarded.request(method, path, headers=with_token)
    assert (answer.status, answer.headers["cache-control"]) == (status, policy)
    varies = answer.headers.get("vary", "").split(", ")
    without = guarded.request(method, path, headers=headers)
    if path.startswith("/nothing") or not is_public(path):
        assert "Authorization" in varies
        refused_first = status in (403, 501)  # for its host, its origin, or as S3
        assert without.status == (status if refused_first else 401)
        assert without.headers["vary"] == "Authorization" and without.headers["cache-control"] == NO_STORE
    else:
        assert "Authorization" not in varies
        assert without.status == status


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/objects/plain", READ, 200),
        ("/objects/plain", None, 401),
        ("/objects/nothing", READ, 404),
        ("/objects/", READ, 200),
        ("/nothing/at/all", None, 401),
        ("/nothing/at/all", READ, 404),
        ("/objects/%ff", READ, 400),
    ],
)
def test_where_a_token_decides(guarded: Gateway, path: str, token: str | None, status: int) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = guarded.request("GET", path, headers=headers)
    assert (answer.status, answer.headers["vary"]) == (status, "Authorization")
    if status == 200:
        known = guarded.request("GET", path, headers=headers | {"If-None-Match": "*"})
        assert known.headers["vary"] == "Authorization"


@pytest.mark.parametrize("target", ["ftp://localhost/", "/objects/plain#part"])
def test_where_it_is_not_known_what_is_asked_for(guarded: Gateway, target: str) -> None:
    answer = guarded.request("GET", target, headers={"Authorization": f"Bearer {WRITE}"})
    assert 400 <= answer.status < 500
    assert (answer.headers["vary"], answer.headers["cache-control"]) == ("Authorization", NO_STORE)


@pytest.mark.parametrize("path", ["/alive", "/healthz", "/page/page.css"])
def test_where_no_token_decides(guarded: Gateway, path: str) -> None:
    assert "vary" not in guarded.request("GET", path).headers
    assert guarded.request("GET", "/").headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz"),
        ("HEAD", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/AB/C/obj"),
        ("GET", "/1/obj"),
        ("GET", "/nothing"),
        ("POST", "/healthz"),
    ],
)
def test_the_admin_port(admin: Port, method: str, path: str) -> None:
    for headers in ({}, {"Host": "evil.example"}):
        _, _, found = admin.get(path, method, **headers)
        assert found["Cross-Origin-Resource-Policy"] == "same-origin"
        assert found["Cache-Control"] == NO_STORE
        assert found["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("max-age=60", "max-age=60"),
        ("Public , Max-Age=60,immutable", "Public, Max-Age=60, immutable"),
        ('private="Set-Cookie", max-age=1', 'private="Set-Cookie", max-age=1'),
        ("only-if-cached, max-stale=5", None),
        ("min-fresh=1, no-store", "no-store"),
        ("", None),
        (",, ,", None),
        ("max-age=60 max-age=70", None),
        ("max-age=60, ä", None),
        ('no-cache="', None),
        ("," * 8000, None),
        ("max-age=1," * 1000 + '"', None),
    ],
)
def test_what_is_kept_of_an_upload(given: str, kept: str | None) -> None:
    assert of_an_answer(given) == ({} if kept is None else {"Cache-Control": kept})


# RFC 9111, 5.2.2, RFC 5861 and RFC 8246; and 5.2.1: of those that only a request says.
OF_ANSWERS = [
    "immutable",
    "max-age=1",
    "must-revalidate",
    "must-understand",
    "no-cache",
    "no-store",
    "no-transform",
]
OF_ANSWERS += [
    "private",
    "proxy-revalidate",
    "public",
    "s-maxage=1",
    "stale-if-error=1",
    "stale-while-revalidate=1",
]
OF_REQUESTS = ["max-stale=1", "max-stale", "min-fresh=1", "only-if-cached"]


@pytest.mark.parametrize("word", OF_ANSWERS)
def test_each_word_of_an_answer_comes_back_and_none_of_a_request_beside_it(word: str) -> None:
    for given in (
        word,
        *(f"{other}, {word}" for other in OF_REQUESTS),
        *(f"{word},{other}" for other in OF_REQUESTS),
    ):
        assert of_an_answer(given) == {"Cache-Control": word}
        assert of_an_answer(given.upper()) == {"Cache-Control": word.upper()}


def test_the_table_of_the_documents_has_the_words_of_the_code() -> None:
    text = (Path(__file__).parent.parent / "docs" / "http.md").read_text().partition("### Who may keep")[2]
    told = set(re.findall(r"^\| [^|]* \| `([a-z-]+)`", text.partition("\n## ")[0], re.MULTILINE))
    assert told == {policy for *_, policy in KINDS if "=" not in policy}
