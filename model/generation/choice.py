"""Choosing the next id: temperature, top-k, top-p and classifier-free guidance, one setting a modality.

Top-p: https://arxiv.org/abs/1904.09751. Guidance: https://arxiv.org/abs/2207.12598. The draw is Gumbel's trick
(https://arxiv.org/abs/1411.4355): the largest of logit + noise. A last bit of difference in a logit, as another batch
size makes, then changes a draw only where two candidates tie to that bit; an inverse cumulative sum would carry such
differences through all the ids.

Dimensions: N rows, K ids allowed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the ids of one modality are chosen.

    temperature: divides the logits; 0 takes the likeliest id
    top_k: only so many of the likeliest ids; 0 means all
    top_p: only the fewest likeliest ids that together have this probability; 1 means all
    guidance: logits u + guidance * (c - u), with words (c) and without (u); 1 is c exactly and costs no second branch
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} must be 0 (the likeliest id) or more")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k {self.top_k} must be a whole number, 0 for all ids")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")
        if not abs(self.guidance) < float("inf"):
            raise ValueError(f"guidance {self.guidance} must be a finite number, 1 for none")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def choose(
    logits: Float[Tensor, "n k"], sampling: Sampling, noise: Float[Tensor, "n k"] | None = None
) -> Int[Tensor, " n"]:
    """Column of each row, drawn from softmax(logits / temperature) within top-k and top-p.

    noise: independent standard Gumbel numbers; not needed at temperature 0.
    """
    if sampling.is_greedy:
        return logits.argmax(dim=1)
    assert noise is not None
    return (filtered(logits, sampling) + noise).argmax(dim=1)


def filtered(logits: Float[Tensor, "n k"], sampling: Sampling) -> Float[Tensor, "n k"]:
    """logits / temperature, with -inf for what top-k, and then top-p, leaves out."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        falling, order = logits.sort(dim=1, descending=True)
        share = falling.softmax(dim=1)
        before = share.cumsum(dim=1) - share  # of likelier ids: the likeliest itself always stays
        falling = falling.masked_fill(before >= sampling.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(1, order, falling)
    return logits


def gumbel(generators: list[np.random.Generator], count: int) -> Float[Tensor, "n k"]:
    """A row of standard Gumbel numbers from each generator: no row's numbers depend on the others."""
    waiting = np.stack([generator.standard_exponential(count) for generator in generators])
    return -torch.from_numpy(waiting).clamp_min_(np.finfo(np.float64).tiny).log_()
