"""The registry of modalities: what a new sensor needs is one record."""

import dataclasses

import numpy as np
import pytest

from omnigram.tokenizers.grammar import BlockGrammar
from omnigram.tokenizers.modality import MODALITIES, Modality, document_grammar, register
from omnigram.tokenizers.published import LUMINA_GRAMMAR
from omnigram.tokenizers.vocabulary import DEFAULT_SPECIALS, Vocabulary

DIGITS = {symbol: id_ for id_, symbol in enumerate("0123456789*")}


def test_text_and_image_are_registered():
    assert MODALITIES["text"].grammar is None
    assert MODALITIES["image"].grammar == BlockGrammar()


def test_the_grammar_of_a_new_sensor_is_one_record(monkeypatch):
    monkeypatch.setattr("omnigram.tokenizers.modality.MODALITIES", dict(MODALITIES))
    vocabulary = Vocabulary.appended(11, (*DEFAULT_SPECIALS, "bod", "eod"), {"image": 4, "depth": 6})
    with pytest.raises(ValueError, match="'depth' is not registered; known: text, image"):
        document_grammar(vocabulary, DIGITS)
    depth = register(Modality("depth", BlockGrammar(begin="bod", end="eod")))
    documents = document_grammar(vocabulary, DIGITS)
    segments = [("image", np.array([[3]])), ("depth", np.array([[5, 0]])), ("text", np.array([7]))]
    ids = documents.write(segments)
    assert [modality for modality, _ in documents.read(ids)] == ["image", "depth", "text"]
    assert set(vocabulary.modality_of(ids).tolist()) == {0, 1, 2}
    state = documents.automaton().after(ids[:1])
    assert set(documents.automaton().allowed(state).ids) == {vocabulary.id(name) for name in ("eos", "boi", "bod")}

    assert register(depth) == depth  # again, the same: nothing happens
    with pytest.raises(ValueError, match="'depth' is registered already"):
        register(dataclasses.replace(depth, grammar=None))


def test_modalities_need_begin_marks_of_their_own():
    vocabulary = Vocabulary.appended(11, codebooks={"image": 4})
    block = BlockGrammar().bind(vocabulary, "image", DIGITS)
    with pytest.raises(ValueError, match="another begin mark"):
        type(document_grammar(vocabulary, DIGITS))(vocabulary, {"image": block, "depth": block})


def test_a_grammar_can_replace_the_registered_one():
    vocabulary = Vocabulary.appended(11, (*DEFAULT_SPECIALS, "1", "2"), {"image": 4})
    documents = document_grammar(vocabulary, {}, {"image": LUMINA_GRAMMAR})
    assert documents.blocks["image"].grammar == LUMINA_GRAMMAR
    assert documents.blocks["image"].sides == (2, 4)


def test_names_are_plain_words():
    with pytest.raises(ValueError, match="'a b' must be a plain word"):
        Modality("a b", None)
