"""What transfers may borrow: never more than there is, never more than a fair share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.objects.memory_budget import Budget


def test_one_alone_may_borrow_all():
    budget = Budget(100)
    one = budget.enter()
    assert one.borrow(1, 1000) == 100
    assert one.borrow(1, 1) == 0
    one.give_back(40)
    assert one.borrow(30, 40) == 40
    one.leave()
    assert (budget.lent, budget.transfers) == (0, 0)


def test_a_share_is_fair():
    budget = Budget(100)
    first = budget.enter()
    assert first.borrow(1, 80) == 80
    second = budget.enter()
    assert second.borrow(1, 100) == 20  # what is left
    assert first.borrow(1, 1) == 0  # it has more than its half
    first.give_back(70)
    assert first.borrow(1, 100) == 40
    assert second.borrow(1, 100) == 30
    assert budget.lent == 100


def test_who_borrows_nothing_takes_nobodys_share():
    budget = Budget(100)
    idle = [budget.enter() for _ in range(1000)]
    one, other = budget.enter(), budget.enter()
    assert one.borrow(1, 100) == 100
    one.give_back(60)
    assert other.borrow(1, 100) == 50
    one.give_back(40)
    assert other.share == 100 and idle[0].share == 50


def test_less_than_wanted_is_nothing():
    budget = Budget(100)
    one, other = budget.enter(), budget.enter()
    assert other.borrow(10, 10) == 10
    assert one.borrow(51, 60) == 0
    assert budget.lent == 10
    assert one.borrow(50, 60) == 50


def test_who_leaves_has_nothing():
    budget = Budget(100)
    one, other = budget.enter(), budget.enter()
    assert one.borrow(1, 10) == 10
    assert other.share == 50
    one.leave()
    one.leave()
    assert budget.lent == 0 and other.share == 100


def test_nobody_gives_back_what_he_does_not_have():
    budget = Budget(100)
    one, other = budget.enter(), budget.enter()
    other.borrow(1, 10)
    with pytest.raises(AssertionError):
        one.give_back(1)


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 500))))
def test_the_sum_is_what_all_have(size, steps):
    budget = Budget(size)
    transfers = {}
    for number, kind, amount in steps:
        if number not in transfers:
            transfers[number] = budget.enter()
        one = transfers[number]
        if kind == 0:
            one.leave()
            del transfers[number]
        elif kind == 1:
            one.give_back(min(amount, one.borrowed))
        else:
            before, share = one.borrowed, one.share
            granted = one.borrow(amount, 2 * amount)
            assert granted == 0 or amount <= granted <= 2 * amount
            assert granted == 0 or before + granted <= share
        assert budget.lent == sum(one.borrowed for one in transfers.values()) <= size
        assert budget.transfers == len(transfers)
        assert budget.borrowers == sum(one.borrowed > 0 for one in transfers.values())
