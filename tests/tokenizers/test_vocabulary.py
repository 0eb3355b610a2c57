"""The vocabulary: published ids, the laws of encode and decode, and the layouts it must refuse."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.tokenizers.published import EMU3
from omnigram.tokenizers.vocabulary import Range, Vocabulary

# Chameleon's: codes and marks inside the 65,536 ids of the BPE table, codes permuted
CARVED = Vocabulary(
    (Range("text", 0, 65_536), Range("image", 4, 8_192, tuple(np.random.default_rng(0).permutation(8_192)))),
    {"bos": 0, "pad": 1, "eos": 2, "eoi": 8_196, "boi": 8_197},
)


def test_emu3_has_the_published_ids():
    assert EMU3.size == 184_622
    published = {
        "pad": 151643,
        "eol": 151846,
        "eof": 151847,
        "tms": 151848,
        "bos": 151849,
        "eos": 151850,
        "img": 151851,
    }
    published |= {"boi": 151852, "eoi": 151853}
    assert EMU3.specials == published
    assert EMU3.encode("image", [0, 1, 32_767]).tolist() == [151_854, 151_855, 184_621]
    assert EMU3.modality_of([0, 151_642, 151_700, 151_853, 151_854, 184_621]).tolist() == [0, 0, 0, 0, 1, 1]


def test_appended_is_text_then_specials_then_codebooks():
    vocabulary = Vocabulary.appended(100, ("pad", "bos"), {"image": 8, "audio": 4})
    assert vocabulary.modalities == ("text", "image", "audio")
    assert [vocabulary.id("pad"), vocabulary.id("bos")] == [100, 101]
    assert vocabulary.ids("image").tolist() == list(range(102, 110))
    assert vocabulary.ids("audio").tolist() == list(range(110, 114))
    assert vocabulary.size == 114
    everything = vocabulary.modality_of(np.arange(114))
    assert everything.dtype == np.int8
    assert everything.tolist() == [0] * 102 + [1] * 8 + [2] * 4


def test_text_loses_what_is_carved_out_of_it():
    assert CARVED.size == 65_536
    assert len(CARVED.ids("text")) == 65_536 - 8_192 - 5
    assert not CARVED.contains("text", [0, 4, 8_195, 8_197]).any()
    assert CARVED.contains("text", [3, 8_198, 65_535]).all()
    for id_ in (2, 5_000, 8_197):
        with pytest.raises(ValueError, match=str(id_)):
            CARVED.encode("text", [3, id_])
        with pytest.raises(ValueError, match=str(id_)):
            CARVED.decode("text", [3, id_])


@given(st.data())
def test_decode_undoes_encode_in_any_shape(data):
    vocabulary = data.draw(st.sampled_from([EMU3, CARVED, Vocabulary.appended(7, codebooks={"image": 3})]))
    modality = data.draw(st.sampled_from(vocabulary.modalities))
    all_ids = vocabulary.ids(modality)
    chosen = data.draw(st.lists(st.integers(0, len(all_ids) - 1), max_size=6))
    ids = all_ids[np.array(chosen, dtype=np.int64)].reshape(data.draw(st.sampled_from([(-1,), (1, -1), (-1, 1)])))
    codes = vocabulary.decode(modality, ids)
    assert codes.shape == ids.shape
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(vocabulary.encode(modality, codes.astype(np.uint32)), ids)
    assert (vocabulary.modality_of(ids) == vocabulary.modalities.index(modality)).all()
    assert all(vocabulary.holds(modality, int(id_)) for id_ in ids.ravel())


def test_a_table_is_a_bijection_and_contains_agrees_with_holds():
    ids = CARVED.encode("image", np.arange(8_192))
    assert ids[0] != 4  # it does permute
    np.testing.assert_array_equal(np.sort(ids), np.arange(4, 8_196))
    np.testing.assert_array_equal(CARVED.decode("image", ids), np.arange(8_192))
    for modality in CARVED.modalities:
        probes = np.array([-1, 0, 3, 4, 8_195, 8_196, 8_197, 8_198, 65_535, 65_536])
        holds = [CARVED.holds(modality, int(id_)) for id_ in probes]
        np.testing.assert_array_equal(CARVED.contains(modality, probes), holds)


@pytest.mark.parametrize("codes", [[-1], [0, 8], [3.0]])
def test_codes_outside_are_refused_by_value(codes):
    with pytest.raises(ValueError, match="float64" if isinstance(codes[-1], float) else str(codes[-1])):
        Vocabulary.appended(10, codebooks={"image": 8}).encode("image", codes)


def test_ids_and_names_outside_are_refused_by_value():
    vocabulary = Vocabulary.appended(10, codebooks={"image": 8})
    with pytest.raises(ValueError, match=r"id 26 is not one of the image ids 18 .. 25"):
        vocabulary.decode("image", [[18, 26]])
    with pytest.raises(ValueError, match="id 26 is outside the vocabulary of 26"):
        vocabulary.modality_of([0, 26])
    with pytest.raises(ValueError, match="no special token 'eov'"):
        vocabulary.id("eov")
    with pytest.raises(ValueError, match="no modality 'audio'"):
        vocabulary.range("audio")


@pytest.mark.parametrize(
    ("ranges", "specials", "reason"),
    [
        ((Range("image", 0, 4),), {}, "the text range"),
        ((Range("text", 0, 4), Range("text", 4, 4)), {}, "the text range"),
        ((Range("text", 0, 4), Range("image", 4, 4), Range("audio", 7, 4)), {}, "overlap at id 7"),
        ((Range("text", 0, 4), Range("image", 5, 4)), {"boi": 6}, "'boi' has the id 6"),
        ((Range("text", 0, 4),), {"boi": 6, "eoi": 6}, "different"),
    ],
)
def test_impossible_layouts_are_refused(ranges, specials, reason):
    with pytest.raises(ValueError, match=reason):
        Vocabulary(ranges, specials)


@pytest.mark.parametrize("table", [(0, 0, 1), (0, 1), (1, 2, 3)])
def test_a_table_that_is_no_permutation_is_refused(table):
    with pytest.raises(ValueError, match="permutation"):
        Range("image", 0, 3, table)


def test_json_keeps_everything_and_identity_tells_vocabularies_apart():
    for vocabulary in (EMU3, CARVED):
        again = Vocabulary.from_json(vocabulary.to_json())
        assert again == vocabulary
        assert again.identity == vocabulary.identity
        assert hash(again) == hash(vocabulary)
        assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    plain = Vocabulary((CARVED.ranges[0], Range("image", 4, 8_192)), CARVED.specials)
    reordered = Vocabulary(CARVED.ranges, dict(reversed(CARVED.specials.items())))
    assert plain.identity != CARVED.identity
    assert reordered.identity == CARVED.identity
    for junk in ("", "[]", '{"ranges": []}', '{"ranges": [{"name": "text"}], "specials": {}}'):
        with pytest.raises(ValueError, match="vocabulary"):
            Vocabulary.from_json(junk)
