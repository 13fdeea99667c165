"""A process of a gateway that is told to end ends, at whatever moment of its start that is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from reference_server import ReferenceServer
from test_unbound_gateway import gateway_of

from ingest.gateway.process import http_process
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.gateway_processes import bind, close, possession_of
from ingest.gateway.process.http_process import HttpRole
from ingest.gateway.process.signing_keys import Telling
from ingest.runtime import signals
from ingest.runtime.key_file import make_key_file

STARTED_S = 2.0  # by then a start is over: it is told to end all the same
PATIENCE_S = 30.0


class Turns(asyncio.SelectorEventLoop):
    """Tells its process to end before its turn number ``at``, or when that does not come."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at
        self.told_late = False
        self.call_later(STARTED_S, self._tell_late)

    def _run_once(self) -> None:
        if self._left == 0:
            self._tell()
        self._left -= 1
        super()._run_once()

    def _tell_late(self) -> None:
        if self._left >= 0:
            self._left = -1
            self.told_late = True
            self._tell()

    def _tell(self) -> None:
        self._signal_handlers[signals.end()]._run()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayConfig]:
    """Of a gateway that runs, bound to its engine's store."""
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    (data_dir / ".ingest").mkdir(parents=True)
    with (
        ReferenceServer([make_key_file(data_dir / ".ingest" / "key")]) as engine,
        gateway_of(data_dir, engine) as node,
    ):
        assert node.gateway.request("PUT", "/objects/a", b"a").status == 200
        yield GatewayConfig(
            data_dir,
            ("127.0.0.1", 0),
            engine.put_address,
            engine.get_address,
            http_workers=1,
            drain_timeout=1,
        )


def ends_when_told(at: int, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Whether it was told before its start was over."""
    loop = Turns(at)
    late = threading.Timer(PATIENCE_S, loop.call_soon_threadsafe, [loop.stop])
    late.start()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            runner.run(work())
        except asyncio.CancelledError:
            pass
        except RuntimeError as error:  # of a loop that was stopped
            pytest.fail(f"told to end before turn {at} of its loop, it goes on: {error}")
        finally:
            late.cancel()
    return not loop.told_late


@pytest.mark.parametrize("process", ["http", "collector"])
def test_at_each_turn_of_its_start(config: GatewayConfig, process: str) -> None:
    def work() -> Coroutine[Any, Any, None]:
        possession, telling = possession_of(config), Telling()
        if process == "collector":
            return http_process._collect(config, lambda: config, telling, possession)
        return http_process._serve(
            HttpRole(config, shares[0], lambda: config, telling, bytes(32), possession, {}, False)
        )

    at, early = 0, True
    while early:
        at += 1
        shares = bind(config)
        early = ends_when_told(at, work)
        close(shares)
    assert at > 10, "a start has more turns than that"
