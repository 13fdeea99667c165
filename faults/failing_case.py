"""One case of part 5: a server meets a fault. Also a program that runs such cases, with the library preloaded.

The program takes a case as a line of JSON on stdin and answers it with one on stdout. Its servers are forks of it, which
makes a start cheap; nothing else about them differs.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from node_rig import NodeRig

from faults.block_recorder import PR_SET_CHILD_SUBREAPER
from faults.call_shim import Shim
from faults.failing_client import Client, D, E, Loss, N, S
from faults.failing_series import COMMITTER_NAME, SHORT, SOCKETS, Series
from faults.fault_server import FaultServer, committer_held
from ingest import ticket
from ingest.limits import BULK_PENDING_MIN, PACK_SLOTS

FLAGS = ("--workers=1", "--reserve=0", "--wal-size=96MiB", "--drain-timeout=5")
PACKS = [36 + PACK_SLOTS * (5 + 2 * i) for i in range(3)]  # first tickets of those for small puts
LONG = 36 + PACK_SLOTS * 200  # first ticket of a run
RECOVERED = 36 + PACK_SLOTS * 400  # first ticket of the run that a recovery finds


@dataclass(frozen=True)
class Work:
    """What is asked of a server: `small` puts, `long` tickets in a row, and what is deleted (first ticket, count).

    One that recovers finds a run of `recovered` in its log.
    """

    small: tuple[int, ...]
    long: int
    deletes: tuple[tuple[int, int], ...]
    recovered: int = 0

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """All that is touched, and its neighbours."""
        packs = [pack for pack in PACKS if any(pack <= index < pack + PACK_SLOTS for index in self.small)]
        return [*((pack, 512) for pack in packs), (LONG, self.long + 10)]

    @property
    def puts(self) -> range:
        return range(LONG, LONG + self.long)

    def prepare(self, node: NodeRig) -> None:
        """What a recovery finds in its log. AssertionError."""
        with node.connect() as connection:
            assert set(connection.put(self.small[:3]).values()) == {S}
            with committer_held(node, min(BULK_PENDING_MIN, self.recovered)):
                run = connection.put(range(RECOVERED, RECOVERED + self.recovered))
            assert set(run.values()) == {S}
            assert connection.delete(self.small[2], 1) is D

    def prepared(self, client: Client) -> None:
        """The client learns what `prepare` left."""
        client.allowed |= {self.small[0]: {S}, self.small[1]: {S}, self.small[2]: {D}}
        client.allowed |= {index: {S} for index in range(RECOVERED, RECOVERED + self.recovered)}

    def sequence(self, client: Client) -> None:
        """While calls fail."""
        half = len(self.small) // 2
        client.put(list(self.small[:half]))
        client.put_long(list(self.puts))
        client.put(list(self.small[half - 2 :]))  # two of them again
        client.put([index for index in self.small[: half - 2] if client.allowed[index] == {S}], version=1)
        for first, count in self.deletes:
            client.delete(first, count)
        for first, count in self.ranges:
            client.get(first, count)

    def settle(self, client: Client) -> None:
        """Without the fault everything that was not taken is taken now."""
        client.leave()
        for first, count in self.deletes:
            if client.delete(first, count) is not D:
                raise Loss(f"a delete of {ticket.format(first)} is not done after the fault")
        todo = [index for index in (*self.small, *self.puts) if client.allowed[index] != {D}]
        client.put(todo)
        for index in todo:
            if client.allowed[index] != {S}:
                raise Loss(f"{ticket.format(index)} is not SAVED after the fault")

    def check(self, client: Client) -> None:
        """Everything is as it was acknowledged."""
        for first, count in self.ranges:
            client.get(first, count, certain=True)
        if self.recovered:
            client.get(RECOVERED, self.recovered + 1, certain=True)


_PACKS = tuple(pack + slot for pack in PACKS for slot in (3, 7, 8, 500))
_FILES = tuple(pack + slot for pack in PACKS[:2] for slot in (3, 7, 500))
_BULK = 2 * PACK_SLOTS + 400
assert _BULK > BULK_PENDING_MIN
# Of each layout and scenario. A load is as small as it can be: k counts its calls. Only packs know a bulk path, for which a
# run is long enough; one delete ends in the middle of a block, one empties a pack. In layout tree one goes past its run.
WORK = {
    ("pack", "fresh"): Work(
        _PACKS, _BULK, ((_PACKS[8], 1), (LONG + 100, 50), (LONG + PACK_SLOTS, PACK_SLOTS))
    ),
    ("pack", "again"): Work(_PACKS, 40, ((_PACKS[8], 1), (LONG + 10, 5)), recovered=_BULK),
    ("tree", "fresh"): Work(_FILES, 5, ((_FILES[4], 1), (LONG + 1, 2), (LONG + 4, 4))),
    ("tree", "again"): Work(_FILES, 2, ((_FILES[4], 1), (LONG + 1, 4)), recovered=4),
}


@dataclass(frozen=True)
class Case:
    """One server that meets one fault. `template`: what it starts on; `directory` does not exist yet."""

    series: Series
    k: int
    directory: Path
    template: Path | None

    @property
    def work(self) -> Work:
        return WORK[self.series.layout, self.series.scenario]

    def run(self) -> tuple[bool, str]:
        """Whether the fault struck, and what was lost (empty: nothing)."""
        data = self.directory / "data"
        self.directory.mkdir()
        if self.template is not None:
            copy(self.template, data)
        shim = Shim(self.directory / "control", data, self.series, self.k)
        flags = (*FLAGS, f"--layout={self.series.layout}")
        node = FaultServer(data, *flags)
        client = Client(node, shim)
        if self.template is not None:
            self.work.prepared(client)
        try:
            self._live(node, shim, client)
            client.node = node = FaultServer(data, *flags)
            node.start()
            node.until_ready()
            self.work.check(client)
            if node.stop() != 0:
                raise Loss(f"the server without a fault does not end cleanly: {node.log()[-500:]}")
        except (Loss, AssertionError) as error:
            return (
                shim.struck > 0,
                f"{self.series.name(self.k)}: {error or type(error).__name__}\n{node.log()[-1500:]}",
            )
        finally:
            client.close()
            node.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        return shim.struck > 0, ""

    def _live(self, node: FaultServer, shim: Shim, client: Client) -> None:
        shim.follow()
        try:
            node.start(wait=False)
        finally:
            shim.leave()
        with client.ending_fault():
            node.wait_until_ready()
        self.work.sequence(client)
        if self.series.call == "syncfs":
            node.until_flushed(lambda: shim.struck > 0)
        struck_before = shim.struck
        if struck_before:
            shim.disarm()
            node.until_ready()
            self.work.settle(client)
            self.work.check(client)
        client.close()
        code = node.stop()
        if code not in ((0,) if struck_before or not shim.struck else (0, 1)):
            raise Loss(f"the server ended with {code}")
        self._check_log(node, shim, client)

    def _check_log(self, node: FaultServer, shim: Shim, client: Client) -> None:
        """Who reads the log sees what failed; a call that was only interrupted or cut short concerns nobody."""
        text = node.log_path.read_text(errors="replace")
        trouble = any(status in (E, N, None) for status in client.answered)
        trouble |= "saving stops" in text
        if self.series.error in (SHORT, errno.EINTR):
            if trouble and self.series.call not in SOCKETS:
                raise Loss(
                    "a call that was interrupted or cut short, and could have gone on, failed something"
                )
        elif (
            shim.struck
            and trouble
            and self.series.role == COMMITTER_NAME
            and os.strerror(self.series.error) not in text
        ):
            raise Loss(f"the log does not say {os.strerror(self.series.error)!r}")
        if "Traceback" in text:
            raise Loss("the log holds a traceback")

    def to_json(self) -> str:
        template = None if self.template is None else str(self.template)
        return json.dumps(asdict(self) | {"directory": str(self.directory), "template": template})

    @classmethod
    def from_json(cls, line: str) -> Case:
        found = json.loads(line)
        template = None if found["template"] is None else Path(found["template"])
        return cls(Series(**found["series"]), found["k"], Path(found["directory"]), template)


def make_template(directory: Path, layout: str) -> Path:
    """A data directory with work for recovery: puts, a long run, and a delete, killed before any flush. AssertionError."""
    written = directory / f"written-{layout}"
    node = NodeRig(written, *FLAGS, f"--layout={layout}")
    try:
        node.start()
        WORK[layout, "again"].prepare(node)
        node.kill_all()
    finally:
        node.close()
    data = directory / f"template-{layout}"
    copy(written, data)
    shutil.rmtree(written)
    return data


def copy(source: Path, target: Path) -> None:
    """A copy of a data directory in which blocks of zeros are holes: most of a log segment is."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)
    os.truncate(target / ".ingest" / "lock", 0)  # it names no server


def main() -> None:
    ctypes.CDLL(None).prctl(
        PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
    )  # what a server leaves behind is waited for here
    gc.collect()
    gc.freeze()  # no server has to copy what it does not change
    for line in sys.stdin:
        case = Case.from_json(line)
        try:
            struck, loss = case.run()
        except Exception:  # a case that could not be judged is none that passed
            struck, loss = True, f"{case.series.name(case.k)}: not judged\n{traceback.format_exc()}"
        print(json.dumps([struck, loss]), flush=True)


if __name__ == "__main__":
    main()
