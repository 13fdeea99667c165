"""The limit of the disk: the log and pack bytes that a server writes for so many frames, written from memory, nothing else.

No network, no checksums, no claims. The log is a ring of preallocated segments of 32 MiB into which batches of
2,500 frames go past the page cache, each synced before the next one; a segment is used again only when a `syncfs` that
began after its frames were in their packs has returned. A pack is one file of 1.9 MB in a directory tree like the real
one, written at once. In the end everything is synced, and the clock stops.

What is best differs from disk to disk, so `best_way` tries several and the measurement takes the fastest: what the server
is measured against is the best that we can do.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ingest import limits, sharding, ticket
from ingest.store.log.log_format import BATCH_HEADER_SIZE, BLOCK_SIZE, padded

BATCH_FRAMES = 2500
BATCH_SIZE = padded(BATCH_HEADER_SIZE + BATCH_FRAMES * limits.FRAME_SIZE)
SEGMENT_BATCHES = (limits.LOG_SEGMENT_SIZE - BLOCK_SIZE) // BATCH_SIZE
SEGMENTS = limits.LOG_SIZE_DEFAULT // limits.LOG_SEGMENT_SIZE
PACK_SIZE = padded(
    limits.PACK_HEADER_SIZE + limits.PACK_SLOTS * limits.FRAME_SIZE
)  # whole blocks, for O_DIRECT
FIRST_TICKET = "5000000"  # any one that starts a pack
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Way:
    """How the bytes are written: pack files by so many threads (0: by the thread of the log), past the page cache or not."""

    pack_threads: int
    direct: bool

    def __str__(self) -> str:
        return f"packs {'O_DIRECT' if self.direct else 'buffered'}, {self.pack_threads or 'no'} pack threads"


WAYS = (Way(0, True), Way(1, True), Way(2, True), Way(3, True), Way(0, False), Way(1, False))


def open_direct(path: str | Path, flags: int, dir_fd: int | None = None) -> int:
    """A new file that is written past the page cache, where the file system has that."""
    flags |= os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # It was made all the same: tmpfs before Linux 6.6, some FUSE file systems.
    return os.open(path, flags & ~os.O_EXCL, 0o600, dir_fd=dir_fd)


@dataclass
class Ring:
    """The log's segments, preallocated and really written once, as the server's are before they are used again."""

    files: list[int]

    @classmethod
    def make(cls, directory: Path, segments: int = SEGMENTS) -> Ring:
        files = []
        with mmap.mmap(-1, limits.LOG_SEGMENT_SIZE) as zeros:
            for index in range(segments):
                fd = open_direct(directory / f"{index:04d}.log", os.O_RDWR)
                files.append(fd)
                os.pwrite(fd, zeros, 0)
                os.fsync(fd)
        return cls(files)

    def close(self) -> None:
        for fd in self.files:
            os.close(fd)


@dataclass
class _Progress:
    """What the threads of one measurement know of each other, in frames. Guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    logged: int = 0
    packs_begun: int = 0
    packs_under_way: set[int] = field(default_factory=set)
    synced: int = 0  # the packs hold so many frames, durably
    log_waits: bool = False
    ended: bool = False
    failure: BaseException | None = None

    def packed(self) -> int:
        """So many frames, from the first on, are in their packs."""
        return min(self.packs_under_way, default=self.packs_begun) * limits.PACK_SLOTS


class DiskLimit:
    """Writes the bytes of `frames` frames below `directory`, packs there and the log in `ring`."""

    def __init__(
        self,
        directory: Path,
        ring: Ring | None,
        frames: int,
        way: Way,
        *,
        log: bool = True,
        packs: bool = True,
    ) -> None:
        assert log or packs
        assert ring is not None or not log
        self.directory, self.ring, self.frames, self.way = directory, ring, frames, way
        self.log, self.packs = log, packs
        self._progress = _Progress()
        self._pack_count = -(-frames // limits.PACK_SLOTS)
        self._first_pack = ticket.parse(FIRST_TICKET)
        self._root = -1

    def run(self) -> float:
        """Seconds until everything is on stable storage."""
        jobs: list[Callable[[], None]] = []
        with mmap.mmap(-1, BATCH_SIZE) as batch, mmap.mmap(-1, PACK_SIZE) as image:
            # Written once, or the kernel would read the one zero page over and over, which no real frames are.
            batch.write(os.urandom(BATCH_SIZE))
            image.write(os.urandom(PACK_SIZE))
            if self.log:
                jobs.append(lambda: self._write_log(batch, image))
            if self.packs and (self.way.pack_threads or not self.log):
                jobs += [lambda: self._write_packs(image)] * max(1, self.way.pack_threads)
            if self.log and self.packs:
                jobs.append(self._sync_packs)
            self._root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            threads = [threading.Thread(target=self._guard, args=(job,)) for job in jobs]
            try:
                began = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if self._progress.failure is None:
                    self._syncfs()
                seconds = time.perf_counter() - began
            finally:
                os.close(self._root)
        if self._progress.failure is not None:
            raise self._progress.failure
        return seconds

    def _guard(self, job: Callable[[], None]) -> None:
        progress = self._progress
        try:
            job()
        except BaseException as error:
            with progress.changed:
                progress.failure = progress.failure or error
                progress.changed.notify_all()

    def _syncfs(self) -> None:
        if _libc.syncfs(self._root) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _write_log(self, batch: mmap.mmap, image: mmap.mmap) -> None:
        assert self.ring is not None
        progress = self._progress
        alone = self.packs and self.way.pack_threads == 0
        ends: list[int] = [0] * len(self.ring.files)  # frames logged when a segment was last full
        done = batches = 0
        while done < self.frames and progress.failure is None:
            use, place = divmod(batches, SEGMENT_BATCHES)
            segment = use % len(self.ring.files)
            fd = self.ring.files[segment]
            if place == 0:
                if self.packs:
                    self._wait_until_synced(ends[segment])
                os.pwrite(fd, memoryview(batch)[:BLOCK_SIZE], 0)
            count = min(BATCH_FRAMES, self.frames - done)
            with memoryview(batch) as view:
                size = padded(BATCH_HEADER_SIZE + count * limits.FRAME_SIZE)
                os.pwrite(fd, view[:size], BLOCK_SIZE + place * BATCH_SIZE)
            os.fdatasync(fd)
            done += count
            batches += 1
            ends[segment] = done
            with progress.changed:
                progress.logged = done
                progress.changed.notify_all()
            while alone and self._next_pack_is_full(done):
                self._write_next_pack(image)
        with progress.changed:
            progress.ended = True
            progress.changed.notify_all()

    def _next_pack_is_full(self, done: int) -> bool:
        begun = self._progress.packs_begun
        return begun < self._pack_count and min((begun + 1) * limits.PACK_SLOTS, self.frames) <= done

    def _wait_until_synced(self, frames: int) -> None:
        progress = self._progress
        with progress.changed:
            progress.log_waits = True
            progress.changed.notify_all()
            progress.changed.wait_for(lambda: progress.synced >= frames or progress.failure)
            progress.log_waits = False

    def _write_packs(self, image: mmap.mmap) -> None:
        while self._progress.failure is None and self._write_next_pack(image):
            pass

    def _write_next_pack(self, image: mmap.mmap) -> bool:
        progress = self._progress
        with progress.changed:
            number = progress.packs_begun
            if number == self._pack_count:
                return False
            progress.packs_begun += 1
            progress.packs_under_way.add(number)
        self._write_pack(number, image)
        with progress.changed:
            progress.packs_under_way.remove(number)
            progress.changed.notify_all()
        return True

    def _write_pack(self, number: int, image: mmap.mmap) -> None:
        index = self._first_pack + number * limits.PACK_SLOTS
        path = sharding.pack_path(sharding.ticket_pack(index))
        slots = min(limits.PACK_SLOTS, self.frames - number * limits.PACK_SLOTS)
        size = padded(limits.PACK_HEADER_SIZE + slots * limits.FRAME_SIZE)
        self._make_directories(os.path.dirname(path))
        if self.way.direct:
            fd = open_direct(path, os.O_WRONLY, dir_fd=self._root)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._root)
        try:
            with memoryview(image) as view:
                written = os.pwrite(fd, view[:size], 0)
            assert written == size
        finally:
            os.close(fd)

    def _make_directories(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700, dir_fd=self._root)
        except FileExistsError:
            return  # another thread, or the pack before this one
        except FileNotFoundError:
            self._make_directories(os.path.dirname(path))
            self._make_directories(path)

    def _sync_packs(self) -> None:
        """Recycles the log: when half of the ring is in use, or the log waits for it."""
        assert self.ring is not None
        half = len(self.ring.files) * SEGMENT_BATCHES * BATCH_FRAMES // 2
        progress = self._progress
        while True:
            with progress.changed:
                progress.changed.wait_for(
                    lambda: (
                        progress.ended
                        or progress.failure
                        or (
                            min(progress.packed(), progress.logged) > progress.synced
                            and (progress.log_waits or progress.logged - progress.synced >= half)
                        )
                    )
                )
                if progress.ended or progress.failure:
                    return
                note = progress.packed()
            self._syncfs()
            with progress.changed:
                progress.synced = note
                progress.changed.notify_all()


@dataclass(frozen=True)
class Limit:
    """Measures below `directory`, which must not exist yet and is deleted; `segments` of the log, made beforehand."""

    directory: Path
    segments: int = SEGMENTS

    def rate(self, frames: int, way: Way, *, log: bool = True, packs: bool = True) -> float:
        """Frames per second of one way, or of its log or packs alone."""
        self.directory.mkdir()
        ring = Ring.make(self.directory, self.segments) if log else None
        try:
            return frames / DiskLimit(self.directory, ring, frames, way, log=log, packs=packs).run()
        finally:
            if ring is not None:
                ring.close()
            shutil.rmtree(self.directory)

    def best_way(self, first: int, final: int, ways: tuple[Way, ...] = WAYS) -> tuple[Way, dict[str, int]]:
        """The fastest way for `final` frames, and frames per second of each that was tried.

        All run with `first` frames, then the best one past the page cache and the best one through it with `final`: only so
        many show what the page cache costs when it is full.
        """
        found = {way: self.rate(first, way) for way in ways}
        groups = [[way for way in ways if way.direct is direct] for direct in (True, False)]
        finalists = [max(group, key=found.__getitem__) for group in groups if group]
        rates = {way: self.rate(final, way) for way in finalists}
        tried = {f"{way}, {first:,} frames": round(rate) for way, rate in found.items()}
        tried |= {f"{way}, {final:,} frames": round(rate) for way, rate in rates.items()}
        return max(rates, key=rates.__getitem__), tried
