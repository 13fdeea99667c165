"""What goes wrong, as HTTP says it: one table for the errors of ingest, and the answers that tell clients.

Every such answer is JSON, `{"code": …, "message": …, "request_id": …}`: a word for programs and a sentence for people. Where
an API that existing clients know has a text of its own, the answer is that text.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from ingest.errors import (
    BusyError,
    ConnectionLostError,
    CorruptFrameError,
    CorruptionError,
    DataDirLostError,
    DiskError,
    ForeignStoreError,
    IngestError,
    NameTakenError,
    NoSpaceError,
    NotFoundError,
    PeerError,
    PreconditionError,
    ReadOnlyError,
    RefusedError,
    UploadLostError,
    UsageError,
)
from ingest.limits import RETRY_AFTER_S
from ingest.status import Status


class Failure(Exception):
    """An answer other than success. ``text``: the whole body, where it is not the JSON."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: dict[str, str] | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.text = text

    def response(self, request_id: str) -> web.Response:
        if self.text is not None:
            body, kind = self.text.encode(), "text/plain; charset=utf-8"
        else:
            content = {"code": self.code, "message": self.message, "request_id": request_id}
            body, kind = msgspec.json.encode(content), "application/json"
        response = web.Response(status=self.status, body=body, headers={**self.headers, "Content-Type": kind})
        if "Connection" in self.headers:  # which aiohttp sends, and does not read
            response.force_close()
        return response


class ClientGoneError(Exception):
    """The client of a request went away, or its body ended early or was no HTTP: nobody reads an answer."""


RETRY = {"Retry-After": str(RETRY_AFTER_S)}

# The first class that fits, so a special one stands before the general one. Refusals of the engine: REFUSALS.
ERRORS: tuple[tuple[type[BaseException], int, str], ...] = (
    (NotFoundError, 404, "not_found"),
    (NameTakenError, 409, "name_taken"),
    (PreconditionError, 412, "precondition_failed"),
    (UploadLostError, 503, "upload_lost"),  # not by the client's doing: it is told apart as ClientGoneError
    (UsageError, 400, "bad_request"),
    (BusyError, 503, "busy"),
    (ForeignStoreError, 503, "foreign_store"),
    (ConnectionLostError, 503, "engine_unreachable"),
    (CorruptFrameError, 502, "corrupt"),
    (PeerError, 502, "engine_failed"),
    (CorruptionError, 500, "corrupt"),
    (NoSpaceError, 507, "no_space"),
    (ReadOnlyError, 503, "disk_read_only"),
    (DataDirLostError, 503, "data_dir_lost"),
    (DiskError, 500, "catalog_failed"),
    (IngestError, 500, "failed"),
)

REFUSALS = {
    Status.NO_SPACE: (507, "no_space", "the disk is full: nothing was stored"),
    Status.BUSY: (503, "busy", "the engine is busy or ends: nothing was stored, try again"),
    Status.ERROR: (502, "engine_failed", "the engine could not read or write its disk"),
    Status.BAD_CHECKSUM: (502, "key_refused", "the engine does not accept the key of this gateway"),
    Status.MISSING: (404, "not_found", "nothing is stored there"),
    Status.DELETED: (410, "deleted", "it was deleted"),
}


def failure_of(error: BaseException) -> Failure:
    """How ``error`` is told to a client. What is not in the table is a defect of ours: 500, without its words."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, RefusedError):
        status, code, message = REFUSALS.get(error.status, (502, "engine_failed", str(error)))
        return Failure(status, code, message, RETRY if status == 503 else None)
    for kind, status, code in ERRORS:
        if isinstance(error, kind):
            return Failure(status, code, str(error) or code, RETRY if status == 503 else None)
    return Failure(500, "internal", "the gateway failed; its log says more under this request's id")
