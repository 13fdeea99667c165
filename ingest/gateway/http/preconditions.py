"""Conditional requests: ETag, If-Match, If-None-Match, If-Range (RFC 9110, 13). Pure.

The ETag of an object is the BLAKE3 of its bytes, so the same bytes have the same one, wherever they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ingest.catalog.version import Condition, Version
from ingest.gateway.http.failures import Failure

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"')
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


def condition_of(headers: Mapping[str, str], base: Condition) -> Condition:
    """For a request that changes something: what the API asks for, and what the client does. Failure 400."""
    condition = base
    if "If-Match" in headers:  # compared strongly: a weak one fits nothing
        strong = frozenset(tag for weak, tag in parse_etags(headers["If-Match"]) if not weak)
        condition = replace(condition, etags=strong)
    if "If-None-Match" in headers:
        condition = replace(
            condition, none_of=frozenset(tag for _, tag in parse_etags(headers["If-None-Match"]))
        )
    return condition


def is_conditional(headers: Mapping[str, str]) -> bool:
    return "If-None-Match" in headers or "If-Match" in headers


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
    if "If-None-Match" in headers:
        return any(tag in ("*", version.etag) for _, tag in parse_etags(headers["If-None-Match"]))
    return False


def range_holds(headers: Mapping[str, str], version: Version) -> bool:
    """Whether If-Range, if it is there, lets the Range stand. A date never does: names may change twice in a second."""
    wanted = headers.get("If-Range")
    return wanted is None or wanted.strip(" \t") == format_etag(version)
