"""The commands that work on objects, of a data directory beside its server or of a gateway: put, get, ls, stat, rm, gc."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest import limits
from ingest.commands.backend import Backend, Facts
from ingest.commands.command_loop import run_loop
from ingest.commands.object_files import Source, Target, shown
from ingest.commands.object_options import (
    CONNECT,
    KEY_FILE,
    NAMESPACE,
    READ_CONNECT,
    backend_options,
    print_result,
    tls_options,
)
from ingest.commands.options import AS_JSON, PATH
from ingest.commands.progress_bars import transfer_bar
from ingest.errors import BusyError, CatalogError, CorruptionError, NotFoundError, TicketError, UsageError

if TYPE_CHECKING:
    from ingest.catalog.version import Transition, Version
    from ingest.objects.collector import Collected
    from ingest.objects.object_store import Download


# --- put


@click.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=PATH)
@click.option("--name", metavar="N", help="Of the object, when there is one FILE. [default: the file's]")
@NAMESPACE
@backend_options(CONNECT, KEY_FILE, tls_options)
@AS_JSON
def put(files: tuple[Path, ...], name: str | None, namespace: str, as_json: bool, backend: Backend) -> None:
    """Stores each FILE as an object with the name of the file, without its directory; - is stdin, which needs --name.

    What had the name before is replaced; but in the namespaces of a gateway's APIs their rules hold (docs/http.md). Exits
    with 0 when all are durable and the catalog has the size and the digest of what was read.

    \b
    Example:
      ingest put --data-dir /var/lib/ingest holiday.mp4 notes.txt
      ingest put --gateway https://files.example:8080 --token-file token holiday.mp4
      tar c photos | ingest put --data-dir /var/lib/ingest - --name photos.tar --json
    """
    named = _names(files, name, backend.names_content(namespace))
    stored = run_loop(_put_all(backend, namespace, named))
    lines = [f"{shown(one.name)}  {one.size:,} bytes  {one.id}  {one.digest}" for one in stored]
    print_result({"objects": [one.as_json() for one in stored]}, lines, as_json)


def _names(files: Sequence[Path], name: str | None, by_content: bool = False) -> dict[str, Path | None]:
    """Each object's name and its file, None for stdin. UsageError when two would be one object.

    ``by_content``: the bytes will say the names; these are for the progress alone.
    """
    if by_content:
        if name is not None:
            raise UsageError("--name: in this namespace the bytes say the name, it is their SHA-1")
        return {
            "stdin" if str(file) == "-" else str(file): None if str(file) == "-" else file for file in files
        }
    if name is not None:
        if len(files) > 1:
            raise UsageError(f"--name names one object, and there are {len(files)} files")
        return {name: None if str(files[0]) == "-" else files[0]}
    named: dict[str, Path | None] = {}
    for file in files:
        if str(file) == "-":
            raise UsageError("stdin has no name: --name gives it one, and then it is put alone")
        if file.name in named:
            raise UsageError(
                f"{shown(str(named[file.name]))} and {shown(str(file))} would be one object: put them one by one"
            )
        named[file.name] = file
    return named


async def _put_all(backend: Backend, namespace: str, named: Mapping[str, Path | None]) -> list[Facts]:
    async with backend:
        return [await _put_one(backend, namespace, name, Source(path)) for name, path in named.items()]


async def _put_one(backend: Backend, namespace: str, name: str, source: Source) -> Facts:
    source.open()
    try:
        with transfer_bar(name, source.size) as progress:
            stored = await backend.put(namespace, name, source.pieces(progress), size=source.size)
    finally:
        source.close()
    if (stored.size, stored.digest) != (source.read, source.hash.hexdigest()):
        raise CatalogError(
            f"{source}: {source.read:,} bytes were read, and the catalog has {stored.size:,} bytes with another digest"
        )
    return stored


# --- get


@click.command()
@click.argument("name", metavar="NAME|ID")
@click.option("-o", "--output", metavar="FILE", type=PATH, help="[default: stdout]")
@NAMESPACE
@backend_options(READ_CONNECT, KEY_FILE, tls_options)
@AS_JSON
def get(name: str, output: Path | None, namespace: str, as_json: bool, backend: Backend) -> None:
    """Reads an object by its name; or by its ObjectID, when there is no such name.

    Every frame is checked end to end (by the gateway, where there is one), and the whole object against the digest in the
    catalog. FILE appears when all of it is there and on the disk, with the mode of what it replaces; a download that breaks
    leaves nothing behind. What went to stdout has gone there: look at the exit code.

    \b
    Example:
      ingest get --data-dir /var/lib/ingest holiday.mp4 -o holiday.mp4
      ingest get --gateway https://files.example:8080 --token-file token holiday.mp4 -o holiday.mp4
      ingest get --data-dir /var/lib/ingest photos.tar | tar x
    """
    to_stdout = output is None or str(output) == "-"
    if to_stdout and as_json:
        raise UsageError("--json and the object can't both go to stdout: -o says where the object goes")
    found = run_loop(_get(backend, namespace, name, None if to_stdout else output))
    if not to_stdout:
        line = f"{shown(str(output))}  {found.size:,} bytes  {found.id}  {found.digest}"
        print_result(found.as_json() | {"file": str(output)}, [line], as_json)


async def _get(backend: Backend, namespace: str, name: str, output: Path | None) -> Facts:
    async with backend:
        download = await _open(backend, namespace, name)
        try:
            with Target(output) as target:
                await _copy(download, target)
                target.keep()
        finally:
            await download.close()
        return Facts.of(download.version)


async def _open(backend: Backend, namespace: str, name: str) -> Download:
    try:
        return await backend.open(namespace, name)
    except NotFoundError as missing:
        try:
            return await backend.open_object(name)
        except (NotFoundError, TicketError):
            raise missing from None


async def _copy(download: Download, target: Target) -> None:
    """CorruptionError when it is not what the catalog says."""
    from blake3 import blake3

    version, size, digest = download.version, 0, blake3()
    with transfer_bar(version.name, version.size) as progress:
        async for part in download.read():
            digest.update(part)
            size += len(part)
            await target.write(part)
            progress(len(part))
    if (size, digest.digest()) != (version.size, version.digest):
        raise CorruptionError(
            f"object {version.name!r}: {size:,} bytes with the digest {digest.hexdigest()} were read,"
            f" and the catalog has {version.size:,} with {version.etag}"
        )


# --- what needs no bytes


@click.command()
@click.argument("prefix", default="")
@NAMESPACE
@backend_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each object, a line each.")
def ls(prefix: str, namespace: str, as_json: bool, backend: Backend) -> None:
    """Lists the objects whose names begin with PREFIX, in the order of their UTF-8: size, time, name.

    Characters of a name that can't be printed are shown as escapes; --json gives names as they are.

    \b
    Example:
      ingest ls --data-dir /var/lib/ingest photos/2026-
    """
    run_loop(_list(backend, namespace, prefix, as_json))


async def _list(backend: Backend, namespace: str, prefix: str, as_json: bool) -> None:
    async with backend:
        after = ""
        while page := await backend.page(namespace, prefix, after):
            for one in page:
                content = {"name": one.name, "size": one.size, "digest": one.etag, "created": one.created}
                print_result(content, [f"{one.size:>15,}  {_utc(one.created)}  {shown(one.name)}"], as_json)
            after = page[-1].name


@click.command()
@click.argument("name")
@NAMESPACE
@backend_options()
@AS_JSON
def stat(name: str, namespace: str, as_json: bool, backend: Backend) -> None:
    """Says what the catalog has of an object: size, digest, where it lies, and the history of its name.

    \b
    Example:
      ingest stat --data-dir /var/lib/ingest holiday.mp4
    """
    from ingest import ticket

    version, history = run_loop(_describe(backend, namespace, name))
    facts = Facts.of(version).as_json()
    content = facts | {
        "created": version.created,
        "headers": dict(version.headers),
        "extents": [(ticket.format(one.first), one.count) for one in version.extents],
        "history": [_step(step) for step in history],
    }
    lines = [f"{key:10}{shown(str(value))}" for key, value in facts.items()]
    lines += [f"{'header':10}{shown(key)}: {shown(value)}" for key, value in version.headers.items()]
    lines += [f"{'extent':10}{one}" for one in version.extents]
    lines += [
        f"{'history':10}{_utc(step.time)}  version {step.version}  {step.state.name}  {shown(step.reason)}"
        for step in history
    ]
    print_result(content, lines, as_json)


async def _describe(backend: Backend, namespace: str, name: str) -> tuple[Version, list[Transition]]:
    async with backend:
        return await backend.describe(namespace, name)


@click.command()
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@NAMESPACE
@backend_options()
@AS_JSON
def rm(names: tuple[str, ...], namespace: str, as_json: bool, backend: Backend) -> None:
    """Removes objects. The collector of a gateway gives their space back, or `ingest gc`.

    Exits with 1 when one of the names is not there; the others are removed.

    \b
    Example:
      ingest rm --data-dir /var/lib/ingest holiday.mp4 notes.txt
    """
    removed, missing = run_loop(_remove(backend, namespace, names))
    print_result(
        {"removed": removed, "missing": missing}, [f"removed {shown(one)}" for one in removed], as_json
    )
    for one in missing:
        click.echo(f"ingest: there is no object {one!r}", err=True)
    sys.exit(1 if missing else 0)


async def _remove(backend: Backend, namespace: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    removed: list[str] = []
    missing: list[str] = []
    async with backend:
        for name in names:
            try:
                await backend.delete(namespace, name)
                removed.append(name)
            except NotFoundError:
                missing.append(name)
    return removed, missing


@click.command()
@click.option("--dry-run", is_flag=True, help="Delete nothing; say how much is to be deleted.")
@backend_options(CONNECT, KEY_FILE, tls_options)
@AS_JSON
def gc(dry_run: bool, as_json: bool, backend: Backend) -> None:
    """Deletes the chunks of objects that were removed or replaced, of uploads that broke and of processes that died.

    A gateway does the same every few seconds; while its collector is at work, this one waits for it, 30 s at most. What the
    server refuses to delete is listed, stays garbage, and makes it exit with 1; --dry-run counts it with the rest.

    \b
    Example:
      ingest gc --data-dir /var/lib/ingest --dry-run
    """
    from ingest.objects.collector import described

    done = run_loop(_collect(backend, dry_run))
    content = {"dry_run": dry_run} | described(done)
    verb = "would delete" if dry_run else "deleted"
    line = f"{verb} {done.tickets:,} tickets of {done.entries:,} extents"
    lines = [line if dry_run else f"{line}; {done.owners:,} processes had died"]
    lines += [f"not deleted: {one.garbage.extent}, {one.status.name}" for one in done.refused]
    print_result(content, lines, as_json)
    sys.exit(1 if done.refused else 0)


async def _collect(backend: Backend, dry_run: bool) -> Collected:
    async with backend:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.OWNER_DEADLINE_S  # one that was killed is not at work after that
        while True:
            try:
                return await backend.collect(dry_run)
            except BusyError:
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(limits.GC_RETRY_S)


def _step(step: Transition) -> dict[str, Any]:
    return {
        "version": step.version,
        "time": step.time,
        "state": step.state.name,
        "reason": step.reason,
        "size": step.size,
    }


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


COMMANDS = (put, get, ls, stat, rm, gc)
