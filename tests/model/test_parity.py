"""The decoder computes what Llama, Chameleon and Emu3 of transformers compute, from the same weights."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonModel,
    ChameleonVQVAEConfig,
    Emu3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from transformers.models.emu3.modeling_emu3 import Emu3TextModel

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM, OmnigramModel

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


def assert_same(ours: OmnigramModel | OmnigramForCausalLM, theirs: nn.Module, ignored: str = "vqmodel.") -> None:
    """Loads their weights under their names, strictly, and compares outputs and the gradient of the embeddings."""
    randomise(theirs)
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith(ignored)}
    ours.load_state_dict(state, strict=True)
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


def chameleon(**options: Any) -> ChameleonModel:
    """A Chameleon with the smallest image tokenizer that transformers builds."""
    vq = ChameleonVQVAEConfig(
        embed_dim=4, num_embeddings=8, latent_channels=4, base_channels=32, channel_multiplier=[1], num_res_blocks=1
    )
    return ChameleonModel(ChameleonConfig(**SHAPE, **options, vq_config=vq, vocabulary_map={"<image>": 4}))


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("order", ["pre", "swin"])
def test_chameleon(order: str, heads: int) -> None:
    theirs = chameleon(num_key_value_heads=heads, swin_norm=order == "swin")
    config = OmnigramConfig(
        **SHAPE, num_key_value_heads=heads, norm_order=order, qk_norm="layer", qk_norm_per_head=True
    )
    assert_same(OmnigramModel(config), theirs)


def test_emu3() -> None:
    options = {**SHAPE, "num_key_value_heads": 2}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    theirs = Emu3TextModel(Emu3TextConfig(**options, rope_parameters=dict(rope), pad_token_id=0))
    assert_same(OmnigramModel(OmnigramConfig(**options, rope_parameters=rope)), theirs)


def test_their_configurations_have_the_shapes_of_ours() -> None:
    """The defaults of transformers are the published 7B and 8B: our YAMLs are compared with them in test_model_conf."""
    configs: list[PreTrainedConfig] = [ChameleonConfig(), Emu3TextConfig()]
    assert [(c.hidden_size, c.num_hidden_layers, c.vocab_size) for c in configs] == [  # pyright: ignore
        (4096, 32, 65536),
        (4096, 32, 184622),
    ]
