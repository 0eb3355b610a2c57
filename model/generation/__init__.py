"""Sampling: prompts of any modalities to finished documents, within the grammar; and what documents cost in nats."""

from .choice import Sampling
from .engine import Statistics
from .events import BlockRows, Event, Finished, Tokens, Watch
from .prompts import Block, Prompt, Sample
from .sampler import Sampler
from .scoring import Score, score, score_ids
from .speculation import Draft, Jacobi
from .tasks import caption, complete, draw, joint, page

__all__ = [
    "Block",
    "BlockRows",
    "Draft",
    "Event",
    "Finished",
    "Jacobi",
    "Prompt",
    "Sample",
    "Sampler",
    "Sampling",
    "Score",
    "Statistics",
    "Tokens",
    "Watch",
    "caption",
    "complete",
    "draw",
    "joint",
    "page",
    "score",
    "score_ids",
]
