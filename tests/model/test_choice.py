"""Choosing ids: against the logits processors of transformers, and against the distribution that is meant."""

from typing import cast

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omnigram.model.generation.choice import Noise, Sampling, choose, filtered, penalised

NO_IDS = torch.LongTensor()  # which these processors do not look at


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 5, 1.0, 0.0),
        (1.3, 0, 0.8, 0.0),
        (0.9, 7, 0.6, 0.0),
        (2.0, 99, 0.05, 0.0),
        (0.8, 0, 1.0, 0.2),
        (1.5, 9, 0.9, 0.05),
    ],
)
def test_filters_are_those_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 12, dtype=torch.float64) * 3
    scores = TemperatureLogitsWarper(temperature)(NO_IDS, logits.clone())
    if top_k:
        scores = TopKLogitsWarper(top_k)(NO_IDS, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(NO_IDS, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(NO_IDS, scores)
    ours = filtered(logits, Sampling(temperature, top_k, top_p, min_p))
    torch.testing.assert_close(ours, scores)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_penalty_of_repetition_is_that_of_transformers(penalty: float) -> None:
    torch.manual_seed(0)
    logits, held = torch.randn(6, 12, dtype=torch.float64) * 3, torch.randint(12, (6, 5))
    repeated = torch.zeros(6, 12, dtype=torch.bool).scatter_(1, held, value=True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(cast(torch.LongTensor, held), logits.clone())
    torch.testing.assert_close(penalised(logits, repeated, penalty), expected)


def test_temperature_zero_takes_the_likeliest_and_so_does_top_k_one() -> None:
    logits = torch.randn(8, 30)
    noise = Noise()([(seed, 0) for seed in range(8)], 30).float()
    assert torch.equal(choose(logits, Sampling(temperature=0)), logits.argmax(1))
    assert torch.equal(choose(logits, Sampling(top_k=1), noise), logits.argmax(1))


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert choose(torch.randn(1, 5), Sampling(top_k=2.0), Noise()([(0, 0)], 5).float()).shape == (1,)  # pyright: ignore[reportArgumentType]


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]], dtype=torch.float64).expand(20_000, -1)
    noise = Noise()([(3, 0)], 4 * 20_000).view(20_000, 4)
    counts = torch.bincount(choose(logits, Sampling(), noise), minlength=4)
    expected = logits[0].softmax(0) * 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-square, 3 degrees of freedom, p = .001


def test_a_rows_noise_is_its_own() -> None:
    together = Noise()([(4, 0), (5, 7), (6, 1)], 9)
    alone = Noise()([(5, 7)], 9)
    waiting = np.random.Generator(np.random.Philox(key=5, counter=[0, 0, 0, 7])).standard_exponential(9)
    assert torch.equal(together[1], alone[0])
    np.testing.assert_array_equal(alone[0], -np.log(waiting))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": 1e-38},
        {"top_k": -2},
        {"top_k": 2.5},
        {"top_k": float("inf")},
        {"top_k": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"guidance": float("nan")},
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float]) -> None:
    [name] = settings
    with pytest.raises(ValueError, match=name) as fault:
        Sampling(**settings)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(fault.value)
