"""SIGHUP: keys, certificates and the log level are read again, and every process of the server takes them over.

The parent reads and checks everything first; when anything is wrong, nothing changes anywhere. Then, in this order:

    step      who                    why then
    --------  ---------------------  -------------------------------------------------------------------------------
    durable   parent                 store.json names the new keys before a frame that one of them signed can be stored
    KNOWN     committer, admin port  they verify what is stored: they must know a key before a worker accepts it
    USED      workers                they accept frames and requests with the new keys, and new connections get the new
                                     certificates; frames that were verified before are known to the committer as well
    said      parent                 DATA/.ingest/lock names the keys that all workers accept, for who is to sign with them;
                                     while USED is under way only those that were accepted before as well

A step is over when every process that runs has answered; one that dies meanwhile is replaced by one that starts with
what its step says (`node.Node`). Settings travel in memory that all processes share, and a message says how long they
are: so it takes no descriptor, which a server under load may not have.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ingest import limits, tls
from ingest.engine.announcement import announce
from ingest.engine.server_config import ServerConfig
from ingest.errors import ConfigError, IngestError
from ingest.mac import KeyRing
from ingest.runtime.key_file import read_keys
from ingest.runtime.tls_context import TlsContext
from ingest.store.data_dir import DataDir
from ingest.tls import Certificates

if TYPE_CHECKING:
    from ingest.engine.node import Node

log = logging.getLogger(__name__)

# What may change in a running server; all else of the configuration is fixed at its start.
RELOADABLE = frozenset(("key_file", "tls_cert", "tls_key", "tls_client_ca", "log_level"))


@dataclass(frozen=True)
class Settings:
    """What the processes take over."""

    shared_keys: tuple[bytes, ...] = dataclasses.field(repr=False)
    key_names: tuple[str, ...]
    certificates: Certificates | None
    log_level: str

    @property
    def keys(self) -> KeyRing:
        return KeyRing(self.shared_keys)


def name_keys(keys: KeyRing, before: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The identifiers of the keys that have counters of their own. A key keeps its number as long as the server runs."""
    new = [key_id for key_id in keys.ids if key_id not in before]
    return (*before, *new)[: max(limits.KEYS_COUNTED, len(before))]


def read_certificates(config: ServerConfig) -> Certificates | None:
    """What the configuration names, None without TLS. ConfigError when it cannot be used."""
    files = config.certificate_files
    if files is None:
        return None
    certificates = tls.read_certificates(*files)
    TlsContext(certificates, is_server=True)
    return certificates


def use_log_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


# --- in a child ----------------------------------------------------------------------------------


def receive(node: Node) -> Settings | None:
    """The settings that the parent asks this process to take over, None when it does not. `confirm` when that is done."""
    assert node.control is not None
    try:
        message = node.control.recv(32, socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return None
    if not message:  # the parent has gone, and the kernel ends this process too
        return None
    return msgspec.msgpack.decode(node.settings_memory[: int(message)], type=Settings)


def confirm(node: Node) -> None:
    assert node.control is not None
    node.control.send(b"taken")


# --- in the parent -------------------------------------------------------------------------------


class Step(enum.Enum):
    NONE = enum.auto()
    KNOWN = enum.auto()
    USED = enum.auto()


class Reload:
    """One server's reloads, one after the other.

    ``lines``: the parent's ends of the lines to the processes that run now, workers' or others', by their names.
    """

    def __init__(self, node: Node, lines: Callable[[bool], dict[str, socket.socket]]) -> None:
        self._node = node
        self._lines = lines
        self._step = Step.NONE
        self._again = False
        self._waiting: set[str] = set()  # processes that have not answered
        self._settings: Settings | None = None
        self._config: ServerConfig | None = None

    @property
    def waiting(self) -> frozenset[str]:
        return frozenset(self._waiting)

    def begin(self) -> None:
        """Reads everything again. What is wrong is logged, and then nothing changes."""
        if self._step is not Step.NONE:
            self._again = True
            return
        node = self._node
        try:
            if node.read_config is None:
                raise ConfigError("this server was started without a way to read its configuration again")
            config = self._reloadable(node.read_config())
            certificates = read_certificates(config)
            made = DataDir(config.data_dir).key
            path = config.key_file or made
            shared_keys = tuple(read_keys(path, data_dir=config.data_dir, own=path == made))
            keys = KeyRing(shared_keys)
            content = self._publish(
                Settings(shared_keys, name_keys(keys, node.key_names), certificates, config.log_level)
            )
            node.store.check_keys(keys)
        except (IngestError, OSError) as error:
            log.error("SIGHUP: nothing was reloaded, the server goes on as it was: %s", error)
            return
        assert self._settings is not None
        self._config = config
        node.known_keys, node.key_names = keys, self._settings.key_names
        self._tell(Step.KNOWN, self._lines(False), content)

    def _reloadable(self, config: ServerConfig) -> ServerConfig:
        """The present configuration with what may change of `config`. Names the rest in the log."""
        present = self._node.config
        fixed = [
            field.name
            for field in dataclasses.fields(ServerConfig)
            if field.name not in RELOADABLE and getattr(config, field.name) != getattr(present, field.name)
        ]
        for name in ("tls_cert", "tls_client_ca"):
            if (getattr(config, name) is None) != (getattr(present, name) is None):
                # An edit that went wrong must not open a port to those whom it kept out.
                raise ConfigError(f"{name}: turning this on or off needs a restart")
        if fixed:
            log.warning("SIGHUP: changed and not taken over, this needs a restart: %s", ", ".join(fixed))
        return dataclasses.replace(present, **{name: getattr(config, name) for name in RELOADABLE})

    def _publish(self, settings: Settings) -> bytes:
        content = msgspec.msgpack.encode(settings)
        if len(content) > limits.SETTINGS_SIZE_MAX:
            raise ConfigError(
                f"keys and certificates have {len(content)} bytes, {limits.SETTINGS_SIZE_MAX} at most"
            )
        self._node.settings_memory[: len(content)] = content
        self._settings = settings
        return str(len(content)).encode()

    def _tell(self, step: Step, lines: dict[str, socket.socket], message: bytes) -> None:
        self._step, self._message = step, message
        for name, line in lines.items():
            try:
                line.send(message, socket.MSG_DONTWAIT)
                self._waiting.add(name)
            except OSError as error:  # it is about to be reaped
                log.debug("%s was not told: %s", name, error.strerror)
        self._go_on()

    def answered(self, name: str) -> None:
        """A process has taken over what it was told, or it has ended."""
        self._waiting.discard(name)
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting or self._step is Step.NONE:
            return
        settings, config, node = self._settings, self._config, self._node
        assert settings is not None and config is not None and node.known_keys is not None
        if self._step is Step.KNOWN:
            stays = {keys.id for keys in node.keys.accepted}
            announce(node, [keys for keys in node.known_keys.accepted if keys.id in stays])
            node.keys, node.certificates = node.known_keys, settings.certificates
            self._say_what_changed(config)
            node.config = config
            use_log_level(config.log_level)
            self._tell(Step.USED, self._lines(True), self._message)
            return
        self._step = Step.NONE
        announce(node, node.keys.accepted)
        log.info(
            "SIGHUP: reloaded: keys %s are accepted, %d others known",
            " and ".join(keys.id for keys in node.keys.accepted),
            len(node.keys.all) - len(node.keys.accepted),
        )
        if self._again:
            self._again = False
            self.begin()

    def _say_what_changed(self, config: ServerConfig) -> None:
        present = self._node.config
        changed = [name for name in sorted(RELOADABLE) if getattr(config, name) != getattr(present, name)]
        if changed:
            log.info("SIGHUP: changed: %s", ", ".join(changed))


__all__ = [
    "Reload",
    "Settings",
    "confirm",
    "name_keys",
    "read_certificates",
    "receive",
    "use_log_level",
]
