"""Block grammars: published lengths and ids, the round trip, the automaton against brute force, damage located."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.tokenizers import grammar as published
from omnigram.tokenizers.grammar import BoundGrammar, GrammarError, RasterGrammar
from omnigram.tokenizers.vocabulary import EMU3, Range, Vocabulary

DIGITS = {symbol: id_ for id_, symbol in enumerate("0123456789*")}
TINY = Vocabulary.appended(12, codebooks={"image": 2})  # text ids 0 .. 10 are the digits and the star
LUMINA_IDS = {str(number): 8_804 + number for number in range(1, 65)}
CHAMELEON_VOCABULARY = Vocabulary(
    (Range("text", 0, 65_536), Range("image", 4, 8_192)), {"bos": 0, "eos": 2, "eoi": 8_196, "boi": 8_197, "eol": 8_803}
)
TINY_GRAMMARS = {
    "emu3": published.EMU3.bind(TINY, "image", DIGITS, max_side=2),
    "emu3.5": published.EMU3_5.bind(TINY, "image", DIGITS, max_side=2),
    "lumina": published.LUMINA.bind(TINY, "image", {"1": 3, "2": 5}, max_side=2),
    "lumina, unit 1": RasterGrammar(size="tokens", separator=None).bind(TINY, "image", {"1": 3, "2": 5}, max_side=2),
    "fixed": RasterGrammar(size=None, separator=None, content=None, fixed_size=(2, 1)).bind(TINY, "image"),
    "fixed, size written": RasterGrammar(fixed_size=(1, 2)).bind(TINY, "image", DIGITS),
}


def sizes_of(grammar: BoundGrammar) -> list[tuple[int, int]]:
    if grammar.grammar.fixed_size:
        return [grammar.grammar.fixed_size]
    return [(height, width) for height in grammar.sides for width in grammar.sides]


def every_block(grammar: BoundGrammar) -> set[tuple[int, ...]]:
    """All that `write` can make, for the two codes of TINY."""
    return {
        tuple(grammar.write(np.array(codes).reshape(height, width)).tolist())
        for height, width in sizes_of(grammar)
        for codes in itertools.product(range(2), repeat=height * width)
    }


def accepts(automaton, ids) -> bool:
    try:
        return automaton.done(automaton.advance(ids))
    except GrammarError:
        return False


def reads(grammar: BoundGrammar, ids) -> bool:
    try:
        grammar.read(ids)
    except GrammarError:
        return False
    return True


def test_emu3_writes_the_published_sequence():
    grammar = published.EMU3.bind(EMU3, "image", DIGITS)
    ids = grammar.write(np.array([[0, 1, 2], [32_767, 4, 5]])).tolist()
    assert ids == [
        *(151_852, 2, 10, 3, 151_851),  # boi 2*3 img
        *(151_854, 151_855, 151_856, 151_846),  # row, eol
        *(184_621, 151_858, 151_859, 151_846),  # row, eol: the last too
        *(151_847, 151_853),  # eof eoi
    ]


def test_published_lengths_of_a_32_x_32_grid():
    codes = np.arange(1_024).reshape(32, 32)
    emu3 = published.EMU3.bind(EMU3, "image", DIGITS).write(codes).tolist()
    after_img = len(emu3) - 1 - emu3.index(EMU3.id("img"))
    assert after_img + 1 == 1_059  # and eos

    emu3_5 = published.EMU3_5.bind(EMU3, "image", DIGITS).write(codes).tolist()
    at_img = emu3_5.index(EMU3.id("img"))
    assert len(emu3_5) - 1 - at_img == 1_056
    assert emu3_5[at_img + 32 * (32 + 1)] == EMU3.id("eoi")

    chameleon = published.CHAMELEON.bind(CHAMELEON_VOCABULARY, "image")
    assert len(chameleon.write(codes)) == 1_026
    assert chameleon.write(codes)[[0, 1, -1]].tolist() == [8_197, 4, 8_196]

    lumina = published.LUMINA.bind(CHAMELEON_VOCABULARY, "image", LUMINA_IDS)
    assert len(lumina.write(codes)) == 1_060
    assert lumina.write(codes)[[0, 1, 2, 35, -2, -1]].tolist() == [8_197, 8_820, 8_820, 8_803, 8_803, 8_196]


@given(st.data())
def test_read_undoes_write(data):
    grammar = data.draw(
        st.sampled_from(
            [
                published.EMU3.bind(EMU3, "image", DIGITS),
                published.EMU3_5.bind(EMU3, "image", DIGITS),
                published.LUMINA.bind(CHAMELEON_VOCABULARY, "image", LUMINA_IDS),
            ]
        )
    )
    height, width = (data.draw(st.sampled_from(grammar.sides[:12])) for _ in "hw")
    seed = data.draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, grammar.vocabulary.range("image").size, (height, width))
    ids = grammar.write(codes)
    assert len(ids) == grammar.length(height, width)
    assert grammar.read_size(ids) == (height, width)
    np.testing.assert_array_equal(grammar.read(ids), codes)


@pytest.mark.parametrize("name", TINY_GRAMMARS)
def test_automaton_generates_exactly_what_write_makes(name):
    grammar = TINY_GRAMMARS[name]
    automaton, made, open_ = grammar.automaton(), set(), [((), grammar.automaton().start)]
    while open_:
        ids, state = open_.pop()
        if automaton.done(state):
            assert automaton.allowed(state).all_ids(TINY).size == 0
            made.add(ids)
        else:
            following = automaton.allowed(state).all_ids(TINY).tolist()
            assert following  # no dead end
            open_ += [((*ids, id_), automaton.step(state, id_)) for id_ in following]
    assert made == every_block(grammar)


@pytest.mark.parametrize("name", TINY_GRAMMARS)
def test_automaton_and_read_accept_the_same_edited_blocks(name):
    grammar = TINY_GRAMMARS[name]
    language, automaton = every_block(grammar), grammar.automaton()
    for ids in sorted(language)[::5]:
        for at, id_ in itertools.product(range(len(ids)), range(TINY.size)):
            for edited in (ids[:at] + ids[at + 1 :], (*ids[:at], id_, *ids[at + 1 :]), (*ids[:at], id_, *ids[at:])):
                assert accepts(automaton, edited) == reads(grammar, edited) == (edited in language), edited
        assert not reads(grammar, (*ids, ids[-1]))


@pytest.mark.parametrize("name", TINY_GRAMMARS)
def test_free_is_where_the_automaton_leaves_a_choice(name):
    grammar = TINY_GRAMMARS[name]
    automaton = grammar.automaton()
    for ids in every_block(grammar):
        state, choice = automaton.start, []
        for id_ in ids:
            choice.append(automaton.allowed(state).all_ids(TINY).size > 1)
            state = automaton.step(state, id_)
        assert grammar.free(ids).tolist() == choice


def test_free_marks_size_and_codes_but_no_other_mark():
    grammar = published.EMU3.bind(EMU3, "image", DIGITS)
    free = grammar.free(grammar.write(np.zeros((2, 3), dtype=int)))
    assert free.tolist() == [False] + [True] * 4 + ([True] * 3 + [False]) * 2 + [False] * 2


def test_a_forced_size_forces_the_header():
    grammar = published.EMU3.bind(EMU3, "image", DIGITS)
    automaton, state, forced = grammar.automaton(size=(12, 8)), grammar.automaton(size=(12, 8)).start, []
    while (id_ := automaton.allowed(state).forced) is not None:
        forced.append(id_)
        state = automaton.step(state, id_)
    assert forced == [151_852, 1, 2, 10, 8, 151_851]
    assert automaton.allowed(state).modality == "image"
    assert automaton.rest(state) == 12 * 9 + 2
    assert accepts(automaton, grammar.write(np.zeros((12, 8), dtype=int)))
    assert not accepts(automaton, grammar.write(np.zeros((8, 12), dtype=int)))


@given(st.integers(1, 40), st.integers(1, 14), st.integers(1, 14))
def test_max_codes_permits_exactly_the_blocks_that_fit(max_codes, height, width):
    grammar = published.EMU3.bind(EMU3, "image", DIGITS, max_side=12)
    automaton = grammar.automaton(max_codes=max_codes)
    fits = height * width <= max_codes and max(height, width) <= 12
    header = [EMU3.id("boi"), *(DIGITS[symbol] for symbol in f"{height}*{width}"), EMU3.id("img")]
    if fits:
        state = automaton.advance(header)
        assert (state.height, state.width) == (height, width)
        assert grammar.length(height, width) <= automaton.max_tokens
    else:
        with pytest.raises(GrammarError):
            automaton.advance(header)


def damaged(at: int, id_: int | None) -> np.ndarray:
    """A 2 x 2 Emu3 block with one id replaced, or cut off there."""
    ids = published.EMU3.bind(EMU3, "image", DIGITS).write(np.zeros((2, 2), dtype=int))
    return ids[:at] if id_ is None else np.concatenate([ids[:at], [id_], ids[at + 1 :]])


@pytest.mark.parametrize(
    ("at", "id_", "reason"),
    [
        (0, 5, "expected boi"),
        (1, 0, "expected 1 or"),  # a leading zero
        (1, 10, "expected 1 or"),  # no height
        (4, 151_853, r"expected 0 or .* or img"),
        (5, 7, r"in a 2 x 2 block of image, expected a image id"),
        (7, 151_854, r"expected eol \(151846\)"),  # a row too long
        (9, 151_846, "expected a image id"),  # a row too short
        (11, 151_853, "expected eof"),
        (12, 151_850, "expected eoi"),
        (3, None, "ends within its size"),
        (9, None, "ends after 9 of 13 ids"),
        (0, None, "ends within its size"),
    ],
)
def test_damage_is_located(at, id_, reason):
    grammar = published.EMU3.bind(EMU3, "image", DIGITS)
    with pytest.raises(GrammarError, match=reason) as caught:
        grammar.read(damaged(at, id_))
    assert caught.value.position == at
    assert "\n" not in str(caught.value)


def test_ids_after_the_end_are_located():
    grammar = published.EMU3.bind(EMU3, "image", DIGITS)
    with pytest.raises(GrammarError, match="after the end") as caught:
        grammar.read([*grammar.write([[0]]), 7])
    assert caught.value.position == 9


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": "words"}, "'words'"),
        ({"size": None, "separator": None}, "must be fixed"),
        ({"separator": None}, "with a separator"),
        ({"size": "tokens"}, "without a separator"),
        ({"content": None}, "content mark"),
        ({"size_unit": 0}, "got 0"),
    ],
)
def test_impossible_grammars_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        RasterGrammar(**options)


def test_impossible_bindings_and_blocks_are_refused():
    with pytest.raises(ValueError, match=r"lacks \['9', '\*'\]"):
        published.EMU3.bind(TINY, "image", {symbol: int(symbol) for symbol in "012345678"})
    with pytest.raises(ValueError, match="different ids"):
        published.EMU3.bind(TINY, "image", DIGITS | {"1": 0})
    with pytest.raises(ValueError, match="marks of the grammar"):
        published.EMU3.bind(TINY, "image", DIGITS | {"1": TINY.id("boi")})
    with pytest.raises(ValueError, match="outside the vocabulary"):
        published.EMU3.bind(TINY, "image", DIGITS | {"1": 999})
    with pytest.raises(ValueError, match="no special token 'eov'"):
        RasterGrammar(end="eov").bind(TINY, "image", DIGITS)
    with pytest.raises(ValueError, match="max_side=1"):
        published.LUMINA.bind(TINY, "image", {"1": 3}, max_side=1)

    emu3 = TINY_GRAMMARS["emu3"]
    with pytest.raises(ValueError, match=r"shape \(H, W\), got \(2,\)"):
        emu3.write([0, 1])
    with pytest.raises(ValueError, match=r"a 3 x 1 block of image: sides are 1 .. 2"):
        emu3.write(np.zeros((3, 1), dtype=int))
    with pytest.raises(ValueError, match="a 0 x 2 block"):
        emu3.write(np.zeros((0, 2), dtype=int))
    with pytest.raises(ValueError, match=r"code 2 is outside 0 .. 1"):
        emu3.write([[2]])
    with pytest.raises(ValueError, match="multiples of 2"):
        TINY_GRAMMARS["lumina"].write([[0]])
    with pytest.raises(ValueError, match="fixes 2 x 1"):
        TINY_GRAMMARS["fixed"].write([[0, 1]])
    with pytest.raises(ValueError, match="max_codes=3 is less than the 4 codes"):
        emu3.automaton(size=(2, 2), max_codes=3)
    with pytest.raises(ValueError, match="no token for that size"):
        RasterGrammar(size="tokens", separator=None).bind(TINY, "image", {"1": 3, "3": 4}, max_side=4).write([[0, 0]])
