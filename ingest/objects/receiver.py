"""The receiver: turns a stream of bytes into chunks, has them stored, and gives them a name. `docs/objects.md`.

Two ways. An object that fits into memory is put here, as one run of a lease of this process, and takes one transaction.
A larger one is put in pieces (`streamed_upload`). A small one goes that way too when its bytes come too slowly to keep them,
or when other transfers have the memory (`memory_budget`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterable, Mapping

from blake3 import blake3

from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.extent import Extent, chunks_needed
from ingest.catalog.version import Version, order_at
from ingest.client.chunk_store import ChunkStore
from ingest.errors import IngestError, OrderError, UploadLostError
from ingest.limits import (
    DATA_SIZE,
    PIECE_PATIENCE_S,
    RELOCATIONS_MAX,
    SMALL_OBJECT_MAX,
)
from ingest.objects import manifest
from ingest.objects.body import Body, as_body
from ingest.objects.chunk_writer import ChunkWriter
from ingest.objects.manifest import Manifest
from ingest.objects.membership import Membership, Taken
from ingest.objects.memory_budget import ALLOWANCE_SIZE, SEALED_SIZE, Budget, Transfer
from ingest.objects.streamed_upload import Shared, StreamedUpload
from ingest.objects.upload import (
    Upload,
    check_size,
    ours,
    raise_unless_foreign,
    sealed_manifest,
)
from ingest.status import Status


class Receiver:
    """``key``: of manifests. Any number of uploads may run at a time."""

    def __init__(
        self, client: ChunkStore, catalog: CatalogAccess, membership: Membership, key: bytes, budget: Budget
    ) -> None:
        self._catalog = catalog
        self._membership = membership
        self._key = key
        self._budget = budget
        self.writer = ChunkWriter(client, catalog)
        self._shared = Shared(catalog, membership, self.writer, key)

    async def receive(self, upload: Upload, source: Body | AsyncIterable[bytes]) -> Version:
        """See `ObjectStore.put`."""
        body = as_body(source)
        transfer = self._budget.enter()
        try:
            data = bytearray()
            if upload.size is None or upload.size <= SMALL_OBJECT_MAX:
                data = await self._gather(upload, body, transfer)
                if body.ended:
                    return await self._store(upload, data)
            return await StreamedUpload(self._shared, upload, body, transfer).run(data)
        finally:
            transfer.leave()
            await body.close()

    async def _gather(self, upload: Upload, body: Body, transfer: Transfer) -> bytearray:
        """All of a small object, and then the body has ended; or what there is of it."""
        # One byte more than there should be: it would be seen.
        most = 1 + (SMALL_OBJECT_MAX if upload.size is None else upload.size)
        data = bytearray(min(most, ALLOWANCE_SIZE))
        size = await body.fill(memoryview(data))
        if size == len(data) < most:
            memory = chunks_needed(most) * SEALED_SIZE
            if transfer.borrow(memory, memory):
                data += bytes(most - size)
                size += await body.fill(memoryview(data)[size:], PIECE_PATIENCE_S)
        del data[size:]
        return data

    # --- in one call

    async def _store(self, upload: Upload, data: bytearray) -> Version:
        check_size(upload.size, len(data))
        name = upload.final_name()
        digest = blake3(data).digest()
        kept = upload.kept(name, digest)
        if kept is not None:
            return kept
        number = await self._membership.number()
        chunks = chunks_needed(len(data))
        now = time.time()
        about = Manifest(
            version=number,
            namespace=upload.namespace,
            name=name,
            size=len(data),
            digest=digest.hex(),
            created=now,
            order=order_at(now),
            headers=dict(upload.headers),
        )
        more = manifest.size_max(about, 1)
        data += bytes(chunks * DATA_SIZE - len(data))
        for _ in range(RELOCATIONS_MAX):
            taken: Taken | None = await self._membership.take(chunks + more)
            assert taken is not None
            owner, place = taken.owner, taken.place
            refused: dict[str, Status] = {}
            try:
                try:
                    text = sealed_manifest(about, [place], Extent(place.first + chunks, more), self._key)
                    await self.writer.put_chunks(owner, place, data + text, refused)
                    if not refused:
                        return await self._catalog.store(
                            owner, upload.namespace, name, about.size, digest, [place],
                            upload.headers, upload.condition, number=number, order=about.order,
                        )  # fmt: skip
                except OrderError:
                    about = upload.later(about)
                except BaseException as error:
                    broken, taken = taken, None
                    await self.writer.end(self._discard(broken, refused))
                    if isinstance(error, UploadLostError) and await self._membership.entered_again(owner):
                        continue  # its deadline passed while this process stood still
                    raise
                await self._catalog.discard(owner, ours([place], refused))
                raise_unless_foreign(refused)
            finally:
                if taken is not None:
                    await self._membership.settle(taken)
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else, or the name got another version each time"
        )

    async def _discard(self, taken: Taken, refused: Mapping[str, Status]) -> None:
        try:
            await self.writer.settled()
            with contextlib.suppress(IngestError):  # then it is swept with the lease
                await self._catalog.discard(taken.owner, ours([taken.place], refused))
        finally:
            await self._membership.settle(taken)  # not given back before
