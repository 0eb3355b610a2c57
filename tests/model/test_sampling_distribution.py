"""Samples follow the exact distribution, drawn one code at a time or ahead; wrong ways to accept guesses do not."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from made_distributions import counted, exact, p_value, small_model, small_sampler
from numpy.typing import NDArray

from omnigram.model.generation import Draft, Jacobi, Sampler, Sampling
from omnigram.model.generation.choice import Noise
from omnigram.model.generation.engine import Engine
from omnigram.model.generation.predictor import Predictor
from omnigram.model.generation.row import Choice, Row

SAMPLES = 34_000  # for each of three seeds: more than 100,000 in all
GUIDED = Sampling(temperature=1.2, top_p=0.9, min_p=0.1, guidance=1.8)
WAYS = {
    "plain": lambda: None,
    "jacobi": lambda: Jacobi(window=2),
    "draft": lambda: Draft(small_model(100), length=2),
}


def sampler_of(way: str, seed: int, setting: Sampling) -> Sampler:
    sampler = small_sampler(seed, setting)
    sampler.speculation = WAYS[way]()
    return sampler


def seeds_of(number: int, count: int = SAMPLES) -> range:
    """A range of rows' seeds that no other number has."""
    return range(number * SAMPLES, number * SAMPLES + count)


@pytest.mark.parametrize("way", WAYS)
def test_samples_follow_the_exact_distribution(way: str) -> None:
    """Three times with other weights and other rows' seeds, and all together; jacobi with guidance and filters."""
    tests = []
    for seed in range(3):
        sampler = sampler_of(way, seed, GUIDED if way == "jacobi" else Sampling())
        counts, probabilities = counted(sampler, seeds_of(3 * list(WAYS).index(way) + seed)), exact(sampler)
        assert counts.sum() == SAMPLES
        assert (sampler.statistics.confirmed > 0) == (way != "plain")
        assert p_value((counts, probabilities)) > 0.01
        tests.append((counts, probabilities))
    assert p_value(*tests) > 0.01
    assert any((probabilities == 0).any() for _, probabilities in tests) == (way == "jacobi")  # left out by filters


@pytest.mark.parametrize("way", ["jacobi", "draft"])
def test_guesses_that_are_all_accepted_do_not(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Row.take

    def accept(self: Row, ids: Sequence[int]) -> tuple[int, int]:
        return take(self, [*self._guessed, *ids[len(self._guessed) :]])

    sampler = sampler_of(way, 0, Sampling())
    probabilities = exact(sampler)
    assert p_value((counted(sampler, seeds_of(9, 5_000)), probabilities)) > 0.01
    monkeypatch.setattr(Row, "take", accept)
    assert p_value((counted(sampler, seeds_of(9, 5_000)), probabilities)) < 1e-6


Rule = Callable[[NDArray[np.float64], NDArray[np.float64], int, np.random.Generator], int]


def leviathan(p: NDArray[np.float64], q: NDArray[np.float64], guess: int, rng: np.random.Generator) -> int:
    """The rule of https://arxiv.org/abs/2211.17192, with noise of its own."""
    if rng.random() < p[guess] / q[guess]:
        return guess
    rest = np.maximum(p - q, 0)
    return drawn(rest / rest.sum(), rng)


def without_the_rest(p: NDArray[np.float64], q: NDArray[np.float64], guess: int, rng: np.random.Generator) -> int:
    """What is rejected is drawn anew from p, not from what q lacks of it."""
    return guess if rng.random() < p[guess] / q[guess] else drawn(p, rng)


def without_the_chance(p: NDArray[np.float64], q: NDArray[np.float64], guess: int, rng: np.random.Generator) -> int:
    """Guesses likelier than in the draft are accepted, and no other."""
    return guess if p[guess] >= q[guess] else drawn(p, rng)


def drawn(p: NDArray[np.float64], rng: np.random.Generator) -> int:
    return min(int(np.searchsorted(np.cumsum(p), rng.random())), len(p) - 1)


def deciding(rule: Rule) -> Callable[[Engine, Predictor, Sequence[tuple[Row, Choice]]], list[int]]:
    """An `Engine._answer` that draws guesses from the draft's q, and decides on each by a rule."""
    rng, drafts = np.random.default_rng(0), dict[tuple[Row, int], tuple[NDArray[np.float64], int]]()

    def answer(self: Engine, predictor: Predictor, asked: Sequence[tuple[Row, Choice]]) -> list[int]:
        [allowed] = {choice.allowed for _, choice in asked}
        assert isinstance(self._speculation, Draft)
        drafting = predictor._lanes.model is self._speculation.model
        answers = []
        for (row, choice), p in zip(asked, predictor.logits(asked, allowed).softmax(1).numpy(), strict=True):
            drafted = None if drafting else drafts.pop((row, choice.number), None)
            answers.append(drawn(p, rng) if drafted is None else rule(p, *drafted, rng))
            if drafting:
                drafts[row, choice.number] = p, answers[-1]
        return predictor.head.ids(allowed)[answers].tolist()

    return answer


@pytest.mark.parametrize("rule", [leviathan, without_the_rest, without_the_chance])
def test_the_published_rule_for_guesses_passes_and_its_misreadings_do_not(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = sampler_of("draft", 0, Sampling())
    monkeypatch.setattr(Engine, "_answer", deciding(rule))
    p = p_value((counted(sampler, seeds_of(10, 5_000)), exact(sampler)))
    assert sampler.statistics.confirmed > 0
    assert p > 0.01 if rule is leviathan else p < 1e-6


def gumbels(seeds: Sequence[int], choices: Sequence[int], count: int) -> NDArray[np.float64]:
    """[seed, choice, column]."""
    noise = Noise()([(seed, choice) for seed in seeds for choice in choices], count)
    return noise.numpy().reshape(len(seeds), len(choices), count)


@pytest.mark.parametrize(
    ("seeds", "choices", "count"),
    [(range(20_000), [0], 5), ([7], range(20_000), 5), ([2**64 - 1], [2**40], 100_000), (range(300), range(330), 1)],
)
def test_noise_is_standard_gumbel(seeds: Sequence[int], choices: Sequence[int], count: int) -> None:
    """Kolmogorov and Smirnov: p > .01. And the first two moments, within four deviations."""
    noise = np.sort(gumbels(seeds, choices, count).ravel())
    size = len(noise)
    cumulative = np.exp(-np.exp(-noise))
    steps = np.arange(size + 1) / size
    distance = float(max((steps[1:] - cumulative).max(), (cumulative - steps[:-1]).max()))
    assert distance * math.sqrt(size) < 1.628
    variance = math.pi**2 / 6
    assert abs(noise.mean() - np.euler_gamma) < 4 * math.sqrt(variance / size)
    assert abs(noise.var() - variance) < 4 * variance * math.sqrt((5.4 - 1) / size)  # its kurtosis is 5.4


def test_noise_of_neighbours_is_independent() -> None:
    """Of seeds, choices and columns one or more apart: correlations, and which of three columns is the largest."""
    noise = gumbels(range(300), range(300), 3)
    largest = noise.argmax(axis=2)
    for seed, choice in [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (7, 5)]:
        here, there = noise[seed:, choice:], noise[: 300 - seed, : 300 - choice]
        for shift in range(3):
            assert abs(correlation(here, np.roll(there, shift, axis=2))) < 4
        pairs = 3 * largest[seed:, choice:] + largest[: 300 - seed, : 300 - choice]
        assert p_value((np.bincount(pairs.ravel(), minlength=9), np.full(9, 1 / 9))) > 0.001
    assert abs(correlation(noise[:, :, :-1], noise[:, :, 1:])) < 4
    assert len(np.unique(noise)) == noise.size


def correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """In standard deviations of that of independent numbers."""
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1]) * math.sqrt(left.size)


def test_noise_is_a_function_of_seed_and_choice_alone() -> None:
    asked = [(seed, choice) for seed in (0, 1, 2**32, 2**63, 2**64 - 1) for choice in (0, 1, 2**32)]
    noise = Noise()
    together = noise(asked, 6)
    assert torch.equal(noise(asked[::-1], 6).flip(0), together)
    assert all(torch.equal(Noise()([one], 6)[0], row) for one, row in zip(asked, together, strict=True))
    assert len(together.unique()) == together.numel()
