"""Who has a place among the connections, and who gives way."""

from __future__ import annotations

import pytest

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
