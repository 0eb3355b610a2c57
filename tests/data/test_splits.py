"""Splits keep concepts whole, depend on nothing but the seed, and hold out styles of known concepts only."""

from collections import Counter

import pytest

from omnigram.data.document import Document, Segment
from omnigram.data.splits import HELDOUT_STYLE, SPLITS, TRAIN, Splits

STYLES = ("oil", "ink")


def drawing(concept, style):
    return Document(f"{style}-{concept}", (Segment("text", concept),), "", "", {"concept": concept, "style": style})


def assign(splits, concepts):
    styles = dict.fromkeys(concepts, STYLES)
    return {(c, s): splits.split_of(drawing(c, s), styles) for c in concepts for s in STYLES}


CONCEPTS = [f"thing {i}" for i in range(4000)]


def test_concepts_stay_whole_and_shares_are_kept():
    assigned = assign(Splits(0.05, 0.1, 0.2, seed=1), CONCEPTS)
    counts = Counter(assigned.values())
    assert counts["val"] == pytest.approx(0.05 * 8000, rel=0.2)
    assert counts["test"] == pytest.approx(0.1 * 8000, rel=0.2)
    assert counts[HELDOUT_STYLE] == pytest.approx(0.2 * 0.85 * 4000, rel=0.2)
    for concept in CONCEPTS:
        pair = {assigned[concept, style] for style in STYLES}
        assert len(pair) == 1 or pair == {TRAIN, HELDOUT_STYLE}
        assert pair != {HELDOUT_STYLE}
    held = Counter(style for (_, style), split in assigned.items() if split == HELDOUT_STYLE)
    assert held["oil"] == pytest.approx(held["ink"], rel=0.2)


def test_a_growing_source_moves_nothing():
    splits = Splits(seed=2)
    few, many = assign(splits, CONCEPTS[1000:1100]), assign(splits, CONCEPTS)
    assert all(many[pair] == split for pair, split in few.items())


def test_the_seed_draws_other_splits():
    one, other = assign(Splits(seed=0), CONCEPTS), assign(Splits(seed=1), CONCEPTS)
    moved = sum(one[pair] != other[pair] for pair in one)
    assert 0.05 * len(one) < moved < 0.4 * len(one)


def test_spelling_does_not_separate_a_concept():
    splits = Splits(val=0.5, test=0.3, heldout_style=0)
    for i in range(50):
        assert splits.split_of(drawing(f"Red Apple {i}", "oil")) == splits.split_of(drawing(f"red apple {i}", "ink"))


def test_no_style_is_held_out_of_a_concept_drawn_once():
    splits = Splits(heldout_style=0.9)
    once = {splits.split_of(drawing(c, "oil"), {c: ("oil",)}) for c in CONCEPTS[:300]}
    assert HELDOUT_STYLE not in once


def test_documents_without_concept_go_by_key():
    splits = Splits(0.2, 0.2)
    plain = [Document(f"{i:05d}", (Segment("text", "same"),), "", "") for i in range(1000)]
    assert set(map(splits.split_of, plain)) == set(SPLITS) - {HELDOUT_STYLE}


@pytest.mark.parametrize("wrong", [{"val": -0.1}, {"test": 1.0}, {"val": 0.5, "test": 0.5}, {"heldout_style": 2}])
def test_impossible_shares_are_refused(wrong):
    with pytest.raises(ValueError, match=r"data\.splits\."):
        Splits(**wrong)
