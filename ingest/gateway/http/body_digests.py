"""What a client says of the bytes that it sends, and that it is true: RFC 9530, RFC 1864 (Content-MD5), RFC 3230 (Digest).

A wrong digest fails the upload with its last byte, so before a name points to anything else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any

from ingest.gateway.http.failures import Failure
from ingest.objects.body import Body

# By the names of RFC 9530, and of RFC 3230 in small letters. Others are passed over, as both say.
_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}
_FIELDS = ("Content-Digest", "Repr-Digest")
_IN_TRAILERS = {name.lower() for name in (*_FIELDS, "Digest", "Content-MD5")}
_MEMBER = re.compile(r"([a-z*][a-z0-9_.*-]*)[ \t]*=[ \t]*:([A-Za-z0-9+/=]*):")
_OLD_MEMBER = re.compile(r"([A-Za-z0-9-]+)=([^,]*)")

REPR_DIGEST = "Repr-Digest"


def digests_of(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """(algorithm, digest) of each that a request names, by the names of RFC 9530. Failure 400 for what cannot be one, 501
    for one that is to come behind the body: trailers are not read, and what is not compared must not pass for true."""
    for name in (one.strip(" \t") for one in headers.get("Trailer", "").split(",")):
        if name.lower() in _IN_TRAILERS:
            raise Failure(501, "trailer", f"trailers are not read: send {name} before the body")
    found: list[tuple[str, bytes]] = []
    for field in _FIELDS:
        if field in headers:
            found += [(name, _bytes(field, name, text)) for name, text in _members(field, headers[field])]
    if "Digest" in headers:
        for part in _parts(headers["Digest"]):
            match = _OLD_MEMBER.fullmatch(part)
            if match is None:
                raise _malformed("Digest")
            name = match[1].lower()
            if name in _ALGORITHMS:
                found.append((name, _bytes("Digest", name, match[2])))
    if "Content-MD5" in headers:
        found.append(("md5", _bytes("Content-MD5", "md5", headers["Content-MD5"].strip(" \t"))))
    return found


def _members(field: str, text: str) -> list[tuple[str, str]]:
    """Of a dictionary of byte sequences (RFC 9651): those whose algorithms are known."""
    found = []
    for part in _parts(text):
        match = _MEMBER.fullmatch(part)
        if match is None:
            raise _malformed(field)
        if match[1] in _ALGORITHMS:
            found.append((match[1], match[2]))
    return found


def _parts(text: str) -> list[str]:
    """Of a list. A pattern for the commas and the blanks around them takes the square of many blanks' time."""
    return [part.strip(" \t") for part in text.split(",")]


def _bytes(field: str, algorithm: str, text: str) -> bytes:
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed(field) from None
    if len(digest) != hashlib.new(_ALGORITHMS[algorithm], usedforsecurity=False).digest_size:
        raise Failure(400, "bad_digest", f"{field}: a {algorithm} does not have {len(digest)} bytes")
    return digest


def _malformed(field: str) -> Failure:
    return Failure(400, "bad_digest", f"{field} cannot be read as digests in base64")


def repr_digest(digests: list[tuple[str, bytes]]) -> str | None:
    """What comes back with the bytes as `Repr-Digest`, of those that were checked and are not known to be broken."""
    sound = {name: digest for name, digest in digests if name != "md5"}
    return ", ".join(f"{name}=:{base64.b64encode(sound[name]).decode()}:" for name in sorted(sound)) or None


class CheckedBody:
    """A body that has to have ``digests``. `fill` raises Failure 400 with its last byte when it does not."""

    def __init__(self, body: Body, digests: list[tuple[str, bytes]]) -> None:
        self._body = body
        self._expected = digests
        self._hashes: dict[str, Any] = {
            name: hashlib.new(_ALGORITHMS[name], usedforsecurity=False) for name, _ in digests
        }

    @property
    def ended(self) -> bool:
        return self._body.ended

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        size = await self._body.fill(buffer, patience)
        for hash_ in self._hashes.values():
            hash_.update(buffer[:size])
        if self._body.ended:
            self._check()
        return size

    def _check(self) -> None:
        for name, expected in self._expected:
            if not hmac.compare_digest(self._hashes[name].digest(), expected):
                raise Failure(
                    400,
                    "bad_digest",
                    f"the bytes have another {name} than their sender says: nothing was stored",
                )

    async def close(self) -> None:
        await self._body.close()
