"""Chameleon as Meta published it: the folder of a model, and one of tokenizers.

https://github.com/facebookresearch/chameleon, chameleon/inference/loader.py and transformer.py.

    models/7b/params.json, consolidate_params.json     its shape
    models/7b/consolidated.pth, or consolidated.00.pth, consolidated.01.pth, …     a part for each device
    tokenizer/text_tokenizer.json, vqgan.ckpt, vqgan.yaml

Each device held a share of the heads and of the feed-forward, a part of each embedding's width, and a share of the
vocabulary's logits. Its query and key norms served its own heads. Rotary pairs are neighbours there, halves here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration import OmnigramConfig
from . import pickle_files
from .chameleon import HEAD_NORM_EPS, check_eps
from .downloads import read_json
from .rules import KEEP, EachHead, Join, Operation, Rule
from .stored import Checkpoint, keyed

PARAMS, CONSOLIDATE = "params.json", "consolidate_params.json"
TEXT_TOKENIZER = "text_tokenizer.json"
IGNORED = "rope.freqs"  # computed anyway
LONG_THETA, LONG, SHORT = 1e4, 16_384, 4_096  # longest document: published models with a larger base were made for more

# ours -> Meta's
_LAYER = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "self_attn.q_norm": "attention.q_normalization",
    "self_attn.k_norm": "attention.k_normalization",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_MODEL = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}


@dataclass(frozen=True)
class MetaModel:
    """What a folder of Meta's says: our configuration, its tensors by "file:name", and the rules between them."""

    config: OmnigramConfig
    checkpoint: Checkpoint
    parts: tuple[str, ...]

    def rules(self, names: list[str]) -> list[Rule]:
        """Of the tensors of our decoder."""
        return [
            Rule(name, tuple(f"{part}:{_their_name(name)}" for part in self.parts), _operation(name, self.config))
            for name in names
        ]


def read_meta(folder: Path) -> MetaModel:
    """The model in a folder. FileNotFoundError or ValueError for parts that are missing or contradict params.json."""
    read = read_json(folder / PARAMS)
    consolidated = read_json(folder / CONSOLIDATE) if (folder / CONSOLIDATE).is_file() else {}
    inner = read.get("model", {})
    if not isinstance(inner, dict):
        raise ValueError(f"{folder / PARAMS} is not that of a Chameleon: model is {inner!r}, no object of settings")
    params: dict[str, Any] = {**read, **inner, **consolidated}
    parts = _parts(folder)
    wanted = params.get("model_parallel_size", 1)
    said_by = folder / (CONSOLIDATE if "model_parallel_size" in consolidated else PARAMS)
    if not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f"{said_by}: model_parallel_size is {wanted!r}, and must be the number of parts: correct it")
    if len(parts) != wanted:
        raise ValueError(
            f"{folder} holds {len(parts)} parts of consolidated.*.pth, {said_by} says {wanted}: download all of them"
        )
    checkpoint: Checkpoint = {}
    for part in parts:
        checkpoint |= keyed(part, pickle_files.read_file(folder / part))
    checkpoint = {key: stored for key, stored in checkpoint.items() if stored.name != IGNORED}
    embedding = checkpoint.get(f"{parts[0]}:tok_embeddings.weight")
    if embedding is None or not embedding.shape:
        raise ValueError(f"{folder / parts[0]}: tensor tok_embeddings.weight is missing: download it again")
    try:
        config = _configuration(params, vocab_size=embedding.shape[0])
    except (KeyError, TypeError, ValueError, ArithmeticError) as fault:
        what = f"{fault} is missing" if isinstance(fault, KeyError) else str(fault)
        raise ValueError(f"{folder / PARAMS} is not that of a Chameleon: {what}") from None
    if config.num_key_value_heads is None or config.num_key_value_heads % wanted:
        raise ValueError(f"{folder / PARAMS}: {config.num_key_value_heads} heads cannot be shared by {wanted} parts")
    return MetaModel(config, checkpoint, tuple(parts))


def _parts(folder: Path) -> list[str]:
    if (folder / "consolidated.pth").is_file():
        return ["consolidated.pth"]
    found = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    for number, name in enumerate(found):
        if name != f"consolidated.{number:02}.pth":
            raise FileNotFoundError(f"{folder / f'consolidated.{number:02}.pth'} is missing: download it as well")
    return found


def _configuration(params: dict[str, Any], vocab_size: int) -> OmnigramConfig:
    width, eps = params["dim"], params.get("norm_eps", HEAD_NORM_EPS)
    check_eps(eps)
    theta = float(params.get("rope_theta", 1e4))
    normalised = params.get("qk_normalization", False)
    return OmnigramConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=_intermediate(width, params.get("ffn_dim_multiplier"), params.get("multiple_of", 256)),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads"),
        max_position_embeddings=LONG if theta > LONG_THETA else SHORT,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=eps,
        qk_norm="layer" if normalised else "none",
        qk_norm_per_head=normalised,
        norm_order="swin" if params.get("swin_norm", False) else "pre",
    )


def _intermediate(width: int, multiplier: float | None, multiple: int) -> int:
    """Two thirds of four times the width, times the multiplier, rounded up to the multiple; cut to integers between."""
    if multiple < 1:
        raise ValueError(f"multiple_of is {multiple}: it must be 1 or more")
    size = int(2 * (4 * width) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return -(-size // multiple) * multiple


def _their_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _MODEL:
        return f"{_MODEL[stem]}.{kind}"
    _, layers, number, part = stem.split(".", 3)
    return f"{layers}.{number}.{_LAYER[part]}.{kind}"


def _operation(name: str, config: OmnigramConfig) -> Operation:
    assert config.num_key_value_heads is not None
    query, key = config.num_attention_heads, config.num_key_value_heads
    part = name.rpartition(".")[0]
    if part.endswith(".q_norm"):
        return EachHead(query, rotary=True)
    if part.endswith(".k_norm"):
        return EachHead(key, rotary=True)
    if part.endswith("norm"):
        return KEEP  # every device held all of it
    if part.endswith(".q_proj"):
        return Join(0, heads=query)
    if part.endswith(".k_proj"):
        return Join(0, heads=key)
    return Join(1 if part.endswith(("embed_tokens", "o_proj", "down_proj")) else 0)
