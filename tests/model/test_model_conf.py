"""Every shipped model configuration is composed, instantiated and counted; faulty ones are refused in one line."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import ChameleonConfig, Emu3TextConfig

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.size import build_on_meta, flops_per_token, parameters_by_group

FOLDER = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "export")  # whose shape is the export's
VOCABULARY = {"base": 16384, "large": 16384, "1b": 16384, "3b": 16384, "7b": 32000}  # 3,072 for the smaller ones

# embedding, attention, feed_forward, norms, head (0: tied)
COUNTS = {
    "tiny": (3072 * 32, 2 * 4 * 32**2, 2 * 3 * 32 * 64, 2 * (2 * 32 + 2 * 16) + 32, 0),
    "nano": (3072 * 128, 6 * 4 * 128**2, 6 * 3 * 128 * 352, 6 * (2 * 128 + 2 * 32) + 128, 0),
    "mini": (491_520, 6 * 4 * 160**2, 6 * 3 * 160 * 448, 6 * (2 * 160 + 2 * 32) + 160, 0),
    "micro": (786_432, 1_572_864, 3_244_032, 4_096, 0),
    "small": (1_179_648, 5_308_416, 10_616_832, 8_448, 0),
    "base": (12_582_912, 28_311_552, 56_623_104, 20_736, 12_582_912),
    "large": (16_777_216, 100_663_296, 207_618_048, 53_248, 16_777_216),
    "1b": (33_554_432, 207_618_048, 761_266_176, 94_976, 33_554_432),
    "3b": (50_331_648, 704_643_072, 2_113_929_216, 182_272, 50_331_648),
    "7b": (131_072_000, 2_147_483_648, 4_328_521_728, 274_432, 131_072_000),
    "chameleon_7b": (268_435_456, 2_147_483_648, 4_328_521_728, 790_528, 268_435_456),
    "chameleon_34b": (536_870_912, 7_247_757_312, 25_971_130_368, 1_679_360, 536_870_912),
    "emu3_8b": (756_211_712, 1_342_177_280, 5_637_144_576, 266_240, 756_211_712),
}


def load(name: str) -> OmnigramConfig:
    with initialize_config_module("omnigram.conf", version_base="1.3"):
        node = compose(overrides=[f"+model={name}"]).model
    if OmegaConf.is_missing(node, "vocab_size"):
        node.vocab_size = VOCABULARY.get(name, 3072)
    return instantiate(node)


def test_every_configuration_has_its_count() -> None:
    assert set(COUNTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_counts_by_group(name: str) -> None:
    config = load(name)
    model = build_on_meta(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    groups = ("embedding", "attention", "feed_forward", "norms", "head")
    assert parameters_by_group(model) == dict(zip(groups, COUNTS[name], strict=True))
    assert sum(COUNTS[name]) == model.num_parameters()
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_constructor_arguments_and_commented(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    keys = set(OmegaConf.create(text)) - {"_target_", "_convert_"}
    inherited = set(inspect.signature(OmnigramConfig.__mro__[1]).parameters)
    declared = set(OmnigramConfig.__annotations__) - (inherited - keys)
    assert keys == declared | {"attn_implementation"}
    assert set(OmnigramConfig.__annotations__) <= keys
    leaves = [line for line in text.splitlines() if re.match(r"\s*\w+: \S", line) and not line.startswith("_target_")]
    assert all(re.search(r" # \S", line) for line in leaves)


def test_published_shapes_are_those_of_transformers() -> None:
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps tie_word_embeddings attention_bias mlp_bias rope_parameters"
    )
    for name, theirs in (("chameleon_7b", ChameleonConfig()), ("emu3_8b", Emu3TextConfig())):
        ours = load(name)
        for key in names.split():
            assert getattr(ours, key) == getattr(theirs, key), (name, key)
    emu3 = load("emu3_8b")
    assert (emu3.pad_token_id, emu3.bos_token_id, emu3.eos_token_id) == (151643, 151849, 151850)


def test_initial_weights_follow_the_table() -> None:
    torch.manual_seed(0)
    config = OmnigramConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        qk_norm="layer",
        mlp_bias=True,
        num_experts=16,
        modality_ranges=[[100, 50]],
        modality_norms=True,
        modality_key_value=True,
    )
    model = OmnigramForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / (4 if residual else 1), rel=0.05), name
            assert abs(parameter.mean().item()) < 1e-3, name
    unscaled = OmnigramForCausalLM(OmnigramConfig(**{**config.to_diff_dict(), "scale_residual_init": False}))
    assert unscaled.model.layers[0].self_attn.o_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)  # pyright: ignore
    keys: Any = model.model.layers[0].self_attn.k_proj  # pyright: ignore[reportAttributeAccessIssue]
    assert not torch.equal(keys[0].weight, keys[1].weight)


def test_tied_head_is_the_embedding() -> None:
    config = OmnigramConfig(vocab_size=32, hidden_size=16, intermediate_size=16, tie_word_embeddings=True)
    model = OmnigramForCausalLM(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert parameters_by_group(model)["head"] == 0


def test_flops_count_the_head_once_and_the_context() -> None:
    config = load("micro")
    assert flops_per_token(config, 0) == 6 * (1_572_864 + 3_244_032 + 786_432)
    assert flops_per_token(config, 100) - flops_per_token(config, 0) == 12 * 6 * 256 * 100


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"hiden_size": 3}, "unknown model option hiden_size"),
    ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
    ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
    ({"qk_norm": "batch"}, "qk_norm 'batch' is unknown"),
    ({"qk_norm_per_head": True}, "qk_norm_per_head needs qk_norm"),
    ({"norm_order": "post"}, "norm_order 'post' is unknown"),
    ({"residual_dropout": 1.0}, "residual_dropout is 1.0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_experts": 1}, "num_experts is 1"),
    ({"num_experts": -2}, "num_experts is -2"),
    ({"num_experts": 4, "num_experts_per_token": 5}, "num_experts_per_token is 5"),
    ({"num_experts": 4, "num_experts_per_token": 0}, "num_experts_per_token is 0"),
    ({"balance_loss_weight": -0.1}, "balance_loss_weight is -0.1"),
    ({"balance_loss_weight": float("nan")}, "balance_loss_weight is nan"),
    ({"modality_norms": True}, "modality_norms needs modality_ranges"),
    ({"modality_key_value": True, "modality_ranges": []}, "modality_key_value needs modality_ranges"),
    ({"modality_ranges": [[5, 5]]}, "modality_ranges has no effect alone"),
    ({"modality_norms": True, "modality_ranges": [[5]]}, "modality_ranges has [5]"),
    ({"modality_norms": True, "modality_ranges": [[4090, 7]]}, "modality_ranges has [4090, 7]"),
    ({"modality_norms": True, "modality_ranges": [[-1, 7]]}, "modality_ranges has [-1, 7]"),
    ({"modality_norms": True, "modality_ranges": [[20, 0]]}, "modality_ranges has [20, 0]"),
    ({"modality_norms": True, "modality_ranges": [[30, 5], [20, 11]]}, "modality_ranges [20, 11] and [30, 5] overlap"),
    ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type 'dynamic'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type yarn needs rope_parameters.factor"),
]


@pytest.mark.parametrize(("options", "message"), FAULTS)
def test_faults_are_named_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        OmnigramConfig(**options)
    assert "\n" not in str(caught.value)
