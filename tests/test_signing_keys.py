"""Which key a gateway signs with, while the file changes and the server says, or does not say, what it accepts."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest import limits
from ingest.client.async_client import AsyncClient
from ingest.errors import KeyFileError
from ingest.gateway.process.gateway_config import GatewayConfig, load_config
from ingest.gateway.process.signing_keys import SigningKeys, Telling, read_keys
from ingest.mac import KeyRing

ONE, TWO, THREE, FOUR = (bytes([number]) * 32 for number in range(1, 5))


def id_of(key: bytes) -> str:
    return KeyRing([key]).signing.id


class Rig:
    """A data directory with a key file, and a lock in which a server says what it accepts."""

    def __init__(self, directory: Path) -> None:
        (directory / ".ingest").mkdir()
        self.lock = directory / ".ingest" / "lock"
        self.lock.touch()
        self.held = self.lock.open("rb")  # by the server
        fcntl.flock(self.held, fcntl.LOCK_EX)
        self.key_file = directory / ".ingest" / "key"
        self.config = load_config({"data_dir": str(directory)}, {})
        self.telling = Telling()
        self.client = AsyncClient(("127.0.0.1", 1), ("127.0.0.1", 1), ONE)
        self.keys = SigningKeys(self.client, self.telling)

    def file(self, *keys: bytes) -> None:
        self.key_file.write_text("".join(f"{key.hex()}\n" for key in keys))
        self.key_file.chmod(0o600)
        self.keys.load(self.config)

    def accepts(self, *keys: bytes) -> None:
        put = f"127.0.0.1:{self.config.connect[1]}"
        self.lock.write_text(json.dumps({"pid": 1, "put": put, "keys": [id_of(key) for key in keys]}))

    def signs(self) -> str:
        return self.client._keys.signing.id

    async def until_signed_with(self, key: bytes) -> None:
        while self.signs() != id_of(key):
            await asyncio.sleep(0.005)

    async def stays_with(self, key: bytes) -> None:
        """Also after it looked a few times more."""
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert self.signs() == id_of(key)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(limits, "RETRY_DELAY_MIN_S", 0.001)
    monkeypatch.setattr(limits, "KEY_LOOK_INTERVAL_S", 0.001)

    def within(work: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            rig = Rig(tmp_path)
            await work(rig)
            rig.keys.close()
            rig.held.close()

        asyncio.run(main())

    return within


def test_a_new_key_signs_when_the_server_accepts_it(run: Callable[..., None]) -> None:
    async def work(rig: Rig) -> None:
        rig.accepts(ONE)
        rig.file(ONE)
        assert rig.signs() == id_of(ONE)
        rig.file(ONE, TWO)
        await rig.stays_with(ONE)
        assert rig.client._keys.ids == (id_of(ONE), id_of(TWO))  # what it signed is read already
        rig.accepts(ONE, TWO)
        await rig.until_signed_with(TWO)
        # A rotation: the server may read the file before and after the gateway does.
        rig.file(TWO, THREE, ONE)
        await rig.stays_with(TWO)
        rig.accepts(TWO)
        await rig.stays_with(TWO)
        rig.accepts(TWO, THREE)
        await rig.until_signed_with(THREE)
        rig.accepts(THREE, FOUR)
        rig.file(THREE, FOUR, TWO, ONE)
        await rig.until_signed_with(FOUR)

    run(work)


def test_not_before_all_have_been_told(run: Callable[..., None]) -> None:
    async def work(rig: Rig) -> None:
        rig.accepts(ONE, TWO)
        rig.telling.begin()
        rig.file(ONE, TWO)
        await rig.stays_with(ONE)
        rig.telling.end()
        await rig.until_signed_with(TWO)

    run(work)


def test_a_key_that_is_retired_does_not_sign(run: Callable[..., None]) -> None:
    """Rotated twice before the first new key was accepted."""

    async def work(rig: Rig) -> None:
        rig.accepts(ONE)
        rig.file(ONE, TWO)
        rig.file(TWO, THREE, ONE)
        assert rig.signs() == id_of(TWO)
        await rig.stays_with(TWO)
        rig.accepts(TWO, THREE)
        await rig.until_signed_with(THREE)

    run(work)


@pytest.mark.parametrize("lock", [b"", b'{"pid": 1, "ke', b"[", b'{"pid": 1}', b'{"keys": []}'])
def test_a_lock_that_says_nothing_yet(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, lock: bytes
) -> None:
    monkeypatch.setattr(limits, "KEY_SWITCH_DELAY_S", 0.0)

    async def work(rig: Rig) -> None:
        rig.lock.write_bytes(lock)
        rig.file(ONE, TWO)
        await rig.stays_with(ONE)
        rig.accepts(ONE, TWO)
        await rig.until_signed_with(TWO)

    run(work)


@pytest.mark.parametrize("elsewhere", ["no lock", "a lock that nobody holds", "another port"])
def test_a_server_elsewhere_can_t_be_asked(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    async def work(rig: Rig) -> None:
        rig.accepts(ONE)
        if elsewhere == "no lock":
            rig.lock.unlink()
        elif elsewhere == "another port":
            rig.lock.write_text(json.dumps({"pid": 1, "put": "127.0.0.1:1", "keys": [id_of(ONE)]}))
        else:
            rig.held.close()  # a server ran here once
        rig.file(ONE, TWO)
        await rig.stays_with(ONE)
        monkeypatch.setattr(limits, "KEY_SWITCH_DELAY_S", 0.0)
        rig.file(ONE, TWO)
        await rig.until_signed_with(TWO)

    run(work)


# --- a reload while another one still waits

FILES = [(ONE,), (ONE, TWO), (TWO, THREE, ONE), (THREE, FOUR, TWO, ONE), (TWO, ONE), ()]


@pytest.mark.parametrize("first", FILES[:-1])
def test_of_several_reloads_that_wait_only_the_last_one_counts(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, first: tuple[bytes, ...]
) -> None:
    """Whatever was in the file meanwhile, and however far each got: then the server accepts all that it ever named. A file
    without a key is refused, and the one before it counts."""

    async def work(rig: Rig) -> None:
        used: list[tuple[str, ...]] = []
        take = rig.client.use_keys

        def use_keys(keys: list[bytes]) -> None:
            take(keys)
            used.append(rig.client._keys.ids)

        monkeypatch.setattr(rig.client, "use_keys", use_keys)
        rig.accepts()
        for second in FILES:
            for third in FILES:
                rig.keys = SigningKeys(rig.client, rig.telling)
                rig.telling.begin()
                for keys in (first, second, third):
                    if keys:
                        rig.file(*keys)
                        last = keys
                    else:
                        with pytest.raises(KeyFileError):
                            rig.file()
                    await asyncio.sleep(0)  # each of them waits by now
                at_once = len(used)
                rig.accepts(ONE, TWO, THREE, FOUR)
                rig.telling.end()
                await asyncio.gather(
                    *(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True
                )
                assert rig.signs() == id_of(last[:2][-1])
                for ids in used[at_once - 1 :]:
                    assert sorted(ids) == sorted(map(id_of, last)), (first, second, third)

    run(work)


def test_none_switches_after_its_end(run: Callable[..., None]) -> None:
    async def work(rig: Rig) -> None:
        rig.accepts(ONE, TWO)
        rig.telling.begin()
        rig.file(ONE, TWO)
        await asyncio.sleep(0)
        rig.keys.close()
        rig.telling.end()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        assert rig.signs() == id_of(ONE)

    run(work)


# --- the file that was read last


def other_file(rig: Rig, *keys: bytes) -> GatewayConfig:
    path = rig.key_file.with_name("other")
    path.write_text("".join(f"{key.hex()}\n" for key in keys))
    path.chmod(0o600)
    return replace(rig.config, key_file=path)


@pytest.mark.parametrize("spoilt", [False, True])
def test_it_is_the_last_one_that_could_be_read_which_is_looked_at_again(
    run: Callable[..., None], spoilt: bool
) -> None:
    """A HUP may have named another file, or one that cannot be read. Who looks whether it has changed looks there."""

    async def work(rig: Rig) -> None:
        rig.accepts(ONE, TWO, THREE, FOUR)
        rig.file(ONE)
        rig.keys.load(other_file(rig, TWO))
        if spoilt:
            with pytest.raises(KeyFileError):
                rig.keys.load(replace(rig.config, key_file=rig.key_file.with_name("none")))
        rig.key_file.write_text(f"{FOUR.hex()}\n")
        rig.keys.load_changed()
        assert rig.client._keys.ids == (id_of(TWO),)
        other_file(rig, THREE)
        for _ in range(2):
            rig.keys.load_changed()
            assert rig.client._keys.ids == (id_of(THREE),)

    run(work)


def test_a_file_that_is_as_it_was_is_not_loaded_again(run: Callable[..., None]) -> None:
    """A switch that is under way goes on: it would begin anew with each look, and come to no end elsewhere. One key of
    several is enough to be another file."""

    async def work(rig: Rig) -> None:
        rig.accepts(ONE)
        rig.file(ONE, TWO, THREE)
        switching = rig.keys._switching
        rig.keys.load_changed()
        assert rig.keys._switching is switching
        for keys in ((ONE, TWO, FOUR), (ONE, TWO), (ONE, FOUR, TWO)):
            rig.key_file.write_text("".join(f"{key.hex()}\n" for key in keys))
            rig.keys.load_changed()
            assert rig.client._keys.ids == tuple(map(id_of, keys))

    run(work)


@pytest.mark.parametrize("named", ["nothing", "its own", "another one"])
def test_only_the_key_of_the_store_itself_may_be_given_to_a_group(
    run: Callable[..., None], named: str
) -> None:
    """Whatever names it. Another file that its group may change is nobody's."""

    async def work(rig: Rig) -> None:
        rig.file(ONE)
        config = other_file(rig, ONE)
        assert config.key_file is not None
        for path in (rig.key_file, config.key_file):
            path.chmod(0o660)
        if named == "another one":
            with pytest.raises(KeyFileError, match="chmod 600"):
                read_keys(config)
        else:
            path = rig.key_file if named == "its own" else None
            assert read_keys(replace(config, key_file=path)) == [ONE]

    run(work)


def test_the_looks_at_a_server_become_rarer_up_to_a_bound(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come after an hour, and its key is signed with soon then."""

    async def work(rig: Rig) -> None:
        monkeypatch.setattr(limits, "RETRY_DELAY_MIN_S", 0.5)
        monkeypatch.setattr(limits, "KEY_LOOK_INTERVAL_S", 3)
        delays: list[float] = []
        real = asyncio.sleep

        async def sleep(delay: float) -> None:
            delays.append(delay)
            if len(delays) == 12:
                rig.accepts(ONE, TWO)
            await real(0)

        rig.accepts(ONE)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            rig.file(ONE, TWO)
            assert rig.keys._switching is not None
            await rig.keys._switching
        assert delays == [0.5, 1, 2, *[3] * 9] and rig.signs() == id_of(TWO)

    run(work)
