"""The changes of a catalog as messages: many of them in one transaction, each with its own outcome.

A call is the name of a method of `Catalog` and its arguments; what may stand there is taken from that method's own
signature. On a connection both ways are messages: 4 bytes of length (big-endian), then MessagePack.

| message | is |
|---|---|
| call | [id, name of the call, [arguments]] |
| answer | [id, name of an error or nil, what the call returned, or the error's text] |
"""

from __future__ import annotations

import inspect
import logging
import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar, get_type_hints

import msgspec

from ingest import errors
from ingest.catalog.catalog_changes import Catalog
from ingest.errors import CatalogError, DiskError, IngestError, NoSpaceError, ProtocolError
from ingest.limits import CATALOG_MESSAGE_MAX

T = TypeVar("T")
Call: TypeAlias = tuple[str, Sequence[Any]]
log = logging.getLogger("ingest.catalog")

CALLS = (
    "bound", "enter", "enter_alone", "renew", "leave", "expire", "lease", "discard", "forgo", "conflicted", "give_back",
    "reserve", "begin", "extend",
    "commit", "store", "fail", "delete", "pin", "unpin", "collected", "forget",
)  # fmt: skip
# What gives room back, or must not wait for it: also when the disk is full. What stores something new is refused then.
ON_A_FULL_DISK = frozenset({
    "enter", "enter_alone", "renew", "leave", "expire", "discard", "forgo", "conflicted", "give_back", "fail", "delete",
    "pin", "unpin", "collected", "forget",
})  # fmt: skip
NOT_AGAIN = frozenset({"delete"})  # whose second time would not answer as the first: not sent again by itself
# That save nothing: they are made, too, on a catalog whose file is not where it was.
SAVING_NOTHING = frozenset({"enter", "renew", "leave", "pin", "unpin"})

_LENGTH = struct.Struct(">I")


class Request(msgspec.Struct, array_like=True):
    id: int
    call: str
    arguments: msgspec.Raw


class Answer(msgspec.Struct, array_like=True):
    id: int
    error: str | None
    value: msgspec.Raw


def _arguments_of(call: str) -> type[msgspec.Struct]:
    method = getattr(Catalog, call)
    hints = get_type_hints(method)
    fields: list[Any] = []
    for name, parameter in list(inspect.signature(method).parameters.items())[1:]:
        field: tuple[Any, ...] = (name, hints[name])
        if parameter.default is not parameter.empty:
            default = dict if parameter.default == {} else None
            value = msgspec.field(default_factory=default) if default else parameter.default
            field = (*field, value)
        fields.append(field)
    return msgspec.defstruct(call, fields, array_like=True, forbid_unknown_fields=True)


def _encoded(value: Any) -> Any:
    if isinstance(value, range):
        return [value.start, value.stop]
    raise NotImplementedError(type(value))


def _decoded(kind: type, value: Any) -> Any:
    if kind is range:
        return range(*value)
    raise NotImplementedError(kind)


_arguments = {call: msgspec.msgpack.Decoder(_arguments_of(call)) for call in CALLS}
_encoder = msgspec.msgpack.Encoder(enc_hook=_encoded)
_requests = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)


def serialize_call(id_: int, call: str, arguments: Sequence[Any]) -> bytes:
    return _encoder.encode((id_, call, arguments))


def parse_call(message: bytes) -> tuple[int, Call]:
    """ProtocolError."""
    try:
        request = _requests.decode(message)
        decoded = _arguments[request.call].decode(request.arguments)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise ProtocolError(f"what came is no call of the catalog: {error}") from None
    return request.id, (request.call, msgspec.structs.astuple(decoded))


def serialize_answer(id_: int, outcome: Any) -> bytes:
    if isinstance(outcome, IngestError):
        return _encoder.encode((id_, type(outcome).__name__, str(outcome)))
    return _encoder.encode((id_, None, outcome))


def parse_answer(message: bytes) -> Answer:
    """ProtocolError."""
    try:
        return _answers.decode(message)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"what came is no answer of the catalog: {error}") from None


def outcome_of(answer: Answer, kind: Any) -> Any:
    """What the call returned, which is of ``kind``; or the error that it raised, of the same type. ProtocolError."""
    try:
        if answer.error is None:
            return msgspec.msgpack.decode(answer.value, type=kind, dec_hook=_decoded)
        text = msgspec.msgpack.decode(answer.value, type=str)
    except (msgspec.MsgspecError, ValueError) as error:
        return ProtocolError(f"the catalog's answer can't be read: {error}")
    found = getattr(errors, answer.error, None)
    if not (isinstance(found, type) and issubclass(found, IngestError)) or found is errors.RefusedError:
        return CatalogError(f"{answer.error}: {text}")
    return found(text)


def framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


def unframed(buffer: bytearray) -> Iterator[bytes]:
    """The whole messages at the beginning of a buffer, which it takes out. ProtocolError for one that is too long."""
    at = 0
    try:
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > CATALOG_MESSAGE_MAX:
                raise ProtocolError(f"a message of {length} bytes: at most {CATALOG_MESSAGE_MAX} are taken")
            if len(buffer) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size + length
            yield bytes(buffer[at - length : at])
    finally:
        del buffer[:at]


def run_together(catalog: Catalog, calls: Sequence[Call]) -> list[Any]:
    """Makes calls in one transaction, in their order. Returns what each returned, or its IngestError.

    When the transaction fails, because of the disk, each has that error as its outcome and none has happened. On a full
    disk those that are ``ON_A_FULL_DISK`` are made with what the catalog has in reserve.
    """
    try:
        new = any(call not in ON_A_FULL_DISK for call, _ in calls)
        if new and catalog.room.refuses():
            return _from_reserve(catalog, calls, NoSpaceError(f"{catalog.path}: the disk is full"))
        try:
            return _in_transaction(catalog, calls)
        except NoSpaceError as error:
            return _from_reserve(catalog, calls, error)
    except IngestError as error:
        return [type(error)(str(error)) for _ in calls]
    except Exception as error:
        log.exception("a transaction of the catalog failed")
        return [CatalogError(f"{catalog.path}: {type(error).__name__}: {error}") for _ in calls]


def _in_transaction(catalog: Catalog, calls: Sequence[Call]) -> list[Any]:
    with catalog.change():
        return [_run(catalog, call, arguments) for call, arguments in calls]


def _from_reserve(catalog: Catalog, calls: Sequence[Call], error: NoSpaceError) -> list[Any]:
    allowed = [call for call in calls if call[0] in ON_A_FULL_DISK]
    if not allowed:
        raise error
    folded = False
    while True:
        try:
            outcomes = iter(_in_transaction(catalog, allowed))
            break
        except NoSpaceError:
            if folded and not catalog.room.give():
                raise
            if not folded:  # what is in SQLite's log makes way: often that is all the room that is needed
                catalog.fold()
                folded = True
    return [next(outcomes) if call in ON_A_FULL_DISK else NoSpaceError(str(error)) for call, _ in calls]


def _run(catalog: Catalog, call: str, arguments: Sequence[Any]) -> Any:
    try:
        return getattr(catalog, call)(*arguments)
    except CatalogError as error:
        if not catalog.in_transaction:
            raise
        return error  # what this call met is damaged; the others met it not
    except DiskError:
        raise  # the transaction's, not this call's
    except IngestError as error:
        return error
    except Exception as error:  # of our own making: the others of the transaction are not to suffer for it
        log.exception("catalog call %s failed", call)
        return CatalogError(f"{call}: {type(error).__name__}: {error}")
