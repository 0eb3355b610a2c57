"""How large a decoder is: its parameters by group, and the arithmetic of a training step."""

import torch
from torch import nn

from .configuration import OmnigramConfig
from .decoder import OmnigramForCausalLM

_GROUPS = {"embed_tokens": "embedding", "lm_head": "head", "self_attn": "attention", "mlp": "feed_forward"}


def parameters_by_group(model: nn.Module) -> dict[str, int]:
    """Parameters of embedding, attention, feed_forward, norms (query-key norms too) and head; a tied head counts 0."""
    counts = dict.fromkeys((*_GROUPS.values(), "norms"), 0)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        norm = any("norm" in part for part in parts)
        group = "norms" if norm else next(_GROUPS[part] for part in parts if part in _GROUPS)
        counts[group] += parameter.numel()
    return counts


def build_on_meta(config: OmnigramConfig) -> OmnigramForCausalLM:
    """The model without memory for its weights, to count or to convert."""
    with torch.device("meta"):
        return OmnigramForCausalLM(config)


def flops_per_token(config: OmnigramConfig, context: float) -> float:
    """Floating-point operations of a forward and backward pass for one token that sees `context` tokens on average.

    Six for each weight of a matrix product (the embedding look-up is none; a tied head is one), and twelve for each
    feature of a query and each token seen. For packed documents of length L the context is (L + 1) / 2.
    """
    assert config.head_dim is not None
    counts = parameters_by_group(build_on_meta(config))
    matrices = counts["attention"] + counts["feed_forward"] + config.vocab_size * config.hidden_size
    pairs = config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
    return 6.0 * matrices + 12.0 * pairs
