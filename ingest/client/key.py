"""The shared key as a caller names it: its bytes or hex digits, several of them, or the file they are in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ingest import mac
from ingest.errors import KeyFileError, UsageError
from ingest.runtime.key_file import read_keys
from ingest.store.data_dir import DataDir

# 32 bytes, or their 64 hex digits; several of them, the first of which signs and all of which verify; or the path of a key
# file.
Key = bytes | str | Sequence[bytes | str] | Path

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_SECRET = re.compile(
    r"[0-9A-Fa-f]{32}|[0-9A-Za-z+/=_-]{43}"
)  # a part of a key in hex digits, or one in base64
_ONE = f"{mac.SHARED_KEY_SIZE} bytes, or {2 * mac.SHARED_KEY_SIZE} hex digits"


def shared_keys(key: Key) -> list[bytes]:
    """The keys, 32 bytes each, at least one. UsageError for what is none, KeyFileError for a file that is none, or is not
    there. What was given is in a message only if it can be no key: it could be one with a character too many."""
    if isinstance(key, Path):
        return _of_file(key)
    if isinstance(key, str):
        digits = _from_hex(key)
        if digits is not None:
            return [digits]
        if not os.path.lexists(key):
            raise KeyFileError(
                f"the key: neither {2 * mac.SHARED_KEY_SIZE} hex digits nor the path of a key file that is there "
                f"({_shown(key)})"
            )
        return _of_file(Path(key))
    keys = [_one(item) for item in ([bytes(key)] if isinstance(key, (bytes, bytearray, memoryview)) else key)]
    if not keys:
        raise UsageError("at least one shared key is needed")
    return keys


def _of_file(path: Path) -> list[bytes]:
    """A store's own key may have been given to its group, as a server takes it, too: `fsGroup` of Kubernetes."""
    return read_keys(path, own=DataDir.is_key_of_one(path))


def _shown(text: str) -> str:
    if "/" in text and not _SECRET.search(text):
        return repr(text)
    return f"{len(text)} characters, not shown because they could be a key: pass a pathlib.Path to see it"


def _one(item: bytes | str) -> bytes:
    if isinstance(item, str):
        found = _from_hex(item)
        if found is None:
            raise UsageError(f"a shared key has {_ONE}, not {len(item)} characters that are none")
        return found
    found = bytes(item)
    if len(found) == mac.SHARED_KEY_SIZE:
        return found
    digits = _from_hex(found.decode("latin-1"))
    if digits is None:
        raise UsageError(f"a shared key has {_ONE}, not {len(found)} bytes")
    return digits


def _from_hex(text: str) -> bytes | None:
    """The key whose hex digits ``text`` is, with or without blanks and a line's end around it."""
    digits = text.strip()
    if len(digits) != 2 * mac.SHARED_KEY_SIZE or not set(digits) <= _HEX_DIGITS:
        return None
    return bytes.fromhex(digits)
