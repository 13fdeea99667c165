"""Bearer tokens, and the file that they stand in.

One token a line, behind what it is good for; blank lines and lines that begin with # are skipped:

    # of the backup, and of the web shop
    read-only  Zk3vB8qYw1LxN5tR
    read-write mJ7cQ2hXs9DfW4pK

A token has 16 to 512 characters of A-Z a-z 0-9 - . _ ~ + / =, as HTTP wants them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from ingest.errors import KeyFileError
from ingest.limits import TOKEN_FILE_SIZE_MAX, TOKEN_LENGTH_MAX, TOKEN_LENGTH_MIN
from ingest.runtime.secret_mode import openness
from ingest.secret_text import shown

_TOKEN = re.compile(rf"[A-Za-z0-9._~+/-]{{1,{TOKEN_LENGTH_MAX}}}=*")
_RIGHTS = {"read-only": False, "read-write": True}


@dataclass(frozen=True)
class Tokens:
    """SHA-256 of each token, and whether it may change anything."""

    rights: tuple[tuple[bytes, bool], ...]

    def find(self, token: str) -> bool | None:
        """Whether ``token`` may change things; None: it is none. Takes the same time whatever it is."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found: bool | None = None
        for known, changes in self.rights:
            if hmac.compare_digest(known, digest):
                found = changes
        return found


def read_tokens(path: Path) -> Tokens:
    """KeyFileError when the file is missing, no regular file, open to others, malformed, or has no token."""
    return parse_tokens(_read(path), f"token file {path}")


def read_token(path: Path) -> str:
    """Of a client: the one token in a file like that, with or without what it is good for. KeyFileError."""
    lines = [line.split() for line in _read(path).decode("latin-1").splitlines()]
    found = [words for words in lines if words and not words[0].startswith("#")]
    if len(found) != 1:
        raise KeyFileError(f"token file {path}: {len(found)} tokens, one is needed")
    words = found[0][1:] if found[0][0] in _RIGHTS else found[0]
    return check_token(" ".join(words), f"token file {path}")


def check_token(text: str, source: str) -> str:
    """``text``, if it could be a token. KeyFileError, which never says what it is."""
    if not _TOKEN.fullmatch(text):
        raise KeyFileError(f"{source}: a token has characters of A-Z a-z 0-9 - . _ ~ + / and = at its end")
    return text


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"token file {path}: not a regular file")
            open_to = openness(status, fd)
            if open_to is not None:
                raise KeyFileError(f"token file {path}: {open_to}: chmod 600 {path}")
            content = file.read(TOKEN_FILE_SIZE_MAX + 1)
    except OSError as error:
        raise KeyFileError(f"token file {shown(path)}: {error.strerror}") from None
    if len(content) > TOKEN_FILE_SIZE_MAX:
        raise KeyFileError(f"token file {path}: more than {TOKEN_FILE_SIZE_MAX} bytes")
    return content


def parse_tokens(content: bytes, source: str) -> Tokens:
    """From what stands in the file. KeyFileError, which names ``source`` and the line, and never what stands there."""
    rights: dict[bytes, bool] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        words = line.decode("latin-1").split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] not in _RIGHTS or not _TOKEN.fullmatch(words[1]):
            raise KeyFileError(f"{source}, line {number}: expected `read-only TOKEN` or `read-write TOKEN`")
        if not TOKEN_LENGTH_MIN <= len(words[1]) <= TOKEN_LENGTH_MAX:
            raise KeyFileError(
                f"{source}, line {number}: a token of {len(words[1])} characters: "
                f"{TOKEN_LENGTH_MIN} to {TOKEN_LENGTH_MAX} are possible"
            )
        digest = hashlib.sha256(words[1].encode()).digest()
        if digest in rights:
            raise KeyFileError(f"{source}, line {number}: this token stands there twice")
        rights[digest] = _RIGHTS[words[0]]
    if not rights:
        raise KeyFileError(f"{source}: there is no token in it")
    return Tokens(tuple(rights.items()))
