"""Causal self-attention with grouped queries and optional query-key norm, through transformers' attention interface.

Which kernel runs is a word of the configuration (`attn_implementation`: sdpa, eager, flex_attention,
flash_attention_2, ...); transformers resolves it, so nothing of ours imports a kernel. What a kernel must be told
about documents that share a row is worked out once a forward pass, in `document_mask`.
Dimensions: B batch, T tokens of a row, S keys, H query heads, G key-value heads, K width of a head, D width of the
model.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from .configuration import OmnigramConfig
from .document_attention import attend_documents
from .feed_forward import ResidualProjection
from .modality_layers import build_per_modality
from .norms import build_head_norm
from .rotary import rotate


class Attention(nn.Module):
    """Queries, keys and values from x, the attention of `config._attn_implementation`, and the output projection."""

    def __init__(self, config: OmnigramConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)

        def key_projection() -> nn.Linear:
            return nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)

        self.k_proj = build_per_modality(key_projection, config, separate=config.modality_key_value)
        self.v_proj = build_per_modality(key_projection, config, separate=config.modality_key_value)
        self.o_proj = ResidualProjection(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = build_head_norm(config, config.num_attention_heads)
        self.k_norm = build_head_norm(config, config.num_key_value_heads)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        documents: Int[Tensor, "b t"] | None = None,
        modality_ids: Int[Tensor, "b t"] | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b h t s"] | None]:
        """Returns the output and, for the eager implementation only, the attention probabilities."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        of_modality = (modality_ids,) if self.config.modality_key_value else ()
        value = self.v_proj(x, *of_modality).view(heads).transpose(1, 2)
        # under autocast the norms and rotations widen: back to the projections' type
        query = rotate(self.q_norm(self.q_proj(x).view(heads)), *rotary).to(value.dtype).transpose(1, 2)
        key = rotate(self.k_norm(self.k_proj(x, *of_modality).view(heads)), *rotary).to(value.dtype).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if documents is not None:
            out = attend_documents(query, key, value, documents, self.scaling)
            return self.o_proj(out.flatten(2)), None
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation,  # pyright: ignore[reportArgumentType] (None means eager)
            eager_attention,
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        out, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.reshape(*x.shape[:-1], -1)), probabilities


def eager_attention(
    module: nn.Module,
    query: Float[Tensor, "b h t k"],
    key: Float[Tensor, "b g s k"],
    value: Float[Tensor, "b g s k"],
    attention_mask: Float[Tensor, "b 1 t s"] | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b t h k"], Float[Tensor, "b h t s"]]:
    """The definition, in matrix products: the reference for the kernels, and the only one that shows probabilities."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def document_mask(
    config: OmnigramConfig, document_ids: Int[Tensor, "b t"], dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    """What the attention implementation needs to keep the documents of a row apart: (mask, further arguments).

    Tokens of one id attend causally to each other and to nothing else. Pads (-1) form a document of their own, so no
    row of the mask is empty. flash_attention receives no mask but the bounds of the documents; flex_attention a block
    mask; sdpa a boolean and eager an additive [B, 1, T, T] mask. On a CPU sdpa goes document by document instead.
    """
    if is_flash_attention_requested(config):
        return None, document_bounds(document_ids)
    on_cpu = document_ids.device.type == "cpu"
    if on_cpu and config._attn_implementation == "sdpa" and not config.attention_dropout:
        return None, {"documents": document_ids}
    rows, length = document_ids.shape
    build = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    mask = build(
        batch_size=rows,
        q_length=length,
        kv_length=length,
        mask_function=and_masks(causal_mask_function, packed_sequence_mask_function(document_ids)),
        allow_is_causal_skip=False,
        dtype=dtype,
        device=document_ids.device,
        config=config,
    )
    return mask, {}


def document_starts(document_ids: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """True at the first token of every document of every row (and of a row's pads)."""
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    return F.pad(changes, (1, 0), value=True)


def document_positions(document_ids: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Positions that restart at 0 with every document."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    start = torch.where(document_starts(document_ids), index, 0).cummax(dim=1).values
    return index - start


def document_bounds(document_ids: Int[Tensor, "b t"]) -> dict[str, Any]:
    """flash-attention's variable-length arguments for the rows laid end to end.

    The greatest length given is that of a row: it only sizes the kernel's grid, and finding the exact one would make
    the host wait for the device.
    """
    starts = document_starts(document_ids).flatten().nonzero().flatten()
    bounds = F.pad(starts, (0, 1), value=document_ids.numel()).to(torch.int32)
    length = document_ids.shape[1]
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": length, "max_length_k": length}
