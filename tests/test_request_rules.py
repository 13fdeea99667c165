"""What every API owes every request, whatever it is for: no header, parameter or word of another protocol is passed over
where passing it over would store, replace, delete or show something else than what was asked for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest
from gateway_rig import Answer, Gateway, running_gateway

from ingest.catalog.version import Condition, Version, VersionState
from ingest.errors import PreconditionError
from ingest.gateway.apis import blob_api, files_api, objects_api, store_api
from ingest.gateway.http.body_digests import CheckedBody, digests_of
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.fields import SINGLE, Fields
from ingest.gateway.http.form_part import boundary_of, is_form, parse_head
from ingest.gateway.http.preconditions import parse_date, parse_etags
from ingest.gateway.http.ranges import parse_range
from ingest.gateway.http.request_target import parse_query
from ingest.gateway.process.api_table import shared_routes
from ingest.limits import SMALL_OBJECT_MAX
from ingest.objects.body import as_body
from ingest.runtime.cache_policy import of_an_answer

GATEWAY = Path(objects_api.__file__).parent.parent
LARGE = bytes(range(256)) * (SMALL_OBJECT_MAX // 256) + b"and more than fits into one call"
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["memory", "node"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with running_gateway(request.param, request.getfixturevalue("tmp_path_factory")) as running:
        yield running


@pytest.fixture
def name() -> str:
    return f"rule{next(_numbers)}"


@dataclass(frozen=True)
class Way:
    """How an API takes bytes under a name, and gives them."""

    method: str
    path: str  # with {} for the name
    replaces: bool  # what is there already
    namespace: str


WAYS = [
    Way("PUT", "/objects/{}", True, objects_api.NAMESPACE),
    Way("PUT", "/store/{}", True, store_api.NAMESPACE),
    Way("POST", "/store/{}", False, store_api.NAMESPACE),
    Way("POST", "/files/{}", False, files_api.NAMESPACE),
    Way("POST", "/blob/{}", False, blob_api.NAMESPACE),
]
EACH_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.method} {way.path}")


def first(gateway: Gateway, way: Way, name: str) -> bytes | None:
    """Puts something there, where the API replaces it; what is there then."""
    if not way.replaces:
        return None
    method = "POST" if way.path.startswith("/store") else way.method
    assert gateway.request(method, way.path.format(name), b"first").status in (200, 204)
    return b"first"


def here(gateway: Gateway, way: Way, name: str) -> bytes | None:
    answer = gateway.request("GET", way.path.format(name))
    return answer.body if answer.status == 200 else None


def lines(
    gateway: Gateway, method: str, path: str, fields: list[tuple[str, str]], body: bytes = b""
) -> Answer:
    """A request whose header lines are sent as they are."""
    with gateway.connect() as connection:
        head = connection.head(method, path)[:-2]
        more = [f"{key}: {value}\r\n".encode() for key, value in fields]
        if method in ("PUT", "POST"):
            more.append(b"Content-Length: %d\r\n" % len(body))
        connection.send(head + b"".join(more) + b"\r\n" + body)
        return connection.answer(method)


# --- a part is not the whole


@EACH_WAY
@pytest.mark.parametrize("value", ["bytes 6-9/10", "bytes */10", "nonsense"])
def test_a_part_is_never_stored_as_the_whole(gateway: Gateway, way: Way, name: str, value: str) -> None:
    before = first(gateway, way, name)
    answer = gateway.request(way.method, way.path.format(name), b"tail", {"Content-Range": value})
    assert (answer.status, answer.code) == (400, "content_range")
    assert here(gateway, way, name) == before


@pytest.mark.parametrize(("method", "path"), [("POST", "/upload"), ("DELETE", "/objects/x"), ("POST", "/gc")])
def test_nor_is_a_part_taken_elsewhere(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.request(method, path, b"tail", {"Content-Range": "bytes 6-9/10"})
    assert (answer.status, answer.code) == (400, "content_range")


# --- parameters, and the words of S3

TAILS = {"/page/*": "api.js", "/*": "AA/BB/obj"}  # where not every tail leads to something
ROUTES = [
    (method, route.path.replace("*", TAILS.get(route.path, "x")))
    for route in shared_routes()
    for method in (*route.handlers, *(["HEAD"] if "GET" in route.handlers else []))
]
EACH_ROUTE = pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: str(value))


@EACH_ROUTE
def test_unknown_parameters_are_refused_everywhere(gateway: Gateway, method: str, path: str) -> None:
    body = b"body" if method in ("PUT", "POST") else None
    for query in ("acl", "tagging=", "uploadId=7", "versionId=3", "nobody_knows=1&history"):
        answer = gateway.request(method, f"{path}?{query}", body)
        assert answer.status == 400, query
        assert method == "HEAD" or answer.code == "bad_query"


@EACH_WAY
@pytest.mark.parametrize("query", ["acl", "tagging", "partNumber=1&uploadId=x", "history", "prefix=a"])
def test_parameters_change_nothing(gateway: Gateway, way: Way, name: str, query: str) -> None:
    before = first(gateway, way, name)
    assert gateway.request(way.method, f"{way.path.format(name)}?{query}", b"<Tagging/>").status == 400
    if way.replaces:
        assert gateway.request("DELETE", f"{way.path.format(name)}?{query}").status == 400
    assert here(gateway, way, name) == before


S3_WORDS = [
    ("", {"x-amz-acl": "public-read"}),
    ("", {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}),
    ("", {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20261130/us-east-1/s3/aws4_request, Signature=b"}),
    ("", {"authorization": "AWS key:c2lnbmF0dXJl"}),
    ("?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00", {}),
    ("?AWSAccessKeyId=a&Signature=b&Expires=1", {}),
]


@EACH_ROUTE
def test_s3_is_told_that_it_is_not_spoken(gateway: Gateway, method: str, path: str) -> None:
    body = b"body" if method in ("PUT", "POST") else None
    for query, headers in S3_WORDS:
        answer = gateway.request(method, path + query, body, headers)
        assert answer.status == 501, (query, headers)
        assert answer.headers["content-type"] == "application/xml"
        if method != "HEAD":
            assert re.fullmatch(
                rb'<\?xml version="1.0" encoding="UTF-8"\?>\n<Error><Code>NotImplemented</Code><Message>[^<]+</Message>'
                rb"<Resource>/[^<]*</Resource><RequestId>[^<]+</RequestId></Error>",
                answer.body,
            )


@EACH_WAY
@pytest.mark.parametrize(("query", "headers"), S3_WORDS)
def test_s3_changes_nothing(
    gateway: Gateway, way: Way, name: str, query: str, headers: dict[str, str]
) -> None:
    before = first(gateway, way, name)
    assert gateway.request(way.method, way.path.format(name) + query, b"acl", headers).status == 501
    assert here(gateway, way, name) == before


def test_what_proxies_of_amazon_add_is_no_s3(gateway: Gateway, name: str) -> None:
    headers = {"x-amz-cf-id": "abc", "X-Amzn-Trace-Id": "Root=1-2-3"}
    assert gateway.request("PUT", f"/objects/{name}", b"through a CDN", headers).status == 200


def test_a_parameter_stands_once() -> None:
    assert parse_query("a=1&b=2") == {"a": "1", "b": "2"}
    assert parse_query("") == {}
    with pytest.raises(Failure, match="twice") as caught:
        parse_query("namespace=a&name=b&name=c")
    assert (caught.value.status, caught.value.code) == (400, "bad_query")


# --- header lines


def test_headers_are_read_in_one_place() -> None:
    """Who reads `request.headers` reads one line of several."""
    readers = {
        path.name
        for path in GATEWAY.rglob("*.py")
        if re.search(r"request\.headers|\.getone\(|\.getall\(|raw_headers", path.read_text())
    }
    assert readers == {"app.py", "fields.py", "s3_refusal.py"}


@pytest.mark.parametrize(
    "name", ["If-Match", "if-none-match", "Content-Encoding", "CONTENT-LANGUAGE", "X-Own"]
)
def test_lines_of_a_list_are_one_list(name: str) -> None:
    from multidict import CIMultiDict, CIMultiDictProxy

    fields = Fields(CIMultiDictProxy(CIMultiDict([(name, "a"), ("Other", "z"), (name.upper(), "b, c")])))
    assert fields[name.lower()] == fields.get(name) == "a, b, c"
    assert dict(fields) == {name: "a, b, c", "Other": "z"}
    assert name.upper() in fields and "Another" not in fields and fields.get("Another") is None
    assert len(fields) == 2


# Each of those that are read has one value, by the RFC that has it: of two the gateway must choose neither.
ONCE = (
    "authorization", "content-disposition", "content-length", "content-md5", "content-range", "content-type", "host",
    "if-modified-since", "if-range", "if-unmodified-since", "origin", "range",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted({*ONCE, *SINGLE} - {"host", "content-length"}))
def test_what_may_stand_once_stands_once(gateway: Gateway, name: str) -> None:
    """Wherever it is read: in a request of whatever kind reads it."""
    path = f"/objects/twice-{name}"
    values = {"content-range": "bytes 0-0/1", "range": "bytes=0-0", "if-range": '"a"', "origin": "http://a"}
    value = values.get(name, formatdate(0, usegmt=True) if name.startswith("if-") else "x")
    gateway.request("PUT", path, b"first")
    twice = [(name, value), (name, value)]
    reads = name in ("range", "if-range", "if-modified-since")
    more = [("Range", "bytes=0-0")] if name == "if-range" else []
    answer = lines(gateway, "GET" if reads else "PUT", path, twice + more, b"" if reads else b"second")
    assert (answer.status, answer.code) in {
        (400, code) for code in ("repeated_header", "bad_http", "content_range")
    }
    assert gateway.request("GET", path).body == b"first"


@pytest.mark.parametrize("name", ["Host", "Content-Length"])
def test_framing_that_disagrees_is_no_request(gateway: Gateway, name: str) -> None:
    values = {"Host": ("localhost", "127.0.0.1"), "Content-Length": ("1", "6")}[name]
    with socket.create_connection(gateway.address, 10) as sock:
        head = "".join(f"{name}: {value}\r\n" for value in values)
        host = "" if name == "Host" else "Host: localhost\r\n"
        sock.sendall(f"PUT /objects/framed HTTP/1.1\r\n{host}{head}\r\nabcdef".encode())
        assert re.match(rb"HTTP/1.[01] 400 ", sock.recv(4096))
    assert gateway.request("GET", "/objects/framed").status == 404


@EACH_WAY
def test_every_line_of_a_condition_counts(gateway: Gateway, way: Way, name: str) -> None:
    if not way.replaces:
        pytest.skip("nothing is replaced there")
    path = way.path.format(name)
    first(gateway, way, name)
    tag = gateway.request("GET", path).headers["etag"]
    two = [("If-None-Match", '"x"'), ("If-None-Match", tag)]
    assert lines(gateway, way.method, path, two, b"second").status == 412
    assert lines(gateway, "DELETE", path, two).status == 412
    assert lines(gateway, "GET", path, two).status == 304
    assert here(gateway, way, name) == b"first"
    two = [("If-Match", '"x"'), ("If-Match", tag)]
    assert lines(gateway, "GET", path, two).status == 200
    assert lines(gateway, way.method, path, two, b"second").status == 200


def test_every_line_that_is_kept_is_kept(gateway: Gateway, name: str) -> None:
    fields = [
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "br"),
        ("Content-Language", "de"),
        ("Content-Language", "en"),
    ]
    assert lines(gateway, "PUT", f"/objects/{name}", fields, b"coded").status == 200
    answer = gateway.request("GET", f"/objects/{name}")
    assert answer.headers["content-encoding"] == "gzip, br"
    assert answer.headers["content-language"] == "de, en"


# --- dates

OLD, FUTURE = "Mon, 01 Jan 2001 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        (" Sun, 06 Nov 1994 08:49:37 GMT ", 784111777),
        ("Sun, 06 Nov 1994 08:49:37 +0100", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 36 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ("1994-11-06T08:49:37Z", None),
        ("784111777", None),
        ("", None),
        (None, None),
    ],
)
def test_dates(text: str | None, seconds: int | None) -> None:
    assert parse_date(text) == seconds


@EACH_WAY
def test_dates_are_conditions(gateway: Gateway, way: Way, name: str) -> None:
    path = way.path.format(name)
    method = "POST" if way.path.startswith("/store") else way.method
    gateway.request(method, path, b"first")
    answer = gateway.request("GET", path)
    modified, tag = answer.headers["last-modified"], answer.headers["etag"]

    def get(**fields: str) -> int:
        headers = {key.replace("_", "-"): value for key, value in fields.items()}
        statuses = {gateway.request(method, path, headers=headers).status for method in ("GET", "HEAD")}
        assert len(statuses) == 1
        return statuses.pop()

    assert get(If_Modified_Since=modified) == get(If_Modified_Since=FUTURE) == 304
    assert get(If_Modified_Since=OLD) == get(If_Modified_Since="no date") == 200
    assert get(If_None_Match='"other"', If_Modified_Since=FUTURE) == 200
    assert get(If_None_Match=tag, If_Modified_Since=OLD) == 304
    assert get(If_Unmodified_Since=OLD) == 412
    assert get(If_Unmodified_Since=modified) == get(If_Unmodified_Since="no date") == 200
    assert get(If_Match=tag, If_Unmodified_Since=OLD) == 200
    assert get(If_Match='"other"', If_Unmodified_Since=FUTURE) == 412
    assert get(If_Unmodified_Since=FUTURE, If_Modified_Since=FUTURE) == 304
    if not way.replaces:
        return
    old = {"If-Unmodified-Since": OLD}
    assert gateway.request(way.method, path, b"second", old).status == 412
    assert gateway.request("DELETE", path, headers=old).status == 412
    assert here(gateway, way, name) == b"first"
    assert gateway.request(way.method, path, b"second", {"If-Modified-Since": FUTURE}).status == 200
    assert gateway.request(way.method, path, b"third", old | {"If-Match": tag}).status == 412
    tag = gateway.request("GET", path).headers["etag"]
    assert gateway.request(way.method, path, b"third", old | {"If-Match": tag}).status == 200
    assert gateway.request("DELETE", path, headers={"If-Unmodified-Since": FUTURE}).status == 200


@pytest.mark.parametrize(
    "path", ["/fetch/{sos}", "/id/{id}", "/catalog/object?namespace=objects&name={name}"]
)
def test_dates_are_conditions_wherever_bytes_come_from(gateway: Gateway, name: str, path: str) -> None:
    id_ = gateway.request("PUT", f"/objects/{name}", b"bytes").json["id"]
    sos = gateway.request("POST", "/upload", name.encode()).json["id"]
    path = path.format(sos=sos, id=id_, name=name)
    modified = gateway.request("GET", path).headers["last-modified"]
    assert gateway.request("GET", path, headers={"If-Modified-Since": modified}).status == 304
    assert gateway.request("GET", path, headers={"If-Unmodified-Since": OLD}).status == 412
    part = {"Range": "bytes=1-2", "If-Range": modified}
    assert gateway.request("GET", path, headers=part).status == 206
    assert gateway.request("GET", path, headers=part | {"If-Range": OLD}).status == 200


def test_a_date_stands_for_one_version_only_when_no_other_was_there_in_its_second(
    gateway: Gateway, name: str
) -> None:
    for _ in range(20):  # until both are of one second
        gateway.request("PUT", f"/objects/{name}", b"0123456789")
        before = gateway.request("GET", f"/objects/{name}").headers["last-modified"]
        gateway.request("PUT", f"/objects/{name}", b"9876543210")
        answer = gateway.request("GET", f"/objects/{name}")
        if answer.headers["last-modified"] == before:
            break
    headers = {"Range": "bytes=5-9", "If-Range": before}
    found = gateway.request("GET", f"/objects/{name}", headers=headers)
    assert (found.status, found.body) == (200, b"9876543210")


@pytest.mark.parametrize("path", ["/objects/{}", "/store/{}"])
def test_a_date_stands_for_the_version_that_replaced_another_in_an_earlier_second(
    gateway: Gateway, name: str, path: str
) -> None:
    path = path.format(name)
    method = "POST" if path.startswith("/store") else "PUT"
    assert gateway.request(method, path, b"0123456789").status in (200, 204)
    before = gateway.request("GET", path).headers["last-modified"]
    while True:  # until another second has begun
        assert gateway.request("PUT", path, b"9876543210").status == 200
        modified = gateway.request("GET", path).headers["last-modified"]
        if modified != before:
            break
    found = gateway.request("GET", path, headers={"Range": "bytes=5-9", "If-Range": modified})
    assert (found.status, found.body) == (206, b"43210")


def test_last_modified_is_when_the_name_came_to_mean_it() -> None:
    """An upload that began long ago and ended now is new."""
    version = Version(1, "objects", "a", VersionState.OK, 0, bytes(32), 1000.9, (), {}, 2000.9)
    assert version.modified == 2000
    Condition(unmodified_since=2000).check("a", version)
    with pytest.raises(PreconditionError):
        Condition(unmodified_since=1999).check("a", version)
    Condition(unmodified_since=0).check("a", None)


# --- digests


def encoded(algorithm: str, data: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.method} {way.path}")
@pytest.mark.parametrize(
    "trailer", ["Content-Digest", "repr-digest", "X-Other, Digest", "content-md5 ,X-Other", "X-Other"]
)
def test_a_digest_that_comes_behind_the_body_is_not_taken_for_one_that_was_compared(
    gateway: Gateway, way: Way, name: str, trailer: str
) -> None:
    path = way.path.format(name)
    headers = {"Trailer": trailer, "Transfer-Encoding": "chunked"}
    with gateway.connect() as connection:
        head = connection.head(way.method, path, headers)
        connection.send(
            head + b"5\r\nabcde\r\n0\r\nContent-MD5: " + encoded("md5", b"x").encode() + b"\r\n\r\n"
        )
        answer = connection.answer()
    if trailer == "X-Other":
        assert answer.status in (200, 201, 204, 404)
    else:
        assert (answer.status, answer.code) == (501, "trailer")
        assert gateway.request("GET", f"/catalog/version?namespace={way.namespace}&name={name}").status == 404


def digest_headers(data: bytes) -> list[dict[str, str]]:
    return [
        {"Content-MD5": encoded("md5", data)},
        {"Digest": f"MD5={encoded('md5', data)}"},
        {"Digest": f"unixsum=30637, SHA-256={encoded('sha256', data)}"},
        {"Digest": f"sha-512={encoded('sha512', data)}"},
        {"Content-Digest": f"sha-256=:{encoded('sha256', data)}:"},
        {"Content-Digest": f"crc32c=:AAAAAA==:, sha-512=:{encoded('sha512', data)}:"},
        {"Repr-Digest": f"sha-256=:{encoded('sha256', data)}:"},
        {"Repr-Digest": f"md5=:{encoded('md5', data)}:"},
    ]


@EACH_WAY
@pytest.mark.parametrize("data", [b"", b"second", LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("number", range(len(digest_headers(b""))))
def test_digests(gateway: Gateway, way: Way, name: str, data: bytes, number: int) -> None:
    before = first(gateway, way, name)
    path = way.path.format(name)
    for pieces in (data, [data[:100_000], data[100_000:]] if len(data) > 100_000 else [data] if data else []):
        wrong = gateway.request(way.method, path, pieces, digest_headers(data + b"\0")[number])
        assert (wrong.status, wrong.code) == (400, "bad_digest")
        assert here(gateway, way, name) == before
    assert gateway.request(way.method, path, data, digest_headers(data)[number]).status in (200, 204)
    assert here(gateway, way, name) == data


def test_digests_of_an_upload_to_sos(gateway: Gateway, name: str) -> None:
    data = name.encode()
    id_ = hashlib.sha1(data).hexdigest()
    for headers in digest_headers(data + b"x"):
        assert gateway.request("POST", "/upload", data, headers).code == "bad_digest"
    assert gateway.request("GET", f"/fetch/{id_}").status == 404
    for headers in digest_headers(data):
        assert gateway.request("POST", "/upload", data, headers).json["id"] == id_


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-MD5": "no base64!"},
        {"Content-MD5": base64.b64encode(b"short").decode()},
        {"Digest": "sha-256"},
        {"Digest": "SHA-256=AAAA"},
        {"Content-Digest": "sha-256=AAAA"},
        {"Content-Digest": "sha-256=:AAAA:"},
        {"Repr-Digest": ""},
    ],
)
def test_what_cannot_be_a_digest(headers: dict[str, str]) -> None:
    with pytest.raises(Failure) as caught:
        digests_of(headers)
    assert (caught.value.status, caught.value.code) == (400, "bad_digest")


def members(data: bytes) -> dict[str, list[tuple[str, str]]]:
    """Of each field: digests that it may have of some data, by their names."""
    md5, sha256, sha512 = (encoded(name, data) for name in ("md5", "sha256", "sha512"))
    return {
        "Content-Digest": [("sha-256", f"sha-256=:{sha256}:"), ("sha-512", f"sha-512=:{sha512}:")],
        "Repr-Digest": [("md5", f"md5=:{md5}:"), ("sha-256", f"sha-256=:{sha256}:")],
        "Digest": [("sha-512", f"SHA-512={sha512}"), ("md5", f"md5={md5}")],
        "Content-MD5": [("md5", md5)],
    }


FALSE = [None, *((field, at) for field, some in members(b"").items() for at in range(len(some)))]


@pytest.mark.parametrize("wrong", FALSE)
def test_each_digest_of_a_request_is_compared_whichever_others_it_has(wrong: tuple[str, int] | None) -> None:
    """Every set of the fields, with one digest in one of them that is not true."""

    async def fill(headers: dict[str, str]) -> None:
        body = CheckedBody(as_body(pieces()), digests_of(headers))
        while not body.ended:
            await body.fill(memoryview(bytearray(3)))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"the bytes"

    said = members(b"the bytes")
    if wrong is not None:
        said[wrong[0]][wrong[1]] = members(b"other bytes")[wrong[0]][wrong[1]]
    for fields in itertools.chain.from_iterable(itertools.combinations(said, count) for count in range(5)):
        headers = {field: ", ".join(text for _, text in said[field]) for field in fields}
        names = sorted(name for field in fields for name, _ in said[field])
        assert sorted(name for name, _ in digests_of(headers)) == names
        if wrong is None or wrong[0] not in fields:
            asyncio.run(fill(headers))
        else:
            with pytest.raises(Failure) as caught:
                asyncio.run(fill(headers))
            assert (caught.value.status, caught.value.code) == (400, "bad_digest")


def test_digests_that_nobody_knows_are_passed_over() -> None:
    assert digests_of({"Content-Digest": "crc32c=:AAAAAA==:", "Digest": "crc32c=x, id-sha-256=y"}) == []


def test_a_digest_that_was_checked_comes_back(gateway: Gateway, name: str) -> None:
    sha, path = encoded("sha256", b"bytes"), f"/objects/{name}"
    headers = {"Repr-Digest": f"sha-256=:{sha}:", "Content-MD5": encoded("md5", b"bytes")}
    gateway.request("PUT", path, b"bytes", headers)
    for method in ("GET", "HEAD"):
        assert gateway.request(method, path).headers["repr-digest"] == f"sha-256=:{sha}:"
    gateway.request("PUT", path, b"bytes", {"Content-MD5": encoded("md5", b"bytes")})
    assert "repr-digest" not in gateway.request("GET", path).headers


BLANKS = " \t" * 500_000  # the square of them is hours


@pytest.mark.parametrize("field", ["Digest", "Content-Digest", "Repr-Digest", "Content-MD5"])
@pytest.mark.parametrize(
    "text", [f"md5=a{BLANKS}b", f"a{BLANKS}", f"{BLANKS}=,{BLANKS},{BLANKS}=", f"a{BLANKS}=x"]
)
def test_digests_are_read_in_the_time_of_their_length(field: str, text: str) -> None:
    with pytest.raises(Failure):
        digests_of({field: text})


@pytest.mark.parametrize("end", ["", "\x01", "b", ",", ";", '"', "="])
@pytest.mark.parametrize("start", ["", "a", "a=", 'a="', "a:", ";", "bytes", "form-data;a", "max-age="])
def test_fields_are_read_in_the_time_of_their_length(start: str, end: str) -> None:
    """Whatever they say: what was a square of the blanks would not end."""
    text = start + BLANKS + end
    readers: list[Callable[[], object]] = [
        lambda: parse_etags(text),
        lambda: parse_date(text),
        lambda: parse_range(text, 10),
        lambda: of_an_answer(text),
        lambda: is_form(text),
        lambda: parse_head(f"Content-Disposition: form-data; {text}".encode()),
        lambda: parse_head(f"A:{text}".encode()),
        lambda: boundary_of(f"multipart/form-data;{text}"),
    ]
    for read in readers:
        with suppress(Failure):
            read()
