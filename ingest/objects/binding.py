"""Whose store it is: a catalog is bound to one store, and a store to one catalog. `docs/objects.md`, "The binding".

Two catalogs would give the same tickets for different objects, and each delete what the other one has. So the store carries
the random id of its catalog, in the chunk ZZZZZZZZ, which is put before the catalog gives tickets to anybody. Chunks are
written once: that decides who was first.

    the chunk is           a catalog that never saw it in a store        a catalog that did
    of this catalog        was ended before it noted that: it is bound   goes on
    of another one, or no chunk of a catalog at all     refused          refused
    MISSING                puts it, if its own objects are there         refused: this is another store
    DELETED                refused                                       goes on, if its own objects are there
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ingest import ticket
from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.catalog_reader import CatalogReader, Identity
from ingest.catalog.extent import FIRST, RESERVED, chunks_needed, total
from ingest.catalog.schema import ID_SIZE
from ingest.catalog.version import Version
from ingest.client.async_client import AsyncClient
from ingest.client.chunk_store import ChunkStore
from ingest.client.proof import Expected
from ingest.errors import (
    CatalogError,
    CorruptFrameError,
    ForeignStoreError,
    IngestError,
    NoSpaceError,
    RefusedError,
)
from ingest.limits import BINDING_OBJECTS_MAX, DATA_SIZE
from ingest.objects import manifest
from ingest.status import Status

MAGIC = b"ingestB1"
FORMAT = 1
TICKET = ticket.format(RESERVED)
_HEADER = struct.Struct(
    f">8sI4x{ID_SIZE}s"
)  # magic, version of the format, id of the catalog; zeros to the end
ADVICE = (
    "nothing is stored or deleted there. Either --connect and --read-connect name the wrong engine, or this is not the"
    " catalog of that store: `ingest catalog rebuild --replace` on the store's data directory makes one that is"
)

DELETED = "ticket %s was deleted in the engine's store, which no longer says whose it is; the objects do"

log = logging.getLogger(__name__)


def serialize(id_: bytes) -> bytes:
    """The chunk of a catalog's id, 1458 bytes."""
    return _HEADER.pack(MAGIC, FORMAT, id_).ljust(DATA_SIZE, b"\0")


def parse(data: bytes) -> bytes:
    """The id that is in the chunk. ForeignStoreError."""
    magic, version, id_ = _HEADER.unpack_from(data)
    if magic == MAGIC and version != FORMAT:
        raise ForeignStoreError(
            f"ticket {TICKET} names the store's catalog in format {version}; this program knows format {FORMAT}"
        )
    if magic != MAGIC or data != serialize(id_):
        raise ForeignStoreError(
            f"a client has stored a chunk of its own under {TICKET}, which is reserved for the id of the store's catalog:"
            " no objects can be kept in that store, nor in an export of it: use a new store"
        )
    return bytes(id_)


async def bind(
    client: AsyncClient,
    catalog: CatalogAccess,
    reader: CatalogReader,
    shown: Callable[[], None] = lambda: None,
) -> None:
    """Sees to it that the engine's store is the one of this catalog, now and with each connection that ``client`` opens
    later. The keys are those that the client has whenever they are needed: they are changed while it is there. ``shown`` is
    called when the store is known to be ours by what is in it.

    ForeignStoreError when it is another one's. What the client and the catalog raise, when that can't be known yet:
    RefusedError for ERROR, BUSY and a key that is not accepted, NoSpaceError, CorruptFrameError.
    """
    identity = reader.identity()
    status, data = await _look(client) if client.gets else (None, b"")
    if status is Status.SAVED:
        _require_own(identity, parse(data))
        _require(client, reader, identity)
        shown()
    elif status is Status.DELETED:
        await _accept_deleted(client, reader, identity)
        shown()
        return
    elif status is Status.MISSING:
        if identity.bound:
            raise ForeignStoreError(f"the engine's store does not carry the id of this catalog: {ADVICE}")
        await _require_objects(client, reader)
        shown()
    if client.puts:
        await confirm(client, reader)
    elif status is not Status.SAVED:
        return  # who only reads does no harm in a store that is not bound yet
    if not identity.bound:
        await catalog.bound()
        log.info("the store of the engine is bound to this catalog, %s", identity.id.hex())
    _require(client, reader, identity)


async def confirm(store: ChunkStore, reader: CatalogReader) -> None:
    """Puts the id once more: that changes nothing in the store of this catalog. Raises what `bind` does."""
    identity = reader.identity()
    batch = store.new_batch()
    await store.add_range(batch, TICKET, serialize(identity.id))
    status = (await store.finish(batch)).get(TICKET, Status.SAVED)
    if status is Status.SAVED or (status is Status.DELETED and identity.bound):
        return
    if status in (Status.CONFLICT, Status.DELETED):
        raise ForeignStoreError(_complaint(identity))
    if status is Status.NO_SPACE and identity.bound:
        raise NoSpaceError("the engine's disk is full: it takes nothing until there is room")
    if status is Status.NO_SPACE:
        raise NoSpaceError(
            "the engine has no space for the chunk that binds its store to this catalog:"
            " make room, or give it a smaller --reserve for a while"
        )
    raise RefusedError(TICKET, status)


def _complaint(identity: Identity) -> str:
    return f"the engine's store is not that of this catalog, {identity.id.hex()}: {ADVICE}"


def _require_own(identity: Identity, found: bytes) -> None:
    if found != identity.id:
        raise ForeignStoreError(
            f"the engine's store belongs to the catalog {found.hex()}, and this one is {identity.id.hex()}: {ADVICE}"
        )


def _require(client: AsyncClient, reader: CatalogReader, identity: Identity) -> None:
    looking: set[asyncio.Task[None]] = set()  # one at a time
    told: set[str] = set()  # the last complaint that is in the log: each new connection has another look made

    def deleted() -> None:
        if not looking and client.gets:
            task = asyncio.create_task(_look_at_objects(client, reader.path, identity, told))
            looking.add(task)
            task.add_done_callback(looking.discard)

    client.require(Expected(TICKET, serialize(identity.id), _complaint(identity), deleted))


async def _look_at_objects(client: AsyncClient, catalog: Path, identity: Identity, told: set[str]) -> None:
    """The chunk was deleted while ``client`` was there: the store is known by its objects, as at a start."""
    try:
        with CatalogReader(catalog) as reader:
            async with await client.unproven() as other:
                await _require_objects(other, reader)
    except IngestError as error:
        if str(error) not in told:
            log.error(
                "ticket %s was deleted in the engine's store, which does not prove itself: %s", TICKET, error
            )
        told.clear()
        told.add(str(error))
        return
    log.warning(DELETED, TICKET)
    client.require(Expected(TICKET, None, _complaint(identity)))


async def _accept_deleted(client: AsyncClient, reader: CatalogReader, identity: Identity) -> None:
    """The chunk was lost, and marked deleted by a repair; or a client deleted it. Nothing is ever stored there again."""
    if not identity.bound:
        raise ForeignStoreError(
            f"ticket {TICKET} was deleted in the engine's store, so that it can't name this catalog: {ADVICE}"
        )
    await _require_objects(client, reader)
    log.warning(DELETED, TICKET)
    client.require(Expected(TICKET, None, _complaint(identity)))


async def _look(client: AsyncClient) -> tuple[Status, bytes]:
    try:
        return Status.SAVED, await client.get(TICKET)
    except RefusedError as error:
        if error.status not in (Status.MISSING, Status.DELETED):
            raise
        return error.status, b""


async def _require_objects(client: AsyncClient, reader: CatalogReader) -> None:
    """ForeignStoreError unless one of the newest objects of the catalog is in the store. One that is replaced meanwhile,
    or damaged, proves nothing. A catalog without objects takes any store; one that never gave a ticket, one where the
    first of them was never used."""
    if not client.gets:
        return
    newest = reader.newest(BINDING_OBJECTS_MAX)
    if not newest and reader.next_ticket() == FIRST:
        (run,) = await client.inventory(ticket.format(FIRST), 1)
        if run.status is not Status.MISSING:
            raise ForeignStoreError(
                f"this catalog is new, and ticket {run.first} has been used in the engine's store already: {ADVICE}"
            )
    signing = [manifest.manifest_key(key) for key in client.keys]
    for version in newest:
        if await _is_stored(client, version, signing):
            return
    if newest:
        raise ForeignStoreError(
            f"none of the newest objects of this catalog, {newest[0].name!r} among them, is in the engine's store: {ADVICE}"
        )


async def _is_stored(client: AsyncClient, version: Version, keys: Sequence[bytes]) -> bool:
    chunks = total(version.extents) - chunks_needed(version.size)
    place = version.extents[-1].stop - chunks
    try:
        data = await client.read_range(ticket.format(place), chunks)
        found = manifest.parse(bytes(data), place, keys)
    except (RefusedError, CorruptFrameError, CatalogError) as error:
        if isinstance(error, RefusedError) and error.status not in (Status.MISSING, Status.DELETED):
            raise
        return False
    return found.digest == version.etag and found.name == version.name
