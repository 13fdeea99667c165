"""Forms: the file in one is stored where POST makes an object, and nothing of a form anywhere else
(`ingest.gateway.http.form_file`, `ingest.gateway.http.form_part`)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from gateway_rig import Connection, Gateway, memory_gateway, node_gateway
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.gateway.http import form_file
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.form_file import FormFile
from ingest.gateway.http.form_part import Part, boundary_of, is_form, parse_head
from ingest.limits import FORM_BESIDE_SIZE_MAX, FORM_HEAD_SIZE_MAX, FORM_SEARCH_SIZE, FORM_TAKE_SIZE

BOUNDARY = b"----ab"
TYPE = {"Content-Type": "multipart/form-data; boundary=----ab"}
FILE = b'form-data; name="file"; filename="a.txt"'
FIELD = b'form-data; name="field"'


def part(data: bytes, disposition: bytes = FILE, *more: bytes) -> bytes:
    lines = b"".join(line + b"\r\n" for line in (b"Content-Disposition: " + disposition, *more))
    return b"--" + BOUNDARY + b"\r\n" + lines + b"\r\n" + data + b"\r\n"


def form(*parts: bytes, end: bytes = b"\r\n") -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--" + end


class Pieces:
    """A body that comes in pieces of these sizes, again and again: patience ends behind each. ``late``: that it has ended is
    known with a call of its own."""

    def __init__(self, data: bytes, sizes: Sequence[int], late: bool = False) -> None:
        self.ended = False
        self._data = data
        self._sizes = sizes
        self._late = late
        self._calls = 0

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        filled = 0
        while filled < len(buffer) and not self.ended:
            size = min(self._sizes[self._calls % len(self._sizes)], len(buffer) - filled)
            self._calls += 1
            self.ended = not self._data if self._late else size >= len(self._data)
            here, self._data = self._data[:size], self._data[size:]
            buffer[filled : filled + len(here)] = here
            filled += len(here)
            if patience is not None:
                break
        return filled

    async def close(self) -> None:
        pass


def read(
    data: bytes, sizes: Sequence[int] = (1 << 20,), buffers: Sequence[int] = (1 << 20,), late: bool = False
) -> tuple[Part, bytes]:
    async def all_of_it() -> tuple[Part, bytes]:
        body = FormFile(Pieces(data, sizes, late), BOUNDARY)
        found = await body.begin()
        got = bytearray()
        calls = 0
        while not body.ended:
            buffer = bytearray(buffers[calls % len(buffers)])
            calls += 1
            size = await body.fill(memoryview(buffer), 1.0 if calls % 2 else None)
            got += buffer[:size]
        return found, bytes(got)

    return asyncio.run(all_of_it())


def refused(data: bytes, match: str) -> None:
    for late in (False, True):
        with pytest.raises(Failure, match=match) as caught:
            read(data, late=late)
        assert (caught.value.status, caught.value.code) == (400, "bad_form")
        assert "nothing was stored" in caught.value.message


# --- the bytes of a form


NEARLY = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"-", b"\r\n", b"--", b"\r\n-", b"\r\n--", b"\r\n-----a", b"--ab", b"x", b"\0"]
    ),
    max_size=12,
).map(b"".join)


def fits(data: bytes) -> bool:
    return b"\r\n--" + BOUNDARY not in b"\r\n" + data + b"\r\n"


@settings(max_examples=150, deadline=None)
@given(
    data=(st.binary(max_size=300) | NEARLY).filter(fits),
    fields=st.lists(NEARLY.filter(fits), max_size=2),
    after=st.lists(NEARLY.filter(fits), max_size=2),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    buffers=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    late=st.booleans(),
)
@example(data=b"", fields=[], after=[], sizes=[1], buffers=[1], late=True)
@example(data=b"\r\n-----a", fields=[b""], after=[b""], sizes=[3], buffers=[1], late=False)
def test_the_file_comes_out(
    data: bytes, fields: list[bytes], after: list[bytes], sizes: list[int], buffers: list[int], late: bool
) -> None:
    whole = form(*(part(one, FIELD) for one in fields), part(data), *(part(one, FIELD) for one in after))
    assert read(whole, sizes, buffers, late)[1] == data


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(1, 200), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_a_form_that_is_cut(cut: int, sizes: list[int]) -> None:
    whole = form(part(b"field", FIELD), part(b"data\r\n--"), part(b"after", FIELD), end=b"")
    cut = min(cut, len(whole))
    with pytest.raises(Failure) as caught:
        read(whole[: len(whole) - cut], sizes, [7])
    assert caught.value.code == "bad_form"


@pytest.mark.parametrize("searches", [1, 3])
@pytest.mark.parametrize("before", range(-1, len(BOUNDARY) + 5))
def test_where_pieces_of_the_search_meet(searches: int, before: int) -> None:
    """So many bytes of the delimiter stand ``before`` the place."""
    head = len(form(part(b"x")).partition(b"x\r\n--" + BOUNDARY)[0])
    came = FORM_TAKE_SIZE - head  # of the file, with its head
    data = (b"\r\n-----" * (searches * FORM_SEARCH_SIZE))[: came + searches * FORM_SEARCH_SIZE - before]
    for buffer in (1 << 20, came + FORM_SEARCH_SIZE + 1, FORM_SEARCH_SIZE):
        assert read(form(part(data)), buffers=[buffer])[1] == data


@pytest.mark.parametrize("take", [1, 2, 64])
@pytest.mark.parametrize("search", range(1, 2 * len(BOUNDARY)))
def test_a_delimiter_is_found_wherever_it_lies(
    monkeypatch: pytest.MonkeyPatch, search: int, take: int
) -> None:
    """Each place of it in its piece of the search, and in its buffer: no byte may be where none looks."""
    monkeypatch.setattr(form_file, "FORM_SEARCH_SIZE", search)
    monkeypatch.setattr(form_file, "FORM_TAKE_SIZE", take)
    for filler in (b"x", b"\r", b"\r\n-"):
        for size in range(take, take + 4 * search + 2):
            data = (filler * size)[:size]
            whole = form(part(data), part(b"behind", FIELD))
            assert read(whole)[1] == data
            assert read(whole, sizes=[size % 7 + 1, 40], buffers=[size % 5 + 1, 60])[1] == data


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "ends before"),
        (form(), "no file"),
        (form(part(b"x", FIELD)), "no file"),
        (form(part(b"", b'form-data; name="file"; filename=""')), "no file"),
        (form(part(b"1"), part(b"2")), "several files"),
        (form(part(b"1"), part(b"x", FIELD), part(b"2" * 100_000)), "several files|64 KiB"),
        (form(part(b"1"), part(b"2" * 100_000)), "several files"),
        (form(part(b"", FIELD, b"Content-Type: multipart/mixed; boundary=x")), "several files"),
        (form(part(b"1"), end=b"\r\nmore"), "behind its last boundary"),
        (form(part(b"1"), end=b"x"), "behind its last boundary"),
        (form(part(b"1\r\n------abc\r\n2")), "another line"),
        (part(b"1", FIELD)[:-2] + form(part(b"1")), "ends before|no file|another line|cannot be read"),
        (form(part(b"x" * FORM_BESIDE_SIZE_MAX, FIELD), part(b"1")), "64 KiB"),
        (form(part(b"1"), part(b"x" * FORM_BESIDE_SIZE_MAX, FIELD)), "64 KiB"),
        (b"x" * 2 * FORM_BESIDE_SIZE_MAX, "64 KiB"),
        (form(part(b"1", FILE, b"X: " + b"x" * 2 * FORM_HEAD_SIZE_MAX)), "head of a part has more"),
        (form(part(b"1", FILE, b"Content-Transfer-Encoding: base64")), "encoded"),
        (form(part(b"1", b'attachment; filename="a"')), "form-data"),
        (form(part(b"1", FILE, b"Content-Type: a/b", b"content-type: c/d")), "cannot be read"),
        (form(part(b"1", FILE, b"no header")), "cannot be read"),
        (form(part(b"1", FILE, b"A: \0")), "cannot be read"),
        (form(part(b"1", FILE, b"A: \xff")), "UTF-8"),
        (form(part(b"1", FILE + b"; filename=again")), "twice"),
    ],
)
def test_what_is_refused(data: bytes, match: str) -> None:
    refused(data, match)


@pytest.mark.parametrize("parts", range(2, 6))
@pytest.mark.parametrize(
    ("other", "match"),
    [
        (part(b"2"), "several files"),
        (part(b"", FIELD, b"Content-Type: multipart/mixed; boundary=x"), "several files"),
        (part(b"2", FIELD, b"Content-Transfer-Encoding: base64"), "encoded"),
        (part(b"2", b'attachment; name="a"'), "form-data"),
        (part(b"2", FIELD, b"no header"), "cannot be read"),
        (part(b"2", FIELD).replace(BOUNDARY, BOUNDARY + b"c"), "another line|cannot be read"),
    ],
)
def test_each_part_beside_the_file_is_looked_at(parts: int, other: bytes, match: str) -> None:
    """Wherever the file is, and wherever what is no field."""
    field = part(b"value", FIELD)
    for at in range(parts):
        alone = [part(b"1") if number == at else field for number in range(parts)]
        assert read(form(*alone))[1] == b"1"
        for bad in set(range(parts)) - {at}:
            refused(form(*(other if number == bad else one for number, one in enumerate(alone))), match)


@pytest.mark.parametrize("sizes", [(1 << 20,), (1000,), (7, 300)])
@pytest.mark.parametrize("before", [0, 1, FORM_BESIDE_SIZE_MAX // 2, FORM_BESIDE_SIZE_MAX - 1000])
def test_what_stands_beside_a_file_has_one_limit_in_all(sizes: Sequence[int], before: int) -> None:
    """Before it and behind it, in whatever pieces it comes: an upload does not depend on how a network cuts it."""
    first = [part(b"x" * before, FIELD)] if before else []
    least = len(form(*first, part(b""), part(b"", FIELD)))
    most = FORM_BESIDE_SIZE_MAX + len(b"--" + BOUNDARY) - least  # of a field behind the file
    for data, buffers in ((b"12345", (5, 1 << 20)), (b"12345" * 20_000, (1 << 20,))):
        for buffer in buffers:
            fits = form(*first, part(data), part(b"x" * most, FIELD))
            assert read(fits, sizes, [buffer])[1] == data
        for more in (1, 20, 100, 100_000):
            refused(form(*first, part(data), part(b"x" * (most + more), FIELD)), "64 KiB")


@pytest.mark.parametrize(
    "coding", ["7bit", "8bit", "binary", "BINARY", "base64", "quoted-printable", "x-gzip", "7", ""]
)
def test_bytes_that_stand_for_others_are_not_stored_as_they_are(coding: str) -> None:
    """By whatever name, also one that nobody knows."""
    one = form(part(b"eHg=", FILE, b"Content-Transfer-Encoding: " + coding.encode()))
    if coding.lower() in ("7bit", "8bit", "binary"):
        assert read(one)[1] == b"eHg="
    else:
        refused(one, "encoded")


def test_boundary_lines_may_end_with_blanks() -> None:
    padded = form(part(b"1")).replace(b"--" + BOUNDARY + b"\r\n", b"--" + BOUNDARY + b" \t\r\n")
    assert read(b"preamble\r\n" + padded)[1] == b"1"


def test_little_is_held() -> None:
    async def most() -> int:
        body = FormFile(Pieces(form(part(bytes(8 << 20))), [1 << 20]), BOUNDARY)
        await body.begin()
        held, buffer = 0, memoryview(bytearray(1 << 20))
        while not body.ended:
            await body.fill(buffer)
            held = max(held, len(body._raw))
        return held

    assert asyncio.run(most()) < FORM_BESIDE_SIZE_MAX


# --- its words


@pytest.mark.parametrize(
    ("given", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data ;charset=utf-8; Boundary="a b:c"', b"a b:c"),
        ("multipart/form-data;;boundary=x;", b"x"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ('multipart/form-data; boundary="a', None),
        ("multipart/form-data; boundary=" + "x" * 71, None),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ('multipart/form-data; boundary="' + "\\" * 5000, None),
    ],
)
def test_boundaries(given: str, boundary: bytes | None) -> None:
    assert is_form(given)
    if boundary is None:
        with pytest.raises(Failure) as caught:
            boundary_of(given)
        assert caught.value.code == "bad_form"
    else:
        assert boundary_of(given) == boundary


@pytest.mark.parametrize(
    "given", [None, "", "multipart/mixed; boundary=a", "multipart/form-datas", "text/plain"]
)
def test_what_is_no_form(given: str | None) -> None:
    assert not is_form(given)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('filename="a.txt"', "a.txt"),
        ("filename=a.txt", "a.txt"),
        ('filename="a%22b.txt"', 'a"b.txt'),
        ('filename="a\\"b;c.txt"', 'a"b;c.txt'),
        ('filename="C:\\dir\\file.txt"', "file.txt"),
        ('filename="dir/Jürgen ☃.txt"', "Jürgen ☃.txt"),
        ("filename=\"plain\"; filename*=UTF-8''J%C3%BCrgen", "Jürgen"),
        ('filename="%0D%0AX-Evil: 1"', "\r\nX-Evil: 1"),
        ('filename=""', None),
        ("name=x", None),
    ],
)
def test_names_of_files(parameters: str, name: str | None) -> None:
    found = parse_head(f"Content-Disposition: form-data; {parameters}".encode())
    assert found.filename == name
    assert found.kept_headers()["Content-Disposition"].isascii()
    assert "\r" not in found.kept_headers()["Content-Disposition"]


# --- over HTTP


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


DATA = b"\r\n--almost\0\xff" * 100
WHERE = [("/store/%s", "/store/%s", None), ("/blob/%s", "/blob/%s", None), ("/files/%s", "/files/%s", None)]
WHERE += [("/%s", "/%s", "files"), ("/upload", f"/fetch/{hashlib.sha1(DATA).hexdigest()}", "sos-upload")]


@pytest.mark.parametrize(("path", "place", "api"), WHERE)
@pytest.mark.parametrize("chunked", [False, True])
def test_where_post_makes_an_object(
    gateway: Gateway, path: str, place: str, api: str | None, chunked: bool
) -> None:
    name = f"form{chunked}{api}".lower()
    whole = form(part(b"x", FIELD), part(DATA, FILE, b"Content-Type: text/x-data; charset=utf-8"))
    body = [whole[:50], whole[50:]] if chunked else whole
    answer = gateway.request("POST", path.replace("%s", name), body, TYPE, api=api)
    assert answer.status in (200, 204), answer.body
    found = gateway.request("GET", place.replace("%s", name), api=None if api == "sos-upload" else api)
    assert found.body == DATA
    assert found.headers["content-type"] == "text/x-data; charset=utf-8"
    assert found.headers["content-disposition"] == "inline; filename*=UTF-8''a.txt"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/objects/x"),
        ("PUT", "/store/x"),
        ("POST", "/gc"),
    ],
)
def test_where_it_makes_none(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.request(method, path, form(part(b"1")), TYPE)
    assert (answer.status, answer.code) == (415, "form")
    assert ("-T FILE" in answer.json["message"]) == (method == "PUT")
    assert gateway.request("GET", path).status in (200, 404, 501)
    assert gateway.request("GET", "/objects/x").status == 404


@pytest.mark.parametrize(
    "body",
    [form(), form(part(b"1"), part(b"2")), form(part(b"1"))[:-10], form(part(DATA * 1000))[:-4], b"--"],
)
@pytest.mark.parametrize("path", ["/store/bad", "/blob/bad", "/files/bad", "/upload"])
def test_nothing_is_stored_of_a_bad_form(gateway: Gateway, path: str, body: bytes) -> None:
    assert gateway.store is not None
    before = set(gateway.store.live)
    answer = gateway.request("POST", path, body, TYPE)
    assert (answer.status, answer.code) == (400, "bad_form")
    assert set(gateway.store.live) == before


def test_a_client_that_goes_away(gateway: Gateway) -> None:
    whole = form(part(DATA * 1000))
    with gateway.connect() as connection:
        connection.send(connection.head("POST", "/store/gone", TYPE | {"Content-Length": str(len(whole))}))
        connection.send(whole[:-3])
    assert gateway.request("GET", "/store/gone").status == 404


def test_a_name_that_is_taken_is_refused_before_the_form(gateway: Gateway) -> None:
    gateway.request("POST", "/store/taken", b"1")
    with gateway.connect() as connection:
        given = TYPE | {"Content-Length": "1000", "Expect": "100-continue"}
        connection.send(connection.head("POST", "/store/taken", given))
        answer = connection.answer()
        assert (answer.status, answer.interim) == (409, [])
    with gateway.connect() as connection:
        whole = form(part(b"1"))
        given["Content-Length"] = str(len(whole))
        connection.send(connection.head("POST", "/store/not-taken", given))
        assert connection.answer_head()[0] == 100
        connection.send(whole)
        assert connection.answer().status == 204


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def sha256(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_digests_of_a_request_are_of_the_form_and_those_of_a_part_of_the_file(gateway: Gateway) -> None:
    own = f"Content-Digest: {sha256(DATA)}".encode()
    for number, (line, header, status) in enumerate(
        [
            (b"X: y", {"Content-MD5": "form"}, 204),
            (b"X: y", {"Content-MD5": "file"}, 400),
            (b"Content-MD5: " + md5(DATA).encode(), {}, 204),
            (b"Content-MD5: " + md5(b"x").encode(), {}, 400),
            (own, {"Content-MD5": "form"}, 204),
            (own, {"Content-MD5": "file"}, 400),
        ]
    ):
        whole = form(part(DATA, FILE, line))
        said = {name: md5(whole if of == "form" else DATA) for name, of in header.items()}
        answer = gateway.request("POST", f"/store/digest{number}", whole, TYPE | said)
        assert answer.status == status
        if status == 400:
            assert answer.code == "bad_digest"
        found = gateway.request("GET", f"/store/digest{number}")
        assert found.status == (200 if status == 204 else 404)
        if status == 204:
            assert found.headers.get("repr-digest") == (sha256(DATA) if line == own else None)


def test_what_the_request_says_beside_its_type_is_kept(gateway: Gateway) -> None:
    said = TYPE | {"X-Author": "me", "Content-Disposition": "attachment", "Cache-Control": "max-age=1"}
    assert gateway.request("POST", "/blob/said", form(part(b"1")), said).status == 200
    found = gateway.request("GET", "/blob/said").headers
    assert (found["x-author"], found["content-disposition"]) == ("me", "attachment")
    assert (found["cache-control"], found["content-type"]) == ("max-age=1", "application/octet-stream")


def test_a_form_that_is_encoded(gateway: Gateway) -> None:
    answer = gateway.request("POST", "/store/zipped", b"x", TYPE | {"Content-Encoding": "gzip"})
    assert (answer.status, answer.code) == (415, "form")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_on_a_node(tmp_path: Path) -> None:
    large = tmp_path / "large file.bin"
    large.write_bytes(b"\r\n------" * 1_500_000)  # more than goes through aiohttp
    small = tmp_path / "hello.txt"
    small.write_bytes(b"hello\r\n")
    with node_gateway(tmp_path / "data") as node:
        base = "http://{}:{}".format(*node.gateway.address)
        for name, file, more in (("large", large, ["-F", "note=x"]), ("small", small, ["-H", "Expect:"])):
            command = ["curl", "-sS", "-f", *more, "-F", f"file=@{file}", f"{base}/files/{name}"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            found = node.gateway.request("GET", f"/files/{name}")
            assert found.body == file.read_bytes()
            assert found.headers["content-disposition"].endswith(file.name.replace(" ", "%20"))
        both = ["curl", "-sS", "-F", f"a=@{small}", "-F", f"b=@{large}", f"{base}/files/both"]
        said = subprocess.run(both, check=True, capture_output=True, timeout=60, text=True).stdout
        assert "several files" in said
        with Connection(node.gateway.address) as connection:
            assert connection.request("GET", "/files/both").status == 404
        assert node.stop() == 0, node.log()
