"""A committer that starts anew gets what was not answered as what it was: kinds and owners of neighbours are not mixed."""

from __future__ import annotations

from itertools import product

import pytest
from put_rig import DELETE, PUT, Rig, delete_frame, frame

FIRST = 100
WHAT = [*product((0, 1), (PUT, DELETE))]  # whose frame, and its kind
FRAMES = [
    what for pair in product(WHAT, repeat=2) for what in pair
]  # each behind each, under tickets that follow

Frames = dict[int, tuple[int, int, int]]


def handed_over(rig: Rig) -> Frames:
    """{place: (ticket, cookie, kind)}."""
    found: Frames = {}
    for first, cookie, place, count, kind in rig.unanswered:
        for i in range(count):
            assert place + i not in found
            found[place + i] = (first + i, cookie, kind)
    return found


@pytest.mark.parametrize("block_places", [1, 4, 32, 64])
@pytest.mark.parametrize("answered", [0, 2, 3])
def test_each_frame_comes_again_as_what_it_was(block_places: int, answered: int) -> None:
    """Every `answered`th one was answered before; a delete taken for a put would be stored as a chunk."""
    with Rig(places=64, block_places=block_places) as rig:
        rig.answering = False
        clients = [rig.connect(), rig.connect()]
        for i, (owner, kind) in enumerate(FRAMES):
            clients[owner].send(frame(FIRST + i) if kind == PUT else delete_frame(FIRST + i, 1))
            rig.until(lambda i=i: len(rig.unanswered) == i + 1)
        for run in rig.unanswered[::answered] if answered else ():
            rig.answer(run)
        left = handed_over(rig)
        assert len({cookie for _, cookie, _ in left.values()}) == 2
        for _ in range(2):
            rig.queue.committer_gone()
            rig.unanswered.clear()
            rig.queue.committer_ready()
            rig.until(lambda: bool(rig.unanswered))
            assert handed_over(rig) == left
            for _, _, place, count, kind in rig.unanswered:
                assert kind == PUT or count == 1
                assert place // block_places == (place + count - 1) // block_places
        rig.answer_all()
        rig.settle()
        assert rig.server.outstanding == 0
