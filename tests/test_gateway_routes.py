"""Every route and every status of the gateway's table, over its shared port and over ports of single APIs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from blake3 import blake3
from gateway_rig import Answer, Gateway, memory_gateway, running_gateway

from ingest import ticket
from ingest.errors import (
    ConnectionLostError,
    DataDirLostError,
    ForeignStoreError,
    NoSpaceError,
    RefusedError,
)
from ingest.gateway.apis.own_headers import NOT_KEPT
from ingest.limits import DATA_SIZE, SMALL_OBJECT_MAX
from ingest.runtime.heartbeat import Heart
from ingest.status import Status

_numbers = itertools.count(1)
LARGE = bytes(range(256)) * (SMALL_OBJECT_MAX // 256) + b"and more than fits into one call"


@pytest.fixture(scope="module", params=["memory", "node"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with running_gateway(request.param, request.getfixturevalue("tmp_path_factory")) as running:
        yield running


@pytest.fixture
def name() -> str:
    """A name that no other test has: one gateway serves many tests."""
    return f"name{next(_numbers)}"


def etag(data: bytes) -> str:
    return f'"{blake3(data).hexdigest()}"'


def is_object(answer: Answer, data: bytes, kind: str = "application/octet-stream") -> None:
    assert (answer.status, answer.body) == (200, data)
    headers = answer.headers
    assert headers["etag"] == etag(data)
    assert headers["content-type"] == kind
    assert headers["content-length"] == str(len(data))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox"


# --- blob


def test_blob_alive(gateway: Gateway) -> None:
    for api in (None, "blob"):
        answer = gateway.request("GET", "/alive", api=api)
        assert (answer.status, answer.body) == (200, b"alive")


@pytest.mark.parametrize("data", [b"", b"x", b"small", LARGE], ids=["empty", "byte", "small", "large"])
def test_blob(gateway: Gateway, name: str, data: bytes) -> None:
    answer = gateway.request("POST", f"/blob/{name}", data)
    assert (answer.status, answer.json) == (200, {"id": name, "size": len(data), "status": "OK"})
    assert answer.body == b'{"id":"%s","size":%d,"status":"OK"}' % (name.encode(), len(data))
    is_object(gateway.request("GET", f"/blob/{name}"), data)
    head = gateway.request("HEAD", f"/blob/{name}")
    assert (head.status, head.headers["content-length"], head.headers["etag"]) == (
        200,
        str(len(data)),
        etag(data),
    )


def test_blob_is_immutable(gateway: Gateway, name: str) -> None:
    assert gateway.request("POST", f"/blob/{name}", b"bytes").status == 200
    assert gateway.request("POST", f"/blob/{name}", b"bytes").json["status"] == "OK"
    refused = gateway.request("POST", f"/blob/{name}", b"other")
    assert (refused.status, refused.code) == (409, "name_taken")
    assert gateway.request("GET", f"/blob/{name}").body == b"bytes"


def test_blob_that_is_not_there(gateway: Gateway) -> None:
    answer = gateway.request("GET", "/blob/nothing")
    assert (answer.status, answer.body) == (404, b"404 page not found")
    assert gateway.request("HEAD", "/blob/nothing").status == 404


@pytest.mark.parametrize("id_", ["", "ABC", "a-b", "a/b", "a%2Fb", "%C3%A4", "a%0A", "a%", "%ff", ".."])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_blob_ids(gateway: Gateway, method: str, id_: str) -> None:
    answer = gateway.request(method, f"/blob/{id_}", b"x" if method == "POST" else None)
    assert answer.status == 400
    if method != "HEAD":
        assert answer.body == b"alphanumeric IDs only"


@pytest.mark.parametrize("path", ["/blob", "/blobs"])
def test_blob_names(gateway: Gateway, name: str, path: str) -> None:
    for suffix in ("b", "a"):
        gateway.request("POST", f"/blob/{name}{suffix}", b"x")
    answer = gateway.request("GET", path)
    assert answer.headers["content-type"] == "application/json"
    names = answer.json
    assert names == sorted(names) and {f"{name}a", f"{name}b"} <= set(names)


# --- health


def test_each_process_that_stands_still_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("catalog", "http-0", "http-1", "collector")
    hearts = {name: Heart() for name in names}
    for heart in hearts.values():
        heart.beat()
    with memory_gateway(hearts=hearts) as gateway:
        assert gateway.request("GET", "/healthz").body == b"Ok!"
        silent: set[str] = set()
        monkeypatch.setattr(
            Heart, "trouble", lambda heart, name, now: f"{name} stands still" if name in silent else ""
        )
        for name in names:
            silent.add(name)
            answer = gateway.request("GET", "/healthz")
            assert (answer.status, answer.code) == (503, "not_ready")
            said = answer.json["message"]
            # Nobody asks the collector.
            assert [one for one in names if one in said] == [one for one in names[:3] if one in silent]


HEALTH = ("possession", "check_ready", "prove")  # in the order in which it looks


@pytest.mark.parametrize(
    ("wrong", "error", "status"),
    [
        ((), OSError(), 200),
        (("possession",), DataDirLostError("lost"), 503),
        (("check_ready",), ConnectionLostError("away"), 503),
        (("check_ready",), NoSpaceError("full"), 507),
        (("prove",), ForeignStoreError("another one's"), 503),
        (("prove",), ConnectionLostError("away"), 200),  # it comes back: uploads wait for it
        (("prove",), RefusedError("0", Status.BUSY), 200),
        (("possession", "check_ready", "prove"), DataDirLostError("lost"), 503),
        (("check_ready", "prove"), NoSpaceError("full"), 507),
    ],
)
def test_health_is_all_of_it(wrong: tuple[str, ...], error: Exception, status: int) -> None:
    """Each thing without which a request would fail is looked at, and what it is is said."""

    def look(what: str) -> None:
        looked.append(what)
        if what in wrong:
            raise error

    async def prove() -> None:
        look("prove")

    looked: list[str] = []
    possession = SimpleNamespace(check=lambda: look("possession"))
    with memory_gateway(
        possession=possession, check_ready=lambda: look("check_ready"), prove=prove
    ) as gateway:
        answer = gateway.request("GET", "/healthz")
        assert answer.status == status
        last = HEALTH.index(wrong[0]) if wrong else len(HEALTH) - 1
        assert looked == list(HEALTH[: last + 1])
        if status != 200:
            assert str(error) in answer.json["message"]


# --- by catalog


@pytest.mark.parametrize("namespace", ["objects", "store", "blob", "sos", "stream", "files", "new"])
def test_the_catalog_deletes_where_an_api_does(gateway: Gateway, name: str, namespace: str) -> None:
    path = f"/catalog/object?namespace={namespace}&name={name}"
    store = {"store": ("POST", f"/store/{name}"), "objects": ("PUT", f"/objects/{name}")}
    if namespace in store:
        gateway.request(*store[namespace], b"x")
        assert gateway.request("DELETE", path).status == 200
        assert gateway.request("GET", path).status == 404
        return
    for _ in range(2):  # without the object, and with it
        answer = gateway.request("DELETE", path)
        assert (answer.status, answer.code, answer.headers["allow"]) == (
            405,
            "method_not_allowed",
            "GET, HEAD",
        )
        if namespace == "blob":
            gateway.request("POST", f"/blob/{name}", b"x")
    if namespace == "blob":
        assert gateway.request("GET", path).body == b"x"


# --- sos


@pytest.mark.parametrize("data", [b"", b"content", LARGE], ids=["empty", "small", "large"])
def test_sos(gateway: Gateway, data: bytes) -> None:
    id_ = hashlib.sha1(data).hexdigest()
    dates = set()
    for _ in range(2):
        answer = gateway.request(
            "POST", "/upload", data, api="sos-upload", headers={"X-Try": f"{len(dates)}"}
        )
        assert (answer.status, answer.json) == (200, {"id": id_, "size": len(data), "status": "OK"})
        # The second time nothing is stored: the first one stays, with what was said of it.
        dates.add(gateway.request("HEAD", f"/fetch/{id_}").headers["x-try"])
    assert dates == {"0"}
    for path in (f"/fetch/{id_}", f"/fetch/{id_}.txt", f"/fetch/{id_}.tar.gz"):
        is_object(gateway.request("GET", path, api="sos-fetch"), data)
        is_object(gateway.request("GET", path), data)
        assert gateway.request("HEAD", path).headers["content-length"] == str(len(data))


def test_sos_headers_come_back(gateway: Gateway, name: str) -> None:
    given = {
        "X-Mime-Type": "image/png",
        "X-Author": "Jürgen",
        "x-two-words": "1",
        "X-Accel-Redirect": "/etc/passwd",
        "X-Sendfile": "/etc/passwd",
        "X-Frame-Options": "ALLOWALL",
        "X-Request-Id": "given",
        "Content-Type": "text/html",
        "Authorization": "Basic none",
    }
    id_ = gateway.request("POST", "/upload", name.encode(), headers=given).json["id"]
    answer = gateway.request("GET", f"/fetch/{id_}")
    assert answer.headers["content-type"] == "image/png"
    assert (answer.headers["x-author"], answer.headers["x-two-words"]) == ("Jürgen", "1")
    assert not {"x-accel-redirect", "x-sendfile", "x-frame-options", "authorization"} & answer.headers.keys()
    assert answer.headers["x-request-id"] != "given"


def test_sos_headers_that_others_act_on_do_not_come_back(gateway: Gateway, name: str) -> None:
    """The table of the documents is the code's, and each of its headers, with anything behind a `*`, is dropped."""
    text = (Path(__file__).parent.parent / "docs" / "http.md").read_text()
    table = re.findall(r"^\| ([a-z ]+) \| (`X-.*`) \|$", text.partition("<!-- not kept -->")[2], re.MULTILINE)
    told = {who: tuple(one.strip("`").lower() for one in names.split(", ")) for who, names in table}
    assert told == NOT_KEPT
    dropped = [
        "X-Archive-Files",
        "X-SourceMap",
        "X-LIGHTTPD-send-file",
        "X-Sendfile-Temporary",
        "X-REPROXY-URL",
    ]
    dropped += [
        "X-Esi",
        "X-Forwarded-For",
        "X-envoy-immediate-health-check-fail",
        "X-LiteSpeed-Purge",
        "X-API-Key",
    ]
    for one in (one for names in NOT_KEPT.values() for one in names):
        dropped.append(f"{one[:-1]}more" if one.endswith("*") else one)
    kept = {"X-Archived": "1", "X-Source": "2", "X-Sender": "3", "X-Mime-Type": "text/plain"}
    for start in range(0, len(dropped), 20):
        given = dict.fromkeys(dropped[start : start + 20], "evil") | kept
        answer = gateway.request("POST", "/upload", name.encode() + b"%d" % start, headers=given)
        fetched = gateway.request("GET", f"/fetch/{answer.json['id']}")
        assert "evil" not in fetched.headers.values()
        assert {one: fetched.headers[one.lower()] for one in kept} == kept


@pytest.mark.parametrize("id_", ["", "0" * 40, "0" * 39, "A" * 40, "0" * 40 + "x", "0" * 40 + ".a/b"])
def test_sos_that_is_not_there(gateway: Gateway, id_: str) -> None:
    assert gateway.request("GET", f"/fetch/{id_}").status == 404


# --- store


def test_store(gateway: Gateway, name: str) -> None:
    path = f"/store/{name}"
    assert (gateway.request("GET", path).status, gateway.request("DELETE", path).status) == (404, 404)
    assert gateway.request("PUT", path, b"new").status == 404
    created = gateway.request("POST", path, b"one")
    assert (created.status, created.headers["etag"]) == (204, etag(b"one"))
    refused = gateway.request("POST", path, b"two")
    assert (refused.status, refused.code) == (409, "name_taken")
    is_object(gateway.request("GET", path), b"one")
    replaced = gateway.request("PUT", path, LARGE)
    assert (replaced.status, replaced.json["size"]) == (200, len(LARGE))
    is_object(gateway.request("GET", path), LARGE)
    assert gateway.request("HEAD", path).headers["etag"] == etag(LARGE)
    assert gateway.request("DELETE", path).status == 200
    assert gateway.request("DELETE", path).status == 404
    assert gateway.request("GET", path).status == 404
    assert gateway.request("HEAD", path).status == 404


def test_store_history(gateway: Gateway, name: str) -> None:
    path = f"/store/{name}"
    assert gateway.request("GET", f"{path}?history").status == 404
    gateway.request("POST", path, b"one")
    gateway.request("PUT", path, b"three")
    gateway.request("DELETE", path)
    history = gateway.request("GET", f"{path}?history").json
    first, second = sorted({step["version"] for step in history})
    assert [(step["version"], step["state"]) for step in history if step["version"] == second] == [
        (second, "deleted"),
        (second, "ok"),
        (second, "pending"),
    ]
    assert [step["state"] for step in history if step["version"] == first] == ["deleted", "ok", "pending"]
    times = [datetime.fromisoformat(step["time"]) for step in history]
    assert times == sorted(times, reverse=True)
    assert history[0]["reason"] and {step["size"] for step in history} == {3, 5}


def test_store_health(gateway: Gateway) -> None:
    answer = gateway.request("GET", "/healthz", api="store")
    assert (answer.status, answer.body) == (200, b"Ok!")


# --- objects


def test_objects(gateway: Gateway, name: str) -> None:
    path = f"/objects/{name}"
    for data in (b"one", LARGE, b""):
        answer = gateway.request("PUT", path, data)
        assert (answer.status, answer.headers["etag"]) == (200, etag(data))
        assert answer.json["name"] == name and answer.json["size"] == len(data)
        ticket.parse(answer.json["id"])
        is_object(gateway.request("GET", path), data)
    assert gateway.request("DELETE", path).json["name"] == name
    assert gateway.request("DELETE", path).status == 404
    assert gateway.request("GET", path).status == 404


def test_objects_root(gateway: Gateway) -> None:
    for api in (None, "objects"):
        answer = gateway.request("GET", "/", api=api)
        assert (answer.status, answer.body) == (200, b'{"status":1,"version":1}')


def test_objects_list(gateway: Gateway, name: str) -> None:
    names = [f"{name}/{text}" for text in ("a", "a b", "b/c", "z", "ä", "€", "𝄞")]
    for one in reversed(names):
        gateway.request("PUT", f"/objects/{quote(one)}", one.encode())
    found = gateway.request("GET", f"/objects/?prefix={name}/").json
    assert [entry["name"] for entry in found["objects"]] == names and found["next"] is None
    first = found["objects"][1]
    data = names[1].encode()
    assert (first["size"], first["etag"]) == (len(data), etag(data).strip('"'))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["created"])
    pages, after = [], ""
    while after is not None:
        page = gateway.request("GET", f"/objects/?prefix={name}%2F&limit=3&after={quote(after)}").json
        pages.append([entry["name"] for entry in page["objects"]])
        after = page["next"]
    assert pages == [names[:3], names[3:6], names[6:]]
    blank = gateway.request("GET", f"/objects/?prefix={name}/a+b").json["objects"]
    assert [entry["name"] for entry in blank] == [f"{name}/a b"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=1e3", "prefx=a", "prefix=%ff", "prefix=%"]
)
def test_objects_list_with_a_bad_query(gateway: Gateway, query: str) -> None:
    assert gateway.request("GET", f"/objects/?{query}").status == 400


def test_objects_list_takes_large_limits_for_the_largest(gateway: Gateway) -> None:
    assert gateway.request("GET", "/objects/?limit=999999999").status == 200


# --- files


@pytest.mark.parametrize(("api", "root"), [(None, "/files/"), ("files", "/")])
def test_files(gateway: Gateway, name: str, api: str | None, root: str) -> None:
    path = f"{root}{name}/a/b.txt"
    assert gateway.request("GET", path, api=api).status == 404
    assert gateway.request("POST", path, LARGE, api=api).status == 200
    assert gateway.request("POST", path, LARGE, api=api).status == 409
    is_object(gateway.request("GET", path, api=api), LARGE)
    assert gateway.request("HEAD", path, api=api).headers["content-length"] == str(len(LARGE))
    assert gateway.request("PUT", path, b"x", api=api).status == 405


def test_files_has_one_namespace_on_both_ports(gateway: Gateway, name: str) -> None:
    gateway.request("POST", f"/{name}", b"x", api="files")
    assert gateway.request("GET", f"/files/{name}").body == b"x"


# --- chunks and stream


def test_chunks(gateway: Gateway, name: str) -> None:
    data = b"ab" * DATA_SIZE
    id_ = gateway.request("PUT", f"/objects/{name}", data).json["id"]
    for api in (None, "chunks"):
        for number in range(2):
            path = "/" + ticket.tree_path(ticket.format(ticket.parse(id_) + number))
            answer = gateway.request("GET", path, api=api)
            assert (answer.status, answer.body) == (200, data[:DATA_SIZE])
            assert answer.headers["content-security-policy"] == "sandbox"
            part = gateway.request("GET", path, api=api, headers={"Range": "bytes=1-2"})
            assert (part.status, part.body) == (206, b"ba")
            tag = {"If-None-Match": answer.headers["etag"]}
            assert gateway.request("GET", path, api=api, headers=tag).status == 304


@pytest.mark.parametrize("api", [None, "chunks"])
@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"If-Match": "TAG"}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other", TAG'}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "W/TAG"}, 412),  # it compares strongly (RFC 9110, 13.1.1)
        ({"If-Match": '"other", W/TAG'}, 412),
        ({"If-Match": '"other"', "If-None-Match": "TAG"}, 412),
        ({"If-Match": "TAG", "If-None-Match": "TAG"}, 304),
        ({"If-None-Match": "TAG"}, 304),
        ({"If-None-Match": "W/TAG"}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other", TAG'}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "TAG", "Range": "bytes=1-2"}, 304),
        ({"Range": "bytes=1-2"}, 206),
        ({"Range": "bytes=1-2", "If-Range": "TAG"}, 206),
        ({"Range": "bytes=1-2", "If-Range": "W/TAG"}, 200),
        ({"Range": "bytes=1-2", "If-Range": '"other"'}, 200),
        ({"Range": "bytes=1-2", "If-Match": "TAG"}, 206),
        ({"Range": "bytes=1-2", "If-Match": '"other"'}, 412),
    ],
)
def test_conditions_on_chunks(
    gateway: Gateway, name: str, api: str | None, asked: dict[str, str], status: int
) -> None:
    """Who kept some of a chunk goes on with that one only. HEAD answers as GET does, and knows no ranges."""
    data = bytes(range(256)) * 6
    id_ = gateway.request("PUT", f"/objects/{name}", data).json["id"]
    path = "/" + ticket.tree_path(id_)
    tag = gateway.request("GET", path, api=api).headers["etag"]
    headers = {field: text.replace("TAG", tag) for field, text in asked.items()}
    answer = gateway.request("GET", path, api=api, headers=headers)
    head = gateway.request("HEAD", path, api=api, headers=headers)
    assert (answer.status, answer.headers["etag"]) == (status, tag)
    assert (head.status, head.headers["etag"]) == (200 if status == 206 else status, tag)
    if status == 200:
        assert answer.body == data[:DATA_SIZE] and "content-range" not in answer.headers
    elif status == 206:
        assert (answer.body, answer.headers["content-range"]) == (data[1:3], f"bytes 1-2/{DATA_SIZE}")
    else:
        assert data[1:3] not in answer.body
    if status in (200, 206):
        assert head.headers["content-length"] == str(DATA_SIZE) and "content-range" not in head.headers


@pytest.mark.parametrize("path", ["/ZZ/ZZ/ZZ/ZY/obj", "/00/obj"])
def test_chunks_that_are_not_there(gateway: Gateway, path: str) -> None:
    assert gateway.request("GET", path).status == 404


@pytest.mark.parametrize(
    "path", ["/00/00/00/0/0/obj", "/00/00/00/00/", "/aa/obj", "//obj", "/../obj", "/obj"]
)
def test_paths_that_are_no_chunks(gateway: Gateway, path: str) -> None:
    answer = gateway.request("GET", path)
    assert (answer.status, answer.code) == (404, "no_such_route")


@pytest.mark.parametrize("data", [b"", b"over raw TCP", LARGE], ids=["empty", "small", "large"])
def test_stream(gateway: Gateway, data: bytes) -> None:
    with gateway.connect("stream") as connection:
        connection.send(data)
        connection.sock.shutdown(socket.SHUT_WR)
        reply = connection.file.read()
    assert len(reply) == 9 and reply[8] == 1
    path = "/" + ticket.tree_path(ticket.from_wire(reply[:8]))
    assert gateway.request("GET", path).body == data[:DATA_SIZE].ljust(DATA_SIZE, b"\0")


# --- what all have


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/alive", "GET, HEAD"),
        ("DELETE", "/blob/a", "GET, HEAD, POST"),
        ("GET", "/upload", "POST"),
        ("POST", "/fetch/" + "0" * 40, "GET, HEAD"),
        ("PATCH", "/store/a", "DELETE, GET, HEAD, POST, PUT"),
        ("POST", "/objects/a", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/objects/", "GET, HEAD"),
        ("DELETE", "/files/a", "GET, HEAD, POST"),
        ("PUT", "/00/obj", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
    ],
)
def test_methods_that_are_not_there(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    answer = gateway.request(method, path)
    assert (answer.status, answer.headers["allow"], answer.code) == (405, allowed, "method_not_allowed")


@pytest.mark.parametrize("path", ["/nothing", "/storex/a", "/objects", "/store/", "/files/", "/fetch"])
def test_routes_that_are_not_there(gateway: Gateway, path: str) -> None:
    assert gateway.request("GET", path).status == 404


def test_an_api_alone_has_its_own_routes_only(gateway: Gateway) -> None:
    assert gateway.request("GET", "/alive", api="store").status == 404
    assert gateway.request("GET", "/store/a", api="objects").status == 404
    assert gateway.request("POST", "/upload", b"", api="sos-fetch").status == 404


def test_namespaces_never_meet(gateway: Gateway, name: str) -> None:
    gateway.request("POST", f"/blob/{name}", b"blob")
    gateway.request("POST", f"/store/{name}", b"store")
    gateway.request("PUT", f"/objects/{name}", b"objects")
    gateway.request("POST", f"/files/{name}", b"files")
    for api in ("blob", "store", "objects", "files"):
        assert gateway.request("GET", f"/{api}/{name}").body == api.encode()


def test_request_ids(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        ids = [
            connection.request("GET", path).headers["x-request-id"] for path in ("/", "/nothing", "/alive")
        ]
        assert len(set(ids)) == 3
        failed = connection.request("GET", "/nothing", headers={"X-Request-Id": "from-a-proxy.1"})
        assert failed.headers["x-request-id"] == failed.json["request_id"] == "from-a-proxy.1"
        strange = connection.request("GET", "/", headers={"X-Request-Id": "a b"})
        assert strange.headers["x-request-id"] not in ("a b", *ids)


def test_errors_are_json(gateway: Gateway) -> None:
    answer = gateway.request("GET", "/store/nothing")
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"code", "message", "request_id"}
    assert answer.json["message"] == "there is no object 'nothing'"
    assert json.loads(answer.body)["code"] == "not_found"


@pytest.mark.parametrize(
    "kind", ["text/plain; charset=utf-8", "application/x-www-form-urlencoded", 'multipart/x; boundary="q"']
)
def test_the_content_type_is_kept(gateway: Gateway, name: str, kind: str) -> None:
    gateway.request("PUT", f"/objects/{name}", b"x", headers={"Content-Type": kind})
    is_object(gateway.request("GET", f"/objects/{name}"), b"x", kind)
    assert gateway.request("HEAD", f"/objects/{name}").headers["content-type"] == kind


def test_other_headers_of_the_content_are_kept(gateway: Gateway, name: str) -> None:
    given = {"Content-Disposition": 'attachment; filename="ä.txt"', "Content-Language": "de", "X-Other": "1"}
    gateway.request("PUT", f"/objects/{name}", b"x", headers=given)
    answer = gateway.request("GET", f"/objects/{name}").headers
    assert answer["content-disposition"] == given["Content-Disposition"]
    assert answer["content-language"] == "de" and "x-other" not in answer


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_bodies_are_never_decompressed(gateway: Gateway, name: str, encoding: str) -> None:
    data = b"\x1f\x8b not really compressed"
    gateway.request("PUT", f"/objects/{name}", data, headers={"Content-Encoding": encoding})
    answer = gateway.request("GET", f"/objects/{name}")
    assert (answer.body, answer.headers["content-encoding"]) == (data, encoding)


@pytest.mark.parametrize("pieces", [[], [b"a"], [b"ab", b"c" * 100_000, b"d"], [LARGE, LARGE]])
def test_chunked_bodies(gateway: Gateway, name: str, pieces: list[bytes]) -> None:
    assert gateway.request("PUT", f"/objects/{name}", iter(pieces)).status == 200
    assert gateway.request("GET", f"/objects/{name}").body == b"".join(pieces)


def test_many_requests_of_one_connection(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        for i in range(20):
            data = b"%d" % i * 1000
            assert connection.request("PUT", f"/objects/{name}", data).status == 200
            assert connection.request("GET", f"/objects/{name}").body == data
            assert connection.request("GET", f"/objects/{name}x").status == 404


def test_requests_that_are_sent_ahead(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        put = connection.head("PUT", f"/objects/{name}", {"Content-Length": "3"}) + b"abc"
        connection.send((put + connection.head("GET", f"/objects/{name}")) * 10)
        for _ in range(10):
            assert connection.answer().status == 200
            assert connection.answer().body == b"abc"


# --- 100 Continue


def test_continue_comes_when_the_request_is_accepted(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        headers = {"Expect": "100-continue", "Content-Length": "3"}
        connection.send(connection.head("PUT", f"/objects/{name}", headers))
        assert connection.answer_head() == (100, {})
        connection.send(b"abc")
        assert connection.answer().status == 200


@pytest.mark.parametrize("path", ["/files/{}", "/nothing", "/files/%ff", "/blob/A"])
def test_no_continue_for_what_is_refused(gateway: Gateway, name: str, path: str) -> None:
    gateway.request("POST", f"/files/{name}", b"x")
    with gateway.connect() as connection:
        headers = {"Expect": "100-continue", "Content-Length": "3"}
        connection.send(connection.head("POST", path.format(name), headers))
        answer = connection.answer()
        assert answer.status >= 400 and answer.interim == []
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/objects/{}"),
        ("POST", "/files/{}"),
        ("POST", "/store/{}"),
        ("PUT", "/store/{}"),
        ("POST", "/blob/{}"),
        ("POST", "/upload"),
    ],
)
def test_an_unknown_expectation(gateway: Gateway, name: str, method: str, path: str) -> None:
    """Nothing is asked of the store: whether the name is free or taken makes no difference."""
    headers = {"Expect": "200-ok"}
    data = f"{name} {path}".encode()
    answer = gateway.request(method, path.format(name), data, headers=headers)
    assert (answer.status, answer.code) == (417, "expectation_failed")
    stored = f"/fetch/{hashlib.sha1(data).hexdigest()}" if path == "/upload" else path.format(name)
    assert gateway.request("GET", stored).status == 404
    assert gateway.request("PUT" if "objects" in path else "POST", path.format(name), data).status in (
        200,
        204,
    )
    answer = gateway.request(method, path.format(name), b"other", headers=headers)
    assert (answer.status, answer.code) == (417, "expectation_failed")
    assert gateway.request("GET", stored).body == data


# --- conditions


def test_conditions_on_reads(gateway: Gateway, name: str) -> None:
    path = f"/objects/{name}"
    gateway.request("PUT", path, b"x")
    for method in ("GET", "HEAD"):
        for tags in (etag(b"x"), "*", f'"other", W/{etag(b"x")}'):
            answer = gateway.request(method, path, headers={"If-None-Match": tags})
            assert (answer.status, answer.headers["etag"], answer.body) == (304, etag(b"x"), b"")
        assert gateway.request(method, path, headers={"If-None-Match": '"other"'}).status == 200
        for tags in (etag(b"x"), "*", f'"other",{etag(b"x")}'):
            assert gateway.request(method, path, headers={"If-Match": tags}).status == 200
        for tags in ('"other"', f"W/{etag(b'x')}"):
            assert gateway.request(method, path, headers={"If-Match": tags}).status == 412
        assert gateway.request(method, path, headers={"If-Match": "no quotes"}).status == 400


def test_conditions_on_writes(gateway: Gateway, name: str) -> None:
    path = f"/objects/{name}"

    def put(data: bytes, **headers: str) -> int:
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        return gateway.request("PUT", path, data, headers=given).status

    assert put(b"1", If_Match="*") == 412
    assert put(b"1", If_None_Match="*") == 200
    assert put(b"2", If_None_Match="*") == 412
    assert put(b"2", If_None_Match=etag(b"1")) == 412
    assert put(b"2", If_Match=etag(b"other")) == 412
    assert gateway.request("GET", path).body == b"1"
    assert put(b"2", If_Match=etag(b"1")) == 200
    assert put(b"3", If_Match=etag(b"1")) == 412
    assert put(b"3", If_Match=f"W/{etag(b'2')}") == 412
    assert gateway.request("DELETE", path, headers={"If-Match": etag(b"1")}).status == 412
    assert gateway.request("DELETE", path, headers={"If-Match": etag(b"2")}).status == 200


# --- ranges


@pytest.mark.parametrize("size", [1000, len(LARGE)])
@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=990-", 990, None),
        ("bytes=-1", -1, None),
        ("bytes=-999999999", 0, None),
        ("bytes=0-99999999999999999999999999999", 0, None),
        ("BYTES = 7-8 ", 7, 9),
        ("bytes=0-", 0, None),
    ],
)
def test_ranges(gateway: Gateway, size: int, asked: str, start: int, stop: int | None) -> None:
    data = LARGE[:size]
    path = f"/objects/ranges{size}"
    gateway.request("PUT", path, data, headers={"If-None-Match": "*"})
    answer = gateway.request("GET", path, headers={"Range": asked})
    expected = data[start:stop]
    assert (answer.status, answer.body) == (206, expected)
    first = start % size
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{size}"
    assert answer.headers["etag"] == etag(data)


@pytest.mark.parametrize(
    "asked", ["bytes=1000-", "bytes=99999999999999999999-", "bytes=-0", "bytes=5000-6000"]
)
def test_ranges_past_the_end(gateway: Gateway, name: str, asked: str) -> None:
    gateway.request("PUT", f"/objects/{name}", bytes(1000))
    answer = gateway.request("GET", f"/objects/{name}", headers={"Range": asked})
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */1000")
    assert answer.code == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,3-4", "bytes=2-1", "bytes=-", "bytes=a-b", "lines=1-2", "", "bytes 1-2"]
)
def test_ranges_that_are_none(gateway: Gateway, name: str, asked: str) -> None:
    gateway.request("PUT", f"/objects/{name}", b"0123456789")
    answer = gateway.request("GET", f"/objects/{name}", headers={"Range": asked or " "})
    assert (answer.status, answer.body) == (200, b"0123456789")


def test_a_range_of_an_empty_object(gateway: Gateway, name: str) -> None:
    gateway.request("PUT", f"/objects/{name}", b"")
    assert gateway.request("GET", f"/objects/{name}", headers={"Range": "bytes=0-"}).status == 416


def test_head_knows_no_ranges(gateway: Gateway, name: str) -> None:
    gateway.request("PUT", f"/objects/{name}", bytes(1000))
    answer = gateway.request("HEAD", f"/objects/{name}", headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.headers["content-length"]) == (200, "1000")


def test_if_range(gateway: Gateway, name: str) -> None:
    path = f"/objects/{name}"
    gateway.request("PUT", path, b"0123456789")
    for tag, status in ((etag(b"0123456789"), 206), ('"other"', 200), (f"W/{etag(b'0123456789')}", 200)):
        answer = gateway.request("GET", path, headers={"Range": "bytes=1-2", "If-Range": tag})
        assert answer.status == status, tag


# --- names


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        ("a%2Fb", "a/b"),
        ("a/b", "a/b"),
        ("%61", "a"),
        ("%2561", "%61"),
        ("a+b", "a+b"),
        ("%C3%A4", "ä"),
        ("..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("./a//b/", "./a//b/"),
        ("%00", "\0"),
        ("%0D%0AX-Evil:%201", "\r\nX-Evil: 1"),
        ("a%3Fb%23c", "a?b#c"),
        ("%F0%9D%84%9E", "𝄞"),
        ("'%22;DROP%20TABLE", "'\";DROP TABLE"),
    ],
)
def test_names_are_decoded_once(gateway: Gateway, name: str, raw: str, decoded: str) -> None:
    path = f"/objects/{name}-{raw}"
    answer = gateway.request("PUT", path, b"x")
    assert (answer.status, answer.json["name"]) == (200, f"{name}-{decoded}")
    assert gateway.request("GET", path).body == b"x"
    listed = gateway.request("GET", f"/objects/?prefix={quote(name + '-')}").json["objects"]
    assert [entry["name"] for entry in listed] == [f"{name}-{decoded}"]


def test_raw_bytes_past_ascii_are_no_path(gateway: Gateway, name: str) -> None:
    answer = gateway.request("PUT", f"/objects/{name}ä".encode(), b"x")
    assert (answer.status, answer.code) == (400, "bad_http")


@pytest.mark.parametrize("raw", ["%", "%z1", "a%2", "%ff", "%C3", "%ED%A0%80", "%C0%AF", "a%80"])
def test_names_that_are_no_utf8(gateway: Gateway, raw: str) -> None:
    for method, path in (("PUT", f"/objects/{raw}"), ("GET", f"/store/{raw}"), ("POST", f"/files/{raw}")):
        answer = gateway.request(method, path, b"x" if method != "GET" else None)
        assert (answer.status, answer.code) == (400, "bad_encoding")


@pytest.mark.parametrize("letter", ["n", "ä", "𝄞"])
def test_names_have_at_most_1024_bytes(gateway: Gateway, letter: str) -> None:
    longest = letter * (1024 // len(letter.encode()))
    path = f"/objects/{quote(longest)}"
    assert gateway.request("PUT", path, b"x").json["name"] == longest
    assert gateway.request("GET", path).body == b"x"
    answer = gateway.request("PUT", path + "n", b"x")
    assert (answer.status, answer.code) == (400, "bad_name")


@pytest.mark.parametrize(("method", "path"), [("POST", "/blob/"), ("POST", "/files/"), ("POST", "/store/")])
def test_each_api_takes_names_of_1024_bytes(gateway: Gateway, method: str, path: str) -> None:
    for size, good in ((1023, True), (1024, True), (1025, False)):
        target = path + "n" * size
        answer = gateway.request(method, target, b"x")
        assert answer.status in ((200, 204) if good else (400,)), size
        assert good or str(size) in answer.json["message"]
        assert gateway.request("GET", target).status == (200 if good else 400)


def test_conditions_on_content(gateway: Gateway, name: str) -> None:
    data = name.encode()
    once = {"If-None-Match": "*"}
    assert gateway.request("POST", "/upload", data, headers=once).status == 200
    assert gateway.request("POST", "/upload", data, headers=once).status == 412
    assert gateway.request("POST", f"/blob/{name}", data, headers=once).status == 200
    assert gateway.request("POST", f"/blob/{name}", data, headers=once).status == 412
