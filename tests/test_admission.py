"""Who has a place among the connections, and who gives way."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.limits import HTTP_FRESH_S
from ingest.runtime.admission import Admission, network_of

A, B, C = (("192.0.2.1", 5), ("192.0.2.2", 5), ("192.0.2.3", 5))


class Guest:
    def __init__(self) -> None:
        self.evicted = 0

    def evict(self) -> None:
        self.evicted += 1


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fill(admission: Admission, peer: object, count: int) -> list[Guest]:
    guests = [Guest() for _ in range(count)]
    assert all(admission.admit(guest, peer) for guest in guests)
    return guests


def test_the_oldest_idle_one_of_the_address_with_most_gives_way() -> None:
    admission = Admission(6, 6)
    others, many = fill(admission, B, 2), fill(admission, A, 4)
    admission.busy(many[0])
    admission.busy(many[1])
    admission.idle(many[1])  # it was idle later than the rest
    fill(admission, C, 1)
    assert [guest.evicted for guest in others + many] == [0, 0, 0, 0, 1, 0]
    assert len(admission) == 6


def test_nobody_gives_way_who_has_a_request() -> None:
    admission = Admission(3, 3)
    guests = fill(admission, A, 3)
    for guest in guests:
        admission.busy(guest)
    late = Guest()
    assert not admission.admit(late, B)
    assert late not in admission and not any(guest.evicted for guest in guests)
    admission.idle(guests[2])
    assert admission.admit(late, B)
    assert [guest.evicted for guest in guests] == [0, 0, 1]


def test_an_address_with_its_share_gives_way_to_itself() -> None:
    clock = Clock()
    admission = Admission(10, 3, clock)
    mine, others = fill(admission, A, 3), fill(admission, B, 1)
    clock.now += HTTP_FRESH_S
    fill(admission, A, 1)
    assert [guest.evicted for guest in mine + others] == [1, 0, 0, 0]
    for guest in mine[1:]:
        admission.busy(guest)
    clock.now += HTTP_FRESH_S
    busy = fill(admission, A, 1)[0]
    admission.busy(busy)
    assert not admission.admit(Guest(), A)  # though there are places
    assert fill(admission, B, 2)
    admission.leave(busy)
    assert fill(admission, A, 1)


def test_a_burst_of_one_address_does_not_evict_itself() -> None:
    """Its requests are on the way. Who was first is answered, and who is too many is told so."""
    clock = Clock()
    admission = Admission(10, 3, clock)
    mine = fill(admission, A, 3)
    clock.now += HTTP_FRESH_S / 2
    late = Guest()
    assert not admission.admit(late, A) and late not in admission
    admission.busy(mine[0])
    admission.idle(mine[0])  # it has been answered just now
    assert not admission.admit(late, A)
    assert [guest.evicted for guest in mine] == [0, 0, 0]
    clock.now += HTTP_FRESH_S / 2
    assert admission.admit(late, A)
    assert [guest.evicted for guest in mine] == [0, 1, 0]


def test_a_burst_of_silent_ones_keeps_no_other_address_out() -> None:
    """Where all places are taken, by addresses within their shares."""
    admission = Admission(6, 3, Clock())
    first, second = fill(admission, A, 3), fill(admission, B, 3)
    assert fill(admission, C, 3)
    assert sum(guest.evicted for guest in first + second) == 3


def test_who_has_left_or_given_way_holds_no_place() -> None:
    admission = Admission(2, 2)
    first, second = fill(admission, A, 2)
    fill(admission, B, 1)
    assert first.evicted == 1
    for guest in (first, second, first, Guest()):
        admission.leave(guest)
        admission.idle(guest)
        admission.busy(guest)
    assert len(admission) == 1
    fill(admission, A, 1)
    assert len(admission) == 2


STEPS = st.tuples(
    st.sampled_from(["admit", "admit", "busy", "idle", "leave", "wait"]),
    st.integers(0, 9),
    st.sampled_from([A, B, C]),
)


@settings(deadline=None, max_examples=150)
@given(places=st.integers(1, 6), share=st.integers(1, 4), steps=st.lists(STEPS, max_size=60))
@example(
    places=1,
    share=1,
    steps=[("admit", 0, A), ("busy", 0, A), ("leave", 0, A), ("idle", 0, A), ("admit", 1, B)] * 2,
)
def test_whatever_comes_in_whatever_order(
    places: int, share: int, steps: list[tuple[str, int, tuple[str, int]]]
) -> None:
    """Also of who has left: a request that is answered behind its connection's end. The model is a list of who is there."""
    clock = Clock()
    admission = Admission(places, share, clock)
    guests = [Guest() for _ in range(10)]
    there: dict[Guest, tuple[str, int]] = {}
    idle: list[tuple[float, Guest]] = []  # the one that has been so longest first

    def drop(guest: Guest) -> None:
        there.pop(guest, None)
        idle[:] = [one for one in idle if one[1] is not guest]

    for what, number, peer in steps:
        guest = guests[number]
        evicted = {one: one.evicted for one in guests}
        if what == "wait":
            clock.now += HTTP_FRESH_S * (number + 1) / 4
        elif what == "leave":
            admission.leave(guest)
            drop(guest)
        elif what == "busy":
            admission.busy(guest)
            idle[:] = [one for one in idle if one[1] is not guest]
        elif what == "idle":
            admission.idle(guest)
            if guest in there and all(one is not guest for _, one in idle):
                idle.append((clock.now, guest))
            else:
                idle[:] = [(clock.now if one is guest else since, one) for since, one in idle]
        elif guest not in there:
            mine = [one for one in idle if there[one[1]] == peer]
            old: Guest | None = None
            if sum(one == peer for one in there.values()) >= share:
                admitted = bool(mine) and clock.now - mine[0][0] >= HTTP_FRESH_S
                old = mine[0][1] if admitted else None
            elif len(there) >= places:
                counts = Counter(there.values())
                admitted = bool(idle)
                most = max((counts[there[one]] for _, one in idle), default=0)
                old = next((one for _, one in idle if counts[there[one]] == most), None)
            else:
                admitted = True
            assert admission.admit(guest, peer) == admitted
            if old is not None:
                evicted[old] += 1
                drop(old)
            if admitted:
                there[guest] = peer
                idle.append((clock.now, guest))
        assert {one: one.evicted for one in guests} == evicted
        assert len(admission) == len(there) <= places
        for one in guests:
            assert (one in admission) == (one in there)
            assert admission.network(one) == (there[one][0] if one in there else "")
    for guest in guests:
        admission.leave(guest)
    # As a dict: a Counter passes for an empty one while it has a zero for everybody who was ever here.
    assert (len(admission), admission._idle, dict(admission._counts)) == (0, {}, {})


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3::4", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%lo", 5, 0, 1), "fe80::/64"),
        (("::1", 5, 0, 0), "::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_one_client_is_one_network(peer: object, network: str) -> None:
    assert network_of(peer) == network
