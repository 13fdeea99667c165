"""What of an upload is whose, by what the engine answered: each ticket by its own answer, however many were refused."""

import itertools

import pytest

from ingest import ticket
from ingest.catalog.extent import FIRST, Extent
from ingest.errors import RefusedError, UploadLostError
from ingest.objects.upload import check_size, ours, raise_unless_foreign
from ingest.status import Status

PLACES = [Extent(FIRST, 3), Extent(FIRST + 10, 1), Extent(FIRST + 20, 2)]
INDICES = [index for place in PLACES for index in range(place.first, place.stop)]
ANSWERS = [Status.CONFLICT, Status.DELETED, Status.ERROR]


@pytest.mark.parametrize("count", range(5))
def test_what_is_somebody_else_s_is_left_out_and_nothing_else(count: int) -> None:
    """Only CONFLICT says that it is: what was marked deleted, or failed, is to be deleted with the rest."""
    for some in itertools.permutations(INDICES, count):
        for start in range(len(ANSWERS)):
            answers = itertools.islice(itertools.cycle(ANSWERS), start, None)
            refused = {ticket.format(index): status for index, status in zip(some, answers, strict=False)}
            left = [index for place in ours(PLACES, refused) for index in range(place.first, place.stop)]
            theirs = {ticket.parse(name) for name, status in refused.items() if status is Status.CONFLICT}
            assert left == [index for index in INDICES if index not in theirs]


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.SAVED])
@pytest.mark.parametrize("at", range(3))
def test_one_answer_that_every_ticket_would_get_is_told_wherever_it_stands(status: Status, at: int) -> None:
    refused = {ticket.format(FIRST + i): Status.CONFLICT if i % 2 else Status.DELETED for i in range(3)}
    refused[ticket.format(FIRST + at)] = status
    if status in (Status.CONFLICT, Status.DELETED):
        raise_unless_foreign(refused)
        return
    with pytest.raises(RefusedError) as raised:
        raise_unless_foreign(refused)
    assert (raised.value.ticket, raised.value.status) == (ticket.format(FIRST + at), status)


@pytest.mark.parametrize("size", [0, 1, 1458])
def test_a_body_has_the_size_that_was_said(size: int) -> None:
    check_size(None, size)
    check_size(size, size)
    for other in {0, size - 1, size + 1} - {size, -1}:
        with pytest.raises(UploadLostError, match=f"{size} of {other} bytes"):
            check_size(other, size)
