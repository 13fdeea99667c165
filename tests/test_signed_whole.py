"""What a signature or a right is for is all of it bound: each single thing that it speaks of is changed, and refused."""

from __future__ import annotations

import itertools
import string
from urllib.parse import parse_qsl, urlencode

import pytest
from gateway_rig import memory_gateway
from test_gateway_access import READ, WRITE, bearer

from ingest import mac, ticket
from ingest.catalog.extent import FIRST, Extent
from ingest.errors import CatalogError
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.download_links import DownloadLinks
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.token_file import parse_tokens
from ingest.gateway.page.page import static_files
from ingest.gateway.process.api_table import shared_routes
from ingest.limits import DATA_SIZE, LINK_LIFE_S
from ingest.objects import manifest
from ingest.objects.manifest import Manifest
from ingest.store.store_json import CHECK, load_store_json, write_store_json

KEY = bytes(range(32))
TOKENS = parse_tokens(f"read-only {READ}\nread-write {WRITE}\n".encode(), "here")


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def query_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(link.partition("?")[2], strict_parsing=True))


# --- links


NAMES = ("name", "name2", "nam", "a/b", "", "n\0ame", '","', "\N{SNOWMAN}")


def test_a_link_opens_what_it_was_made_for_and_nothing_else() -> None:
    """Whatever of it is taken over into another one: its namespace, its name, its time, its signature."""
    clock = Clock()
    links = DownloadLinks(KEY, clock)
    made = {}
    for namespace, name in itertools.product(NAMES, NAMES):
        made[namespace, name] = query_of_any(links.make(namespace, name))
    assert len({query["signature"] for query in made.values()}) == len(made)
    for (namespace, name), query in made.items():
        assert links.check(query) == (namespace, name)
        for other_namespace, other_name in made:
            if (other_namespace, other_name) == (namespace, name):
                continue
            with pytest.raises(Failure):
                links.check(query | {"namespace": other_namespace, "name": other_name})


def query_of_any(link: str) -> dict[str, str]:
    return dict(parse_qsl(link.partition("?")[2], keep_blank_values=True))


@pytest.mark.parametrize("field", ["namespace", "name", "until", "signature"])
def test_each_part_of_a_link_is_signed(field: str) -> None:
    links = DownloadLinks(KEY, Clock())
    query = query_of(links.make("space", "name"))
    wrong = {
        "namespace": ["spac", "space2", "Space", "s", "store", " space"],
        "name": ["nam", "name2", "Name", "name/", " name"],
        "until": [str(int(query["until"]) + more) for more in (-1, 1, LINK_LIFE_S, 10**9)]
        + [f"0{query['until']}", f" {query['until']}", f"+{query['until']}", "", "x", "inf"],
        "signature": [
            "",
            "0" * 64,
            query["signature"].upper(),
            query["signature"][::-1],
            query["signature"] + " ",
        ],
    }
    for value in wrong[field]:
        with pytest.raises(Failure):
            links.check(query | {field: value})
    with pytest.raises(Failure):
        links.check({name: value for name, value in query.items() if name != field})
    with pytest.raises(Failure):
        links.check(query | {"more": "1"})


def test_parts_do_not_run_into_each_other() -> None:
    links = DownloadLinks(KEY, Clock())
    text = "abcabc"
    for at, other in itertools.permutations(range(len(text) + 1), 2):
        query = query_of_any(links.make(text[:at], text[at:]))
        with pytest.raises(Failure):
            links.check(query | {"namespace": text[:other], "name": text[other:]})
    query = query_of(links.make("space", "name1"))
    moved = {"name": "name", "until": "1" + query["until"]}
    with pytest.raises(Failure):
        links.check(query | moved)


def test_a_link_of_another_gateway_or_of_before_its_restart() -> None:
    query = query_of(DownloadLinks(KEY, Clock()).make("space", "name"))
    for at in range(32):
        other = bytearray(KEY)
        other[at] ^= 1
        with pytest.raises(Failure):
            DownloadLinks(bytes(other), Clock()).check(query)


def test_a_link_has_its_time_and_not_a_second_more() -> None:
    clock = Clock()
    links = DownloadLinks(KEY, clock)
    query = query_of(links.make("space", "name"))
    for passed, good in (
        (0.0, True),
        (LINK_LIFE_S, True),
        (LINK_LIFE_S + 1, False),
        (10 * LINK_LIFE_S, False),
    ):
        clock.now = 1e9 + passed
        if good:
            assert links.check(query) == ("space", "name")
        else:
            with pytest.raises(Failure):
                links.check(query)


def test_a_link_over_http_is_for_one_object_one_path_and_reading() -> None:
    access = Access(Hosts.of([("127.0.0.1", 0)]), TOKENS)
    with memory_gateway(access) as gateway:
        for namespace, data in (("files", b"in files"), ("objects", b"in objects")):
            method = "POST" if namespace == "files" else "PUT"
            answer = gateway.request(method, f"/{namespace}/name", data, bearer(WRITE))
            assert answer.status in (200, 201), answer
        asked = urlencode({"namespace": "files", "name": "name"})
        link = gateway.request("GET", f"/catalog/link?{asked}", headers=bearer(READ)).json["url"]
        assert gateway.request("GET", link).body == b"in files"
        query = link.partition("?")[2]
        for path in (
            link.replace("namespace=files", "namespace=objects"),
            link.replace("name=name", "name=name2"),
            f"{link}&more=1",
            f"{link}&name=name",
            f"{link}&namespace=objects",
        ):
            answer = gateway.request("GET", path)
            assert answer.status in (400, 403) and b"in files" != answer.body != b"in objects", path
        for other in (
            "/files/name",
            "/objects/name",
            "/catalog/object",
            "/catalog/link",
            "/catalog/namespaces",
            "/node",
        ):
            answer = gateway.request("GET", f"{other}?{query}")
            assert answer.status == 401, other
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            answer = gateway.request(method, link, b"other" if method != "DELETE" else None)
            assert answer.status in (401, 403, 405), method
        assert gateway.request("GET", link, headers={"Host": "elsewhere.example"}).code == "foreign_host"
        assert gateway.request("GET", "/objects/name", headers=bearer(READ)).body == b"in objects"


# --- tokens


def routes() -> list[tuple[str, str, bool]]:
    """(path, method, whether it is public) of all that the shared port answers."""
    found = []
    table = shared_routes()
    for route in table:
        tail = next(tail for tail in ("x", "X/obj", *static_files()) if route.leads(tail))
        path = route.path.replace("*", tail)
        found += [(path, method, route.public) for method in route.handlers]
    return found


@pytest.mark.parametrize(("path", "method", "public"), routes())
def test_a_token_is_good_for_what_it_says(path: str, method: str, public: bool) -> None:
    """Every route, also those that are still to be written: without a token nothing, to read nothing that changes."""
    access = Access(Hosts.of([("127.0.0.1", 0)]), TOKENS)
    changes = method not in ("GET", "HEAD")
    host = "127.0.0.1"
    for token, allowed in ((None, public), (READ, public or not changes), (WRITE, True), (READ[:-1], public)):
        authorization = None if token is None else f"Bearer {token}"
        if allowed:
            access.check(host, None, authorization, changes=changes, public=public)
        else:
            with pytest.raises(Failure):
                access.check(host, None, authorization, changes=changes, public=public)


def test_no_route_that_changes_something_takes_a_token_for_reading() -> None:
    access = Access(Hosts.of([("127.0.0.1", 0)]), TOKENS)
    with memory_gateway(access) as gateway:
        for path, method, public in routes():
            body = b"" if method in ("PUT", "POST", "PATCH") else None
            without = gateway.request(method, path, body)
            if public:
                assert without.status not in (401, 403) or without.code == "bad_link", (method, path)
                continue
            assert without.status == 401, (method, path)
            reading = gateway.request(method, path, body, bearer(READ))
            assert (reading.status == 403 and reading.code == "read_only") == (method != "GET"), (
                method,
                path,
            )
            for scheme in ("Basic", "bearerx", ""):
                odd = {"Authorization": f"{scheme} {WRITE}".strip()}
                assert gateway.request(method, path, body, odd).status == 401, (method, path, scheme)


# --- what lies on the disk


def made() -> Manifest:
    place = Extent(FIRST + 10, 3)
    return Manifest(
        version=5,
        namespace="store",
        name="name",
        size=2 * DATA_SIZE,
        digest="ab" * 32,
        created=1e9,
        headers={},
        extents=[(ticket.format(place.first), place.count)],
    )


def test_a_manifest_is_bound_to_its_key_its_place_and_each_byte() -> None:
    place = Extent(FIRST + 12, 1)
    keys = [manifest.manifest_key(bytes([i]) * 32) for i in (1, 2)]
    data = manifest.serialize(made(), place, keys[0])
    assert manifest.parse(data, place.first, keys).name == "name"
    for wrong in (place.first - 1, place.first + 1, place.first + 36**4):
        with pytest.raises(CatalogError):
            manifest.parse(data, wrong, keys)
    with pytest.raises(CatalogError):
        manifest.parse(data, place.first, keys[1:])
    signed = len(data.rstrip(b"\0"))
    for at in range(signed):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(CatalogError):
            manifest.parse(bytes(changed), place.first, keys)


def test_the_check_of_a_store_covers_each_member(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("store") / "store.json"
    record = {"format": 1, "layout": "pack", "store_id": "0" * 32, "log_id": "1" * 32, "keys": ["2" * 16]}
    write_store_json(path, record)
    text = path.read_text()
    found, damage = load_store_json(path)
    assert found is not None and not damage and found[CHECK]
    for at, letter in enumerate(text):
        if letter not in string.hexdigits or letter in "abcdef":
            continue
        other = "3" if letter != "3" else "4"
        path.write_text(text[:at] + other + text[at + 1 :])
        assert load_store_json(path)[1], f"{text[:at]}[{letter}]"
    path.write_text(text.replace('"pack"', '"tree"'))
    assert load_store_json(path)[1]


def test_a_request_is_for_one_range_and_one_purpose() -> None:
    keys = mac.derive(KEY)
    name = ticket.index_to_wire(FIRST)
    for sign, check in itertools.permutations((keys.get, keys.inventory, keys.put, keys.delete), 2):
        request = mac.build_request(sign, name, 7)
        assert mac.request_ok(sign, request) and not mac.request_ok(check, request)
    one, other = mac.build_request(keys.get, name, 7), mac.build_request(keys.get, name, 8)
    assert not mac.request_ok(keys.get, one[:16] + other[16:])
