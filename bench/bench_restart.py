"""Start after SIGKILL of all processes at full load, until both ports answer."""

from __future__ import annotations

import threading
from pathlib import Path

from bench import load
from bench.conftest import Take
from bench.report import Round, Row
from bench.scratch import Scratch
from bench.server import Server
from bench.sizes import Sizes
from ingest.errors import ConnectionLostError
from ingest.loadgen import loopback

CONNECTIONS = 4


def test_restart(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    row = Row(
        "restart", "start after kill -9 at full load, until the ports answer", "s", 3.0, 1.0, least=True
    )
    row.notes = {
        "clock": "from the exec of the new server until a new frame is SAVED and comes back by its get port"
    }
    for _ in range(sizes.rounds):
        with scratch.round() as directory:
            row.rounds.append(_kill_and_start(directory, sizes))
    return [row]


def _kill_and_start(directory: Path, sizes: Sizes) -> Round:
    killing = threading.Event()
    begun = threading.Event()  # something was acked, or nothing will be
    failures: list[BaseException] = []
    acked = 0

    def work(how: loopback.LoopbackOptions) -> None:
        nonlocal acked

        def note(progress: loopback.Progress) -> None:
            nonlocal acked
            acked = progress.done
            if acked:
                begun.set()

        try:
            loopback.run(how, note)
        except ConnectionLostError as error:
            if not killing.is_set():
                failures.append(error)
        except BaseException as error:
            failures.append(error)
        finally:
            begun.set()

    with Server(directory / "data") as server:
        how = load.options(
            server.put_address,
            server.shared_key,
            connections=CONNECTIONS,
            window=sizes.window,
            duration=100 * sizes.restart_s,
        )
        generator = threading.Thread(target=work, args=(how,))
        generator.start()
        generator.join(sizes.restart_s)
        begun.wait()
        log_used = server.metric("ingest_log_used_bytes")
        killing.set()
        server.kill()
        generator.join()
        if failures:
            raise failures[0]
        assert acked > 0, "the server was killed before it had acked anything"
        seconds = server.start()
        server.stop()
    return Round(seconds, details={"acked_before": acked, "log_used_mib": round(log_used / 2**20)})
