"""Names and bytes are durable in the right order, whatever is done to files: made, renamed, repaired, thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from durable_commands import COMMANDS
from stores import Small, template

from faults import name_rules, strace
from faults.name_rules import END, LINK, MAKE, REMOVE, RENAME, SYNC, SYNC_ALL, USE, WRITE, NameRules, Step
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE

SIDES = ("-wal", "-shm", "-journal")  # of SQLite, which syncs them itself when it has to
SEALED = (
    "make_store",
    "make_store_with_a_log_elsewhere",
    "export_store",
)
Trace = tuple[Path, list[Step]]  # where the commands ran, and what they did
DAMAGED = (
    "header",
    "slot",
    "log",
    "segment header",
    "store.json",
    "log.json",
    "stray",
    "chunk",
    "chunk log",
    "chunk directories",
)


def losable(path: str) -> bool:
    name = path.rpartition("/")[2]
    return (
        name in ("lock", "catalog.lock") or name.endswith(SIDES) or ".scratch" in name or name.startswith("#")
    )


def is_a_copy(path: str) -> bool:
    return "/quarantine/" in f"{path}/" and not path.endswith("/staged")


def is_staged(path: str) -> bool:
    """An export is no store before its store.json is there."""
    return "/exports/" in path and path.endswith("/obj")


def seals(command: str, path: str) -> bool:
    """A new store is one when it has a store.json; a damaged log is needed until the packs hold what is in it."""
    return path.endswith("/store.json") if command in SEALED else path.endswith(".log")


def damage(store: Small, kind: str) -> None:
    log = sorted((store.path / ".ingest" / "wal").glob("*.log"))
    if kind == "header":
        store.patch("4/obj", 100, b"\xff" * 8)
    elif kind == "slot":
        store.patch("4/obj", PACK_HEADER_SIZE + 3 * FRAME_SIZE + 700, b"\xff" * 8)
    elif kind in ("log", "chunk log", "chunk directories"):
        if kind == "chunk directories":  # what the rest of the log has is written there again
            for path in sorted(path for path in store.path.rglob("obj") if path.is_file())[::2]:
                shutil.rmtree(path.parent)
        store.patch(log[0].relative_to(store.path), 4096 + 900, b"\xff" * 8)
    elif kind == "segment header":
        store.patch(log[0].relative_to(store.path), 8, b"\xff" * 8)
    elif kind in ("store.json", "log.json"):
        (path,) = (store.path / ".ingest").rglob(kind)
        path.write_text(path.read_text().replace('_id": "', '_id": "0'))
    elif kind == "stray":
        (store.path / "4" / "stray").mkdir()
        (store.path / "4" / "stray" / "file").write_bytes(b"whose?")
    else:
        path = next(
            path for path in sorted(store.path.rglob("obj")) if path.is_file() and path.stat().st_size
        )
        store.patch(path.relative_to(store.path), 1000, b"\xff" * 8)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """All commands, one after the other, in a process under strace: the directory of each is named for it."""
    if reason := strace.unusable():
        pytest.skip(reason)
    templates, root = tmp_path_factory.mktemp("templates"), tmp_path_factory.mktemp("commands")
    for name in COMMANDS:
        for kind in DAMAGED if name == "repair" else ("",):
            layout = "tree" if kind.startswith("chunk") else "pack"
            made = template(templates, "killed", layout)
            directory = root / f"{name} {kind}".strip()
            directory.mkdir()
            made.copy(directory / "store")
            if kind:
                damage(Small(directory / "store", made), kind)
    os.sync()
    there = {str(path) for path in root.rglob("*")}
    log = tmp_path_factory.mktemp("trace") / "strace.log"
    done = subprocess.run(
        [*strace.command(log, name_rules.NAMES), sys.executable, str(Path(__file__).with_name("durable_commands.py")), root],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with log.open() as lines:
        return root, list(name_rules.steps(strace.calls(lines), str(root), there))


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in COMMANDS if name not in ("repair", "start", "change_catalog")),
        *(f"repair {k}" for k in DAMAGED),
    ],
)
def test_nothing_is_built_on_what_a_power_cut_may_take(trace: Trace, name: str) -> None:
    root, found = trace
    home = f"{root}/{name}"
    ends = [at for at, step in enumerate(found) if step.kind == END]
    (end,) = (at for at in ends if found[at].path == name)
    start = max((at + 1 for at in ends if at < end), default=0)
    rules = NameRules(
        found[start : end + 1], home, losable, is_a_copy, lambda path: seals(name, path), is_staged
    )
    assert rules.losses == []
    assert rules.counts[END] == 1
    assert rules.counts.get(SYNC, 0) and sum(rules.counts.get(kind, 0) for kind in (MAKE, RENAME, LINK)), (
        found[start:end]
    )


def test_a_change_of_the_catalog_is_durable_when_it_is_through(trace: Trace) -> None:
    """Before anybody is told that it is. Its log counts, the memory that its readers share does not."""
    root, found = trace
    ends = [at for at, step in enumerate(found) if step.kind == END]
    (end,) = (at for at in ends if found[at].path == "change_catalog")
    start = max((at + 1 for at in ends if at < end), default=0)
    rules = NameRules(
        found[start : end + 1], f"{root}/change_catalog", lambda path: path.endswith(("-shm", "lock"))
    )
    assert rules.losses == []
    assert any(step.kind == WRITE and step.path.endswith("-wal") for step in found[start:end])


def test_a_start_makes_the_names_of_the_segments_durable_that_it_finds(trace: Trace) -> None:
    """Who made them may have died before he did."""
    root, found = trace
    wal = f"{root}/start/store/.ingest/wal"
    assert any(step.kind == WRITE and step.path.startswith(wal) for step in found), "it found no batch"
    assert any(step.kind == SYNC and step.path == wal for step in found)


# --- the rules


def sequence(*changes: tuple[str, ...]) -> list[Step]:
    """Steps one after the other, below /root."""
    return [
        Step(kind, f"/root/{path}".rstrip("/"), line, line, f"/root/{target[0]}" if target else "")
        for line, (kind, path, *target) in enumerate(changes)
    ]


GOOD: dict[str, list[tuple[str, ...]]] = {
    "replaced": [
        (MAKE, "file.new"), (WRITE, "file.new"), (SYNC, "file.new"), (RENAME, "file.new", "file"), (SYNC, ""), (END, "it"),
    ],
    "linked": [
        (MAKE, ".draft"), (WRITE, ".draft"), (SYNC, ".draft"), (LINK, ".draft", "key"), (REMOVE, ".draft"), (SYNC, ""),
        (END, "it"),
    ],
    "made below": [
        (MAKE, "a"), (SYNC, ""), (MAKE, "a/b"), (SYNC, "a"), (MAKE, "a/b/0000.log"), (WRITE, "a/b/0000.log"),
        (SYNC, "a/b/0000.log"), (SYNC, "a/b"), (USE, "a/b/0000.log"), (END, "it"),
    ],
    "found": [(SYNC, "a"), (SYNC, ""), (USE, "a/0000.log"), (END, "it")],
    "all at once": [
        (MAKE, "x"), (MAKE, "x/obj"), (WRITE, "x/obj"), (SYNC_ALL, ""), (USE, "x/obj"), (END, "it"),
    ],
    "repaired": [
        (MAKE, "copies/1"), (WRITE, "copies/1"), (SYNC, "copies/1"), (SYNC, "copies"), (WRITE, "pack"), (SYNC, "pack"),
        (END, "it"),
    ],
    "taken": [(MAKE, "copies"), (SYNC, ""), (RENAME, "stray", "copies/1"), (SYNC, "copies"), (SYNC, ""), (END, "it")],
    "sealed": [
        (MAKE, "x"), (WRITE, "x"), (SYNC, "x"), (SYNC, ""), (MAKE, "new"), (WRITE, "new"), (SYNC, "new"),
        (RENAME, "new", "seal"), (SYNC, ""), (END, "it"),
    ],
    "unsealed": [(SYNC_ALL, ""), (RENAME, "seal", "aside"), (SYNC, ""), (END, "it")],
    "thrown away": [(REMOVE, "file"), (SYNC, ""), (END, "it")],
    "never there": [(MAKE, "file"), (WRITE, "file"), (REMOVE, "file"), (END, "it")],
}  # fmt: skip


def losses(changes: list[tuple[str, ...]]) -> list[str]:
    return NameRules(
        sequence(*changes),
        "/root",
        losable=lambda path: path.endswith("lock"),
        copies=lambda path: "/copies/" in f"{path}/",
        seals=lambda path: path.endswith("seal"),
    ).losses


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_passes(name: str) -> None:
    assert losses(GOOD[name]) == []


@pytest.mark.parametrize(
    ("name", "at"),
    [(name, at) for name in GOOD for at, step in enumerate(GOOD[name]) if step[0] in (SYNC, SYNC_ALL)],
)
def test_no_sync_is_there_in_vain(name: str, at: int) -> None:
    """Without it, or before what it is for, or when it fails (it is not in the sequence then), a rule is broken."""
    changes = list(GOOD[name])
    sync = changes.pop(at)
    assert losses(changes), sync
    changes.insert(max(0, at - (2 if name == "linked" and at == 5 else 1)), sync)
    if name not in ("found",) and changes[at][0] not in (SYNC, SYNC_ALL):
        assert losses(changes), sync


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ([(MAKE, "d"), (SYNC, ""), (WRITE, "d/f"), (RENAME, "d", "e")], "/root/d becomes /root/e while its bytes"),
        ([(WRITE, "f"), (RENAME, "x", "seal")], "/root/x becomes /root/seal, and the bytes of /root/f are not durable"),
        ([(MAKE, "f"), (RENAME, "x", "seal")], "/root/x becomes /root/seal, and the name /root/f is not durable"),
        ([(SYNC, ""), (RENAME, "seal", "x")], "/root/seal becomes /root/x before a syncfs"),
        ([(WRITE, "f"), (LINK, "f", "g")], "/root/f becomes /root/g while its bytes"),
        ([(MAKE, "f"), (USE, "f")], "/root/f is built on while the name /root/f is not durable"),
        ([(USE, "a/f")], "/root/a/f is built on, and nobody synced /root/a"),
        ([(WRITE, "f"), (END, "it")], "/root/it ends, and the bytes of /root/f are not durable"),
        ([(REMOVE, "f"), (END, "it")], "/root/it ends, and the name /root/f is not durable"),
        ([(WRITE, "copies/1"), (WRITE, "f")], "/root/f changes before the copy /root/copies/1 is durable"),
        ([(MAKE, "copies/1"), (REMOVE, "f")], "/root/f changes before the copy /root/copies/1 is durable"),
        ([(RENAME, "f", "copies/1"), (WRITE, "g")], "/root/g changes before the copy /root/copies/1 is durable"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(changes: list[tuple[str, ...]], loss: str) -> None:
    assert any(found.partition(": ")[2].startswith(loss) for found in losses(changes)), losses(changes)


def test_what_may_be_lost_needs_no_sync() -> None:
    assert losses([(MAKE, "lock"), (WRITE, "lock"), (END, "it")]) == []


def test_a_sync_that_began_before_a_write_ended_is_none_of_it() -> None:
    write, sync = Step(WRITE, "/root/f", 0, 5), Step(SYNC, "/root/f", 2, 7)
    assert NameRules([write, sync, Step(END, "it", 9, 9)], "/root").losses
    rename = Step(RENAME, "/root/f", 6, 8, "/root/g")
    early = Step(WRITE, "/root/f", 0, 1)
    assert NameRules([early, sync, rename], "/root").losses, "it began before the sync was over"


def test_calls_become_steps() -> None:
    def hexed(text: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in text.encode())

    lines = [
        f'1 openat(AT_FDCWD<{hexed("/r")}>, "{hexed("a")}", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 3<{hexed("/r/a")}>',
        f'1 openat2(4<{hexed("/r/d")}>, "{hexed("b")}", {{flags=O_RDWR|O_CREAT, mode=0600}}, 24) = 5<{hexed("/r/d/b")}>',
        f'1 openat2(4<{hexed("/r/d")}>, "{hexed("b")}", {{flags=O_RDWR|O_CREAT, mode=0600}}, 24) = 5<{hexed("/r/d/b")}>',
        f'1 rename("{hexed("/r/a")}", "{hexed("/r/c")}") = 0',
        f'1 linkat(4<{hexed("/r/d")}>, "{hexed("b")}", 6<{hexed("/r")}>, "{hexed("e")}", 0) = 0',
        f'1 unlink("{hexed("/r/none")}") = -1 ENOENT (No such file or directory)',
        f'1 unlinkat(6<{hexed("/r")}>, "{hexed("e")}", 0) = 0',
        f'1 fsync(3<{hexed("/r/c")}>) = 0',
        f'1 fsync(3<{hexed("/r/c")}>) = -1 EIO (Input/output error)',
        f'1 write(3<{hexed("/r/c")}>, "{hexed("x")}", 1) = 1',
        f'1 write(3<{hexed("/elsewhere")}>, "{hexed("x")}", 1) = 1',
        f'1 pwrite64(3<{hexed("/r/0.log")}>, "{hexed("INGBATCH")}", 8, 4096) = 8',
        f'1 copy_file_range(3<{hexed("/r/c")}>, NULL, 8<{hexed("/r/f")}>, NULL, 9, 0) = 9',
        f'1 mkdir("{hexed("/marks/it")}", 0777) = -1 ENOENT (No such file or directory)',
    ]  # fmt: skip
    found = [
        (step.kind, step.path, step.target) for step in name_rules.steps(strace.calls(iter(lines)), "/r")
    ]
    assert found == [
        (MAKE, "/r/a", ""), (MAKE, "/r/d/b", ""), (RENAME, "/r/a", "/r/c"), (LINK, "/r/d/b", "/r/e"), (REMOVE, "/r/e", ""),
        (SYNC, "/r/c", ""), (WRITE, "/r/c", ""), (WRITE, "/r/0.log", ""), (USE, "/r/0.log", ""), (WRITE, "/r/f", ""),
        (END, "it", ""),
    ]  # fmt: skip
