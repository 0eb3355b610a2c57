"""One decoder block: attention and a feed-forward, each added to the residual stream.

Swin norm order: https://arxiv.org/abs/2111.09883, used by Chameleon 34B.
Dimensions: B batch, T tokens, D width of the model.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .configuration import OmnigramConfig
from .experts import MixtureOfExperts
from .feed_forward import FeedForward
from .modality_layers import build_per_modality
from .norms import RMSNorm


class DecoderBlock(GradientCheckpointingLayer):
    """h = x + attention(norm(x)); out = h + feed_forward(norm(h)), or with the norm outside ("swin")."""

    def __init__(self, config: OmnigramConfig, layer_idx: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.norm_first = config.norm_order == "pre"
        self.sparse = config.num_experts > 0
        self.modality_norms = config.modality_norms
        self.self_attn = Attention(config, layer_idx)
        self.mlp = MixtureOfExperts(config) if self.sparse else FeedForward(config)
        self.input_layernorm = build_per_modality(norm, config, separate=config.modality_norms)
        self.post_attention_layernorm = build_per_modality(norm, config, separate=config.modality_norms)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        modality_ids: Int[Tensor, "b t"] | None = None,
        counted: Bool[Tensor, "b t"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "b t d"] | tuple[Float[Tensor, "b t d"], Float[Tensor, ""]]:
        """Returns the output; with experts also the load-balancing loss of the tokens `counted`."""
        of_modality = (modality_ids,) if self.modality_norms else ()

        def attention(x: Tensor) -> Tensor:
            return self.self_attn(x, rotary, attention_mask, past_key_values, modality_ids=modality_ids, **kwargs)[0]

        def feed_forward(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.mlp(x, counted) if self.sparse else (self.mlp(x), None)

        if self.norm_first:
            h = x + self.dropout(attention(self.input_layernorm(x, *of_modality)))
            added, balance = feed_forward(self.post_attention_layernorm(h, *of_modality))
            out = h + self.dropout(added)
        else:
            h = x + self.dropout(self.input_layernorm(attention(x), *of_modality))
            added, balance = feed_forward(h)
            out = h + self.dropout(self.post_attention_layernorm(added, *of_modality))
        return out if balance is None else (out, balance)
