"""Keys, and what they sign: `docs/protocol.md`, "Keys and checksums".

The shared key (32 bytes) never signs anything itself. Each purpose has its own key, derived from it, so
that a put can never be taken for a delete. Checksums are the first 8 bytes of keyed BLAKE3;
``ingest._hmac`` computes them for batches, the functions here are for one frame or request.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from blake3 import blake3

from ingest import _hmac
from ingest.errors import KeyFileError, UsageError
from ingest.limits import DATA_SIZE, FRAME_SIZE, RANGE_COUNT_MAX, REQUEST_SIZE, TICKET_SIZE

SHARED_KEY_SIZE = 32  # bytes
REQUEST_SIGNED_SIZE = 16  # bytes of a request that its checksum covers
ACCEPTED_KEYS = 2  # this many of the first keys are accepted from the network (docs/operations.md, "Keys")

# On the wire: whoever changes one of these can no longer talk to anyone, nor read what is stored.
PUT_CONTEXT = "ingest 2026-11-21 put frame"
DELETE_CONTEXT = "ingest 2026-11-21 delete frame"
GET_CONTEXT = "ingest 2026-11-21 get request"
INVENTORY_CONTEXT = "ingest 2026-11-21 inventory request"

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class SubKeys:
    """What one shared key became: four keys of 32 bytes, and ``id``, its public name of 16 hex digits."""

    put: bytes = field(repr=False)
    delete: bytes = field(repr=False)
    get: bytes = field(repr=False)
    inventory: bytes = field(repr=False)
    id: str


def _check_shared_key(shared_key: Bytes) -> bytes:
    key = bytes(shared_key)
    if len(key) != SHARED_KEY_SIZE:
        raise UsageError(f"a shared key has {SHARED_KEY_SIZE} bytes, not {len(key)}")
    return key


def derive(shared_key: Bytes) -> SubKeys:
    """The keys of ``shared_key`` (32 bytes, else UsageError): docs/protocol.md, BLAKE3 mode derive_key."""
    key = _check_shared_key(shared_key)

    def subkey(context: str) -> bytes:
        return blake3(key, derive_key_context=context).digest()

    return SubKeys(
        put=subkey(PUT_CONTEXT),
        delete=subkey(DELETE_CONTEXT),
        get=subkey(GET_CONTEXT),
        inventory=subkey(INVENTORY_CONTEXT),
        id=blake3(key).hexdigest(8),
    )


class KeyRing:
    """The keys of one server or client, from shared keys in the order of the key file.

    ``signing`` signs, ``accepted`` (the first two) may sign what comes from the network, ``all`` verify what
    is stored: so a key is rotated by putting the new one first, and nothing stored becomes unreadable.
    Raises UsageError for no key, the same key twice, or a key that has not 32 bytes.
    """

    __slots__ = ("accepted", "all", "signing")

    def __init__(self, shared_keys: Iterable[Bytes]) -> None:
        if isinstance(shared_keys, (bytes, bytearray, memoryview, str)):
            raise UsageError("a key ring is made from a list of shared keys, not from one")
        keys = [_check_shared_key(key) for key in shared_keys]
        if not keys:
            raise UsageError("a key ring needs at least one shared key")
        if len(set(keys)) != len(keys):
            raise UsageError("the same shared key occurs twice")
        self.all: tuple[SubKeys, ...] = tuple(derive(key) for key in keys)
        self.accepted: tuple[SubKeys, ...] = self.all[:ACCEPTED_KEYS]
        self.signing: SubKeys = self.all[0]

    @property
    def ids(self) -> tuple[str, ...]:
        """The identifiers of all keys, in order: what ``store.json`` remembers."""
        return tuple(keys.id for keys in self.all)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.ids)})"

    def stored_frame_ok(self, frame: Bytes) -> bool:
        """Whether a stored frame (1474 bytes) carries the checksum of a put under any of the keys."""
        return any(frame_ok(keys.put, frame) for keys in self.all)


def parse_keys(text: str, name: str = "key file") -> list[bytes]:
    """The shared keys in the text of a key file: one a line, 64 hex digits; blank lines are skipped.

    Raises KeyFileError, which names ``name`` and the line but never what stands in it.
    """
    keys: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip()
        if not word:
            continue
        if len(word) != 2 * SHARED_KEY_SIZE or not set(word) <= set("0123456789abcdefABCDEF"):
            raise KeyFileError(f"{name}, line {number}: expected one key of {2 * SHARED_KEY_SIZE} hex digits")
        key = bytes.fromhex(word)
        if key in keys:
            raise KeyFileError(f"{name}, line {number}: the same key stands in line {keys.index(key) + 1}")
        keys.append(key)
    if not keys:
        raise KeyFileError(
            f"{name} holds no key: put back what stood in it. For a new store, remove it: `ingest keygen` makes one"
        )
    return keys


def format_keys(shared_keys: Iterable[Bytes]) -> str:
    """The text of a key file with these shared keys, which ``parse_keys`` reads."""
    return "".join(f"{_check_shared_key(key).hex()}\n" for key in shared_keys)


def build_frame(put_key: bytes, ticket: bytes, data: Bytes) -> bytes:
    """The signed frame (1474 bytes) that puts ``data`` under ``ticket``.

    ``data`` has at most 1458 bytes and is padded with zeros; ``ticket`` is 8 bytes as on the wire. Raises
    UsageError for a wrong size.
    """
    _check_ticket(ticket)
    if len(data) > DATA_SIZE:
        raise UsageError(f"a chunk has at most {DATA_SIZE} bytes, not {len(data)}")
    frame = bytearray(FRAME_SIZE)
    frame[:8] = ticket
    frame[16 : 16 + len(data)] = data
    _hmac.sign(put_key, frame)
    return bytes(frame)


def build_delete(delete_key: bytes, ticket: bytes, count: int) -> bytes:
    """The signed frame (1474 bytes) that deletes ``count`` tickets from ``ticket`` (8 bytes) on.

    Raises UsageError for a count that is not 1 to 65,536, or for a wrong size.
    """
    _check_count(count)
    return build_frame(delete_key, ticket, count.to_bytes(8, "big"))


def frame_ok(key: bytes, frame: Bytes) -> bool:
    """Whether ``frame`` (1474 bytes, else UsageError) carries its checksum under ``key``; constant time."""
    if len(frame) != FRAME_SIZE:
        raise UsageError(f"a frame has {FRAME_SIZE} bytes, not {len(frame)}")
    return _hmac.verify(key, frame) == b"\1"


def build_request(key: bytes, ticket: bytes, count: int) -> bytes:
    """The signed request (24 bytes) for ``count`` tickets (1 to 65,536, else UsageError) from ``ticket`` on.

    The key says what is asked for: the get key for runs and their frames, the inventory key for runs alone.
    """
    _check_ticket(ticket)
    _check_count(count)
    head = bytes(ticket) + count.to_bytes(8, "big")
    return head + _hmac.request_tags(key, head, REQUEST_SIGNED_SIZE)


def request_ok(key: bytes, request: Bytes) -> bool:
    """Whether ``request`` (24 bytes, else UsageError) carries its checksum under ``key``; constant time."""
    if len(request) != REQUEST_SIZE:
        raise UsageError(f"a request has {REQUEST_SIZE} bytes, not {len(request)}")
    return hmac.compare_digest(_hmac.request_tags(key, request), bytes(request[REQUEST_SIGNED_SIZE:]))


def _check_ticket(ticket: bytes) -> None:
    if len(ticket) != TICKET_SIZE:
        raise UsageError(f"a ticket has {TICKET_SIZE} bytes on the wire, not {len(ticket)}")


def _check_count(count: int) -> None:
    if not 1 <= count <= RANGE_COUNT_MAX:
        raise UsageError(f"a count lies between 1 and {RANGE_COUNT_MAX}, not {count}")
