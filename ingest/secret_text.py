"""What was given as the name of a file, and could be the secret itself: it is not repeated in messages."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Keys and tokens as people copy them: hex digits, perhaps in groups, or base64; private keys in PEM. An absolute path begins
# with a slash, and so does one base64 text of 64: a key's is known by its length.
_SECRET = re.compile(r"(?!/)[0-9A-Za-z+/=_~:. -]{32,}|[0-9A-Za-z+/]{43}=|.*(\n|-----BEGIN ).*", re.DOTALL)
_KEY = re.compile(r"[0-9A-Fa-f]{32,}|[0-9A-Za-z+_-]{43}=")


def shown(path: str | Path) -> str:
    """``path`` for a message. Of text that could be a secret, and is no file that is there, only how long it is."""
    text = str(path)
    name = text.rpartition("/")[2]  # somebody may have made an absolute path of it
    if not (_SECRET.fullmatch(text.strip()) or _KEY.fullmatch(name)) or os.path.lexists(text):
        return text
    return (
        f"({len(text)} characters, not shown because they could be a secret: the path of a file is expected)"
    )
