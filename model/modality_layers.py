"""Layers of which each modality has its own: separate norms, keys and values, shared queries and feed-forward.

Modality-adaptive module of mPLUG-Owl2: https://arxiv.org/abs/2311.04257. The token's modality is that of its id.
Dimensions: B batch, T tokens of a row, D width of the model, F width of a layer's output.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .configuration import OmnigramConfig


class ModalityLayers(nn.ModuleList):
    """One layer for each modality; a token takes the output of its own's.

    Every layer runs on every token and the outputs are chosen among: the shapes depend on nothing but the input's, so
    that the graph compiles whole, and no layer's gradient is ever absent, only zero. The norms and the key and value
    projections, which this is for, are a small part of a block.
    """

    def forward(self, x: Float[Tensor, "b t d"], modality_ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t f"]:
        first, *others = self
        out = first(x)
        for index, layer in enumerate(others, start=1):
            out = torch.where((modality_ids == index)[..., None], layer(x), out)
        return out


def build_per_modality(build: Callable[[], nn.Module], config: OmnigramConfig, separate: bool) -> nn.Module:
    """One layer for all tokens or, with `separate`, `ModalityLayers` of as many as there are modalities."""
    return ModalityLayers(build() for _ in range(config.num_modalities)) if separate else build()


def modality_of(ids: Int[Tensor, "b t"], config: OmnigramConfig) -> Int[Tensor, "b t"]:
    """1 + the index of the range in `config.modality_ranges` that holds the id, 0 for ids in none."""
    modality = torch.zeros_like(ids)
    for index, (first, size) in enumerate(config.modality_ranges or (), start=1):
        modality = torch.where((ids >= first) & (ids < first + size), index, modality)
    return modality
