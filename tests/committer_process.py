"""The committer as a process of its own, with a worker's side in this one. Also a program, to be run under strace."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Self

import log_lines
from put_rig import DELETE, PATIENCE_S, PUT, delete_frame, frame

from ingest.engine._queue import Queue
from ingest.engine.commit.committer import committer_main
from ingest.engine.node import Node
from ingest.engine.server_config import ServerConfig
from ingest.limits import FRAME_SIZE
from ingest.mac import KeyRing
from ingest.status import Status
from ingest.store.store import Store

SHARED_KEY = bytes(range(32))
FIRST = 36 + 5 * 1296


def wait_for(*fds: int) -> list[int]:
    """Those that are readable, once one is; none when that takes too long."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(PATIENCE_S * 1000)]


class CommitterProcess:
    """`start` forks a committer on `data_dir`; `put` and `delete` hand it runs, `wait` takes their answers.

    `answers`: {cookie: [Status of each frame, None where there is none yet]}.
    """

    def __init__(self, data_dir: Path, places: int = 8192, **config: object) -> None:
        where = {name: config[name] for name in ("wal_dir", "layout") if name in config}
        store = Store.open(data_dir, **where)  # type: ignore[arg-type]
        self.queue = Queue(1, places)
        settings = ServerConfig(data_dir=data_dir, **({"reserve": 0} | config))  # type: ignore[arg-type]
        self.node = Node(settings, store, KeyRing([SHARED_KEY]), self.queue, [socket.socket()])
        self.pid = 0
        self.pidfd = -1
        self.cookie = 0
        self.next_place = 0
        self.outstanding = 0
        self.runs: dict[int, tuple[int, int, int, int]] = {}  # cookie: first ticket, place, count, kind
        self.answers: dict[int, list[Status | None]] = {}
        self.log_path = data_dir.parent / f"{data_dir.name}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            self.kill()
        for sock in self.node.admin_sockets:
            sock.close()
        self.node.store.close()
        self.queue.close()

    # --- the process

    def start(self, wait: bool = True) -> None:
        self.queue.committer_gone()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                logging.basicConfig(filename=self.log_path, level=logging.INFO, force=True)
                code = committer_main(self.node)
            except BaseException:
                logging.critical("unexpected", exc_info=True)
            finally:
                logging.shutdown()
                os._exit(code)
        self.pidfd = os.pidfd_open(self.pid)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until it has recovered; then submits again what has no answer, as a worker does."""
        self.queue.set_worker_sleeping(0, True)
        while self.queue.epoch % 2:
            self._sleep()
        self._collect()  # what the last one said is true
        self.queue.empty_rings(0)
        for cookie, (first, place, _, kind) in self.runs.items():
            answers = self.answers[cookie]
            at = 0
            while at < len(answers):
                count = 0
                while at + count < len(answers) and answers[at + count] is None:
                    count += 1
                if count:
                    self.queue.submit(0, first + at, place + at, count, kind, cookie)
                at += count + 1
        self.queue.attend(0)

    def _sleep(self) -> None:
        doorbell = self.queue.worker_doorbells[0]
        ready = wait_for(doorbell, self.pidfd)
        assert ready, f"the committer neither answers nor ends:\n{self.log()}"
        assert self.pidfd not in ready or doorbell in ready, f"the committer ended:\n{self.log()}"
        try:
            os.eventfd_read(doorbell)
        except BlockingIOError:
            pass

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def says(self, text: str) -> bool:
        return log_lines.says(self.log, text)

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        return self.wait_end()

    def wait_end(self) -> int:
        assert wait_for(self.pidfd), f"it does not end:\n{self.log()}"
        code = self._reap()
        self._collect()
        return code

    # --- the worker's side

    def submit(self, first: int, frames: bytes, kind: int = PUT) -> int:
        count = len(frames) // FRAME_SIZE
        if self.outstanding == 0:
            self.next_place = 0
        self.outstanding += count
        place, self.next_place = self.next_place, self.next_place + count
        self.queue.frames(0, place, count)[:] = frames
        self.cookie += 1
        self.runs[self.cookie] = (first, place, count, kind)
        self.answers[self.cookie] = [None] * count
        self.queue.submit(0, first, place, count, kind, self.cookie)
        return self.cookie

    def put(self, first: int, count: int = 1, data: bytes = b"data") -> int:
        return self.submit(first, b"".join(frame(first + i, data) for i in range(count)))

    def delete(self, first: int, count: int) -> int:
        return self.submit(first, delete_frame(first, count), DELETE)

    def _collect(self) -> None:
        for cookie, place, count, status in self.queue.take_outcomes(0):
            first = self.runs[cookie][1]
            for i in range(place - first, place - first + count):
                assert self.answers[cookie][i] is None, "a frame was answered twice"
                self.answers[cookie][i] = Status(status)
            self.outstanding -= count

    def wait(self, *cookies: int) -> list[set[Status | None]]:
        """The answers to all these runs, once they are complete."""
        self.queue.set_worker_sleeping(0, True)
        while True:
            self._collect()
            if not any(None in self.answers[cookie] for cookie in cookies):
                return [set(self.answers[cookie]) for cookie in cookies]
            self._sleep()


def main(data_dir: str, batches: int, packs: int, deletes: int) -> None:
    """Puts `batches` times 3 frames into each of `packs` new packs, one after the other, then deletes `deletes` tickets, and
    stops the committer if it does not end by itself. Prints what was answered until then, and its exit code."""
    with CommitterProcess(Path(data_dir)) as committer:
        committer.start()
        cookies = []
        try:
            for batch in range(batches):
                cookies.append([committer.put(FIRST + 1296 * (batch * packs + i), 3) for i in range(packs)])
                committer.wait(*cookies[-1])
            if deletes:
                cookies.append([committer.delete(FIRST, deletes)])
                committer.wait(*cookies[-1])
        except AssertionError as error:
            assert "the committer ended" in str(error), error
        code = committer.stop()
        answers = [
            [[status and status.name for status in committer.answers[cookie]] for cookie in some]
            for some in cookies
        ]
        print(json.dumps({"code": code, "answers": answers, "log": committer.log()}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
