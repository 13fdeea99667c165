"""What was given as the name of a file, and could be the secret itself: it is not repeated in messages."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ingest.limits import TOKEN_LENGTH_MIN

# Keys and tokens as people copy them: hex digits, perhaps in groups, or base64; private keys in PEM. An absolute path begins
# with a slash, and so does one base64 text of 64: a key's is known by its length.
_SECRET = re.compile(r"(?!/)[0-9A-Za-z+/=_~:. -]{32,}|[0-9A-Za-z+/]{43}=|.*(\n|-----BEGIN ).*", re.DOTALL)
# A token may be that short. Names of files of that length mostly have a dot, or a slash before them.
_TOKEN = re.compile(rf"[0-9A-Za-z_~+-]{{{TOKEN_LENGTH_MIN},}}=*")
_DIGITS = re.compile(
    r"(?<![0-9A-Za-z])[0-9A-Fa-f]{64}(?![0-9A-Za-z/])"
)  # a key's; but no directory on the way
_KEY = re.compile(r"[0-9A-Fa-f]{32,}|[0-9A-Za-z+_-]{43}=")


def without_keys(message: str) -> str:
    """A message about what was given, without 64 hex digits: a key that was given in the place of something else."""
    return _DIGITS.sub("(64 hex digits, not shown because they could be a key)", message)


def shown(path: str | Path) -> str:
    """``path`` for a message. Of text that could be a secret, and is no file that is there, only how long it is."""
    text = str(path)
    name = text.rpartition("/")[2]  # somebody may have made an absolute path of it
    stripped = text.strip()
    could_be = _SECRET.fullmatch(stripped) or _TOKEN.fullmatch(stripped) or _KEY.fullmatch(name)
    if not could_be or os.path.lexists(text):
        return text
    return (
        f"({len(text)} characters, not shown because they could be a secret: the path of a file is expected)"
    )
