"""The SwiGLU feed-forward of a block: down(silu(gate(x)) * up(x)).

SwiGLU: https://arxiv.org/abs/2002.05202. Dimensions: D width of the model, F width of the feed-forward.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .configuration import OmnigramConfig


class ResidualProjection(nn.Linear):
    """A linear map whose output is added to the residual stream; its own class so that its initialisation is."""


class FeedForward(nn.Module):
    """Gate and up projections from D to F, their gated product, and the down projection to D."""

    def __init__(self, config: OmnigramConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
