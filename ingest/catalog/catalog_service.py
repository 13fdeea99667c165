"""The one process that changes the catalog for all others: what comes while it commits goes into the next transaction.

One thread, because SQLite has one writer and its commit ends in a sync of the disk: while that takes its time, calls
collect in the sockets, and so the load itself makes the transactions larger.

    received (all that the sockets have) → made, in one transaction → committed, synced → answered

Nothing is answered before the commit that holds it. A service that dies has answered nothing that is not durable, and
its successor, which finds neither memory nor debts, listens at the same place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.catalog.catalog_calls import (
    SAVING_NOTHING,
    Call,
    framed,
    parse_call,
    run_together,
    serialize_answer,
    unframed,
)
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_socket import catalog_path, listen, service_lock
from ingest.catalog.database import migrate
from ingest.disk_wait import DiskWait
from ingest.errors import DataDirLostError, ProtocolError
from ingest.limits import (
    ACCEPT_PAUSE_S,
    CATALOG_BATCH_MAX,
    CATALOG_RESERVE_RETRY_S,
    CATALOG_UNREAD_MAX,
    HEART_INTERVAL_S,
    LINGER_S,
)
from ingest.runtime import heartbeat, signals
from ingest.store.possession import Possession, identity_of

RECEIVE_SIZE = 256 << 10
log = logging.getLogger("ingest.catalog")


class Peer:
    """One process's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.unsent = bytearray()
        self.ended = False  # it sends no more


class CatalogService:
    """Answers on ``listener`` until ``stop``. Takes over the listener and the catalog, whose thread is the caller's.
    ``possession``: of the catalog's files and of its lock. While that is lost nothing is saved."""

    def __init__(self, catalog: Catalog, listener: socket.socket, possession: Possession) -> None:
        self._catalog = catalog
        self._possession = possession
        self._lost = False
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._queue: deque[tuple[Peer, int, Call]] = deque()
        self._peers: set[Peer] = set()
        self._wake, self._waker = socket.socketpair()
        self._stopping = False
        self._whole = True  # the catalog's reserve, as far as we know
        self._fill_at = 0.0  # seconds of the machine's monotonic clock
        self._waker.setblocking(False)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def stop(self) -> None:
        """From any thread or signal handler: ends `run` when what was received is answered."""
        self._stopping = True
        with contextlib.suppress(OSError):  # full of wakes already, or `run` has just ended
            self._waker.send(b"\0")

    def run(self) -> None:
        try:
            while not self._stopping:
                heartbeat.own().wait(DiskWait.NOTHING)
                self._keep_reserve()
                self._turn(
                    HEART_INTERVAL_S if self._whole else min(HEART_INTERVAL_S, CATALOG_RESERVE_RETRY_S)
                )
            self._selector.unregister(self._wake)
            self._selector.unregister(self._listener)
            self._drain()
        finally:
            for peer in list(self._peers):
                self._drop(peer)
            for end in (self._listener, self._wake, self._waker):
                end.close()
            self._selector.close()
            if self._possession.look():
                self._catalog.close()
            else:
                self._catalog.close_whole()

    def _keep_reserve(self) -> None:
        """Makes the reserve whole again, where something was given of it and there is room."""
        if time.monotonic() < self._fill_at or self._possession.look_again():
            return
        whole, self._whole = self._whole, self._catalog.room.fill()
        self._fill_at = time.monotonic() + CATALOG_RESERVE_RETRY_S
        if whole and not self._whole:
            log.warning(
                "the disk does not let the catalog's reserve grow (%s): deletes and starts go on while there is some of it",
                self._catalog.room.path,
            )
        elif self._whole and not whole:
            log.info("the catalog's reserve is whole again")

    def _turn(self, timeout: float | None) -> bool:
        """One look at the sockets, and all that came of it. False when nothing happened for ``timeout`` seconds."""
        events = self._selector.select(timeout)
        for key, mask in events:
            if isinstance(key.data, Peer):
                if mask & selectors.EVENT_READ:
                    self._receive(key.data)
                if mask & selectors.EVENT_WRITE:
                    self._send(key.data)
            elif key.fileobj is self._listener:
                self._accept()
        while self._queue:
            self._commit()
        return bool(events)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # out of descriptors, or gone before it was taken
            log.warning("a process could not be taken: %s", error)
            time.sleep(ACCEPT_PAUSE_S)  # it is still there, and this would spin
            return
        sock.setblocking(False)
        peer = Peer(sock)
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _receive(self, peer: Peer) -> None:
        try:
            part = peer.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._drop(peer)
            return
        if not part:
            peer.ended = True
            self._watch(peer)
            return
        peer.received += part
        try:
            for message in unframed(peer.received):
                self._queue.append((peer, *parse_call(message)))
        except ProtocolError as error:
            log.error("a process is disconnected: %s", error)
            self._drop(peer)

    def _commit(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), CATALOG_BATCH_MAX))]
        heartbeat.own().wait(DiskWait.TRANSACTION)
        outcomes = self._outcomes([call for _, _, call in batch])
        heartbeat.own().wait(DiskWait.NOTHING)
        answered = set()
        for (peer, id_, _), outcome in zip(batch, outcomes, strict=True):
            peer.unsent += framed(serialize_answer(id_, outcome))
            answered.add(peer)
        for peer in answered & self._peers:
            self._send(peer)

    def _outcomes(self, calls: list[Call]) -> list[Any]:
        loss = self._possession.look_again()
        if bool(loss) != self._lost:
            self._lost = bool(loss)
            if loss:
                log.error("the catalog is lost: %s; nothing is saved any more", loss)
                self._catalog.fold()  # what was acknowledged may be in a log that has no name any more
            else:
                log.warning("the catalog is there again: changes are saved")
        if not loss:
            return run_together(self._catalog, calls)
        harmless = [call for call in calls if call[0] in SAVING_NOTHING]
        made = iter(run_together(self._catalog, harmless) if harmless else ())
        refused = DataDirLostError(f"{loss}: nothing is saved here any more")
        return [next(made) if call[0] in SAVING_NOTHING else refused for call in calls]

    def _send(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        try:
            sent = peer.sock.send(peer.unsent) if peer.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer)
            return
        del peer.unsent[:sent]
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        """What to wait for: a process that leaves its answers unread is not listened to, one that has ended is let go
        when it has all of them."""
        read = not peer.ended and not self._stopping and len(peer.unsent) < CATALOG_UNREAD_MAX
        mask = selectors.EVENT_READ if read else 0
        if peer.unsent:
            mask |= selectors.EVENT_WRITE
        if mask:
            self._selector.modify(peer.sock, mask, peer)
        elif peer.ended or self._stopping:
            self._drop(peer)

    def _drain(self) -> None:
        for peer in list(self._peers):
            self._watch(peer)
        while self._peers and self._turn(LINGER_S):
            pass

    def _drop(self, peer: Peer) -> None:
        if peer in self._peers:
            self._peers.discard(peer)
            self._selector.unregister(peer.sock)
            peer.sock.close()


def serve_catalog(data_dir: Path, ready: Callable[[], None] = lambda: None) -> None:
    """The whole process: calls ``ready`` when it can be reached, returns when it was told to end and all is answered.

    StoreLockedError when there is such a process already, CatalogError, DiskError.
    """
    path = catalog_path(data_dir)
    with service_lock(data_dir) as possession:
        migrate(path)
        catalog = Catalog(path)
        possession.add(path, identity_of(os.stat(path)))
        possession.add_changing(lambda: catalog.beside)
        service = CatalogService(catalog, listen(data_dir), possession)
        signal.signal(signals.end(), lambda *_: service.stop())
        ready()
        service.run()
