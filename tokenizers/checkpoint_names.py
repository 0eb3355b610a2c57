"""Tensor names of published image tokenizers -> those of VQGAN and MoVQGAN here.

taming-transformers (https://github.com/CompVis/taming-transformers), which Meta's Chameleon follows, LlamaGen
(https://github.com/FoundationVision/LlamaGen) and BAAI's Emu3-VisionTokenizer (https://github.com/baaivision/Emu3).
A name that none of the rules knows stays as it is: strict loading (`load_weights`) then says so.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

LLAMAGEN_MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
LLAMAGEN_STATISTIC = "quantize.codebook_used"  # a ring of the codes last seen in training

EMU3 = (
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"\.(attn\.\d+|attn_1)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn\.\d+|attn_1)\.proj_out\.", r".\1.out_proj."),
)
EMU3_PROJECTION = re.compile(r"\.(q|k|v|out)_proj\.weight$")


def taming_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tokenizer's tensors of a taming checkpoint, such as Meta's vqgan.ckpt.

    Lightning's `state_dict` is unwrapped; what served the training loss (`loss.…`: discriminator, LPIPS) is left out.
    ValueError for a `state_dict` that is none.
    """
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping):
        raise ValueError(f"its state_dict is a {type(state).__name__}, no tensors by name")
    return {name: tensor for name, tensor in state.items() if not str(name).startswith("loss.")}


def from_llamagen(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a LlamaGen tokenizer under our names, out of `model` if they stand there; ring of codes left out.

    Its decoder counts levels from the coarsest, ours from the finest.
    """
    state = checkpoint.get("model", checkpoint)
    coarsest = _highest(r"decoder\.conv_blocks\.(\d+)\.", state)

    def level(match: re.Match[str]) -> str:
        side, number, part = match.groups()
        if side == "decoder":
            number = coarsest - int(number)
        return f"{side}.{'down' if side == 'encoder' else 'up'}.{number}.{'block' if part == 'res' else part}."

    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.(\w+)\.", level, name)
        name = re.sub(r"^(\w+)\.mid\.([012])\.", lambda m: f"{m[1]}.mid.{LLAMAGEN_MIDDLE[m[2]]}.", name)
        renamed[name] = tensor
    renamed.pop(LLAMAGEN_STATISTIC, None)
    return renamed


def _highest(pattern: str, names: Mapping[str, Any]) -> int:
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=0)


def from_emu3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of BAAI's Emu3-VisionTokenizer under our names, which are those of transformers' Emu3VQVAE.

    Its 1 x 1 convolutions around attention become linear maps.
    """
    renamed = {}
    for name, tensor in state.items():
        for pattern, ours in EMU3:
            name = re.sub(pattern, ours, name)
        if EMU3_PROJECTION.search(name):
            tensor = tensor.flatten(1)  # [out, in, 1, 1] -> [out, in]
        renamed[name] = tensor
    return renamed
