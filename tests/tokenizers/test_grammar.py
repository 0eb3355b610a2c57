"""Block grammars: published lengths and ids, the round trip, the automaton against brute force, damage located."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.tokenizers import published
from omnigram.tokenizers.grammar import BlockGrammar, BoundGrammar, GrammarError
from omnigram.tokenizers.published import EMU3, EMU3_GRAMMAR
from omnigram.tokenizers.vocabulary import DEFAULT_SPECIALS, Vocabulary

DIGITS = {symbol: id_ for id_, symbol in enumerate("0123456789*")}
TINY = Vocabulary.appended(12, (*DEFAULT_SPECIALS, "eov", "1", "2"), {"image": 2})  # text ids 0 .. 10: digits and star
BARE: dict[str, Any] = {"size": None, "separator": None, "content": None}  # nothing before the codes but the begin mark
UNMARKED: dict[str, Any] = {**BARE, "row_end": None, "frame_end": None}
SPECS = {
    "emu3": EMU3_GRAMMAR,
    "emu3.5": published.EMU3_5_GRAMMAR,
    "emu3, video": BlockGrammar(rank=3, rate=12),
    "video of frames without marks": BlockGrammar(rank=3, row_end=None, frame_end=None),
    "lumina": published.LUMINA_GRAMMAR,
    "lumina, unit 1": BlockGrammar(size="tokens", separator=None),
    "video, numbers": BlockGrammar(rank=3, size="tokens", separator=None),
    "fixed": BlockGrammar(**BARE, fixed_size=(2, 1)),
    "fixed, size written": BlockGrammar(fixed_size=(1, 2)),
    "lwm": BlockGrammar(
        **BARE, rank=3, begin=None, row_end=None, last_frame_end="eov", end=None, fixed_size=(None, 1, 2)
    ),
    "frames up to an end mark": BlockGrammar(**BARE, rank=3, fixed_size=(None, 2, 1)),
    "frames without marks up to an end mark": BlockGrammar(**UNMARKED, rank=3, fixed_size=(None, 2, 1)),
    "rows up to an end mark": BlockGrammar(**BARE, frame_end=None, fixed_size=(None, 2)),
    "rows, eol between them": BlockGrammar(**BARE, last_row_end=False, fixed_size=(None, 2)),
    "series of codes": BlockGrammar(**UNMARKED, rank=1, fixed_size=(2,)),
    "series up to an end mark": BlockGrammar(**UNMARKED, rank=1, fixed_size=(None,)),
    "series, length written": BlockGrammar(rank=1, row_end=None, frame_end=None),
}
TINY_GRAMMARS = {name: spec.bind(TINY, "image", DIGITS, max_side=2) for name, spec in SPECS.items()}


def sizes_of(grammar: BoundGrammar) -> list[tuple[int, ...]]:
    fixed = grammar.grammar.fixed_size or (None,) * grammar.grammar.rank
    return list(itertools.product(*(grammar.sides if side is None else [side] for side in fixed)))


def every_block(grammar: BoundGrammar) -> set[tuple[int, ...]]:
    """All that `write` can make, for the two codes of TINY."""
    return {
        tuple(grammar.write(np.array(codes).reshape(size)).tolist())
        for size in sizes_of(grammar)
        for codes in itertools.product(range(2), repeat=int(np.prod(size)))
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
    for ids in sorted(language)[:: max(1, len(language) // 8)]:
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
        assert grammar.layout(*grammar.read_size(np.array(ids))).free.tolist() == choice


def test_free_marks_size_and_codes_but_no_other_mark():
    grammar = EMU3_GRAMMAR.bind(EMU3, "image", DIGITS)
    free = grammar.layout(2, 3).free
    assert free.tolist() == [False] + [True] * 4 + ([True] * 3 + [False]) * 2 + [False] * 2


def test_a_forced_size_forces_the_header():
    grammar = EMU3_GRAMMAR.bind(EMU3, "image", DIGITS)
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
    grammar = EMU3_GRAMMAR.bind(EMU3, "image", DIGITS, max_side=12)
    automaton = grammar.automaton(max_codes=max_codes)
    fits = height * width <= max_codes and max(height, width) <= 12
    header = [EMU3.id("boi"), *(DIGITS[symbol] for symbol in f"{height}*{width}"), EMU3.id("img")]
    if fits:
        state = automaton.advance(header)
        assert state.sizes == (height, width)
        assert grammar.length(height, width) <= automaton.max_tokens
    else:
        with pytest.raises(GrammarError):
            automaton.advance(header)


def damaged(at: int, id_: int | None) -> np.ndarray:
    """A 2 x 2 Emu3 block with one id replaced, or cut off there."""
    ids = EMU3_GRAMMAR.bind(EMU3, "image", DIGITS).write(np.zeros((2, 2), dtype=int))
    return ids[:at] if id_ is None else np.concatenate([ids[:at], [id_], ids[at + 1 :]])


@pytest.mark.parametrize(
    ("at", "id_", "reason"),
    [
        (0, 5, "expected boi"),
        (1, 0, "expected 1 or"),  # a leading zero
        (1, 10, "expected 1 or"),  # no height
        (4, 151_853, r"expected 0 or .* or img"),
        (5, 7, r"in a 2 x 2 block of image, expected an image id"),
        (7, 151_854, r"expected eol \(151846\)"),  # a row too long
        (9, 151_846, "expected an image id"),  # a row too short
        (11, 151_853, "expected eof"),
        (12, 151_850, "expected eoi"),
        (3, None, "ends within its size"),
        (9, None, "ends after 9 of 13 ids"),
        (0, None, "ends within its size"),
    ],
)
def test_damage_is_located(at, id_, reason):
    grammar = EMU3_GRAMMAR.bind(EMU3, "image", DIGITS)
    with pytest.raises(GrammarError, match=reason) as caught:
        grammar.read(damaged(at, id_))
    assert caught.value.position == at
    assert "\n" not in str(caught.value)


def test_ids_after_the_end_are_located():
    grammar = EMU3_GRAMMAR.bind(EMU3, "image", DIGITS)
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
        ({"rank": 4}, "rank must be 1, 2 or 3, got 4"),
        ({"fixed_size": (3,)}, "must have 2 numbers"),
        ({"fixed_size": (None, 3)}, "only the first number of a size that is not written may be None"),
        ({**BARE, "fixed_size": (3, None)}, "only the first number"),
        ({"begin": None}, "a size needs a begin mark"),
        ({**BARE, "content": "img", "begin": None, "fixed_size": (1, 1)}, "needs a begin mark"),
        ({"rate": 0}, "rate=0 must be 1 or more"),
        ({"rate": 8, "size": "tokens", "separator": None}, "needs size='digits'"),
    ],
)
def test_impossible_grammars_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        BlockGrammar(**options)


def test_impossible_bindings_and_blocks_are_refused():
    with pytest.raises(ValueError, match=r"lacks \['9', '\*'\]"):
        EMU3_GRAMMAR.bind(TINY, "image", {symbol: int(symbol) for symbol in "012345678"})
    with pytest.raises(ValueError, match="different ids"):
        EMU3_GRAMMAR.bind(TINY, "image", DIGITS | {"1": 0})
    with pytest.raises(ValueError, match="marks of the grammar"):
        EMU3_GRAMMAR.bind(TINY, "image", DIGITS | {"1": TINY.id("boi")})
    with pytest.raises(ValueError, match="outside the vocabulary"):
        EMU3_GRAMMAR.bind(TINY, "image", DIGITS | {"1": 999})
    with pytest.raises(ValueError, match="no special token 'sov'"):
        BlockGrammar(begin="sov").bind(TINY, "image", DIGITS)
    with pytest.raises(ValueError, match="max_side=1"):
        published.LUMINA_GRAMMAR.bind(TINY, "image", max_side=1)
    with pytest.raises(ValueError, match="no mark tells where a block ends"):
        BlockGrammar(**UNMARKED, rank=1, end=None, fixed_size=(None,)).bind(TINY, "image")

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
    with pytest.raises(ValueError, match="fixes any x 1 x 2"):
        TINY_GRAMMARS["lwm"].write([[[0]]])
    with pytest.raises(ValueError, match="no token for that size"):
        BlockGrammar(size="tokens", separator=None).bind(TINY, "image", max_side=4).write([[0, 0, 0]])
