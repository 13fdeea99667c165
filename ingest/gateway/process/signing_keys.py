"""Which of its keys a process of a gateway signs with, while the file that it shares with the server is changed.

A server accepts the first two keys of its file. A rotation puts a new key into the second place, and what was there into
the first. So a gateway signs with the second one: it stays good, whoever reads the file first. A new key is signed with when

    the server says that all of its workers accept it (DATA/.ingest/lock, `keys`), and
    all processes of the gateway have been told to read the file: one that has not could not verify what it reads.

Until then the key that was signed with before goes on, which is the file's first one by then.
"""

from __future__ import annotations

import asyncio
import logging
import mmap

from ingest import limits
from ingest.client.async_client import AsyncClient
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.node_address import engine
from ingest.mac import ACCEPTED_KEYS, KeyRing
from ingest.runtime import key_file
from ingest.store.data_dir import DataDir

log = logging.getLogger(__name__)


class Telling:
    """Memory that a gateway's processes share: whether some of them may not have been told yet to read files again."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def begin(self) -> None:
        self._memory[0] = 1

    def end(self) -> None:
        self._memory[0] = 0

    @property
    def under_way(self) -> bool:
        return self._memory[0] != 0


def read_keys(config: GatewayConfig) -> list[bytes]:
    """KeyFileError."""
    made = DataDir(config.data_dir).key
    path = config.key_file or made
    return key_file.read_keys(path, own=path == made)


class SigningKeys:
    """The keys of ``client``, which has those of the file by now and signs with the first. Belongs to its event loop."""

    def __init__(self, client: AsyncClient, telling: Telling) -> None:
        self._client = client
        self._telling = telling
        self._present: bytes | None = None  # that is signed with
        self._loaded: tuple[GatewayConfig, list[bytes]] | None = None  # what names the file, and what it had
        self._switching: asyncio.Task[None] | None = None

    def load(self, config: GatewayConfig) -> None:
        """Reads the file. What it has is verified with from now on. KeyFileError."""
        keys = read_keys(config)
        self._loaded = config, keys
        accepted = keys[:ACCEPTED_KEYS]
        self.close()
        self._sign_with(self._present if self._present in accepted else accepted[0], keys)
        if self._present != accepted[-1]:
            self._switching = asyncio.create_task(self._switch(config, keys, accepted[-1]))

    def load_changed(self) -> None:
        """As `load` of the file that was loaded last, if it has other keys now. KeyFileError."""
        assert self._loaded is not None
        config, keys = self._loaded
        if read_keys(config) != keys:
            self.load(config)

    def close(self) -> None:
        if self._switching is not None:
            self._switching.cancel()

    def _sign_with(self, key: bytes | None, keys: list[bytes]) -> None:
        assert key is not None
        self._present = key
        self._client.use_keys([key, *(other for other in keys if other != key)])

    async def _switch(self, config: GatewayConfig, keys: list[bytes], key: bytes) -> None:
        id_ = KeyRing([key]).signing.id
        deadline = asyncio.get_running_loop().time() + limits.KEY_SWITCH_DELAY_S
        delay = limits.RETRY_DELAY_MIN_S
        while self._telling.under_way or not _is_accepted(config, id_, deadline):
            if delay == limits.RETRY_DELAY_MIN_S:
                log.info("key %s is in the file, and the server does not accept it yet", id_)
            await asyncio.sleep(delay)
            delay = min(2 * delay, limits.KEY_LOOK_INTERVAL_S)
        self._sign_with(key, keys)
        log.info("key %s signs", id_)


def _is_accepted(config: GatewayConfig, id_: str, deadline: float) -> bool:
    found = engine(config)
    if (
        found is None
    ):  # the server is elsewhere, and can't be asked; or it does not run, and reads its keys when it starts
        return asyncio.get_running_loop().time() >= deadline
    return id_ in found.get("keys", ())
