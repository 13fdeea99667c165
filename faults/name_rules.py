"""What a power cut leaves of files and their names, as the calls of a program say, held against rules for all of them.

A file's bytes are durable when a sync of it began after they were written. A name is when a sync of its directory began
after it was made, given or taken away; a syncfs does both. Then

    bytes       a file is renamed or linked only when its bytes are durable
    names       who builds on a file (`USE`) does so when its name, and those of the directories above it, are durable; also
                names that were there before: who made them may have died
    end         a program that ends well leaves nothing behind that is not durable
    seals       a name that says "all of this is whole" is given when all of it is durable; one that says "not all of it is"
                is taken away then, and behind a syncfs: what others wrote before may be in the page cache
    copies      what a repair keeps of a file is durable, with its name, before anything outside of the copies changes

The rules know nothing of what the files are for: `losable` says which of them a power cut may take, `late` which get
their name before they are durable, because nobody looks at them before a seal is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from faults.strace import Call

NAMES = (
    "openat,openat2,open,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,write,pwrite64,writev,"
    "pwritev,ftruncate,fallocate,copy_file_range,sendfile,fsetxattr,fremovexattr,fsync,fdatasync,syncfs,sync"
)
MAKE, WRITE, RENAME, LINK, REMOVE = "make", "write", "rename", "link", "remove"
SYNC, SYNC_ALL, USE, END = "sync", "sync_all", "use", "end"
MARK = (
    "/marks"  # no such directory is there: who tries to make one in it says something to whom reads the trace
)

_WRITES = (
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "ftruncate",
    "fallocate",
    "sendfile",
    "fsetxattr",
    "fremovexattr",
)
_DESCRIPTOR = r"(?:\d+|AT_FDCWD)<([^>]*)>"
_PLACE = re.compile(rf'(?:{_DESCRIPTOR}, )?"((?:\\x[0-9a-f]{{2}})*)"')
_TARGET = re.compile(rf"^{_DESCRIPTOR}, [^,]+, {_DESCRIPTOR}")


@dataclass(frozen=True)
class Step:
    """One change of the file system, or something that rests on one. `path` is absolute; `target` of RENAME and LINK is what
    the file is called then. `began` and `ended` say what came before what. END ends what the path says."""

    kind: str
    path: str
    began: int
    ended: int
    target: str = ""


def _text(printed: str) -> str:
    return bytes.fromhex(printed.replace("\\x", "")).decode("utf-8", "surrogateescape")


def places(arguments: str) -> list[str]:
    """The absolute paths that a call names, in their order; a relative one is below its descriptor, or its directory."""
    found = []
    for directory, name in _PLACE.findall(arguments):
        base = _text(directory) if directory.startswith("\\x") else directory
        found.append(str(PurePosixPath(base or "/", _text(name))))
    return found


def steps(calls: Iterable[Call], root: str, there: Iterable[str] = ()) -> Iterator[Step]:
    """What calls that succeeded did below ``root``, and the marks (END). What is opened with O_CREAT is made then, unless it
    is one of ``there`` or was opened so before."""
    seen = set(there)
    for call in calls:
        if (
            call.name in ("mkdir", "mkdirat")
            and (marks := places(call.arguments))
            and marks[-1].startswith(MARK)
        ):
            yield Step(END, PurePosixPath(marks[-1]).name, call.began, call.ended)
        if call.result < 0:
            continue
        for kind, path, target in _changes(call, seen):
            if kind == SYNC_ALL or path.startswith(root) or target.startswith(root):
                yield Step(kind, path, call.began, call.ended, target)


def _changes(call: Call, seen: set[str]) -> Iterator[tuple[str, str, str]]:
    name, arguments = call.name, call.arguments
    if name in ("open", "openat", "openat2"):
        (path, *_) = places(arguments)
        if "O_CREAT" in arguments and path not in seen:
            seen.add(path)
            yield MAKE, path, ""
        if "O_TRUNC" in arguments:
            yield WRITE, path, ""
    elif name in ("mkdir", "mkdirat"):
        yield MAKE, places(arguments)[0], ""
    elif name.startswith(("rename", "link")):
        source, target = places(arguments)[:2]
        seen.add(target)
        if name.startswith("rename"):
            seen.discard(source)
        yield (RENAME if name.startswith("rename") else LINK), source, target
    elif name in ("unlink", "unlinkat", "rmdir"):
        path = places(arguments)[0]
        seen.discard(path)
        yield REMOVE, path, ""
    elif name in ("fsync", "fdatasync"):
        yield SYNC, call.path, ""
    elif name in ("syncfs", "sync"):
        yield SYNC_ALL, call.path, ""
    elif name == "copy_file_range":
        match = _TARGET.match(arguments)
        if match:
            yield WRITE, _text(match[2]), ""
    elif name in _WRITES:
        yield WRITE, call.path, ""
        if name == "pwrite64" and call.data.startswith(b"INGBATCH"):
            yield USE, call.path, ""


class NameRules:
    """Holds steps against the rules. ``losses`` are what broke them, ``counts`` how many of each kind were looked at."""

    def __init__(
        self,
        found: Iterable[Step],
        root: str,
        losable: Callable[[str], bool] = lambda path: False,
        copies: Callable[[str], bool] = lambda path: False,
        seals: Callable[[str], bool] = lambda path: False,
        late: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self.root = root.rstrip("/")
        self.losable = losable
        self.copies = copies
        self.seals = seals
        self.late = late
        self.losses: list[str] = []
        self.counts: dict[str, int] = {}
        self._bytes: dict[str, int] = {}  # path: where the last write ended that no sync covers
        self._names: dict[tuple[str, str], int] = {}  # (directory, name): the same of its last change
        self._synced: dict[str, int] = {}  # directory: where the last sync of it ended
        order = [(step.began, 0, step) for step in found]
        order += [(step.ended, 1, step) for _, _, step in order]
        for _, effect, step in sorted(order, key=lambda entry: entry[:2]):
            (self._take if effect else self._judge)(step)

    def lose(self, step: Step, text: str) -> None:
        self.losses.append(f"line {step.began + 1}: {text}")

    # --- what must be true when a step begins

    def _judge(self, step: Step) -> None:
        self.counts[step.kind] = self.counts.get(step.kind, 0) + 1
        if step.kind in (RENAME, LINK):
            self._judge_bytes(step)
            if self.seals(step.target) or self.seals(step.path):
                self._judge_rest(step, f"{step.path} becomes {step.target}", step.path)
            if self.seals(step.path) and not self._all_synced:
                self.lose(step, f"{step.path} becomes {step.target} before a syncfs")
        if step.kind in (WRITE, RENAME, LINK, REMOVE):
            self._judge_copies(step)
        if step.kind == USE:
            self._judge_names(step)
        if step.kind == END:
            self._judge_rest(step, f"{step.path} ends")

    def _judge_bytes(self, step: Step) -> None:
        for path in self._bytes:
            if _is_in(path, step.path) and not self.losable(step.target) and not self.late(step.target):
                self.lose(step, f"{step.path} becomes {step.target} while its bytes are not durable")

    def _judge_copies(self, step: Step) -> None:
        if self.copies(step.path) and self.copies(step.target or step.path):
            return
        kept = [path for path in self._bytes if self.copies(path)]
        kept += [f"{at}/{name}" for at, name in self._names if self.copies(f"{at}/{name}")]
        for path in kept:
            if path != step.path:
                self.lose(step, f"{step.target or step.path} changes before the copy {path} is durable")

    def _judge_names(self, step: Step) -> None:
        path = step.path
        while path != self.root and path.startswith(self.root):
            directory, _, name = path.rpartition("/")
            if (directory, name) in self._names:
                self.lose(step, f"{step.path} is built on while the name {path} is not durable")
            elif directory not in self._synced and not self._all_synced:
                self.lose(step, f"{step.path} is built on, and nobody synced {directory}")
            path = directory

    @property
    def _all_synced(self) -> bool:
        return "" in self._synced

    def _judge_rest(self, step: Step, what: str, but: str = "") -> None:
        for path in self._bytes:
            if not self.losable(path):
                self.lose(step, f"{what}, and the bytes of {path} are not durable")
        for directory, name in self._names:
            path = f"{directory}/{name}"
            if path != but and not self.losable(path):
                self.lose(step, f"{what}, and the name {path} is not durable")

    # --- what is true when it has ended

    def _take(self, step: Step) -> None:
        if step.kind == WRITE:
            self._bytes[step.path] = step.ended
        elif step.kind == MAKE:
            self._change_name(step.path, step.ended)
        elif step.kind == LINK:
            self._change_name(step.target, step.ended)
        elif step.kind == RENAME:
            self._move(step)
        elif step.kind == REMOVE:
            self._bytes.pop(step.path, None)
            self._remove_name(step.path, step.ended)
        elif step.kind == SYNC:
            self._synced[step.path] = step.ended
            if self._bytes.get(step.path, step.began) < step.began:
                del self._bytes[step.path]
            self._names = {
                key: line for key, line in self._names.items() if key[0] != step.path or line > step.began
            }
        elif step.kind == SYNC_ALL:
            self._synced[""] = step.ended
            self._bytes = {path: line for path, line in self._bytes.items() if line > step.began}
            self._names = {key: line for key, line in self._names.items() if line > step.began}
        elif step.kind == END:
            self._bytes.clear()
            self._names.clear()

    def _change_name(self, path: str, line: int) -> None:
        directory, _, name = path.rpartition("/")
        self._names[directory, name] = line

    def _remove_name(self, path: str, line: int) -> None:
        """One that never was durable leaves nothing behind."""
        directory, _, name = path.rpartition("/")
        if self._names.pop((directory, name), None) is None:
            self._names[directory, name] = line

    def _move(self, step: Step) -> None:
        for path in [path for path in self._bytes if _is_in(path, step.path)]:
            self._bytes[step.target + path[len(step.path) :]] = self._bytes.pop(path)
        for key in [key for key in self._names if _is_in(key[0], step.path)]:
            self._names[step.target + key[0][len(step.path) :], key[1]] = self._names.pop(key)
        self._remove_name(step.path, step.ended)
        self._change_name(step.target, step.ended)


def _is_in(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}/")
