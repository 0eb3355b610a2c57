"""Kinds of documents: shares that are asked for, pages of one family, and draws that can be made again."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import caption, captioned, picture

from omnigram.data.document import TokenDocument
from omnigram.data.kinds import DRAWN, KINDS, PAGE_PICTURES, Composed, Composer, captioned_picture


class Shelf:
    """A library in memory."""

    def __init__(self, documents: Sequence[TokenDocument]) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> TokenDocument:
        return self.documents[index]

    def relatives(self, index: int) -> Sequence[int]:
        family = self.documents[index].fields.get("family")
        return [
            other
            for other, document in enumerate(self.documents)
            if other != index and family is not None and document.fields.get("family") == family
        ]


SHELF = Shelf([captioned(number, "small" if number < 2 else "large", wordings=3) for number in range(12)])
ALONE = Shelf([captioned(0)])


def told(composed: Composed) -> list[tuple[str, list]]:
    return [(modality, codes.tolist()) for modality, codes in composed.segments]


def modalities(composed: Composed) -> list[str]:
    return [modality for modality, _ in composed.segments]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), index=st.integers(0, 11))
def test_a_document_is_composed_alike_whenever_it_is_asked_for(seed: int, epoch: int, index: int) -> None:
    weights: dict[str, float] = dict.fromkeys(DRAWN, 1.0)
    one, other = Composer(SHELF, weights, seed=seed), Composer(SHELF, weights, seed=seed)
    other.compose(epoch + 1, (index + 1) % 12)
    assert told(one.compose(epoch, index)) == told(other.compose(epoch, index))
    assert one.compose(epoch, index).kind == other.compose(epoch, index).kind


def test_kinds_are_drawn_as_often_as_asked() -> None:
    composer = Composer(
        SHELF, {"words_to_picture": 2, "picture_to_words": 1, "text": 1, "page": 0}, caption_dropout=0.25
    )
    drawn = [composer.compose(epoch, index) for epoch in range(500) for index in range(12)]
    shares = {kind: count / len(drawn) for kind, count in Counter(composed.kind for composed in drawn).items()}
    assert shares == pytest.approx({"words_to_picture": 0.5, "picture_to_words": 0.25, "text": 0.25}, abs=0.025)
    forms = Counter((composed.kind, *modalities(composed)) for composed in drawn)
    assert set(forms) == {
        ("words_to_picture", "text", "image"),
        ("words_to_picture", "image"),
        ("picture_to_words", "image", "text"),
        ("text", "text"),
    }
    dropped = forms["words_to_picture", "image"] / (shares["words_to_picture"] * len(drawn))
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_every_wording_is_drawn() -> None:
    composer = Composer(SHELF, {"text": 1})
    wordings = Counter(int(composer.compose(epoch, 5).segments[0][1][1]) - 11 for epoch in range(600))
    assert set(wordings) == {0, 1, 2}
    assert min(wordings.values()) > 150


def test_a_page_is_of_one_family_without_a_picture_twice() -> None:
    composer = Composer(SHELF, {"page": 1})
    counts = Counter()
    for epoch in range(200):
        page = composer.compose(epoch, 4)
        assert page.kind == "page"
        numbers = [int(codes[0]) - 11 for _, codes in page.segments[0::2]]
        for number, (modality, codes) in zip(numbers, page.segments[1::2], strict=True):
            assert modality == "image"
            assert np.array_equal(codes, SHELF[number].segments[1].codes), "each picture stands behind its own words"
        assert numbers[0] == 4
        assert set(numbers) <= set(range(2, 12))
        assert len(set(numbers)) == len(numbers)
        counts[len(numbers)] += 1
    assert sorted(counts) == list(range(PAGE_PICTURES[0], PAGE_PICTURES[1] + 1))
    assert min(counts.values()) > 40


def test_a_small_family_gives_a_small_page_and_a_lone_picture_stands_alone() -> None:
    assert {len(Composer(SHELF, {"page": 1}).compose(epoch, 0).segments) for epoch in range(20)} == {4}
    lone = Composer(ALONE, {"page": 1}).compose(0, 0)
    assert (lone.kind, modalities(lone)) == ("words_to_picture", ["text", "image"])


def test_other_documents_are_used_as_they_are() -> None:
    shelf = Shelf(
        [
            TokenDocument("a", (caption(1),)),
            TokenDocument("b", (picture(1), caption(2, wordings=2), picture(3))),
            TokenDocument("c", (caption(1), caption(2))),
        ]
    )
    composer = Composer(shelf, {"picture_to_words": 1}, caption_dropout=1.0)
    assert [composer.compose(0, index).kind for index in range(3)] == ["text", "interleaved", "text"]
    assert modalities(composer.compose(0, 1)) == ["image", "text", "image"]
    wordings = {composer.compose(epoch, 1).segments[1][1][1] for epoch in range(20)}
    assert wordings == {11, 12}
    assert [captioned_picture(document) for document in shelf.documents] == [None] * 3


def test_evaluation_asks_for_a_kind_and_gets_the_first_wording() -> None:
    composer = Composer(SHELF, {"text": 1}, caption_dropout=1.0)
    forms = {kind: composer.compose_as(kind, 7) for kind in KINDS}
    assert {kind: composed and modalities(composed)[:4] for kind, composed in forms.items()} == {
        "words_to_picture": ["text", "image"],
        "picture_to_words": ["image", "text"],
        "page": ["text", "image", "text", "image"],
        "text": ["text"],
        "interleaved": None,
    }
    for kind, composed in forms.items():
        if composed is not None:
            assert all(codes[1] == 11 for modality, codes in composed.segments if modality == "text")
            assert told(composed) == told(composer.compose_as(kind, 7) or composed)
    assert Composer(ALONE, {"text": 1}).compose_as("page", 0) is None


def test_a_picture_before_its_words_is_a_captioned_picture_too() -> None:
    shelf = Shelf([TokenDocument("a", (picture(1), caption(2)))])
    assert modalities(Composer(shelf, {"words_to_picture": 1}, 0.0).compose(0, 0)) == ["text", "image"]


def test_faults_are_told() -> None:
    with pytest.raises(ValueError, match="'pages' is not one of"):
        Composer(SHELF, {"pages": 1})
    with pytest.raises(ValueError, match="one has to be positive"):
        Composer(SHELF, {"page": 0})
    with pytest.raises(ValueError, match="none may be negative"):
        Composer(SHELF, {"page": 1, "text": -1})
    with pytest.raises(ValueError, match="caption_dropout=2"):
        Composer(SHELF, {"page": 1}, caption_dropout=2)
    with pytest.raises(ValueError, match="'poem'"):
        Composer(SHELF, {"page": 1}).compose_as("poem", 0)
