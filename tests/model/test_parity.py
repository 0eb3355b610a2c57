"""The decoder computes what Llama and Qwen3 of transformers compute, from the same weights.

Chameleon and Emu3 are in test_parity_table, Mixtral in test_experts.
"""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}


def randomise(model: nn.Module) -> None:
    """Every weight random, so that a norm left out or a bias forgotten shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def assert_same(ours: OmnigramForCausalLM, theirs: nn.Module) -> None:
    """Loads their weights under their names, strictly, and compares outputs and the gradient of the embeddings."""
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ids = torch.randint(67, (2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # left padding
    results = []
    for model in (ours, theirs):
        model.eval()
        out = model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        visible = out[mask.bool()]
        (grad,) = torch.autograd.grad(visible.square().mean(), model.get_input_embeddings().weight)  # pyright: ignore
        results.append((visible.detach(), grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e3,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("rope", ROPE)
def test_llama(rope: str) -> None:
    options = {**SHAPE, "num_key_value_heads": 2, "rope_parameters": ROPE[rope]}
    biases: dict[str, Any] = {"attention_bias": rope == "default", "mlp_bias": rope == "default"}
    theirs = LlamaForCausalLM(LlamaConfig(**{**options, "rope_parameters": dict(ROPE[rope])}, **biases))
    assert_same(OmnigramForCausalLM(OmnigramConfig(**options, **biases)), theirs)


def test_qwen3() -> None:
    """RMS norms of queries and keys, one weight for all heads, whose width is not hidden_size / heads."""
    options = {**SHAPE, "num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    theirs = Qwen3ForCausalLM(Qwen3Config(**options, rope_parameters=dict(rope)))
    ours = OmnigramConfig(**options, rope_parameters=rope, qk_norm="rms")
    assert_same(OmnigramForCausalLM(ours), theirs)
