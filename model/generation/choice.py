"""Choosing the next id: penalty, temperature, top-k, top-p, min-p; and the settings of one modality.

Top-p: https://arxiv.org/abs/1904.09751. Min-p: https://arxiv.org/abs/2407.01082. Repetition penalty:
https://arxiv.org/abs/1909.05858. The draw is Gumbel's trick (https://arxiv.org/abs/1411.4355): the largest of logit +
noise. The noise belongs to a choice of a row, by its number, not to the way that led there: how logits were computed,
in which batch or ahead of their turn, changes a draw only where two candidates tie to the last bit.

Dimensions: N rows, K ids allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .guidance import SPACES, Schedule, check_schedule

MIN_TEMPERATURE = 1e-6  # but for 0: so cold is the likeliest all the same, and logits over it stay finite in float32


@dataclass(frozen=True)
class Sampling:
    """How the ids of one modality are chosen.

    temperature: divides the logits, `MIN_TEMPERATURE` or more; 0 takes the likeliest id
    top_k: only so many of the likeliest ids; 0 means all
    top_p: only the fewest likeliest ids that together have this probability; 1 means all
    min_p: only ids at least this share as likely as the likeliest; 0 means all
    repetition_penalty: divides positive logits of ids that the document already holds, multiplies negative ones; 1 none
    guidance: how much what came before a block counts against nothing, see `guidance.guide`; 1 costs no further branch
    picture_guidance: how much pictures before a block count, where words and pictures are told apart: a third branch;
        None does not tell them apart
    guidance_space: in which branches are combined: "logits", or "log_softmax"
    guidance_schedule: ((place, share), ...), how much guidance is in force where in a block; none: all, everywhere
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    guidance: float = 1.0
    picture_guidance: float | None = None
    guidance_space: str = "logits"
    guidance_schedule: Schedule = ()

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < float("inf")):
            raise ValueError(
                f"temperature {self.temperature} must be 0 (the likeliest id), or a number from {MIN_TEMPERATURE} up"
            )
        if not 0 <= self.top_k < float("inf") or self.top_k != int(self.top_k):
            raise ValueError(f"top_k {self.top_k} must be a whole number, 0 for all ids")
        object.__setattr__(self, "top_k", int(self.top_k))  # 50.0, as JSON and YAML may have it
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} must be from 0 (all ids) to 1 (the likeliest alone)")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty {self.repetition_penalty} must be above 0, 1 for none")
        for name in ("guidance", "picture_guidance"):
            scale = getattr(self, name)
            if scale is not None and not abs(scale) < float("inf"):
                raise ValueError(f"{name} {scale} must be a finite number, 1 for none")
        if self.guidance_space not in SPACES:
            raise ValueError(f"guidance_space {self.guidance_space!r} must be one of {', '.join(SPACES)}")
        schedule = tuple((float(place), float(share)) for place, share in self.guidance_schedule)
        check_schedule(schedule)
        object.__setattr__(self, "guidance_schedule", schedule)
        for name in ("guidance_space", "guidance_schedule"):
            if not self.is_guided and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} has no effect without guidance: set guidance to another number than 1")

    @property
    def is_guided(self) -> bool:
        """Whether there is more than one branch."""
        return self.guidance != 1 or self.picture_guidance not in (None, 1)

    @property
    def branches(self) -> int:
        """Most lanes that a block needs at once: 1, 2 or 3."""
        return 1 if not self.is_guided else 2 if self.picture_guidance is None else 3

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def choose(
    logits: Float[Tensor, "n k"], sampling: Sampling, noise: Float[Tensor, "n k"] | None = None
) -> Int[Tensor, " n"]:
    """Column of each row, drawn from softmax(logits / temperature) within top-k, top-p and min-p.

    noise: independent standard Gumbel numbers; not needed at temperature 0.
    """
    if sampling.is_greedy:
        return logits.argmax(dim=1)
    assert noise is not None
    return (filtered(logits, sampling) + noise).argmax(dim=1)


def penalised(
    logits: Float[Tensor, "n k"], repeated: Bool[Tensor, "n k"], repetition_penalty: float
) -> Float[Tensor, "n k"]:
    """Logits of ids that are `repeated` made smaller."""
    lower = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    return torch.where(repeated, lower, logits)


def filtered(logits: Float[Tensor, "n k"], sampling: Sampling) -> Float[Tensor, "n k"]:
    """logits / temperature, with -inf for what top-k, then top-p, then min-p leave out."""
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
    if sampling.min_p > 0:
        least = logits.amax(dim=1, keepdim=True) + np.log(sampling.min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


class Noise:
    """Standard Gumbel numbers of choice number c of a row: a function of the row's seed and c, and of nothing else.

    Philox (https://doi.org/10.1145/2063384.2063405) is a counter run through a cipher with the seed as its key: each
    choice has a stretch of the counter of its own.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def __call__(self, choices: Sequence[tuple[int, int]], count: int) -> Float[Tensor, "n k"]:
        """A row of `count` numbers, float64, for each (seed, number of the choice)."""
        waiting = np.empty((len(choices), count))
        key, counter = self._state["state"]["key"], self._state["state"]["counter"]
        for row, (seed, number) in zip(waiting, choices, strict=True):
            key[0], counter[3] = seed, number
            self._bits.state = self._state  # which copies, so that each begins at the same place of its stretch
            self._generator.standard_exponential(out=row)
        return -torch.from_numpy(waiting).clamp_min_(np.finfo(np.float64).tiny).log_()
