"""How large a decoder is: its parameters by group, and the arithmetic of a training step."""

from dataclasses import dataclass

import torch
from torch import nn

from .attention import Attention
from .configuration import OmnigramConfig
from .decoder import OmnigramForCausalLM
from .experts import MixtureOfExperts

_GROUPS = {"embed_tokens": "embedding", "lm_head": "head", "self_attn": "attention", "mlp": "feed_forward"}


def parameters_by_group(model: nn.Module) -> dict[str, int]:
    """Parameters of embedding, attention, feed_forward, norms (query-key norms too) and head; a tied head counts 0.

    All of them: every expert with the routers as feed_forward, every modality's projections as attention.
    """
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


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a forward and backward pass, by what they are for; made by `step_flops`.

    token: for each token, in the blocks: six for each weight of a matrix product that it passes through.
    pair: for each pair of a token and one that it sees.
    logit: for each logit. A softmax over a part of the vocabulary needs those of the part alone.
    """

    token: float
    pair: float
    logit: float

    def needed(self, tokens: float, pairs: float, logits: float) -> float:
        """Of a batch, without what it could do without: no pads, no pairs across documents, no logits nobody asks."""
        return self.token * tokens + self.pair * pairs + self.logit * logits


def step_flops(config: OmnigramConfig) -> StepFlops:
    """Six for each weight of a matrix product (the embedding look-up is none; a tied head is one), and twelve for each
    feature of a query and each token seen. Only the weights that a token passes through count: those of its experts
    and of its modality's keys and values.
    """
    assert config.head_dim is not None
    model = build_on_meta(config)
    counts = parameters_by_group(model)
    matrices = counts["attention"] + counts["feed_forward"]
    for module in model.modules():  # what a token passes by
        if isinstance(module, MixtureOfExperts):
            idle = 1 - module.num_chosen / len(module.experts)
            matrices -= idle * sum(p.numel() for p in module.experts.parameters())
        elif isinstance(module, Attention) and config.modality_key_value:
            idle = 1 - 1 / config.num_modalities
            matrices -= idle * sum(p.numel() for m in (module.k_proj, module.v_proj) for p in m.parameters())
    return StepFlops(
        token=6.0 * matrices,
        pair=12.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim,
        logit=6.0 * config.hidden_size,
    )


def flops_per_token(config: OmnigramConfig, context: float) -> float:
    """Of one token that sees `context` tokens on average and whose softmax is over the whole vocabulary.

    For packed documents of length L the context is (L + 1) / 2.
    """
    return step_flops(config).needed(1, context, config.vocab_size)
