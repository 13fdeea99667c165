"""What stands behind the page: its files, the API `catalog`, links to downloads, and the figures of the node."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from blake3 import blake3
from gateway_rig import Answer, Broken, Gateway, NodeGateway, memory_gateway, node_gateway

from ingest.errors import ConnectionLostError, DiskError, ForeignStoreError, PeerError, RefusedError
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.node_figures import NodeFigures, parse_figures
from ingest.gateway.http.token_file import parse_tokens
from ingest.gateway.page.page import static_files
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.node_address import admin_address
from ingest.limits import FIGURES_SIZE_MAX, LINK_LIFE_S, NAME_SIZE_MAX, NAMESPACE_SIZE_MAX, SMALL_OBJECT_MAX
from ingest.status import Status

READ, WRITE = "reader-0123456789", "writer-0123456789"
TOKENS = f"read-only {READ}\nread-write {WRITE}\n".encode()
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = (
    "..",
    ".",
    "../../etc/passwd",
    "a/b c",
    "50%",
    "a%2Fb",
    "?x=1&y",
    "#",
    "+",
    "näme",
    "<b>",
    "a\nb",
    "\0",
)
LARGE = bytes(range(256)) * (SMALL_OBJECT_MAX // 256) + b"and more than fits into one call"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGateway]:
    with node_gateway(tmp_path_factory.mktemp("page") / "data", "--http-workers=2") as running:
        yield running


@pytest.fixture(scope="module", params=["memory", "node"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    if request.param == "node":
        yield request.getfixturevalue("node").gateway
    else:
        with memory_gateway() as running:
            yield running


@pytest.fixture
def memory() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


def at(path: str, **parameters: str | int) -> str:
    return f"{path}?{urlencode(parameters)}"


def put(gateway: Gateway, namespace: str, name: str, data: bytes = b"data") -> None:
    method = {"objects": "PUT"}.get(namespace, "POST")
    path = f"/{namespace}/" + "".join(f"%{byte:02x}" for byte in name.encode())
    assert gateway.request(method, path, data).status in (200, 204)


# --- the files


@pytest.mark.parametrize("accept", ["text/html", "TEXT/HTML;q=0.9, */*", HTML["Accept"]])
def test_a_browser_gets_the_page(memory: Gateway, accept: str) -> None:
    answer = memory.request("GET", "/", headers={"Accept": accept})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!DOCTYPE html>")
    assert answer.headers["vary"] == "Accept"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert {key: source for key, source in policy.items() if source != "'none'"} == dict.fromkeys(
        ("script-src", "style-src", "img-src", "connect-src"), "'self'"
    )
    assert {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"} <= policy.keys()


@pytest.mark.parametrize("headers", [{}, {"Accept": "*/*"}, {"Accept": "application/json"}])
def test_programs_get_the_status(memory: Gateway, headers: dict[str, str]) -> None:
    answer = memory.request("GET", "/", headers=headers)
    assert answer.json == {"status": 1, "version": 1}
    assert answer.headers["vary"] == "Accept"


def test_the_page_is_on_the_shared_port_alone(memory: Gateway) -> None:
    assert memory.request("GET", "/", headers=HTML, api="objects").json == {"status": 1, "version": 1}
    for path in ("/page/main.js", "/catalog/namespaces", "/node", "/download"):
        assert memory.request("GET", path, api="objects").status == 404


@pytest.mark.parametrize(
    "path", ["/", *(f"/page/{name}" for name in sorted(static_files()) if name != "index.html")]
)
def test_what_is_known_is_not_sent_again(memory: Gateway, path: str) -> None:
    answer = memory.request("GET", path, headers=HTML)
    assert answer.status == 200 and answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == f'"{blake3(answer.body).hexdigest()}"'
    head = memory.request("HEAD", path, headers=HTML)
    assert (head.status, head.headers["content-length"]) == (200, str(len(answer.body)))
    tag = answer.headers["etag"]
    for known in (tag, f"W/{tag}", "*", f'"other", {tag}'):
        same = memory.request("GET", path, headers=HTML | {"If-None-Match": known})
        assert (same.status, same.body) == (304, b"")
        # What is kept gets the headers of this answer (RFC 9111, 4.3.4).
        for field in answer.headers.keys() - {"content-length", "content-type", "date", "x-request-id"}:
            assert same.headers.get(field) == answer.headers[field], field
    for other in ('"other"', f'"{tag[1:-2]}"', f'"{tag[1:-1]}0"'):
        assert memory.request("GET", path, headers=HTML | {"If-None-Match": other}).status == 200


@pytest.mark.parametrize(
    "tail", ["", "index.html", "nothing.js", "../page.py", "..%2fpage.py", "main.js/", "MAIN.JS"]
)
def test_nothing_else_is_a_file_of_the_page(memory: Gateway, tail: str) -> None:
    assert memory.request("GET", f"/page/{tail}", headers=HTML).status == 404


def test_the_page_is_made_of_its_own_files() -> None:
    texts = {name: file.content.decode() for name, file in static_files().items()}
    used = set(re.findall(r'(?:href|src)="/page/([^"]*)"', texts["index.html"]))
    for name, text in texts.items():
        used |= set(re.findall(r'from "\./([^"]*)"', text))
        assert re.sub(r"http://www\.w3\.org/2000/svg", "", text).count("//www") == 0
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], name
    assert used == texts.keys() - {"index.html"}
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", texts["index.html"])


# --- the API `catalog`


def test_namespaces(gateway: Gateway) -> None:
    for namespace in ("store", "objects", "files"):
        put(gateway, namespace, "of namespaces")
    found = gateway.request("GET", "/catalog/namespaces").json["namespaces"]
    assert found == sorted(found) and {"store", "objects", "files"} <= set(found)


def test_a_list_of_any_namespace(gateway: Gateway) -> None:
    names = [f"listed/{number}" for number in range(5)]
    for name in names:
        put(gateway, "files", name)
    put(gateway, "files", "listee")
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = gateway.request(
            "GET", at("/catalog/objects", namespace="files", prefix="listed/", after=after, limit=2)
        )
        assert len(page.json["objects"]) <= 2
        found += [entry["name"] for entry in page.json["objects"]]
        after = page.json["next"]
    assert found == names
    assert page.json["objects"][-1].keys() == {"name", "size", "etag", "created"}
    assert gateway.request("GET", at("/catalog/objects", namespace="nowhere")).json == {
        "objects": [],
        "next": None,
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_an_object_of_any_name(gateway: Gateway, name: str) -> None:
    put(gateway, "objects", name, name.encode())
    there = at("/catalog/object", namespace="objects", name=name)
    answer = gateway.request("GET", there)
    assert (answer.status, answer.body) == (200, name.encode())
    assert answer.headers["content-security-policy"] == "sandbox"
    assert gateway.request("HEAD", there).headers["etag"] == answer.headers["etag"]
    assert gateway.request("GET", there, headers={"If-None-Match": answer.headers["etag"]}).status == 304
    assert gateway.request("GET", there, headers={"Range": "bytes=0-0"}).status == 206
    version = gateway.request("GET", at("/catalog/version", namespace="objects", name=name)).json
    assert version["name"] == name and [step["state"] for step in version["history"]][:2] == ["ok", "pending"]
    deleted = gateway.request("DELETE", there, headers={"If-Match": answer.headers["etag"]})
    assert (deleted.status, deleted.json["name"]) == (200, name)
    assert gateway.request("GET", there).status == 404


def test_history_is_that_of_the_api_store(gateway: Gateway) -> None:
    put(gateway, "store", "past")
    gateway.request("PUT", "/store/past", b"other")
    asked = at("/catalog/version", namespace="store", name="past")
    history = gateway.request("GET", asked).json["history"]
    assert history == gateway.request("GET", "/store/past?history").json
    assert sorted(step["state"] for step in history) == ["deleted", "ok", "ok", "pending", "pending"]
    gateway.request("DELETE", "/store/past")
    assert gateway.request("GET", asked).code == "not_found"


def test_what_another_one_replaced_is_not_deleted(gateway: Gateway) -> None:
    put(gateway, "objects", "changing", b"first")
    there = at("/catalog/object", namespace="objects", name="changing")
    listed = gateway.request("HEAD", there).headers["etag"]
    put(gateway, "objects", "changing", b"second")
    refused = gateway.request("DELETE", there, headers={"If-Match": listed})
    assert (refused.status, refused.code) == (412, "precondition_failed")
    assert gateway.request("GET", there).body == b"second"


@pytest.mark.parametrize("namespace", ["blob", "files", "sos", "stream", "of the command line"])
def test_where_no_api_deletes_nothing_is_deleted(gateway: Gateway, namespace: str) -> None:
    if namespace in ("blob", "files"):
        put(gateway, namespace, "keep")
    there = at("/catalog/object", namespace=namespace, name="keep")
    before = gateway.request("GET", there)
    refused = gateway.request("DELETE", there)
    assert (refused.status, refused.code, refused.headers["allow"]) == (
        405,
        "method_not_allowed",
        "GET, HEAD",
    )
    assert gateway.request("GET", there).body == before.body or before.status == 404


@pytest.mark.parametrize("path", ["/catalog/object", "/catalog/version", "/catalog/link"])
@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({}, "bad_query"),
        ({"name": "x"}, "bad_query"),
        ({"namespace": "objects"}, "bad_query"),
        ({"namespace": "objects", "name": ""}, "bad_name"),
        ({"namespace": "", "name": "x"}, "bad_name"),
        ({"namespace": "objects", "name": "x" * (NAME_SIZE_MAX + 1)}, "bad_name"),
        ({"namespace": "x" * (NAMESPACE_SIZE_MAX + 1), "name": "x"}, "bad_name"),
        ({"namespace": "objects", "name": "x", "other": "1"}, "bad_query"),
    ],
)
def test_parameters_that_are_none(memory: Gateway, path: str, parameters: dict[str, str], code: str) -> None:
    answer = memory.request("GET", at(path, **parameters))
    assert (answer.status, answer.code) == (400, code)


def test_a_list_of_no_namespace(memory: Gateway) -> None:
    assert memory.request("GET", "/catalog/objects").code == "bad_name"
    assert memory.request("GET", at("/catalog/objects", namespace="objects", x="")).code == "bad_query"


# --- tokens, and links


@contextlib.contextmanager
def guarded(clock: list[float]) -> Iterator[Gateway]:
    access = Access(Hosts.of([("127.0.0.1", 0)]), parse_tokens(TOKENS, "tokens"))
    with memory_gateway(access, clock=lambda: clock[0]) as gateway:
        yield gateway


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_page_is_public_and_what_it_shows_is_not() -> None:
    with guarded([0.0]) as gateway:
        for path in ("/", "/page/main.js"):
            assert gateway.request("GET", path, headers=HTML).status == 200
        named = at("/catalog/object", namespace="objects", name="x")
        paths = ("/catalog/namespaces", at("/catalog/objects", namespace="objects"), named, "/node")
        for path in (*paths, named.replace("object?", "version?"), named.replace("object?", "link?")):
            assert gateway.request("GET", path).status == 401, path
            assert gateway.request("GET", path, headers=bearer(READ)).status in (200, 404, 503), path
        assert gateway.request("DELETE", named, headers=bearer(READ)).code == "read_only"
        assert gateway.request("DELETE", named, headers=bearer(WRITE)).status == 404


def link_to(gateway: Gateway, name: str, headers: dict[str, str]) -> str:
    return str(
        gateway.request("GET", at("/catalog/link", namespace="objects", name=name), headers=headers).json[
            "url"
        ]
    )


def test_a_link_needs_no_token_until_its_time_is_over() -> None:
    clock = [1e9]
    with guarded(clock) as gateway:
        gateway.request(
            "PUT", "/objects/a%2Fb%20%C3%BC%22", LARGE, bearer(WRITE) | {"Content-Disposition": "inline"}
        )
        link = link_to(gateway, 'a/b ü"', bearer(READ))
        answer = gateway.request("GET", link)
        assert (answer.status, answer.body) == (200, LARGE)
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''b%20%C3%BC%22"
        assert answer.headers["content-security-policy"] == "sandbox"
        assert gateway.request("GET", f"http://127.0.0.1{link}").body == LARGE
        assert gateway.request("HEAD", link).headers["content-length"] == str(len(LARGE))
        assert gateway.request("GET", link, headers={"Range": "bytes=5-9"}).body == LARGE[5:10]
        clock[0] += LINK_LIFE_S
        assert gateway.request("GET", link).status == 200
        clock[0] += 1
        assert gateway.request("GET", link).code == "bad_link"


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("plain.txt", "plain.txt"),
        ("a/b/c.txt", "c.txt"),
        ("a/b/", "b"),
        ("a//", "a"),
        ("/", "object"),
        ("///", "object"),
        ("..", ".."),
        ("a/\r\nX-Evil: 1", "%0D%0AX-Evil%3A%201"),
        ("a;b'c*d", "a%3Bb%27c%2Ad"),
        ("\u00e4/\u20ac", "%E2%82%AC"),
    ],
)
def test_a_link_names_its_file_by_the_last_segment(memory: Gateway, name: str, leaf: str) -> None:
    """Of which no letter is one of the header's own, whatever the object is called."""
    assert memory.request("PUT", f"/objects/{quote(name, safe='')}", b"x").status == 200
    answer = memory.request("GET", link_to(memory, name, {}))
    assert (answer.status, answer.body) == (200, b"x")
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{leaf}"
    assert "x-evil" not in answer.headers


def test_a_link_is_good_for_one_object() -> None:
    with guarded([1e9]) as gateway:
        for name in ("mine", "other"):
            gateway.request("PUT", f"/objects/{name}", name.encode(), bearer(WRITE))
        link = link_to(gateway, "mine", bearer(READ))
        signature = re.search(r"signature=(\w+)", link)
        assert signature is not None
        flipped = f"{int(signature[1][0], 16) ^ 1:x}{signature[1][1:]}"
        for changed in (
            link.replace("name=mine", "name=other"),
            link.replace("namespace=objects&name=mine", "namespace=object&name=smine"),
            re.sub(r"until=\d+", "until=9999999999", link),
            re.sub(r"until=\d+", "until=x", link),
            link.replace(signature[1], flipped),
            link.replace(signature[1], "%C3%BC"),
            link.replace(f"&signature={signature[1]}", ""),
            "/download",
        ):
            assert changed != link
            refused = gateway.request("GET", changed)
            assert (refused.status, refused.code) == (403, "bad_link"), changed
        assert gateway.request("DELETE", link).status == 405
        missing = gateway.request(
            "GET", at("/catalog/link", namespace="objects", name="no"), headers=bearer(READ)
        )
        assert missing.status == 404
        gateway.request("DELETE", "/objects/mine", headers=bearer(WRITE))
        assert gateway.request("GET", link).status == 404


@pytest.mark.parametrize("error", [DiskError("failed"), ZeroDivisionError()], ids=["warning", "error"])
@pytest.mark.parametrize("form", ["", "http://127.0.0.1"], ids=["origin form", "absolute form"])
def test_a_link_is_in_no_log(
    memory: Gateway, caplog: pytest.LogCaptureFixture, error: Any, form: str
) -> None:
    """Who reads the log gets no object by it."""
    assert memory.store is not None
    caplog.set_level(logging.DEBUG)
    put(memory, "objects", "mine", LARGE)
    link = form + link_to(memory, "mine", {})
    assert memory.request("GET", link).body == LARGE
    memory.store.error, memory.store.broken_from = error, 0
    assert memory.request("GET", link).status == 500
    memory.store.broken_from = len(LARGE) // 2
    with pytest.raises(Broken):
        memory.request("GET", link)
    assert f"GET {form}/download: 200" in caplog.text
    assert f"GET {form}/download: the answer broke off" in caplog.text
    assert "signature" not in caplog.text


def test_every_process_knows_a_link(node: NodeGateway) -> None:
    """Each connection goes to one of two processes: that sixteen go to the same has a chance of 1 in 32,768."""
    put(node.gateway, "objects", "linked", b"linked")
    link = link_to(node.gateway, "linked", {})
    assert [node.gateway.request("GET", link).body for _ in range(16)] == [b"linked"] * 16


# --- the figures of the node


def test_figures_of_a_node(node: NodeGateway) -> None:
    before = node.gateway.request("GET", "/node")
    assert before.headers["cache-control"] == "no-store"
    put(node.gateway, "objects", "counted", LARGE)
    assert node.gateway.request("GET", "/objects/counted").body == LARGE
    first = before.json
    now = first
    while now["time"] < first["time"] + 1:  # for a second what was read is shown again
        now = node.gateway.request("GET", "/node").json
    frames = len(LARGE) // 1458 + 1
    assert now["ready"] is True
    assert now["received"]["frames"] >= first["received"]["frames"] + frames
    assert now["received"]["bytes"] >= first["received"]["bytes"] + frames * 1474
    assert now["sent"]["frames"] >= first["sent"]["frames"] + frames
    assert now["commits"]["count"] > first["commits"]["count"]
    assert now["commits"]["seconds"] > first["commits"]["seconds"]
    bounds, counts = zip(*now["commits"]["latency"], strict=True)
    assert bounds[-1] is None and list(bounds[:-1]) == sorted(bounds[:-1])
    assert list(counts) == sorted(counts) and counts[-1] == now["commits"]["count"]
    assert 0 < now["disk"]["free"] < now["disk"]["size"] and now["disk"]["reserve"] > 0
    assert 0 <= now["log"]["used"] <= now["log"]["size"]
    assert 0 <= now["queue"]["frames"] <= now["queue"]["places"]


METRICS = "".join(
    f"# HELP ingest_{name} What.\n# TYPE ingest_{name} {kind}\n"
    + "".join(f"ingest_{name}{end}\n" for end in samples)
    for name, kind, samples in (
        ("ready", "gauge", [" 1.0"]),
        ("frames_received_total", "counter", ['{process="worker-0"} 3.0', '{process="worker-1"} 4e+09']),
        ("bytes_received_total", "counter", ['{process="worker-0"} 5.0']),
        ("get_frames_total", "counter", ['{process="worker-0"} 6.0']),
        ("get_bytes_total", "counter", ['{process="worker-0"} 7.0']),
        ("outstanding_frames", "gauge", ['{process="worker-0"} 8.0', '{process="worker-1"} 9.0']),
        ("queue_places", "gauge", [" 100.0"]),
        ("log_used_bytes", "gauge", [" 10.0"]),
        ("log_size_bytes", "gauge", [" 11.0"]),
        ("disk_free_bytes", "gauge", ['{file_system="data"} 12.0', '{file_system="log"} 99.0']),
        ("disk_size_bytes", "gauge", ['{file_system="data"} 13.0', '{file_system="log"} 99.0']),
        ("disk_reserve_bytes", "gauge", [" 14.0"]),
        ("frames_received_somewhere", "gauge", [" 99.0"]),
        (
            "commit_latency_seconds",
            "histogram",
            [
                '_bucket{le="1.6e-05",process="committer"} 1.0',
                '_bucket{le="+Inf",process="committer"} 2.0',
                '_count{process="committer"} 2.0',
                '_sum{process="committer"} 0.5',
            ],
        ),
    )
)


def test_figures_are_sums() -> None:
    assert parse_figures(METRICS) == {
        "ready": True,
        "received": {"frames": 4_000_000_003, "bytes": 5},
        "sent": {"frames": 6, "bytes": 7},
        "queue": {"frames": 17, "places": 200},
        "commits": {"count": 2, "seconds": 0.5, "latency": [[1.6e-05, 1], [None, 2]]},
        "log": {"used": 10, "size": 11},
        "disk": {"free": 12, "size": 13, "reserve": 14},
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (METRICS, ""),
        ("ingest_ready 1.0", ""),
        ('ingest_get_bytes_total{process="worker-0"} 7.0', ""),
        ('file_system="data"', 'file_system="other"'),
        ("ingest_queue_places 100.0", "ingest_queue_places many"),
    ],
)
def test_figures_that_are_none(before: str, after: str) -> None:
    assert before in METRICS
    with pytest.raises(ValueError):
        parse_figures(METRICS.replace(before, after))


@contextlib.contextmanager
def answering(
    body: bytes, asked: list[str], status: int = 200, headers: Mapping[str, str] = {}
) -> Iterator[tuple[str, int]]:
    """An HTTP server that says this to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[0], server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("body", "status"), [(METRICS.encode(), 200), (b"hello", 502)], ids=["", "no node"])
@pytest.mark.parametrize(("kept", "looks"), [(1000.0, 1), (0.0, 5)])
def test_all_who_look_share_one_look(
    monkeypatch: pytest.MonkeyPatch, body: bytes, status: int, kept: float, looks: int
) -> None:
    monkeypatch.setattr("ingest.gateway.http.node_figures.FIGURES_KEPT_S", kept)
    asked: list[str] = []
    with answering(body, asked) as admin, memory_gateway(admin=admin) as gateway:
        answers = [gateway.request("GET", "/node") for _ in range(5)]
    assert [answer.status for answer in answers] == [status] * 5
    assert len(asked) == looks
    assert status != 200 or len({answer.json["time"] for answer in answers}) == looks


def test_one_waits_for_an_admin_port_that_hangs_and_all_others_with_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ingest.gateway.http.node_figures.FIGURES_TIMEOUT_S", 0.2)
    monkeypatch.setattr("ingest.gateway.http.node_figures.FIGURES_KEPT_S", 1000.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with (
            memory_gateway(admin=silent.getsockname()) as gateway,
            contextlib.ExitStack() as stack,
        ):
            waiting = [stack.enter_context(gateway.connect()) for _ in range(10)]
            for connection in waiting:
                connection.send(connection.head("GET", "/node"))
            for connection in waiting:
                answer = connection.answer()
                assert (answer.status, answer.code) == (503, "engine_unreachable")
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()  # nobody else asked


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"\xff", b"x" * (FIGURES_SIZE_MAX + 1)], ids=["", "text", "bytes", "long"]
)
def test_what_is_no_node(body: bytes) -> None:
    with answering(body, []) as admin, memory_gateway(admin=admin) as gateway:
        answer = gateway.request("GET", "/node")
    assert (answer.status, answer.code) == (502, "engine_failed")
    assert f"127.0.0.1:{admin[1]} is no admin port of a node" in answer.json["message"]


@pytest.mark.parametrize("beyond", [-1, 0, 1, FIGURES_SIZE_MAX])
def test_figures_have_a_size_in_all(beyond: int) -> None:
    """Though each piece of them is small, and all of it makes sense."""
    size = FIGURES_SIZE_MAX + beyond
    body = METRICS.encode() + b"# " + b"x" * (size - len(METRICS.encode()) - 3) + b"\n"
    assert len(body) == size
    with answering(body, []) as admin, memory_gateway(admin=admin) as gateway:
        assert gateway.request("GET", "/node").status == (502 if beyond > 0 else 200)


def test_figures_come_from_nobody_else() -> None:
    """An admin port that sends its client elsewhere is none: what answers there may be any server that this one reaches."""
    asked: list[str] = []
    with answering(METRICS.encode(), asked) as other:
        location = f"http://{other[0]}:{other[1]}/metrics"
        for status in (301, 302, 303, 307, 308):
            with (
                answering(b"", [], status, {"Location": location}) as admin,
                memory_gateway(admin=admin) as gateway,
            ):
                assert gateway.request("GET", "/node").status == 502
    assert asked == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, False),
        (ForeignStoreError("another one's"), True),  # its figures are nobody's business here
        (PeerError("odd"), False),
        (ConnectionLostError("away"), False),
        (RefusedError("0", Status.BUSY), False),
        (TimeoutError(), False),
    ],
)
def test_figures_are_those_of_the_engine_that_is_meant(error: Exception | None, told: bool) -> None:
    """One that does not answer now may still say how it is; of one that is another one's nothing is asked."""
    asked: list[str] = []
    proved = 0

    async def prove() -> None:
        nonlocal proved
        proved += 1
        if error is not None:
            raise error

    async def work(admin: tuple[str, int]) -> None:
        async with NodeFigures(lambda: admin, prove) as figures:
            if told:
                with pytest.raises(ForeignStoreError):
                    await figures.read()
            else:
                assert (await figures.read())["ready"] in (True, False)

    with answering(METRICS.encode(), asked) as admin:
        asyncio.run(work(admin))
    assert (proved, len(asked)) == (1, 0 if told else 1)


def test_a_node_that_is_not_there(memory: Gateway) -> None:
    answer: Answer = memory.request("GET", "/node")
    assert (answer.status, answer.code) == (503, "engine_unreachable")
    expected = (
        f"the admin port of the node, 127.0.0.1:{memory.admin[1]}, can't be reached: connection refused"
    )
    assert answer.json["message"] == expected


@pytest.mark.parametrize(
    ("lock", "expected"),
    [
        (
            {"pid": 1, "put": "127.0.0.1:5000", "get": "127.0.0.1:5005", "admin": "127.0.0.1:1234"},
            ("127.0.0.1", 1234),
        ),
        ({"put": "0.0.0.0:5000", "admin": "0.0.0.0:1234"}, ("127.0.0.1", 1234)),
        ({"put": "[::]:5000", "admin": "[::]:1234"}, ("::1", 1234)),
        ({"put": "127.0.0.1:6000", "admin": "127.0.0.1:1234"}, ("10.1.2.3", 5080)),  # another node's
        ({"put": "127.0.0.1:5000"}, ("10.1.2.3", 5080)),
        ({"put": 7, "admin": []}, ("10.1.2.3", 5080)),
        ({"put": "127.0.0.1:5000", "admin": "somewhere"}, ("10.1.2.3", 5080)),
        ([], ("10.1.2.3", 5080)),
        (None, ("10.1.2.3", 5080)),
    ],
)
def test_where_the_admin_port_is(tmp_path: Path, lock: object, expected: tuple[str, int]) -> None:
    config = GatewayConfig(data_dir=tmp_path, connect=("10.1.2.3", 5000))
    (tmp_path / ".ingest").mkdir()
    if lock is not None:
        with (tmp_path / ".ingest" / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(lock, file)
            file.flush()
            assert admin_address(config) == expected
    assert admin_address(config) == ("10.1.2.3", 5080)  # of a server that ran there once, nothing is believed
