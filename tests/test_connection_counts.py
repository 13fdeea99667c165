"""How many connections a worker has, as its siblings see it: who goes whom an emptied ring forgot takes it below nothing."""

from __future__ import annotations

import itertools

import pytest

from ingest.engine._queue import Queue


@pytest.mark.parametrize("worker", [0, 1, 2])
@pytest.mark.parametrize("put", [False, True])
def test_a_count_never_goes_below_zero(worker: int, put: bool) -> None:
    queue = Queue(3, 1)
    for changes in itertools.product((1, -1, 3, -2), repeat=4):
        count = 0
        for change in changes:
            queue.count_connection(worker, put, change)
            count = max(0, count + change)
            found = [queue.connections(i) for i in range(3)]
            wanted = (count, 0) if put else (0, count)
            assert found == [wanted if i == worker else (0, 0) for i in range(3)], changes
        queue.count_connection(worker, put, -count)
    queue.close()
