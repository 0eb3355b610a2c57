"""Tiny published models for the tests of conversion: transformers' folders, BAAI's tokenizer, and Meta's Chameleon."""

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from omnigram.tokenizers.published import chameleon_code_name
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig

CODES, VOCAB = 16, 160
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
VQGAN_SHAPE: dict[str, Any] = {
    "embed_dim": 8,
    "codebook_size": CODES,
    "latent_channels": 8,
    "resolution": 16,
    "base_channels": 32,
    "channel_multiplier": (1, 2),
    "num_res_blocks": 1,
}
MOVQGAN_SHAPE: dict[str, Any] = {
    "codebook_size": CODES,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [1],
    "hidden_size": 32,
}
LETTERS = [*string.ascii_letters, *string.digits, *" *.,!?"]
RESERVED_IMAGE = "<reserved08707>"
PREPROCESSORS = {
    "chameleon": {
        "image_processor_type": "ChameleonImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
    },
    "emu3": {"image_processor_type": "Emu3ImageProcessor", "min_pixels": 64, "max_pixels": 256, "spatial_factor": 2},
}
NOT_DRAWN = "ignore:.*pictures can be read but not drawn"  # which is right of transformers' Chameleon


def chameleon_names(image: str = "<image>") -> dict[str, int]:
    """Codes within the table, their ids in no order, as many names as ids."""
    specials = ["<s>", "<pad>", "</s>"]
    order = torch.randperm(CODES, generator=torch.Generator().manual_seed(3)).tolist()
    codes = [chameleon_code_name(code) for code in order]
    rest = ["<eoss>", "<racm3:break>", *LETTERS, "<reserved08706>", image]
    names = [*specials, "unused", *codes, *rest]
    names += [f"filler{number}" for number in range(VOCAB - len(names))]
    return {name: id_ for id_, name in enumerate(names)}


def emu3_names(image: bool = True) -> dict[str, int]:
    """Text, then the marks, then the codes up to the last id. image: as transformers has them, else as BAAI."""
    marks = [
        "<|endoftext|>",
        "<image>" if image else "<|extra_0|>",
        *(f"<|extra_{number}|>" for number in range(200, 205)),
    ]
    marks += ["<|image token|>", "<|image start|>", "<|image end|>"]
    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    fillers = [f"filler{number}" for number in range(VOCAB - len(LETTERS) - len(marks) - CODES)]
    return {name: id_ for id_, name in enumerate([*LETTERS, *fillers, *marks, *codes])}


def save_tokenizer(path: Path, names: Mapping[str, int]) -> None:
    """A tokenizer.json of single letters."""
    tokenizer = Tokenizer(BPE(dict(names), []))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names if name.startswith("<")])
    tokenizer.save(str(path))


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> Any:
    """Every weight random, so that one left out or swapped shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def chameleon(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    vq = VQGANConfig(**VQGAN_SHAPE).to_hf()
    specials = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    options: dict[str, Any] = SHAPE | specials | changes
    config = ChameleonConfig(**options, vq_config=vq, vocabulary_map=chameleon_names())
    return randomised(ChameleonForConditionalGeneration(config)).to(dtype)


def emu3(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    names = emu3_names()
    specials = {
        "pad_token_id": names["<|endoftext|>"],
        "bos_token_id": names["<|extra_203|>"],
        "eos_token_id": names["<|extra_204|>"],
    }
    config = Emu3Config(text_config=SHAPE | specials | changes, vq_config=MOVQGAN_SHAPE, vocabulary_map=names)
    return randomised(Emu3ForConditionalGeneration(config)).to(dtype)


def llama(dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    options: dict[str, Any] = SHAPE | changes
    return randomised(LlamaForCausalLM(LlamaConfig(**options))).to(dtype)


def save(model: PreTrainedModel, folder: Path, names: Mapping[str, int] | None = None, **options: Any) -> Path:
    """A folder as a published one is: sharded where `max_shard_size` says so, with the small files beside."""
    model.save_pretrained(folder, **options)
    if names is not None:
        save_tokenizer(folder / "tokenizer.json", names)
    if preprocessor := PREPROCESSORS.get(model.config.model_type):
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class":   "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def split_rotary(weight: Tensor, heads: int) -> Tensor:
    """Halves -> neighbours, index by index: row 2 i + j of a head is row i + j K / 2."""
    size = len(weight) // heads
    rows = [head * size + i + j * size // 2 for head in range(heads) for i in range(size // 2) for j in range(2)]
    return weight[rows]


def save_meta(folder: Path, model: nn.Module, vqgan: VQGAN, parts: int, **params: Any) -> Path:
    """Meta's folders of a Chameleon of ours whose query and key norms are the same within each part; the model's."""
    config: Any = model.config
    place = folder / "models" / "7b"
    place.mkdir(parents=True)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for part in range(parts):

        def share(tensor: Tensor, dim: int, part: int = part) -> Tensor:
            size = tensor.shape[dim] // parts
            return tensor.narrow(dim, part * size, size).clone()

        theirs = {
            "tok_embeddings.weight": share(state["model.embed_tokens.weight"], 1),
            "norm.weight": state["model.norm.weight"],
            "output.weight": share(state["lm_head.weight"], 0),
            "rope.freqs": torch.rand(4),
        }
        for layer in range(config.num_hidden_layers):
            ours, meta = f"model.layers.{layer}", f"layers.{layer}"
            for name in "qk":
                weight = split_rotary(state[f"{ours}.self_attn.{name}_proj.weight"], heads[name])
                theirs[f"{meta}.attention.w{name}.weight"] = share(weight, 0)
                for kind in ("weight", "bias"):
                    norm = state[f"{ours}.self_attn.{name}_norm.{kind}"][part * heads[name] // parts]
                    theirs[f"{meta}.attention.{name}_normalization.{kind}"] = split_rotary(norm, 1)
            theirs[f"{meta}.attention.wv.weight"] = share(state[f"{ours}.self_attn.v_proj.weight"], 0)
            theirs[f"{meta}.attention.wo.weight"] = share(state[f"{ours}.self_attn.o_proj.weight"], 1)
            theirs[f"{meta}.feed_forward.w1.weight"] = share(state[f"{ours}.mlp.gate_proj.weight"], 0)
            theirs[f"{meta}.feed_forward.w3.weight"] = share(state[f"{ours}.mlp.up_proj.weight"], 0)
            theirs[f"{meta}.feed_forward.w2.weight"] = share(state[f"{ours}.mlp.down_proj.weight"], 1)
            theirs[f"{meta}.attention_norm.weight"] = state[f"{ours}.input_layernorm.weight"]
            theirs[f"{meta}.ffn_norm.weight"] = state[f"{ours}.post_attention_layernorm.weight"]
        torch.save(theirs, place / ("consolidated.pth" if parts == 1 else f"consolidated.{part:02}.pth"))
    shape = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "multiple_of": config.intermediate_size,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "qk_normalization": True,
        "swin_norm": config.norm_order == "swin",
        "vocab_size": -1,
    }
    (place / "params.json").write_text(json.dumps({"model_parallel_size": 8, "model": shape | params}))
    (place / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": parts}))
    (folder / "tokenizer").mkdir()
    save_tokenizer(folder / "tokenizer" / "text_tokenizer.json", chameleon_names(RESERVED_IMAGE))
    save_vqgan(folder / "tokenizer", vqgan)
    return place


def made_vqgan(seed: int = 0, **changes: Any) -> VQGAN:
    torch.manual_seed(seed)
    return randomised(VQGAN(VQGANConfig(**VQGAN_SHAPE | changes)), seed)


def save_vqgan(folder: Path, vqgan: VQGAN) -> Path:
    """vqgan.ckpt, with what served the training loss, and vqgan.yaml; the checkpoint."""
    config = vqgan.config
    network = {
        "z_channels": config.latent_channels,
        "resolution": config.resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multiplier),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
        "double_z": False,
    }
    params = {"embed_dim": config.embed_dim, "n_embed": config.codebook_size, "ddconfig": network, "lossconfig": {}}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    state = {**vqgan.state_dict(), "loss.perceptual.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "vqgan.ckpt")
    return folder / "vqgan.ckpt"


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by the library that published them."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same names, types and bits."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def llama_names() -> dict[str, int]:
    return {name: id_ for id_, name in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}


def save_published(folder: Path) -> Path:
    """Folders of a Chameleon in one file, one in several, and a Llama."""
    save(chameleon(), folder / "one", chameleon_names())
    save(chameleon(), folder / "several", chameleon_names(), max_shard_size="200KB")
    save(llama(), folder / "llama", llama_names())
    return folder
