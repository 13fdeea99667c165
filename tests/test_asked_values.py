"""What requests and files say, read by functions of its own: each place, border and field of it, by tables and sums."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ingest.errors import KeyFileError
from ingest.gateway.http.access import Access, Hosts, same_origin
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.http_uploads import check_headers
from ingest.gateway.http.listing import _limit
from ingest.gateway.http.ranges import parse_range
from ingest.gateway.http.request_id import RequestIds
from ingest.gateway.http.request_target import parse_query, parse_target
from ingest.gateway.http.token_file import parse_tokens, read_token, read_tokens
from ingest.limits import (
    KEPT_HEADERS_SIZE_MAX,
    LIST_PAGE_MAX,
    TOKEN_FILE_SIZE_MAX,
    TOKEN_LENGTH_MAX,
    TOKEN_LENGTH_MIN,
)

# --- hosts and origins

LISTENING = [("10.1.2.3", 80), ("Files.Example.", 81), ("FD00:0:0::A", 82), ("fe80::1%eth0", 83)]


def test_each_address_that_is_listened_on_is_served() -> None:
    """In whatever order, however it was written: a browser writes an address of IPv6 in one way, and knows no zones."""
    for order in itertools.permutations(LISTENING):
        hosts = Hosts.of(order, ["fe80::9%eth1"])
        assert all(hosts.include(f"[fe80::9{zone}]") for zone in ("", "%eth0", "%4"))
        for name in ("10.1.2.3", "files.example", "FILES.EXAMPLE.", "[fd00::a]", "[FD00:0::A]", "[fe80::1]"):
            assert hosts.include(name) and hosts.include(f"{name}:8080"), name
        assert all(hosts.include(f"[fe80::1%{zone}]:8080") for zone in ("eth0", "4"))  # of who asks
        for name in (
            "[fe80::2%eth0]",
            "10.1.2.33",
            "10.1.2",
            "ile.example",
            "[fd00::b]",
            "[fe80::2]",
            "[::]",
            "0.0.0.0",
        ):
            assert not hosts.include(name), name


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", "0:0::0"])
@pytest.mark.parametrize("place", range(len(LISTENING) + 1))
def test_one_wildcard_among_others_serves_all_addresses(wildcard: str, place: int) -> None:
    hosts = Hosts.of([*LISTENING[:place], (wildcard, 80), *LISTENING[place:]])
    assert hosts.include("192.0.2.1:80") and hosts.include("[2001:db8::1]:80")
    assert not hosts.include("evil.example") and not hosts.include("192.0.2.1.evil.example")


ORIGINS = [
    (scheme, host, port)
    for scheme in ("http", "https")
    for host in ("a.example", "b.example", "10.0.0.1", "[::1]", "[::2]")
    for port in ("", ":80", ":443", ":8080")
]


def test_an_origin_is_that_of_the_request_in_its_host_and_in_its_port() -> None:
    """Of names and of both kinds of addresses. A page of another port of this machine is somebody else's."""
    default = {"http": ":80", "https": ":443"}
    for scheme, host, port in ORIGINS:
        for _, our_host, our_port in ORIGINS:
            same = (host, port or default[scheme]) == (our_host, our_port or default[scheme])
            assert same_origin(f"{scheme}://{host}{port}", our_host + our_port) is same


@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("public", [True, False])
def test_what_is_public_is_so_for_our_hosts_and_origins_alone(changes: bool, public: bool) -> None:
    tokens = parse_tokens(b"read-write 0123456789abcdef\n", "tokens")
    for access in (Access(Hosts(frozenset()), tokens), Access(Hosts(frozenset()))):
        for host, origin in (("evil.example", None), ("localhost", "http://evil.example")):
            if origin is not None and not changes:
                continue
            with pytest.raises(Failure) as caught:
                access.check(host, origin, "Bearer 0123456789abcdef", changes=changes, public=public)
            assert caught.value.code == ("foreign_host" if origin is None else "foreign_origin")


# --- ranges


def test_each_range_of_small_objects() -> None:
    """By what RFC 9110 (14.1.2) says of first, last and suffix; leading zeros are no other number."""
    for size, first, last in itertools.product(range(5), range(6), [*range(6), None]):
        for zeros in ("", "0" * 30):
            text = f"bytes={zeros}{first}-" + ("" if last is None else f"{zeros}{last}")
            stop = size if last is None else min(last + 1, size)
            if last is not None and last < first:
                assert parse_range(text, size) is None
            elif first >= size:
                with pytest.raises(Failure) as caught:
                    parse_range(text, size)
                assert caught.value.headers == {"Content-Range": f"bytes */{size}"}
            else:
                part = parse_range(text, size)
                assert part is not None and (part.start, part.stop, part.size) == (first, stop, size)
                assert part.content_range == f"bytes {first}-{stop - 1}/{size}"


def test_each_end_of_small_objects() -> None:
    for size, suffix, zeros in itertools.product(range(5), range(7), ("", "0" * 30)):
        text = f"bytes=-{zeros}{suffix}"
        if not size or not suffix:
            with pytest.raises(Failure, match=f"{size} bytes"):
                parse_range(text, size)
        else:
            part = parse_range(text, size)
            assert part is not None and (part.start, part.stop) == (max(0, size - suffix), size)


@pytest.mark.parametrize("digits", [18, 19, 20, 100, 5000])
def test_a_number_of_any_length_is_one_past_the_end(digits: int) -> None:
    part = parse_range(f"bytes=1-{'9' * digits}", 3)
    assert part is not None and (part.start, part.stop) == (1, 3)
    part = parse_range(f"bytes=-{'9' * digits}", 3)
    assert part is not None and (part.start, part.stop) == (0, 3)
    with pytest.raises(Failure):
        parse_range(f"bytes={'9' * digits}-", 3)


# --- lists


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("007", 7),
        (str(LIST_PAGE_MAX - 1), LIST_PAGE_MAX - 1),
        (str(LIST_PAGE_MAX), LIST_PAGE_MAX),
        (str(LIST_PAGE_MAX + 1), LIST_PAGE_MAX),
        ("9" * 9, LIST_PAGE_MAX),
    ],
)
def test_limits_of_a_page(text: str, number: int) -> None:
    assert _limit(text) == number


@pytest.mark.parametrize(
    "text", ["0", "00", "-1", "+1", " 1", "1 ", "1_0", "٣", "²", "1.0", "9" * 10, "9" * 5000]
)
def test_what_is_no_limit_of_a_page(text: str) -> None:
    with pytest.raises(Failure) as caught:
        _limit(text)
    assert (caught.value.status, caught.value.code) == (400, "bad_query")


# --- targets, and ids of requests


def test_a_query_has_sixteen_parameters_at_most() -> None:
    """What is kept of the blank ones: that they are there."""
    most = {f"p{number}": "" for number in range(16)}
    assert parse_query("&".join(f"{name}=" for name in most)) == most
    with pytest.raises(Failure) as caught:
        parse_query("&".join(f"p{number}=" for number in range(17)))
    assert (caught.value.status, caught.value.code) == (400, "bad_query")


@pytest.mark.parametrize("query", ["a=%", "a=%2", "a=%zz", "%=a", "a=1&b=%g0", "a=%ff", "%c3=1", "a=%80"])
def test_queries_that_cannot_be_read(query: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_query(query)
    assert (caught.value.status, caught.value.code) == (400, "bad_encoding")


@pytest.mark.parametrize(
    ("raw", "path", "query", "authority"),
    [
        ("/a?b?c", "/a", "b?c", None),
        ("//a", "//a", "", None),
        ("http://h:1/a?b", "/a", "b", "h:1"),
        ("HTTPS://h", "/", "", "h"),
        ("http://h?b", "/", "b", "h"),
        ("http://", "/", "", ""),
    ],
)
def test_targets(raw: str, path: str, query: str, authority: str | None) -> None:
    target = parse_target(raw)
    assert (target.path, target.query, target.authority) == (path, query, authority)


@pytest.mark.parametrize(
    "raw", ["", "*", "a/b", "ftp://h/a", "http:/a", "xhttp://h/a", "/a#b", "/a?b#c", "http://h#a"]
)
def test_what_is_no_target(raw: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_target(raw)
    assert (caught.value.status, caught.value.code) == (400, "bad_target")


def test_which_ids_are_a_proxy_s() -> None:
    """Others would stand in a log as if they were of somebody else: 1 to 64 characters that break no line."""
    ids = RequestIds()
    letters = "abcXYZ019._:-"
    for given in ("a", *letters, letters, "x" * 64):
        assert ids.of(given) == given
    own = {ids.next(), ids.of(None)}
    for given in ("", "x" * 65, "a b", "a\nb", "a\n", "a\r", "ä", "a/b", "a;b", 'a"', "a%0a", "\0", "٣"):
        made = ids.of(given)
        assert made != given and made not in own
        own.add(made)
    assert not own & {RequestIds().next(), RequestIds().of(None)}


# --- headers that are kept


@pytest.mark.parametrize("letter", ["x", "ä", "€", "𝄞"])
def test_kept_headers_have_a_size_together(letter: str) -> None:
    """In bytes, names and values, of all of them."""
    width = len(letter.encode())
    for count in (1, 2, 7):
        names = [f"X-{number}" for number in range(count)]
        room = KEPT_HEADERS_SIZE_MAX - sum(map(len, names))
        each, last = divmod(room // width, count)
        headers = dict.fromkeys(names, letter * each)
        headers[names[0]] += letter * last + "y" * (room % width)
        assert check_headers(headers) is headers
        for name in names:
            with pytest.raises(Failure) as caught:
                check_headers(headers | {name: headers[name] + "y"})
            assert (caught.value.status, caught.value.code) == (431, "headers_too_large")
        with pytest.raises(Failure):
            check_headers(headers | {"Y": ""})


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_kept_header_is_text(place: int) -> None:
    headers = {f"X-{number}": "a\udcff" if number == place else "a" for number in range(3)}
    with pytest.raises(Failure, match=f"X-{place}") as caught:
        check_headers(headers)
    assert (caught.value.status, caught.value.code) == (400, "bad_header")


# --- tokens


def test_lengths_of_tokens() -> None:
    for length in (TOKEN_LENGTH_MIN, TOKEN_LENGTH_MAX):
        for token in ("x" * length, "x" * (length - 2) + "=="):
            found = parse_tokens(f"read-only {token}\n".encode(), "tokens")
            assert found.find(token) is False
            assert (
                found.find(token[:-1])
                is found.find(token + "=")
                is found.find(token.rstrip("=") + "y")
                is None
            )
    for token in ("x" * (TOKEN_LENGTH_MIN - 1), "x" * (TOKEN_LENGTH_MAX + 1), "x" * TOKEN_LENGTH_MAX + "="):
        with pytest.raises(KeyFileError, match=r"line 2:.*(characters|expected)") as caught:
            parse_tokens(f"\nread-write {token}\n".encode(), "tokens")
        assert token not in str(caught.value)


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_each_token_of_a_file_is_good_for_what_its_own_line_says(order: tuple[int, ...]) -> None:
    """Wherever it stands: neither the first nor the last line says it for all."""
    lines = [
        ("read-only" if number % 2 else "read-write", f"token-of-number-{number}") for number in range(4)
    ]
    text = "".join(f"{right} {token}\n" for right, token in (lines[number] for number in order))
    tokens = parse_tokens(text.encode(), "tokens")
    for right, token in lines:
        assert tokens.find(token) is (right == "read-write")
    for one, (_, token) in itertools.product(range(4), lines):
        for right in ("read-only", "read-write"):
            again = text.splitlines(keepends=True)
            again.insert(one, f"{right} {token}\n")
            with pytest.raises(KeyFileError, match="twice") as caught:
                parse_tokens("".join(again).encode(), "tokens")
            assert token not in str(caught.value)


@pytest.mark.parametrize("read", [read_tokens, read_token])
def test_a_token_file_is_read_whole_or_not_at_all(tmp_path: Path, read) -> None:
    """A token that lies behind as many bytes as are read is not passed over in silence."""
    line = b"read-only 0123456789abcdef"
    path = tmp_path / "tokens"
    for size in (TOKEN_FILE_SIZE_MAX - 1, TOKEN_FILE_SIZE_MAX, TOKEN_FILE_SIZE_MAX + 1):
        path.write_bytes(b"#" * (size - len(line) - 1) + b"\n" + line)
        path.chmod(0o600)
        if size > TOKEN_FILE_SIZE_MAX:
            with pytest.raises(KeyFileError, match="more than"):
                read(path)
        else:
            found = read(path)
            assert found == "0123456789abcdef" or found.find("0123456789abcdef") is False
