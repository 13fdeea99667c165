"""Whose store this is: store.json, the log's id and the keys, each held against the others, and what they would have to be.

store.json can be lost: the store id stands in every pack, the log id in the log, and the key file has the keys. In
layout tree the store id stands nowhere else: one that is damaged stays as it is found, one that is lost is drawn anew.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ingest.errors import ConfigError, CorruptionError, KeyFileError
from ingest.limits import DATA_SIZE
from ingest.mac import KeyRing, SubKeys
from ingest.runtime.key_file import read_keys
from ingest.store.check.findings import Problem
from ingest.store.check.log_survey import segment_log_ids
from ingest.store.check.quarantine import attributes_of
from ingest.store.check.walk import DEPTHS, is_object
from ingest.store.data_dir import LOG_ID_FILE, META, DataDir
from ingest.store.layouts.pack_file import MAGIC, SECTOR_SIZE, PackHeader
from ingest.store.layouts.tree_file import CHECKSUM, DELETED
from ingest.store.store_json import CHECK, FORMAT_VERSION, MEMBERS, load_store_json

HEADERS_ASKED = 256  # packs that are asked for the store's id: enough to know whose they are

STORE_JSON = f"{META}/store.json"


@dataclass
class Identity:
    """What the store is, as far as that can be known. ``record`` is what store.json should hold.

    ``keys``: of the key file, empty when there is none to be had. ``missing``: identifiers in store.json whose keys
    are not in the key file; as long as any is, a frame that fails its checksum may be one of theirs.
    ``write_record``, ``write_log_id``: what is to be written by a repair.
    """

    data_dir: Path
    wal_dir: Path
    record: dict[str, Any]
    keys: tuple[SubKeys, ...] = ()
    key_problem: str = ""
    missing: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    write_record: bool = False
    write_log_id: bool = False

    @property
    def unchecked(self) -> bool:
        """Whether store.json was made before it had a check, by which damage of it would show."""
        return not self.write_record and CHECK not in self.record

    @property
    def store_id(self) -> bytes:
        return bytes.fromhex(self.record["store_id"])

    @property
    def log_id(self) -> bytes:
        return bytes.fromhex(self.record["log_id"])

    @property
    def layout(self) -> str:
        return str(self.record["layout"])

    def mend_record(self, detail: str) -> None:
        """One problem, however many of its members are wrong."""
        if self.write_record:
            self.problems[0].detail += f"; {detail}"
            return
        self.write_record = True
        repair = "written again from the packs, the log and the key file"
        self.problems.insert(0, Problem("store_json", STORE_JSON, detail, repair))


def identify(data_dir: Path, wal_dir: Path | None = None, key_file: Path | None = None) -> Identity:
    """Reads and compares. ConfigError when this is no store, when its log is elsewhere, or when a key file was named that
    cannot be used; StoreFormatError for a format version that this program does not know."""
    meta = DataDir(data_dir).meta
    wal = wal_dir if wal_dir is not None else meta / "wal"
    if not meta.is_dir() or meta.is_symlink():
        raise ConfigError(f"{data_dir} is not a store: there is no directory {META} in it")
    record, damage = _read_record(meta / "store.json")
    identity = Identity(data_dir, wal, record or {})
    _read_key_file(identity, key_file)
    if record is None:
        identity.record = {
            "format": FORMAT_VERSION,
            "layout": _guess_layout(data_dir),
            "store_id": "",
            "log_id": "",
            "keys": [keys.id for keys in identity.keys],
        }
        identity.mend_record(damage)
    else:
        if damage:
            identity.record = {name: value for name, value in record.items() if name in MEMBERS}
            identity.mend_record(damage)
        if damage or identity.layout not in DEPTHS:
            _judge_layout(identity)
    _judge_store_id(identity)
    _judge_log_id(identity)
    identity.missing = [
        key for key in identity.record["keys"] if key not in {keys.id for keys in identity.keys}
    ]
    return identity


def _read_record(path: Path) -> tuple[dict[str, Any] | None, str]:
    """store.json, and what is wrong with it; None when nothing of it can be used."""
    if path.is_symlink() or not path.is_file():
        others = [child for child in path.parent.iterdir() if child.name not in ("lock", "quarantine")]
        if not others and not any(path.parent.parent.rglob("obj")):
            raise ConfigError(f"{path.parent.parent} is not a store: there is no {STORE_JSON} in it")
        return None, "is missing"
    return load_store_json(path)


def _read_key_file(identity: Identity, key_file: Path | None) -> None:
    made = DataDir(identity.data_dir).key
    path = key_file if key_file is not None else made
    try:
        identity.keys = KeyRing(read_keys(path, data_dir=identity.data_dir, own=path == made)).all
    except KeyFileError as error:
        if key_file is not None:
            raise
        identity.key_problem = str(error)


def _guess_layout(data_dir: Path, said: str = "pack") -> str:
    """From the first files that are found: each says what it is, a chunk by its attributes (its bytes are its client's, who
    may have put there what begins as a pack), a pack by its magic, unless it is as long as a chunk: a death may have kept
    the attributes of one. Where none does, from what only chunks are.
    ``said``: when there is none of those either.
    """
    hint = said
    for path, inside in islice(_objects(data_dir, sorted(data_dir.rglob("obj"))), HEADERS_ASKED):
        if attributes_of(path).keys() & {CHECKSUM, DELETED}:
            return "tree"
        # An empty file is in either layout what a crash may leave.
        if not is_object(inside, "pack") or path.stat().st_size == DATA_SIZE:
            hint = "tree"
            continue
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return "pack"
    return hint


def _objects(data_dir: Path, paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Those that may be packs or chunks: where each is, and its path from ``data_dir`` on."""
    for path in paths:
        inside = str(path.relative_to(data_dir))
        if not inside.startswith(META) and not path.is_symlink() and path.is_file():
            yield path, inside


def _judge_layout(identity: Identity) -> None:
    said = identity.layout
    layout = _guess_layout(identity.data_dir, said if said in DEPTHS else "pack")
    if layout != said:
        identity.mend_record(f"says layout {said!r}; the files are those of layout {layout!r}")
        identity.record["layout"] = layout


def _judge_store_id(identity: Identity) -> None:
    """Every pack says whose it is: where none says what store.json does, it is store.json that is wrong."""
    ids = Counter(_pack_store_ids(identity.data_dir)) if identity.layout == "pack" else Counter()
    own = identity.record["store_id"]
    if not ids:
        identity.record["store_id"] = own or secrets.token_hex(16)
        return
    (most, count), *_ = ids.most_common(1)
    if own in ids or (own and count < 2 and len(ids) > 1):
        return
    if own:
        identity.mend_record(f"names the store {own}, but every pack is one of {most}")
    identity.record["store_id"] = most


def _pack_store_ids(data_dir: Path) -> Iterator[str]:
    packs = (path for path, inside in _objects(data_dir, data_dir.rglob("obj")) if is_object(inside, "pack"))
    for path in islice(packs, HEADERS_ASKED):
        try:
            with path.open("rb") as file:
                yield PackHeader.parse(file.read(SECTOR_SIZE)).store_id.hex()
        except CorruptionError:
            continue


def _judge_log_id(identity: Identity) -> None:
    """store.json, log.json and the segments name one id. Two of three are believed; the log's directory must be the
    right one."""
    wal, own = identity.wal_dir, identity.record["log_id"]
    in_segments = Counter(log_id.hex() for log_id in segment_log_ids(wal)) if wal.is_dir() else Counter()
    inside = DataDir(identity.data_dir).wal
    default_place = wal == inside or (wal.exists() and inside.exists() and os.path.samefile(wal, inside))
    # A link inside a store is moved away, see `walk`: what it leads to is not believed, or nobody would write it again.
    in_file = None if default_place and (wal / LOG_ID_FILE).is_symlink() else _log_json(wal)
    written = in_file.get("log_id") if in_file else None
    if not in_segments and written is None and not os.path.lexists(wal / LOG_ID_FILE):
        if own:
            raise ConfigError(
                f"the log of {identity.data_dir} is not in {wal}: name the --wal-dir that it was made with"
            )
        raise ConfigError(
            f"{identity.data_dir}: store.json is lost, and no log is in {wal}: name the --wal-dir"
        )
    belongs = default_place or (in_file or {}).get("made_for") == str(identity.data_dir.resolve())
    most = in_segments.most_common(1)[0][0] if in_segments else ""
    believed = own
    if own and own not in in_segments and own != written:
        if not belongs:
            raise ConfigError(
                f"{wal} holds the log of another store: name the --wal-dir that {identity.data_dir} was made with"
            )
        believed = most or own
        if believed != own:
            identity.mend_record(f"names the log {own}, but the log in {wal} is {believed}")
    elif not own:
        if not belongs:
            _refuse_log_of(identity, (in_file or {}).get("made_for"))
        believed = most or written or secrets.token_hex(16)
    identity.record["log_id"] = believed
    if written != believed:
        identity.write_log_id = True
        detail = "is not readable as the log's description" if written is None else f"names the log {written}"
        where = f"{META}/wal/{LOG_ID_FILE}" if default_place else str(wal / LOG_ID_FILE)
        identity.problems.append(
            Problem("log_json", where, detail, f"written again with the log id {believed}")
        )


def _refuse_log_of(identity: Identity, made_for: object) -> None:
    """ConfigError when there is another store where the log says that it was made for one: a store that can't say what its
    own log is would go on with that one's. Where there is none any more, or one that has another log, this one may be
    it, and have moved."""
    if not isinstance(made_for, str) or not os.path.isdir(DataDir(Path(made_for)).meta):
        return
    if os.path.samefile(made_for, identity.data_dir):
        return
    wal = identity.wal_dir
    theirs, damage = load_store_json(DataDir(Path(made_for)).store_json)
    found = {log_id.hex() for log_id in segment_log_ids(wal)}
    if found and theirs is not None and not damage and theirs["log_id"] not in found:
        return
    here = json.dumps(str(identity.data_dir.resolve()))
    raise ConfigError(
        f"{wal} holds the log of {made_for}: name the --wal-dir that {identity.data_dir} was made with. If both are copies,"
        f" of that store and of its log, write {here} as made_for into {wal / LOG_ID_FILE}"
    )


def _log_json(wal: Path) -> dict[str, Any] | None:
    path = wal / LOG_ID_FILE
    if not path.is_file():  # a FIFO there would hold whoever reads it
        return None
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    ok = isinstance(record, dict) and isinstance(record.get("log_id"), str)
    return (
        record
        if ok and len(record["log_id"]) == 32 and set(record["log_id"]) <= set("0123456789abcdef")
        else None
    )
