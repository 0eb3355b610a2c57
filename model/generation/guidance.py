"""Guidance: what a model expects with words, measured against what it expects without them, and amplified.

Two branches: u + s (c - u), of https://arxiv.org/abs/2207.12598, with c behind the whole document and u behind none of
it, or behind a negative prompt. Three, as Chameleon samples (https://arxiv.org/abs/2405.09818): u + p (i - u) +
s (c - i), with i behind the pictures of the document alone. Emu3 (https://arxiv.org/abs/2409.18869) applies the first
to log-probabilities in place of logits.

Dimensions: N rows, K ids allowed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SPACES = ("logits", "log_softmax")
Schedule = tuple[tuple[float, float], ...]


def check_schedule(schedule: Schedule) -> None:
    """ValueError unless places rise within 0 .. 1 and shares are finite."""
    places = [place for place, _ in schedule]
    if any(not 0 <= place <= 1 for place in places) or places != sorted(places):
        raise ValueError(f"guidance_schedule {list(schedule)}: places must rise from 0 to 1, as in [[0, 0], [0.5, 1]]")
    if any(not abs(share) < float("inf") for _, share in schedule):
        raise ValueError(f"guidance_schedule {list(schedule)}: shares must be finite numbers")


def share_at(schedule: Schedule, place: float) -> float:
    """How much of the guidance is in force at a place of a block, 0 its first code and 1 its last.

    Between the points of a schedule the share changes linearly, before the first and behind the last it stays; 1
    without a schedule.
    """
    if not schedule:
        return 1.0
    before = schedule[0]
    for after in schedule:
        if place <= after[0]:
            width = after[0] - before[0]
            return after[1] if not width else before[1] + (after[1] - before[1]) * (place - before[0]) / width
        before = after
    return before[1]


def scaled(scale: float, shares: Sequence[float]) -> Float[Tensor, "n 1"]:
    """The scale of each row: 1, which is no guidance, at share 0 and `scale` at share 1."""
    return torch.tensor([1 + share * (scale - 1) for share in shares], dtype=torch.float64)[:, None]


def guide(
    full: Float[Tensor, "n k"],
    without: Float[Tensor, "n k"],
    scale: Float[Tensor, "n 1"],
    pictures: Float[Tensor, "n k"] | None = None,
    picture_scale: Float[Tensor, "n 1"] | None = None,
    space: str = "logits",
) -> Float[Tensor, "n k"]:
    """Guided logits. Where every scale of a row is 1 they are `full`, to the last bit.

    full, without, pictures: logits behind the whole document, behind none of it, and behind its pictures alone
    space: in which the branches are combined: "logits", or "log_softmax" over the ids allowed
    """
    scale = scale.to(full)
    plain: Bool[Tensor, "n 1"] = scale == 1
    unguided = full
    if space == "log_softmax":
        full, without = full.log_softmax(1), without.log_softmax(1)
        pictures = None if pictures is None else pictures.log_softmax(1)
    if pictures is None:
        guided = without + scale * (full - without)
    else:
        assert picture_scale is not None
        picture_scale = picture_scale.to(full)
        plain = plain & (picture_scale == 1)
        guided = without + picture_scale * (pictures - without) + scale * (full - pictures)
    return torch.where(plain, unguided, guided)
