"""Bits against a plain loop over the model's logits; captions change places so that none stays."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_evaluation import NAMES, STYLES, known, tiny

from omnigram.model.bundle import Omnigram
from omnigram.train.captioned_pictures import derangement
from omnigram.train.likelihood import bits_of_codes, bits_of_pictures, bits_per_character, shuffled_captions

PICTURES = [known(name, style) for name in NAMES[:3] for style in STYLES]


def plain_bits(bundle: Omnigram, ids: list[int], counted: set[int], choices: list[int]) -> float:
    """-log2 of each id counted, among `choices`, by one forward of the model for each."""
    bits = 0.0
    for place, id_ in enumerate(ids):
        if id_ in counted and place > 0:
            with torch.no_grad():
                logits = bundle.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].numpy()
            chosen = np.exp(logits[choices] - logits[choices].max())
            bits -= math.log2(np.exp(logits[id_] - logits[choices].max()) / chosen.sum())
    return bits


def picture_ids(bundle: Omnigram, words: np.ndarray, codes: np.ndarray) -> tuple[list[int], list[int]]:
    """A document as DESIGN describes it, put together by hand; and the ids of the codes."""
    vocabulary = bundle.vocabulary
    first = vocabulary.range("image").start
    digits = [bundle.text_tokenizer.digit_ids[symbol] for symbol in "2*2"]
    rows = [id_ for row in codes for id_ in (*(first + row).tolist(), vocabulary.id("eol"))]
    ids = [vocabulary.id("bos"), *words.tolist(), vocabulary.id("boi"), *digits, vocabulary.id("img"), *rows]
    return [*ids, *map(vocabulary.id, ("eof", "eoi", "eos"))], list(range(first, first + 16))


def test_bits_of_a_picture_are_those_of_its_codes_among_the_codes() -> None:
    bundle = tiny()
    bits = bits_of_pictures(bundle.sampler, PICTURES, batch_size=4)
    for picture, found in zip(PICTURES, bits, strict=True):
        ids, image = picture_ids(bundle, picture.words, picture.codes)
        assert found == pytest.approx(plain_bits(bundle, ids, set(image), image), rel=1e-9)
    assert bits.std() > 0.1


def test_the_first_code_costs_what_the_model_says_of_it() -> None:
    bundle = tiny()
    codes = bits_of_codes(bundle.sampler, PICTURES, batch_size=4)
    for picture, bits in zip(PICTURES, codes, strict=True):
        ids, image = picture_ids(bundle, picture.words, picture.codes)
        place = next(place for place, id_ in enumerate(ids) if id_ in image)
        assert bits[0] == pytest.approx(plain_bits(bundle, ids[: place + 1], set(image), image), rel=1e-9)
    totals = bits_of_pictures(bundle.sampler, PICTURES, batch_size=4)
    assert [bits.sum() for bits in codes] == pytest.approx(totals.tolist())


def test_bits_after_the_words_of_another_picture() -> None:
    bundle = tiny()
    captions = shuffled_captions(PICTURES, seed=1)
    bits = bits_of_pictures(bundle.sampler, PICTURES, captions)
    for picture, words, found in zip(PICTURES, captions, bits, strict=True):
        assert words.tolist() != picture.words.tolist()
        ids, image = picture_ids(bundle, words, picture.codes)
        assert found == pytest.approx(plain_bits(bundle, ids, set(image), image), rel=1e-9)


def test_bits_of_words_are_among_the_words_and_the_end() -> None:
    bundle = tiny()
    vocabulary = bundle.vocabulary
    eos = vocabulary.id("eos")
    text = [*range(bundle.text_tokenizer.size), eos]
    bits = 0.0
    for picture in PICTURES:
        ids = [vocabulary.id("bos"), *picture.words.tolist(), eos]
        bits += plain_bits(bundle, ids, set(text), text)
    characters = sum(len(f"{picture.concept}, {picture.style}") for picture in PICTURES)
    assert bits_per_character(bundle.sampler, PICTURES) == pytest.approx(bits / characters, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=30), st.integers(0, 5))
def test_a_derangement_leaves_nothing_in_its_place(groups: list[str], seed: int) -> None:
    others = derangement(groups, seed)
    assert sorted(others) == list(range(len(groups)))
    assert all(other != place for place, other in enumerate(others))
    assert others == derangement(groups, seed)
    abroad = sum(groups[other] != groups[place] for place, other in enumerate(others))
    assert abroad <= (len(set(groups)) if len(set(groups)) > 1 else 0)


def test_one_item_has_nowhere_to_go() -> None:
    with pytest.raises(ValueError, match="1 items cannot all change places"):
        derangement(["a"], 0)


def test_another_seed_is_another_derangement() -> None:
    assert derangement(["a"] * 50, 0) != derangement(["a"] * 50, 1)
