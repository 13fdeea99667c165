"""Conditional requests, by ETag and by date (RFC 9110, 13; their order: 13.2.2). Pure.

The ETag of an object is the BLAKE3 of its bytes, so the same bytes have the same one, wherever they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from email.utils import parsedate_to_datetime

from ingest.catalog.version import Condition, Version
from ingest.gateway.http.failures import Failure

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"')
_DAY = "(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = r"\d\d:\d\d:\d\d"
_DATE = re.compile(
    rf"{_DAY}, \d\d {_MONTH} \d{{4}} {_TIME} GMT"  # of today
    rf"|{_DAY}, \d\d-{_MONTH}-\d\d {_TIME} GMT"  # RFC 850
    rf"|{_DAY} {_MONTH} [ \d]\d {_TIME} \d{{4}}"  # of C's asctime()
)
_CONDITIONS = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
_SEPARATOR = re.compile(r"[ \t]*,[ \t,]*")


def format_etag(version: Version) -> str:
    return f'"{version.etag}"'


def parse_etags(text: str) -> list[tuple[bool, str]]:
    """Of an If-Match or If-None-Match: whether each one is weak, and what it is; `*` is one. Failure 400."""
    text = text.strip(" \t")
    if text == "*":
        return [(False, "*")]
    found = []
    at = 0
    while at < len(text):
        match = _TAG.match(text, at)
        if match is None:
            raise Failure(400, "bad_etag", f"this is no list of ETags: {text[:100]}")
        found.append((match[1] is not None, match[2]))
        at = match.end()
        if at < len(text):
            comma = _SEPARATOR.match(text, at)
            if comma is None:
                raise Failure(400, "bad_etag", f"this is no list of ETags: {text[:100]}")
            at = comma.end()
    if not found:
        raise Failure(400, "bad_etag", "the list of ETags is empty")
    return found


def parse_date(text: str | None) -> int | None:
    """Seconds since 1970, of one of the three forms of an HTTP date (RFC 9110, 5.6.7). What is none is ignored: None."""
    if text is None or not _DATE.fullmatch(text.strip(" \t")):
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return int(moment.replace(tzinfo=UTC).timestamp())


def condition_of(headers: Mapping[str, str], base: Condition) -> Condition:
    """For a request that changes something: what the API asks for, and what the client does. Failure 400."""
    condition = base
    if "If-Match" in headers:  # compared strongly: a weak one fits nothing
        strong = frozenset(tag for weak, tag in parse_etags(headers["If-Match"]) if not weak)
        condition = replace(condition, etags=strong)
    elif (moment := parse_date(headers.get("If-Unmodified-Since"))) is not None:
        condition = replace(condition, unmodified_since=moment)
    if "If-None-Match" in headers:
        condition = replace(
            condition, none_of=frozenset(tag for _, tag in parse_etags(headers["If-None-Match"]))
        )
    return condition


def is_conditional(headers: Mapping[str, str]) -> bool:
    return any(name in headers for name in _CONDITIONS)


def check_read(headers: Mapping[str, str], version: Version) -> bool:
    """Whether the client has this version already: 304. Failure 412, 400."""
    if "If-Match" in headers:
        tags = parse_etags(headers["If-Match"])
        if not any(tag == "*" or (not weak and tag == version.etag) for weak, tag in tags):
            raise Failure(
                412,
                "precondition_failed",
                "the object is another one than If-Match asks for",
                {"ETag": format_etag(version)},
            )
    else:
        unmodified = parse_date(headers.get("If-Unmodified-Since"))
        if unmodified is not None and version.modified > unmodified:
            raise Failure(
                412,
                "precondition_failed",
                "the object was replaced after If-Unmodified-Since",
                {"ETag": format_etag(version)},
            )
    if "If-None-Match" in headers:
        return any(tag in ("*", version.etag) for _, tag in parse_etags(headers["If-None-Match"]))
    modified = parse_date(headers.get("If-Modified-Since"))
    return modified is not None and version.modified <= modified


def range_holds(headers: Mapping[str, str], version: Version) -> bool:
    """Whether If-Range, if it is there, lets the Range stand, where it is an ETag. See `range_date`."""
    wanted = headers.get("If-Range")
    return wanted is None or wanted.strip(" \t") == format_etag(version)


def range_date(headers: Mapping[str, str], version: Version) -> bool:
    """Whether If-Range is the Last-Modified of ``version``. It lets the Range stand only if the name had no other version
    within that second (RFC 9110, 8.8.2.2)."""
    return parse_date(headers.get("If-Range")) == version.modified
