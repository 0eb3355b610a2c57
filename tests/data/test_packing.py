"""Packing: full rows, aligned targets, and losses that do not depend on who shares a row."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import CODES, DIGITS, TEXT_SIZE

from omnigram.data.packing import NO_TARGET, Collator, PackedBatch, WrittenDocument, fullest
from omnigram.data.writing import Writer
from omnigram.tokenizers.document_grammar import DocumentGrammar
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.published import EMU3
from omnigram.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.appended(TEXT_SIZE, codebooks={"image": CODES})
GRAMMAR: DocumentGrammar = document_grammar(VOCABULARY, DIGITS)
AUTOMATON = GRAMMAR.automaton()
PER_DOCUMENT = ("ids", "targets", "weights", "modality", "partition", "position")

texts = st.lists(st.integers(11, TEXT_SIZE - 1), min_size=1, max_size=9).map(lambda codes: ("text", np.array(codes)))
blocks = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(
    lambda size: ("image", np.arange(size[0] * size[1]).reshape(size) % CODES)
)
segments = st.lists(texts | blocks, min_size=1, max_size=4)


def written(pieces: list, source: int = 0, length: int = 1000) -> WrittenDocument:
    return Writer(GRAMMAR, length).write(pieces, source).pieces[0]


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9), extra=st.integers(0, 40))
def test_no_set_with_the_oldest_document_is_fuller(lengths: list[int], extra: int) -> None:
    room = lengths[0] + extra
    chosen = fullest(lengths, room)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    others = range(1, len(lengths))
    sums = (
        lengths[0] + sum(lengths[i] for i in members)
        for n in range(len(lengths))
        for members in combinations(others, n)
    )
    assert sum(lengths[index] for index in chosen) == max(total for total in sums if total <= room)


def test_of_equally_full_rows_the_older_documents_go_first() -> None:
    assert fullest([5, 3, 2, 3, 2], 10) == [0, 1, 2]
    assert fullest([5, 4, 4], 9) == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(segments, min_size=1, max_size=6),
    partitioned=st.booleans(),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_packed_document_is_what_it_is_alone(documents: list, partitioned: bool, weight: float) -> None:
    ready = [written(pieces, source) for source, pieces in enumerate(documents)]
    total = sum(map(len, ready))
    packed = Collator(VOCABULARY, 1, total + 3, {"image": weight}, partitioned).collate([ready])
    alone = Collator(VOCABULARY, len(ready), total, {"image": weight}, partitioned).collate([[one] for one in ready])
    for number, document in enumerate(ready):
        inside = packed.document[0] == number
        assert int(inside.sum()) == len(document)
        for name in PER_DOCUMENT:
            assert torch.equal(getattr(packed, name)[0, inside], getattr(alone, name)[number, : len(document)]), name
    assert packed.sources.tolist() == list(range(len(ready)))


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(segments, min_size=1, max_size=4), partitioned=st.booleans(), spare=st.integers(0, 5))
def test_the_labels_of_a_batch(documents: list, partitioned: bool, spare: int) -> None:
    """Each label against the automaton, which reads the ids again instead of trusting the writer."""
    ready = [written(pieces) for pieces in documents]
    length = max(map(len, ready)) + spare
    batch = Collator(VOCABULARY, len(ready) + 1, length, {"image": 0.25, "text": 2.0}, partitioned).collate(
        [[document] for document in ready]
    )
    for row, document in enumerate(ready):
        modality, free, state = VOCABULARY.modality_of(document.ids), [], AUTOMATON.start
        for id_ in document.ids.tolist():
            free.append(AUTOMATON.allowed(state).forced is None)
            state = AUTOMATON.step(state, id_)
        end = len(document)
        assert np.array_equal(document.free, free)
        assert batch.targets[row, : end - 1].tolist() == document.ids[1:].tolist()
        assert batch.modality[row, : end - 1].tolist() == modality[1:].tolist()
        assert batch.partition[row, : end - 1].tolist() == modality[1:].tolist()
        expected = np.where(modality == 1, 0.25, 2.0) * (np.array(free) if partitioned else 1)
        assert batch.weights[row, : end - 1].tolist() == expected[1:].tolist()
        assert batch.position[row, :end].tolist() == list(range(end))
    nothing = batch.targets == NO_TARGET
    last = torch.zeros_like(nothing)
    for row, document in enumerate(ready):
        last[row, len(document) - 1] = True
    pads = batch.document < 0
    assert torch.equal(nothing, pads | last)
    assert not batch.weights[nothing].any()
    assert (batch.modality[nothing] == -1).all()
    assert (batch.partition[nothing] == -1).all()
    assert (batch.ids[pads] == VOCABULARY.id("pad")).all()
    assert not batch.position[pads].any()
    assert not (batch.targets == VOCABULARY.id("pad")).any()
    assert pads[len(ready)].all(), "rows that are missing are pads"
    assert batch.num_tokens == sum(map(len, ready))
    assert batch.num_pairs == sum(seen for document in ready for seen in range(1, len(document) + 1))


def test_the_batch_has_the_shapes_and_types_that_are_promised() -> None:
    batch = Collator(VOCABULARY, 2, 30).collate([[written([("text", np.array([12, 13]))], source=7)]])
    types = {"ids": torch.int64, "targets": torch.int64, "weights": torch.float32, "modality": torch.int8}
    types |= {"partition": torch.int8, "document": torch.int32, "position": torch.int64}
    for name, dtype in types.items():
        tensor = getattr(batch, name)
        assert (tensor.shape, tensor.dtype) == ((2, 30), dtype), name
    assert batch.sources.tolist() == [7]
    assert batch.fill == 4 / 60
    moved = batch.to("meta")
    assert isinstance(moved, PackedBatch)
    assert all(getattr(moved, name).device.type == "meta" for name in (*types, "sources"))


def test_forced_tokens_weigh_only_where_the_softmax_is_whole() -> None:
    document = written([("text", np.array([20])), ("image", np.zeros((1, 2), dtype=np.int64))])
    names = {id_: name for name, id_ in VOCABULARY.specials.items()}
    of = {
        partitioned: Collator(VOCABULARY, 1, len(document), partitioned=partitioned).collate([[document]])
        for partitioned in (False, True)
    }
    told = [names.get(id_, "code" if id_ >= TEXT_SIZE else "text") for id_ in of[True].targets[0, :-1].tolist()]
    assert told == [*["text", "boi", "text", "text", "text", "img"], *["code", "code", "eol", "eof", "eoi", "eos"]]
    assert of[False].weights[0].tolist() == [1.0] * 12 + [0.0]
    assert of[True].weights[0].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0]


def test_a_published_vocabulary_gives_its_own_partitions() -> None:
    document = WrittenDocument(np.array([151_849, 5, 151_852, 151_854, 184_621, 151_850]), np.ones(6, bool), 0)
    batch = Collator(EMU3, 1, 6, {"image": 0.5}).collate([[document]])
    assert batch.partition[0].tolist() == [0, 0, 1, 1, 0, -1]
    assert batch.weights[0].tolist() == [1, 1, 0.5, 0.5, 1, 0]


def test_faults_are_told() -> None:
    with pytest.raises(ValueError, match="'sound'"):
        Collator(VOCABULARY, 1, 8, {"sound": 1.0})
    with pytest.raises(ValueError, match=r"loss\.weights=.*: one has to be positive"):
        Collator(VOCABULARY, 1, 8, {"text": 0, "image": 0})
    with pytest.raises(ValueError, match="negative"):
        Collator(VOCABULARY, 1, 8, {"text": -1.0})
    with pytest.raises(ValueError, match="rows=0"):
        Collator(VOCABULARY, 0, 8)


class TestWriter:
    def test_a_document_that_fits_is_one_piece(self) -> None:
        pieces = [("text", np.array([20, 21])), ("image", np.zeros((2, 2), dtype=np.int64))]
        whole = GRAMMAR.write(pieces)
        result = Writer(GRAMMAR, len(whole)).write(pieces, 3)
        assert [piece.ids.tolist() for piece in result.pieces] == [whole.tolist()]
        assert result.dropped == 0
        assert result.pieces[0].source == 3

    @settings(max_examples=100, deadline=None)
    @given(pieces=segments, length=st.integers(3, 40))
    def test_pieces_fit_and_hold_all_but_the_blocks_that_cannot_fit(self, pieces: list, length: int) -> None:
        result = Writer(GRAMMAR, length).write(pieces, 0)
        read = [segment for piece in result.pieces for segment in GRAMMAR.read(piece.ids)]
        assert all(len(piece) <= length for piece in result.pieces)
        fitting = [
            codes
            for modality, codes in pieces
            if modality == "text" or len(GRAMMAR.write([(modality, codes)])) <= length
        ]
        assert result.dropped == len(pieces) - len(fitting)
        assert [code for _, codes in read for code in codes.ravel()] == [
            code for codes in fitting for code in codes.ravel()
        ]
        kept = [codes.shape for modality, codes in read if modality == "image"]
        assert kept == [codes.shape for codes in fitting if codes.ndim == 2], "a block is never cut"

    def test_segments_share_a_piece_where_they_can(self) -> None:
        text = ("text", np.full(4, 20))
        assert [len(piece) for piece in Writer(GRAMMAR, 10).write([text] * 5, 0).pieces] == [10, 10, 6]
