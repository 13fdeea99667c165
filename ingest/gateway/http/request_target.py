"""What stands behind the method in a request: the path and the query, as they came. Pure.

Names are percent-decoded exactly once, from the bytes that the client sent: no library has put a path in order before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

from ingest.catalog.version import check_name
from ingest.errors import UsageError
from ingest.gateway.http.failures import Failure

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """``path`` is undecoded and begins with a slash. ``authority``: of the absolute form, which proxies send."""

    path: str
    query: str
    authority: str | None = None


def parse_target(raw: str) -> Target:
    """From what stands in the request line. Failure 400."""
    authority = None
    if not raw.startswith("/"):
        match = _ABSOLUTE.match(raw)
        if match is None:
            raise Failure(400, "bad_target", "the request names no path")
        authority, raw = match[1], raw[match.end() :]
        if not raw.startswith("/"):
            raw = "/" + raw
    if "#" in raw:
        raise Failure(400, "bad_target", "a # in a path is written %23")
    path, _, query = raw.partition("?")
    return Target(path, query, authority)


def without_query(raw: str) -> str:
    """What of it may stand in a log: the query of a link to a download is as good as a token."""
    return raw.partition("?")[0]


def decode(raw: str) -> str:
    """Percent-decoded, once. Failure 400 for a % without two hexadecimal digits, and for what is not UTF-8."""
    # The text came from bytes that need not have been UTF-8.
    text = raw.encode("utf-8", "surrogateescape")
    if "%" in raw:
        if _BAD_PERCENT.search(raw):
            raise Failure(400, "bad_encoding", "a % in a name is written %25")
        text = unquote_to_bytes(text)
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Failure(400, "bad_encoding", "the name is not UTF-8") from None


def decode_name(raw: str) -> str:
    """A name of an object: 1 to 1024 bytes of UTF-8. Failure 400."""
    try:
        return check_name(decode(raw))
    except UsageError as error:
        raise Failure(400, "bad_name", str(error)) from None


def parse_query(raw: str) -> dict[str, str]:
    """The parameters, of which each stands once. `+` is a blank, as forms send it. Failure 400."""
    if not raw:
        return {}
    if _BAD_PERCENT.search(raw):
        raise Failure(400, "bad_encoding", "a % in a query is written %25")
    try:
        text = raw.encode("utf-8", "surrogateescape").decode()
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=16)
    except UnicodeDecodeError:
        raise Failure(400, "bad_encoding", "the query is not UTF-8") from None
    except ValueError as error:
        raise Failure(400, "bad_query", str(error)) from None
    query = dict(pairs)
    if len(query) < len(pairs):
        raise Failure(400, "bad_query", "a parameter stands twice")
    return query
