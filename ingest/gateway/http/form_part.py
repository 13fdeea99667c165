"""The words of a form (RFC 7578, RFC 2046): its boundary, and the heads of its parts. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from multidict import CIMultiDict

from ingest.gateway.http.failures import Failure

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FORM = re.compile(r"multipart/form-data[ \t]*(;.*)?", re.IGNORECASE | re.DOTALL)
# A quoted value: of all that could be escaped, senders escape the quote and the backslash, and browsers neither.
_PARAMETER = re.compile(
    rf"""[ \t]*;[ \t]*(?:({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\["\\]|\\(?!["\\]))*)"|([^;" \t]*)))?"""
)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_LINE = re.compile(rf"({_TOKEN}):([^\0-\x08\x0a-\x1f\x7f]*)")
_AS_IT_IS = ("7bit", "8bit", "binary")


def is_form(content_type: str | None) -> bool:
    return content_type is not None and _FORM.fullmatch(content_type.strip(" \t")) is not None


def boundary_of(content_type: str) -> bytes:
    """Of what `is_form`. Failure 400."""
    found = _FORM.fullmatch(content_type.strip(" \t"))
    assert found is not None
    boundary = _parameters(found[1] or "").get("boundary", "")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise bad_form("its Content-Type names no boundary of 1 to 70 characters")
    return boundary.encode("ascii")


@dataclass(frozen=True, slots=True)
class Part:
    """``headers``: by their names in any case. ``filename``: None when the part is no file."""

    headers: CIMultiDict[str]
    filename: str | None

    def kept_headers(self) -> dict[str, str]:
        """What comes back with the file: its type, and its name."""
        told = {"Content-Disposition": f"inline; filename*=UTF-8''{quote(self.filename or '', safe='')}"}
        if self.headers.get("content-type"):
            told["Content-Type"] = self.headers["content-type"]
        return told


def parse_head(head: bytes) -> Part:
    """Of the lines before the empty one. Failure 400 for what is no part of a form, or one that is no plain bytes."""
    headers: CIMultiDict[str] = CIMultiDict()
    try:
        lines = head.decode().split("\r\n") if head else []
    except UnicodeDecodeError:
        raise bad_form("the head of a part is not UTF-8") from None
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or found[1] in headers:
            raise bad_form("the head of a part cannot be read")
        headers[found[1]] = found[2].strip(" \t")
    kind, separator, parameters = headers.get("content-disposition", "").partition(";")
    if kind.strip(" \t").lower() != "form-data":
        raise bad_form("a part has no Content-Disposition: form-data")
    if headers.get("content-type", "").lower().startswith("multipart/"):
        raise several_files()
    if headers.get("content-transfer-encoding", "binary").lower() not in _AS_IT_IS:
        raise bad_form("a part is encoded: send its bytes as they are, without Content-Transfer-Encoding")
    if not headers.get("content-type", "").isascii():
        raise bad_form("the Content-Type of a part is not ASCII")
    return Part(headers, _filename(_parameters(separator + parameters)))


def _filename(parameters: dict[str, str]) -> str | None:
    """Its last segment: some senders give the whole path. None for none, and for the empty one of a field that nobody has
    chosen a file for."""
    name = parameters.get("filename", "")
    for code, character in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n")):  # as browsers write them
        name = name.replace(code, character)
    charset, _, extended = parameters.get("filename*", "").partition("'")
    if charset.lower() == "utf-8":
        name = unquote(extended.partition("'")[2], errors="replace")
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name or None


def _parameters(text: str) -> dict[str, str]:
    """By their names in small letters. Failure 400."""
    found: dict[str, str] = {}
    at = 0
    size = len(text.rstrip(" \t"))
    while at < size:
        match = _PARAMETER.match(text, at)
        if match is None or (match[1] or "").lower() in found:
            raise bad_form("a parameter of a head cannot be read, or stands twice")
        if match[1] is not None:
            quoted = match[2]
            found[match[1].lower()] = match[3] if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        at = match.end()
    return found


def bad_form(why: str) -> Failure:
    return Failure(400, "bad_form", f"this form cannot be stored: {why}; nothing was stored")


def several_files() -> Failure:
    return bad_form("it has several files, and one is stored at a time (or send it with --data-binary @FILE)")
