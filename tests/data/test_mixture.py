"""Several data sets as one stream: the order is a function of the position, weights are met, misfits are told."""

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tokens import captioned, token_folder

from omnigram.data.mixture import BLOCK, Mixture, MixtureOrder, Points, Source, points_of, read_entries
from omnigram.data.record import DATASET
from omnigram.data.tokens import TokenDataset

SIZES = (5, 40, 11)
weights = st.floats(0, 9).map(lambda weight: round(weight, 2))
ramps = st.lists(st.tuples(st.integers(0, 6 * BLOCK), weights), min_size=1, max_size=3, unique_by=lambda p: p[0])
always = st.floats(0.1, 9).map(lambda weight: ((0, round(weight, 2)),))


def folder(path: Path, name: str, size: int) -> Path:
    """A finished data set of that name and number of documents."""
    made = token_folder(path / name, [[captioned(n) for n in range(size)]])
    return changed(made, name=name)


def changed(made: Path, **fields: Any) -> Path:
    record = json.loads((made / DATASET).read_text())
    (made / DATASET).write_text(json.dumps({**record, **fields}))
    return made


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[TokenDataset]:
    path = tmp_path_factory.mktemp("mixture")
    return [TokenDataset(folder(path, name, size), "train") for name, size in zip("abc", SIZES, strict=True)]


def area(points: Sequence[Points], source: int, until: int) -> float:
    """Documents of a source up to a point of any source: trapezia between the points, by NumPy."""
    knots = sorted({0, *(place for one in points for place, _ in one)})
    weights = np.array([np.interp(knots, [place for place, _ in one], [weight for _, weight in one]) for one in points])
    shares = weights[source] / weights.sum(axis=0)
    below = np.array(knots) <= until
    return float(np.trapezoid(shares[below], np.array(knots)[below]))


@given(
    first=always, rest=st.lists(ramps.map(lambda points: tuple(sorted(points))), min_size=1, max_size=3), data=st.data()
)
def test_each_source_has_its_share_and_each_of_its_documents_in_order_once(
    first: Points, rest: list[Points], data: st.DataObject
) -> None:
    points = [first, *rest]
    order = MixtureOrder(points, seed=data.draw(st.integers(0, 99)))
    until = 2 * BLOCK
    places = [order.locate(position) for position in range(until)]
    counts: Counter[int] = Counter()
    met: dict[int, set[int]] = {source: set() for source in range(len(points))}
    for source, within in places:
        met[source].add(within)
        counts[source] += 1
    for source, numbers in met.items():
        missing = set(range(max(numbers, default=-1) + 1)) - numbers
        assert len(numbers) == counts[source]
        assert len(missing) <= len(points), "only the block that the end cuts can lack some"
    for block in range(7):
        before = order._counts(block)
        due = order.due(block * BLOCK)
        assert sum(due) == block * BLOCK, "exact, in whole fractions"
        assert all(abs(count - share) <= Fraction(1, 2) for count, share in zip(before, due, strict=True))
        assert all(after >= count for count, after in zip(before, order._counts(block + 1), strict=True))
        if sum(before) <= until:
            assert Counter(source for source, _ in places[: sum(before)]) == +Counter(dict(enumerate(before)))


@given(points=st.lists(ramps.map(lambda points: tuple(sorted(points))), min_size=2, max_size=3), first=always)
def test_what_is_due_is_the_area_under_the_shares(points: list[Points], first: Points) -> None:
    points = [first, *points]
    order = MixtureOrder(points, 0)
    for knot in sorted({place for one in points for place, _ in one}):
        due = order.due(knot)
        for source in range(len(points)):
            assert float(due[source]) == pytest.approx(area(points, source, knot), abs=1e-6)


def test_a_position_is_found_without_those_before_it() -> None:
    points: list[Points] = [((0, 1.0), (10**9, 0.25)), ((0, 0.0), (10**9, 2.0))]
    one, other = MixtureOrder(points, 7), MixtureOrder(points, 7)
    positions = [0, 1, 5 * BLOCK, 10**9 - 1, 10**9 + 12345, 10**12]
    assert [one.locate(position) for position in positions] == [
        other.locate(position) for position in reversed(positions)
    ][::-1]
    source, within = one.locate(10**12)
    assert within == pytest.approx(float(one.due(10**12)[source]), abs=2 * BLOCK)


def test_the_order_is_the_same_on_every_machine() -> None:
    order = MixtureOrder([((0, 1.0),), ((0, 0.1), (3000, 0.5))], 3)
    places = [order.locate(position) for position in (0, 1, 2, 1023, 2000, 2999, 70000)]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 888), (1, 345), (0, 2362), (0, 47018)]


def test_a_weight_of_zero_ends_a_source_and_one_source_is_itself() -> None:
    order = MixtureOrder([((0, 1.0), (2 * BLOCK, 0.0)), ((0, 1.0),)], 0)
    after = order._counts(2)[0]
    assert {order.locate(position)[0] for position in range(3 * BLOCK, 9 * BLOCK)} == {1}
    assert order._counts(40)[0] == after
    assert [MixtureOrder([((0, 0.3),)], 5).locate(position) for position in (0, 9999)] == [(0, 0), (0, 9999)]
    with pytest.raises(ValueError, match="the weight of every source is 0 at document 100: let one be positive"):
        MixtureOrder([((0, 1.0), (100, 0.0)), ((0, 1.0), (100, 0.0))], 0)
    with pytest.raises(ValueError, match="0 at document 0"):
        MixtureOrder([((0, 0.0),), ((0, 0.0),)], 0)


def test_documents_are_numbered_through(datasets: list[TokenDataset]) -> None:
    mixture = Mixture([Source(name, dataset) for name, dataset in zip("abc", datasets, strict=True)])
    assert len(mixture) == sum(SIZES)
    assert [mixture.locate(number) for number in (0, 4, 5, 44, 45, 55)] == [
        ("a", 0),
        ("a", 4),
        ("b", 0),
        ("b", 39),
        ("c", 0),
        ("c", 10),
    ]
    assert mixture.epochs({"a": 10, "b": 10}) == {"a": 2.0, "b": 0.25, "c": 0.0}


def test_the_identity_is_of_names_contents_and_weights_and_of_one_data_set_its_own(
    datasets: list[TokenDataset],
) -> None:
    a, b, c = datasets
    identities = {
        Mixture([Source("a", a), Source("b", b)]).identity,
        Mixture([Source("b", b), Source("a", a)]).identity,
        Mixture([Source("a", a), Source("b", c)]).identity,
        Mixture([Source("a", a), Source("b", b, ((0, 2.0),))]).identity,
    }
    assert len(identities) == 4
    assert Mixture.of(a).identity == Mixture([Source("other", a, ((0, 3.0),))]).identity == a.identity


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"vocabulary": "0" * 64}, "vocabularies"),
        ({"digit_ids": {"0": 1}}, "digit ids"),
        ({"grammars": {"image": {}}}, "grammars"),
        ({"max_side": 7}, "grammars"),
        ({"made_from": {"image_tokenizer": "other"}}, "image tokenizers"),
        ({"made_from": {"text_tokenizer": "other"}}, "text tokenizers"),
    ],
)
def test_data_sets_that_do_not_belong_together_are_both_named(
    datasets: list[TokenDataset], tmp_path: Path, fields: dict[str, Any], what: str
) -> None:
    other = TokenDataset(changed(folder(tmp_path, "other", 3), **fields), "train")
    with pytest.raises(
        ValueError, match=rf"mixture: a \(.*/a\) and other \(.*/other\) have different {what}: "
    ) as told:
        Mixture([Source("a", datasets[0]), Source("other", other)])
    assert "\n" not in str(told.value)


def test_what_a_configuration_says(datasets: list[TokenDataset]) -> None:
    a, b, _ = datasets
    assert Mixture.opened({}, a).sources[0].dataset is a
    mixture = Mixture.opened({"own": {"tokens": None}, "b": {"tokens": str(b.folder), "weight": [[0, 1], [9, 0.5]]}}, a)
    assert [(s.name, s.dataset.identity, s.weight) for s in mixture.sources] == [
        ("own", a.identity, ((0, 1.0),)),
        ("b", b.identity, ((0, 1.0), (9, 0.5))),
    ]
    with pytest.raises(FileNotFoundError, match=r"nowhere/dataset.json is missing"):
        Mixture.opened({"b": {"tokens": "nowhere"}}, a)


FAULTS = [
    ({"a": 1}, "mixture.a=1 takes tokens"),
    ({"a": {"weight": 1}}, "mixture.a={'weight': 1} takes tokens"),
    ({"a": {"tokens": None, "wieght": 1}}, "takes tokens, and weight if it is not 1"),
    ({"a": {"tokens": 3}}, "mixture.a.tokens=3 is neither"),
    ({"a": {"tokens": None, "weight": 0}}, "the weight of every source is 0 at document 0"),
    ({"a": {"tokens": None, "weight": [[0, 1], [5, 0]]}}, "0 at document 5"),
]


@pytest.mark.parametrize(("entries", "message"), FAULTS)
def test_faults_of_entries_are_one_line(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as told:  # noqa: PT011 - the message is looked at below
        read_entries(entries)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "weight",
    [-1, "1", True, None, [], [[0]], [0, 1], [[0, -1]], [[5, 1], [5, 2]], [[9, 1], [5, 2]], [[0.5, 1]], float("nan")],
)
def test_impossible_weights_are_refused(weight: Any) -> None:
    with pytest.raises(ValueError, match=r"mixture.a.weight="):
        points_of("a", weight)
