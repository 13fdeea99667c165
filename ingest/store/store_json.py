"""store.json: what a store is, and the check by which damage of it shows. `docs/format.md`, "The data directory".

Nothing else in a store of layout tree names the store's id: a bit that flips there would make it another store.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from blake3 import blake3

from ingest.errors import StoreFormatError
from ingest.runtime.durable_files import replacing

FORMAT_VERSION = 1
CHECK = "check"
MEMBERS = {"format", "layout", "store_id", "log_id", "keys"}
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_HEX_KEY_ID = re.compile(r"[0-9a-f]{16}")


def store_check(record: dict[str, Any]) -> str:
    """16 hex digits: the first 8 bytes of BLAKE3 over the other members, by name, as JSON without white space in ASCII."""
    others = {name: value for name, value in record.items() if name != CHECK}
    return blake3(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest(8)


def read_store_json(path: Path) -> dict[str, Any]:
    """store.json, checked. Raises StoreFormatError that names the file, what is wrong and what the operator can do."""
    record, damage = load_store_json(path)
    if record is None or damage:
        raise StoreFormatError(
            f"{path}: {damage}; `ingest fsck --repair {path.parent.parent}` writes it again from what the packs, the log "
            "and the key file say"
        )
    return record


def load_store_json(path: Path) -> tuple[dict[str, Any] | None, str]:
    """store.json and what is wrong with it (empty: nothing). None when not even its members have the form they should
    have; members of a damaged one are no more than hints.

    Raises StoreFormatError for a format version that this program does not know. One that the check shows to be decay
    is damage.
    """
    try:
        record = json.loads(path.read_bytes())
        version = record["format"]
        check = store_check(record)
        decayed = record.get(CHECK) == store_check(record | {"format": FORMAT_VERSION})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return None, f"is not readable as a store's description: {error}"
    damage = ""
    if type(version) is not int or version != FORMAT_VERSION:
        if not decayed:
            raise StoreFormatError(f"{path}: format version {version!r}; this program knows {FORMAT_VERSION}")
        damage = f"says format version {version!r}, and its check that this was {FORMAT_VERSION}"
        record["format"] = FORMAT_VERSION
    elif not _well_formed(record):
        return None, "expected layout, store_id, log_id (32 hex digits) and keys (16 hex digits each)"
    elif CHECK in record and record[CHECK] != check:
        damage = "its check does not fit its other members"
    elif CHECK not in record and (unknown := record.keys() - MEMBERS):
        # Taken, a bit that flips in the name of the check would take the check away.
        damage = f"has no check, and a member {min(unknown)!r} that is not known"
    return (record if _well_formed(record) else None), damage


def write_store_json(path: Path, record: dict[str, Any]) -> None:
    """Replaces it, durably, with the check that fits."""
    others = {name: value for name, value in record.items() if name != CHECK}
    write_json(path, others | {CHECK: store_check(others)})


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replaces a small file, durably: whole new or whole old."""
    with replacing(path) as fd:
        data = memoryview(json.dumps(record, indent=2).encode() + b"\n")
        while data:
            data = data[os.write(fd, data) :]


def is_id(value: object) -> bool:
    """Whether it is a store's or a log's id: 32 hex digits."""
    return isinstance(value, str) and _HEX_ID.fullmatch(value) is not None


def _well_formed(record: dict[str, Any]) -> bool:
    keys = record.get("keys")
    return (
        isinstance(record.get("layout"), str)
        and is_id(record.get("store_id"))
        and is_id(record.get("log_id"))
        and isinstance(keys, list)
        and all(isinstance(key, str) and _HEX_KEY_ID.fullmatch(key) for key in keys)
    )
