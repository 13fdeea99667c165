"""The shared key as a caller names it: its bytes, several of them, or the file they are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ingest import mac
from ingest.errors import UsageError
from ingest.runtime.key_file import read_keys

# 32 bytes; several of them, the first of which signs and all of which verify; or the path of a key file.
Key = bytes | Sequence[bytes] | str | Path


def shared_keys(key: Key) -> list[bytes]:
    """The keys, 32 bytes each, at least one. UsageError for other sizes, KeyFileError for a file that is none."""
    if isinstance(key, (str, Path)):
        return read_keys(Path(key))
    keys = [bytes(key)] if isinstance(key, (bytes, bytearray, memoryview)) else [bytes(item) for item in key]
    for item in keys:
        if len(item) != mac.SHARED_KEY_SIZE:
            raise UsageError(f"a shared key has {mac.SHARED_KEY_SIZE} bytes, not {len(item)}")
    if not keys:
        raise UsageError("at least one shared key is needed")
    return keys
