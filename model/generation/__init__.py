"""Sampling: prompts of any modalities to finished documents, within the grammar; and what documents cost in nats."""

from .choice import Sampling
from .prompts import Block, Prompt, Sample
from .sampler import Sampler
from .scoring import Score, score, score_ids
from .tasks import caption, complete, draw, page

__all__ = [
    "Block",
    "Prompt",
    "Sample",
    "Sampler",
    "Sampling",
    "Score",
    "caption",
    "complete",
    "draw",
    "page",
    "score",
    "score_ids",
]
