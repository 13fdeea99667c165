"""The commands `catalog` and `tickets`: the catalog as a whole, and tickets for others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.commands.command_loop import run_loop
from ingest.commands.local_backend import LocalNode
from ingest.commands.object_files import shown
from ingest.commands.object_options import DATA_DIR, KEY_FILE, print_result
from ingest.commands.options import AS_JSON, PATH
from ingest.commands.progress_bars import steps_bar

if TYPE_CHECKING:
    from ingest.catalog.extent import Extent


@click.group()
def catalog() -> None:
    """Copies the catalog of objects, or makes a lost one again."""


@catalog.command()
@click.option("--replace", is_flag=True, help="Of a catalog that is there; it stays as catalog.db.old.")
@click.option("--discard-orphans", is_flag=True, help="Stored tickets that no object has become garbage.")
@click.option("--wal-dir", metavar="DIR", type=PATH, help="The log. [default: DIR/.ingest/wal]")
@DATA_DIR
@KEY_FILE
@AS_JSON
def rebuild(data_dir: Path, as_json: bool, **options: Any) -> None:
    """Makes the catalog again from what is stored, while no server and no gateway runs: docs/objects.md.

    Exits with 1 when the newest version of a name was not whole, when stored bytes were damaged, or when somebody used
    tickets without a lease, far behind all objects.

    \b
    Example:
      ingest catalog rebuild --data-dir /var/lib/ingest
    """
    from ingest.objects import rebuild as rebuilder

    with steps_bar() as progress:
        found = rebuilder.rebuild(data_dir, progress=progress, **options)
    lines = [shown(f"incomplete: {one}") for one in found.incomplete]
    lines += [shown(f"problem: {one}") for one in found.problems]
    orphans = sum(one.count for one in found.orphans)
    lines.append(
        f"{found.objects:,} objects of {found.bytes:,} bytes; {found.outdated:,} older versions,"
        f" {found.unsigned:,} foreign manifests, {orphans:,} chunks that no object has"
    )
    print_result(found.as_json(), lines, as_json)
    sys.exit(1 if found.incomplete or found.problems else 0)


@catalog.command()
@click.argument("file", type=PATH)
@DATA_DIR
@AS_JSON
def backup(file: Path, data_dir: Path, as_json: bool) -> None:
    """Copies the catalog to FILE, one snapshot, while everybody goes on with it.

    \b
    Example:
      ingest catalog backup --data-dir /var/lib/ingest /backup/catalog.db
    """
    from ingest.catalog import backup as copier
    from ingest.catalog.catalog_socket import catalog_path

    with steps_bar() as progress:
        size = copier.backup(catalog_path(data_dir), file, progress)
    print_result({"file": str(file), "bytes": size}, [f"{shown(str(file))}: {size:,} bytes"], as_json)


@click.group()
def tickets() -> None:
    """Gives tickets to programs that store chunks of their own beside objects."""


@tickets.command()
@click.argument("count", metavar="N", type=int)
@click.option("--what", metavar="TEXT", default="ingest tickets lease", help="Who has them: for people.")
@DATA_DIR
@AS_JSON
def lease(count: int, what: str, data_dir: Path, as_json: bool) -> None:
    """Prints the first and the last of N consecutive tickets that no object will ever be stored under.

    \b
    Example:
      ingest tickets lease 1000 --data-dir /var/lib/ingest --what camera-7
    """
    from ingest import ticket

    node = LocalNode(data_dir=data_dir)

    async def take() -> Extent:
        with node.reader(changing=True):
            async with node.catalog() as catalog:
                return await catalog.lease(None, count, what)

    found = run_loop(take())
    first, last = ticket.format(found.first), ticket.format(found.stop - 1)
    print_result({"first": first, "last": last, "count": found.count}, [f"{first} {last}"], as_json)


COMMANDS = (catalog, tickets)
