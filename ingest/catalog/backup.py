"""A copy of a live catalog, while everybody goes on with it."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from ingest.catalog.database import BESIDE, OUTDATED, Database, explained
from ingest.catalog.schema import FORMAT
from ingest.errors import DiskError, UsageError
from ingest.runtime.durable_files import open_new, rename_durably, sync_directory
from ingest.store.check.findings import Progress, no_progress
from ingest.store.space import explain

# What processes had under way belongs to nobody in a copy, and must not become garbage when it is put back: they may have
# finished it after the copy was made, and then it holds objects that only a rebuild knows.
STILL = """
DELETE FROM leases WHERE owner IS NOT NULL;
DELETE FROM pins;
DELETE FROM owners;
UPDATE versions SET state = 2, owner = NULL, ended = created, reason = 'was under way when the catalog was copied'
    WHERE state = 0;
"""
STEP_PAGES = 4096  # 16 MiB between two calls of ``progress``


def backup(source: Path, target: Path, progress: Progress = no_progress) -> int:
    """Copies the catalog ``source`` to ``target``, which is replaced whole or not at all, and durable. Returns its bytes.

    The copy is what the catalog was when it began: one snapshot, however much is changed meanwhile. It tells of
    versions whose chunks the collector may have deleted since; and a catalog that is put back from it gives tickets
    again that are in use: `ingest catalog rebuild` is the better way when the packs are there. What was under way is
    nobody's in the copy: its tickets are lost, and never deleted. UsageError, also when somebody has ``target`` open,
    CatalogError, DiskError.
    """
    if not source.exists():
        raise UsageError(f"{source}: there is no catalog")
    if target.is_dir():
        raise UsageError(f"{target} is a directory: name a file in it")
    if target.exists() and os.path.samefile(source, target):
        raise UsageError(f"{target} is the catalog itself")
    temporary = target.with_name(f"{target.name}.new")
    live = Database(source, (*OUTDATED, FORMAT))  # the copy has the format of its source
    try:
        temporary.unlink(missing_ok=True)
        fd = open_new(temporary)
        try:
            _copy(live, temporary, progress)
            os.fsync(fd)
            size = os.fstat(fd).st_size
            _fold(target)
            sync_directory(target.parent)  # else a power cut may leave the copy beside the log of another one
        except BaseException:
            temporary.unlink()
            raise
        finally:
            os.close(fd)
        rename_durably(temporary, target)
    except OSError as error:
        raise DiskError(explain(error, target.parent)) from error
    finally:
        live.close()
    return size


def _copy(live: Database, target: Path, progress: Progress) -> None:
    copy = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        live.run("BEGIN")  # one snapshot: SQLite would begin anew with each change that another process makes
        live.row("SELECT * FROM counters")
        with copy.backup("main", live.connection, "main") as pages:
            while not pages.done:
                pages.step(STEP_PAGES)
                progress("copying", pages.page_count - pages.remaining, pages.page_count)
        copy.execute(STILL)
    except apsw.Error as error:
        raise explained(error, target) from error
    finally:
        if live.in_transaction:
            live.run("ROLLBACK")
        copy.close()


def _fold(target: Path) -> None:
    """What SQLite has beside one of before becomes a part of that: it would be taken for the log of what comes there."""
    beside = [Path(f"{target}{side}") for side in (*BESIDE, "-journal")]
    if not target.exists():
        for path in beside:
            path.unlink(missing_ok=True)
    if not any(path.exists() for path in beside):
        return
    try:
        old = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            old.pragma("user_version")
        finally:
            old.close()  # who closes it last takes its log away
    except apsw.NotADBError:
        pass  # it has no log
    except apsw.Error as error:
        raise explained(error, target) from error
    if left := ", ".join(path.name for path in beside if path.exists()):
        raise UsageError(
            f"{target}: another program has it open, or has left {left} there: end that, or choose another name"
        )
