"""Rotary position embedding. https://arxiv.org/abs/2104.09864

Each pair (i, i + K/2) of a head's features is turned by position * frequency_i, so that a query and a key meet at
their distance. Halves are paired as in transformers (Meta's checkpoints pair neighbours). Dimensions: B batch,
T tokens, H heads, K width of a head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration import OmnigramConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines of every position, computed once a forward pass and shared by all layers."""

    inverse_frequency: Tensor

    def __init__(self, config: OmnigramConfig) -> None:
        super().__init__()
        self.config = config
        frequency, self.scaling = rotary_frequencies(config)
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    @torch.no_grad()
    def forward(self, position_ids: Int[Tensor, "b t"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine, each [B, T, 1, K] in `dtype`; angles are always computed in float32."""
        with torch.autocast(position_ids.device.type, enabled=False):
            angle = position_ids[..., None].float() * self.inverse_frequency.float()
            angle = torch.cat((angle, angle), dim=-1).unsqueeze(-2)
            return (angle.cos() * self.scaling).to(dtype), (angle.sin() * self.scaling).to(dtype)


def rotary_frequencies(config: OmnigramConfig) -> tuple[Float[Tensor, " half"], float]:
    """Inverse frequencies of the pairs and the factor on cosine and sine (1 but for yarn)."""
    parameters = config.rope_parameters
    assert parameters is not None
    assert config.head_dim is not None
    if parameters["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    return 1.0 / parameters["rope_theta"] ** exponent, 1.0


def rotate(x: Float[Tensor, "b t h k"], cos: Float[Tensor, "b t 1 k"], sin: Float[Tensor, "b t 1 k"]) -> Tensor:
    """Turns the pairs of queries or keys by their positions' angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
