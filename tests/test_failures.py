"""How HTTP says what went wrong: each error of ingest has one status, and says whether to come back."""

from __future__ import annotations

import pytest

from ingest import errors
from ingest.errors import IngestError, RefusedError
from ingest.gateway.http.failures import Failure, failure_of
from ingest.limits import RETRY_AFTER_S
from ingest.status import Status

# By class, as docs/http.md has them. What is not named here is as the class above it.
TABLE: dict[type[IngestError], tuple[int, str]] = {
    IngestError: (500, "failed"),
    errors.UsageError: (400, "bad_request"),
    errors.ForeignStoreError: (503, "foreign_store"),
    errors.BusyError: (503, "busy"),
    errors.PeerError: (502, "engine_failed"),
    errors.ConnectionLostError: (503, "engine_unreachable"),
    errors.CorruptFrameError: (502, "corrupt"),
    errors.DiskError: (500, "catalog_failed"),
    errors.CorruptionError: (500, "corrupt"),
    errors.NoSpaceError: (507, "no_space"),
    errors.ReadOnlyError: (503, "disk_read_only"),
    errors.DataDirLostError: (503, "data_dir_lost"),
    errors.NotFoundError: (404, "not_found"),
    errors.NameTakenError: (409, "name_taken"),
    errors.PreconditionError: (412, "precondition_failed"),
    errors.UploadLostError: (503, "upload_lost"),
}
REFUSED = {
    Status.ERROR: (502, "engine_failed"),
    Status.BAD_CHECKSUM: (502, "key_refused"),
    Status.BAD_TICKET: (502, "engine_failed"),
    Status.CONFLICT: (502, "engine_failed"),
    Status.BUSY: (503, "busy"),
    Status.NO_SPACE: (507, "no_space"),
    Status.MISSING: (404, "not_found"),
    Status.DELETED: (410, "deleted"),
}


def kinds() -> list[type[IngestError]]:
    found = [IngestError]
    for kind in found:
        found += [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    return sorted(set(found) - {RefusedError}, key=lambda kind: kind.__name__)


def check(failure: Failure, status: int, code: str) -> None:
    assert (failure.status, failure.code) == (status, code)
    assert failure.headers == ({"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {})
    assert failure.message
    response = failure.response("id")
    assert response.status == status and response.headers["Content-Type"] == "application/json"
    assert response.headers.get("Retry-After") == failure.headers.get("Retry-After")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("words", ["why", ""])
def test_each_error_has_its_status(kind: type[IngestError], words: str) -> None:
    """The one of its own class, or of the next one above it that has one, also where another class is above both."""
    status, code = next(TABLE[one] for one in kind.__mro__ if one in TABLE)
    failure = failure_of(kind(words))
    check(failure, status, code)
    assert words in failure.message


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.SAVED])
def test_each_refusal_of_the_engine_has_its_status(status: Status) -> None:
    assert {*REFUSED, Status.SAVED} == set(Status)
    check(failure_of(RefusedError("0", status)), *REFUSED[status])


@pytest.mark.parametrize(
    "error", [ValueError("secret"), OSError(28, "secret"), TimeoutError("secret"), KeyError("secret")]
)
def test_what_is_a_defect_says_nothing_of_itself(error: Exception) -> None:
    failure = failure_of(error)
    check(failure, 500, "internal")
    assert "secret" not in failure.message


def test_an_answer_that_is_one_already_stays_as_it_is() -> None:
    failure = Failure(418, "code", "words", {"Allow": "GET"}, text="the text")
    assert failure_of(failure) is failure
    response = failure.response("id")
    assert (response.status, response.body, response.headers["Allow"]) == (418, b"the text", "GET")


@pytest.mark.parametrize("text", [None, "text"])
def test_an_answer_that_says_that_the_connection_ends_ends_it(text: str | None) -> None:
    for headers in ({}, {"Retry-After": "1"}, {"Connection": "close"}):
        response = Failure(400, "code", "words", headers, text).response("id")
        assert (response.keep_alive is False) is ("Connection" in headers)
