"""Times as the API writes them, at the ends of seconds and anywhere between."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from ingest.gateway.http.http_uploads import format_time

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def micros() -> list[int]:
    some = random.Random(7)
    ends = [
        second * 1_000_000 + off for second in (1, 60, 86_400, 1_795_000_000) for off in (-1, 0, 1, 999, 1000)
    ]
    return [0, *ends, *(some.randrange(4_000_000_000_000_000) for _ in range(200))]


def test_a_time_is_cut_to_the_millisecond_that_it_lies_in() -> None:
    for micro in micros():
        expected = (BEGINNING + timedelta(microseconds=micro)).isoformat(timespec="milliseconds")
        assert format_time(micro / 1_000_000) == expected.replace("+00:00", "Z")


def test_the_end_of_a_second_in_more_digits_than_are_kept_is_the_next_one() -> None:
    assert format_time(59.9999997) == "1970-01-01T00:01:00.000Z"
