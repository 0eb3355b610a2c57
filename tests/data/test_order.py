"""The order of documents: every document once an epoch, from the position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigram.data.order import EpochOrder, permutation, raw_draws, uniforms

sizes = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 2**70), group=st.integers(1, 8), shuffle=st.booleans())
def test_an_epoch_holds_every_document_once(sizes: list[int], seed: int, group: int, shuffle: bool) -> None:
    order = EpochOrder(sizes, seed, group, shuffle)
    for epoch in (0, 3):
        places = [order.locate(position) for position in range(epoch * len(order), (epoch + 1) * len(order))]
        assert {place[0] for place in places} == {epoch}
        assert sorted(place[1] for place in places) == list(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 99), group=st.integers(1, 8), shuffle=st.booleans(), data=st.data())
def test_a_document_lies_in_the_group_that_is_named(
    sizes: list[int], seed: int, group: int, shuffle: bool, data: st.DataObject
) -> None:
    order = EpochOrder(sizes, seed, group, shuffle)
    position = data.draw(st.integers(0, 3 * len(order)))
    ends = np.cumsum(sizes)
    shards = order.shards_at(position)
    assert len(shards) <= group
    assert int(np.searchsorted(ends, order.locate(position)[1], side="right")) in shards
    beyond = order.next_group(position)
    assert position < beyond <= (position // len(order) + 1) * len(order)
    assert all(order.shards_at(later) == shards for later in range(position, beyond))


def test_the_order_does_not_depend_on_what_was_asked_before() -> None:
    one, other = EpochOrder([5, 6, 7], seed=1, group_shards=2), EpochOrder([5, 6, 7], seed=1, group_shards=2)
    forward = [one.locate(position) for position in range(100)]
    assert [other.locate(position) for position in reversed(range(100))] == forward[::-1]


def test_epochs_and_seeds_differ() -> None:
    order = EpochOrder([40], seed=0)
    first = [order.locate(position)[1] for position in range(40)]
    assert first != [order.locate(position)[1] for position in range(40, 80)]
    assert first != [EpochOrder([40], seed=1).locate(position)[1] for position in range(40)]


def test_the_draws_are_the_same_on_every_machine() -> None:
    assert raw_draws(2, 7, 1, 2).tolist() == [4326717100779084228, 12575937222055103366]
    assert permutation(6, 3, 4).tolist() == [2, 4, 3, 5, 0, 1]
    draws = np.array([uniforms(1, 5, epoch, index)[0] for epoch in range(10) for index in range(300)])
    assert len(np.unique(draws)) == len(draws)
    assert abs(draws.mean() - 0.5) < 0.02
    assert draws.min() >= 0
    assert draws.max() < 1


def test_faults_are_told() -> None:
    with pytest.raises(ValueError, match="group_shards=0"):
        EpochOrder([3], seed=0, group_shards=0)
    with pytest.raises(ValueError, match="no document"):
        EpochOrder([0, 0], seed=0)
