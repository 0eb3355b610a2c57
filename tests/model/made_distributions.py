"""Pictures so small that each can be written down: how likely each is exactly, and how often it is drawn.

The pictures are 2 x 2 with their first code given, so three codes are drawn, each of four: 64 outcomes. Rows end in a
mark, so that something forced lies between guesses.
"""

import gc
import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import torch
from made_samplers import tiny_model, words
from numpy.typing import NDArray
from torch import Tensor

from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Block, Prompt, Sampler, Sampling
from omnigram.model.generation.prompts import Piece, Writer
from omnigram.tokenizers.grammar import BlockGrammar
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.vocabulary import Vocabulary

CODES, GIVEN, WORDS, NEGATIVE = 4, 1, "plum", "green pear"
VOCABULARY = Vocabulary.appended(words().size, codebooks={"image": CODES})
GRAMMAR = document_grammar(VOCABULARY, words().digit_ids, {"image": BlockGrammar(frame_end=None)}, max_side=2)
OUTCOMES = [np.array([GIVEN, *codes]).reshape(2, 2) for codes in product(range(CODES), repeat=3)]
PLAIN = Sampling()


class Unread(Writer):
    """Leaves samples unread: their ids are enough, and reading them back is a quarter of the time."""

    def read(self, ids: NDArray[np.int64]) -> tuple[Piece, ...]:
        return ()


def small_model(seed: int) -> OmnigramForCausalLM:
    """One layer, whose choices depend strongly on what came before."""
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = tiny_model(VOCABULARY.size, seed, **shape, num_attention_heads=1, num_key_value_heads=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    return model


def small_sampler(seed: int, setting: Sampling = PLAIN) -> Sampler:
    """seed: of the weights."""
    sampler = Sampler(small_model(seed), GRAMMAR, words(), {"image": setting})
    sampler.writer = Unread(GRAMMAR, words())
    return sampler


def counted(sampler: Sampler, seeds: Iterable[int], batch_size: int = 5000) -> NDArray[np.int64]:
    """How often each of `OUTCOMES` is drawn, one for each seed."""
    segments, limits = (WORDS, Block([GIVEN], size=(2, 2))), {"text": False, "max_blocks": 0}
    negative = NEGATIVE if sampler.sampling["image"].is_guided else ""
    prompts = [Prompt(segments, limits, seed, negative) for seed in seeds]
    counts = np.zeros(len(OUTCOMES), dtype=np.int64)
    collecting = gc.isenabled()
    gc.disable()  # which would look through all rows again and again
    try:
        for start in range(0, len(prompts), batch_size):
            samples = sampler.sample(prompts[start : start + batch_size], batch_size=batch_size)
            ids = np.stack([sample.ids for sample in samples])
            codes = ids[:, VOCABULARY.contains("image", ids[0])] - VOCABULARY.range("image").start
            assert (codes[:, 0] == GIVEN).all()
            counts += np.bincount(codes[:, 1:] @ [CODES**2, CODES, 1], minlength=len(OUTCOMES))
    finally:
        if collecting:
            gc.enable()
    return counts


def exact(sampler: Sampler) -> NDArray[np.float64]:
    """Probability of each of `OUTCOMES`, from whole forward passes without a cache, id by id."""
    setting = sampler.sampling["image"]
    logits = _logits(sampler, [WORDS])
    if setting.is_guided:
        without = _logits(sampler, [NEGATIVE])
        logits = without + setting.guidance * (logits - without)
    probabilities = []
    for codes, rows in zip(OUTCOMES, logits.tolist(), strict=True):
        choices = zip(codes.ravel()[1:].tolist(), rows, strict=True)
        probabilities.append(math.prod(shares(row, setting)[code] for code, row in choices))
    assert abs(sum(probabilities) - 1) < 1e-9
    return np.array(probabilities)


@torch.no_grad()
def _logits(sampler: Sampler, before: list[str]) -> Tensor:
    """[outcome, choice, code] behind some words."""
    documents = torch.from_numpy(np.stack([sampler.writer.write([*before, Block(codes)]) for codes in OUTCOMES]))
    [slots] = np.nonzero(VOCABULARY.contains("image", documents[0].numpy()))
    start = VOCABULARY.range("image").start
    return sampler.model(documents).logits[:, slots[1:] - 1, start : start + CODES]


def shares(logits: list[float], setting: Sampling) -> list[float]:
    """Probability of each code by the definitions of temperature, top-p and min-p."""
    weights = [math.exp(logit / setting.temperature) for logit in logits]
    falling = sorted(range(len(weights)), key=lambda code: -weights[code])
    kept: list[int] = []
    for code in falling:  # the fewest likeliest codes that together have top_p, each at least min_p of the likeliest
        enough = sum(weights[other] for other in kept) >= setting.top_p * sum(weights)
        if kept and (enough or weights[code] < setting.min_p * weights[falling[0]]):
            break
        kept.append(code)
    total = sum(weights[code] for code in kept)
    return [weights[code] / total if code in kept else 0.0 for code in range(len(weights))]


def p_value(*tests: tuple[NDArray[np.int64], NDArray[np.float64]]) -> float:
    """Of Pearson's chi-square test of counts against probabilities, or of several such tests together.

    What is expected less than five times counts as one. 0 where what cannot be has come.
    """
    statistic, degrees = 0.0, 0
    for counts, probabilities in tests:
        expected = probabilities * counts.sum()
        if counts[expected == 0].any():
            return 0.0
        rare = expected < 5
        observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
        observed, expected = observed[expected > 0], expected[expected > 0]
        statistic += float(((observed - expected) ** 2 / expected).sum())
        degrees += len(expected) - 1
    half = torch.tensor([degrees, statistic], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(half[0], half[1]))
