"""One decoder block: attention and a SwiGLU feed-forward, each added to the residual stream.

SwiGLU: https://arxiv.org/abs/2002.05202. Swin norm order: https://arxiv.org/abs/2111.09883, used by Chameleon 34B.
Dimensions: B batch, T tokens, D width of the model, F width of the feed-forward.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, ResidualProjection
from .configuration import OmnigramConfig
from .norms import RMSNorm


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: OmnigramConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderBlock(GradientCheckpointingLayer):
    """h = x + attention(norm(x)); out = h + feed_forward(norm(h)), or with the norm outside ("swin")."""

    def __init__(self, config: OmnigramConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm_first = config.norm_order == "pre"
        self.self_attn = Attention(config, layer_idx)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "b t d"]:
        def attention(x: Tensor) -> Tensor:
            return self.self_attn(x, rotary, attention_mask, past_key_values, **kwargs)[0]

        if self.norm_first:
            h = x + self.dropout(attention(self.input_layernorm(x)))
            return h + self.dropout(self.mlp(self.post_attention_layernorm(h)))
        h = x + self.dropout(self.input_layernorm(attention(x)))
        return h + self.dropout(self.post_attention_layernorm(self.mlp(h)))
