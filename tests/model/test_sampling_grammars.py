"""Whatever random weights write in any grammar of the project is valid, by rules that are written out here by hand."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samplers import tiny_model
from numpy.typing import NDArray

from omnigram.model.generation import Block, Prompt, Sample, Sampler, Sampling
from omnigram.tokenizers.document_grammar import DocumentGrammar
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.published import PUBLISHED
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary

OURS = Vocabulary.appended(60, codebooks={"image": 40})
OUR_DIGITS = {symbol: id_ for id_, symbol in enumerate("*0123456789", start=20)}
Codes = NDArray[np.int64]


class Spelled:
    """Text ids as decimal numbers, in place of a text tokenizer."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(f"{id_} " for id_ in ids)


SPELLED = cast(TextTokenizer, Spelled())


@cache
def grammar_of(name: str) -> DocumentGrammar:
    if name == "ours":
        return document_grammar(OURS, OUR_DIGITS, max_side=16)
    language = PUBLISHED[name]
    return document_grammar(language.vocabulary, language.digit_ids, language.grammars)


def word_ids(name: str) -> list[int]:
    """Some ids of text; Chameleon's codes are the first ids of its text."""
    return grammar_of(name).vocabulary.ids("text")[-3:].tolist()


def rows(codes: Codes, first: int, mark: int) -> list[int]:
    """Each row of codes [H, W] with a mark behind it; `first` is the id of code 0."""
    return [id_ for row in codes.tolist() for id_ in (*(first + code for code in row), mark)]


def number(value: int, zero: int) -> list[int]:
    """Decimal digits, where "0" has the id `zero`."""
    return [zero + int(digit) for digit in str(value)]


def our_block(codes: Codes) -> list[int]:
    height, width = codes.shape
    size = [*number(height, 21), 20, *number(width, 21)]
    return [63, *size, 64, *rows(codes, 68, 65), 66, 67]


def emu3_block(codes: Codes) -> list[int]:
    height, width = codes.shape
    size = [*number(height, 15), 9, *number(width, 15)]
    return [151_852, *size, 151_851, *rows(codes, 151_854, 151_846), 151_847, 151_853]


def emu3_5_block(codes: Codes) -> list[int]:
    height, width = codes.shape
    size = [*number(height, 15), 9, *number(width, 15)]
    return [151_852, *size, 151_851, *rows(codes, 151_854, 151_846)[:-1], 151_853]


def emu3_video_block(codes: Codes) -> list[int]:
    frames, height, width = codes.shape
    size = [*number(height, 15), 9, *number(width, 15), 9, *number(frames, 15), 9, *number(8, 15)]
    body = [id_ for frame in codes for id_ in (*rows(frame, 151_854, 151_846), 151_847)]
    return [151_852, *size, 151_851, *body, 151_853]


def chameleon_block(codes: Codes) -> list[int]:
    assert codes.shape == (32, 32)
    return [8_197, *(4 + codes.ravel()).tolist(), 8_196]


def lumina_block(codes: Codes) -> list[int]:
    height, width = codes.shape
    assert height % 2 == width % 2 == 0
    return [8_197, 8_804 + height // 2, 8_804 + width // 2, *rows(codes, 4, 8_803), 8_196]


def lwm_block(codes: Codes) -> list[int]:
    assert codes.shape[1:] == (16, 16)
    ids = [id_ for frame in codes for id_ in (*(32_000 + frame.ravel()).tolist(), 40_192)]
    return [*ids[:-1], 40_193]


def seed_block(codes: Codes) -> list[int]:
    assert codes.shape == (32,)
    return [40_192, *(32_000 + codes).tolist(), 40_193]


@dataclass(frozen=True)
class Language:
    """How a block is written, by hand; bos and eos; and what is sampled of it.

    size: the size that is asked for where one is; codes: at most so many where it is free
    begun: of a half-finished block, size and how many codes are given
    whole: share of the samples that begin their blocks; the others finish half a one, as most do where blocks are long
    """

    write: Callable[[Codes], list[int]]
    bos: int
    eos: int
    size: tuple[int, ...]
    codes: int
    begun: tuple[tuple[int, ...], int]
    whole: float

    @property
    def tokens(self) -> int:
        return len(self.write(np.zeros(self.size, dtype=np.int64)))


LANGUAGES = {
    "ours": Language(our_block, 61, 62, (2, 3), 6, ((3, 12), 33), 0.8),
    "emu3": Language(emu3_block, 151_849, 151_850, (1, 3), 4, ((2, 10), 17), 0.64),
    "emu3_5": Language(emu3_5_block, 151_849, 151_850, (3, 1), 3, ((10, 2), 18), 0.5),
    "emu3_video": Language(emu3_video_block, 151_849, 151_850, (2, 1, 2), 4, ((2, 2, 3), 10), 0.56),
    "chameleon": Language(chameleon_block, 0, 2, (32, 32), 1_024, ((32, 32), 1_021), 0.015),
    "lumina": Language(lumina_block, 0, 2, (2, 4), 8, ((4, 6), 21), 0.58),
    "lwm": Language(lwm_block, 1, 2, (1, 16, 16), 512, ((1, 16, 16), 253), 0.03),
    "seed": Language(seed_block, 1, 2, (32,), 32, ((32,), 28), 0.125),
}
TEMPERATURES = (0.0, 0.5, 1.0, 2.0, 100.0)


def test_every_grammar_is_sampled() -> None:
    assert set(LANGUAGES) == {"ours", *PUBLISHED}


@pytest.mark.parametrize("name", LANGUAGES)
def test_random_weights_write_valid_blocks_alone(name: str, pytestconfig: pytest.Config) -> None:
    """As many samples as `--samples` says: 10,000 of all grammars by default."""
    language, grammar = LANGUAGES[name], grammar_of(name)
    samples = cast(int, pytestconfig.getoption("--samples"))
    whole = round(language.whole * samples)
    [modality] = grammar.blocks
    shapes, count = set[tuple[int, ...]](), 0
    for weights, temperature in enumerate(TEMPERATURES):
        sampler = random_sampler(grammar, weights, temperature)
        part = slice(weights, None, len(TEMPERATURES))
        for batch in (
            whole_prompts(name, modality, range(whole)[part]),
            half_prompts(name, modality, range(samples - whole)[part]),
        ):
            for prompt, sample in zip(batch, sampler.sample(batch, batch_size=256), strict=True):
                shapes.update(check(language, grammar, modality, prompt, sample))
                count += 1
    assert count == samples
    assert len(shapes) > 1 or grammar.blocks[modality].grammar.fixed_size == language.size


def random_sampler(grammar: DocumentGrammar, weights: int, temperature: float) -> Sampler:
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = tiny_model(grammar.vocabulary.size, weights, **shape, num_key_value_heads=1, max_position_embeddings=2_400)
    setting = Sampling(temperature, top_k=(0, 50)[weights % 2], top_p=(1.0, 0.9)[weights // 2 % 2])
    names = ("text", *grammar.blocks)
    return Sampler(model.float(), grammar, SPELLED, dict.fromkeys(names, setting))


def whole_prompts(name: str, modality: str, seeds: Iterable[int]) -> list[Prompt]:
    """A block of a free size, of one that is asked for, two of them, or a page with words: in turn."""
    language = LANGUAGES[name]
    block = {"text": False, "min_blocks": 1, "max_blocks": 1}
    kinds: list[dict[str, Any]] = [
        {**block, "max_codes": language.codes},
        {**block, "sizes": {modality: language.size}},
        {**block, "min_blocks": 2, "max_blocks": 2, "max_codes": language.codes},
        {"min_blocks": 1, "max_codes": language.codes, "max_tokens": 2 + room(name, modality), "min_text": 1},
    ]
    words = SPELLED.decode(word_ids(name))
    return [Prompt((words if seed % 3 else "",), kinds[seed % 4], seed) for seed in seeds]


def room(name: str, modality: str) -> int:
    automaton = grammar_of(name).blocks[modality].automaton(max_codes=LANGUAGES[name].codes)
    return automaton.max_tokens + 1  # and eos


def half_prompts(name: str, modality: str, seeds: Iterable[int]) -> list[Prompt]:
    """A block that lacks its last codes, the same codes before them."""
    size, count = LANGUAGES[name].begun
    codes = np.random.default_rng(0).integers(0, 40, count)
    segments = (SPELLED.decode(word_ids(name)), Block(codes, modality, cast(tuple[int, int], size)))
    limits = {"text": False, "max_blocks": 0, "max_codes": int(np.prod(size))}
    return [Prompt(segments, limits, seed) for seed in seeds]


def check(
    language: Language, grammar: DocumentGrammar, modality: str, prompt: Prompt, sample: Sample
) -> list[tuple[int, ...]]:
    """A sample is what the hand-written rules make of its text and codes, within its prompt's limits. -> shapes."""
    ids, limits, vocabulary = [language.bos], prompt.limits, grammar.vocabulary
    shapes: list[tuple[int, ...]] = []
    for segment in sample.segments:
        if isinstance(segment, str):
            words = Spelled().encode(segment)
            assert vocabulary.contains("text", words).all()
            ids += words
            continue
        codes = np.asarray(segment.codes)
        assert 0 <= codes.min() <= codes.max() < vocabulary.range(modality).size
        block = language.write(codes)
        assert np.array_equal(grammar.blocks[modality].read(block), codes)
        ids += block
        shapes.append(codes.shape)
    assert sample.ids.tolist() == [*ids, language.eos]
    given = prompt.segments[-1]
    if isinstance(given, Block):
        [codes] = sample.blocks(modality)
        assert codes.shape == given.size
        assert np.array_equal(codes.ravel()[: np.size(given.codes)], given.codes)
        return shapes
    assert limits["min_blocks"] <= len(shapes) <= limits.get("max_blocks", len(shapes))
    assert all(np.prod(shape) <= limits.get("max_codes", np.inf) for shape in shapes)
    if "sizes" in limits:
        assert shapes == [limits["sizes"][modality]]
    new = sample.ids[sample.given :]
    assert len(new) <= limits.get("max_tokens", np.inf)
    if "min_text" in limits:
        assert vocabulary.contains("text", new[: limits["min_text"]]).all()
    else:
        assert "".join(segment for segment in sample.segments if isinstance(segment, str)).split() == (
            str(given).split()
        )
    return shapes


@settings(max_examples=40)
@given(st.data())
def test_something_may_follow_until_the_end(data: st.DataObject) -> None:
    """In every state that allowed ids lead to, however tight the limits are that were not refused."""
    name = data.draw(st.sampled_from(list(LANGUAGES)))
    grammar, language = grammar_of(name), LANGUAGES[name]
    [modality] = grammar.blocks
    text, minimum = data.draw(st.booleans()), data.draw(st.integers(0, 2))
    maximum = data.draw(st.one_of(st.none(), st.integers(minimum, 3)))
    limits: dict[str, Any] = {
        "sizes": data.draw(st.sampled_from([None, {modality: language.size}])),
        "text": text,
        "min_blocks": minimum,
        "max_blocks": maximum,
        "end_with_block": bool(maximum) and data.draw(st.booleans()),
        "max_codes": language.codes + data.draw(st.integers(0, 3)),
        "min_text": data.draw(st.integers(0, 3)) if text else 0,
    }
    block = grammar.blocks[modality].write(np.zeros(language.size, dtype=np.int64))
    words, bos = word_ids(name), language.bos
    prompts = ([], [bos], [bos, *words], [bos, *block], [bos, *words, *block[:-2]])
    prompt = data.draw(st.sampled_from(prompts))
    budget = tightest(grammar, limits, prompt) + data.draw(st.integers(0, 3))
    automaton = grammar.automaton(**limits, max_tokens=budget)
    state, written = automaton.after(prompt), 0
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    while not automaton.done(state):
        allowed = automaton.allowed(state)
        listed, ranges = list(allowed.ids), [grammar.vocabulary.ids(name) for name in allowed.modalities]
        assert listed or ranges
        pool = ranges[rng.integers(len(ranges))] if not listed or (ranges and rng.random() < 0.5) else listed
        state = automaton.step(state, int(pool[rng.integers(len(pool))]))
        written += 1
    assert written <= budget
    assert not automaton.allowed(state).all_ids(grammar.vocabulary).size


def tightest(grammar: DocumentGrammar, limits: dict[str, Any], prompt: list[int]) -> int:
    """The fewest `max_tokens` that are not refused: found by halving, for more than enough is never refused."""

    def refused(budget: int) -> bool:
        try:
            grammar.automaton(**limits, max_tokens=budget).after(prompt)
        except ValueError:
            return True
        return False

    low, high = 0, 8_000
    assert not refused(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return high
