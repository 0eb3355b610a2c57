"""LlamaGen's tokenizer: its names, and the same codes and pixels from a second statement of the network."""

from typing import Any

import torch
import torch.nn.functional as F
from made_published import random_pictures, tiny_vqgan
from torch import Tensor

from omnigram.tokenizers.checkpoint_names import LLAMAGEN_STATISTIC, from_llamagen


class LlamaGen:
    """Its tokenizer as its state says it: a second statement of encoder and decoder, in functions of named tensors."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = state

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def conv(self, x: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def residual(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return h + (self.conv(x, f"{name}.nin_shortcut") if self.has(f"{name}.nin_shortcut") else x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2).transpose(1, 2) for part in "qkv")
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.conv(h, f"{name}.proj_out")

    def middle(self, x: Tensor, side: str) -> Tensor:
        x = self.attention(self.residual(x, f"{side}.mid.0"), f"{side}.mid.1")
        return self.residual(x, f"{side}.mid.2")

    def levels(self, x: Tensor, side: str) -> Tensor:
        level = 0
        while self.has(f"{side}.conv_blocks.{level}.res.0.conv1"):
            name, block = f"{side}.conv_blocks.{level}", 0
            while self.has(f"{name}.res.{block}.conv1"):
                x = self.residual(x, f"{name}.res.{block}")
                if self.has(f"{name}.attn.{block}.q"):
                    x = self.attention(x, f"{name}.attn.{block}")
                block += 1
            if self.has(f"{name}.downsample.conv"):
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"{name}.downsample.conv", stride=2)
            if self.has(f"{name}.upsample.conv"):
                doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(doubled, f"{name}.upsample.conv", padding=1)
            level += 1
        return x

    def encode(self, pixels: Tensor) -> Tensor:
        x = self.middle(self.levels(self.conv(pixels, "encoder.conv_in", padding=1), "encoder"), "encoder")
        x = self.conv(F.silu(self.norm(x, "encoder.norm_out")), "encoder.conv_out", padding=1)
        vectors = F.normalize(self.conv(x, "quant_conv"), dim=1)
        return torch.einsum("bdhw,kd->bhwk", vectors, self.codes).argmax(-1)

    def decode(self, ids: Tensor) -> Tensor:
        x = self.conv(self.codes[ids].permute(0, 3, 1, 2), "post_quant_conv")
        x = self.levels(self.middle(self.conv(x, "decoder.conv_in", padding=1), "decoder"), "decoder")
        return self.conv(F.silu(self.norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)

    @property
    def codes(self) -> Tensor:
        return F.normalize(self.state["quantize.embedding.weight"], dim=1)


LLAMAGEN = {"normalise_codes": True, "attn_resolutions": (4,), "channel_multiplier": (1, 3, 2), "num_res_blocks": 2}


def of_llamagen(levels: int, blocks: int) -> dict[str, str]:
    """LlamaGen's name of each tensor -> ours, written out by its own code: the decoder counts from the coarsest."""
    names: dict[str, str] = {}
    middle = {"0": "block_1", "1": "attn_1", "2": "block_2"}
    norms, convolutions = ("norm1", "norm2"), ("conv1", "conv2", "nin_shortcut")
    for side, kind, number in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        for part in ("conv_in", "norm_out", "conv_out"):
            names[f"{side}.{part}"] = f"{side}.{part}"
        for theirs, ours in middle.items():
            for part in ("norm", "q", "k", "v", "proj_out", *norms, *convolutions):
                names[f"{side}.mid.{theirs}.{part}"] = f"{side}.mid.{ours}.{part}"
        for level in range(levels):
            there, here = f"{side}.conv_blocks.{level}", level if side == "encoder" else levels - 1 - level
            names[f"{there}.{kind}sample.conv"] = f"{side}.{kind}.{here}.{kind}sample.conv"
            for block in range(number):
                for part in (*norms, *convolutions):
                    names[f"{there}.res.{block}.{part}"] = f"{side}.{kind}.{here}.block.{block}.{part}"
                for part in ("norm", "q", "k", "v", "proj_out"):
                    names[f"{there}.attn.{block}.{part}"] = f"{side}.{kind}.{here}.attn.{block}.{part}"
    for name in ("quantize.embedding", "quant_conv", "post_quant_conv"):
        names[name] = name
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items() for kind in ("weight", "bias")}


def as_llamagen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours as LlamaGen's checkpoints have it, with the ring of codes seen."""
    theirs = {name: state[ours] for name, ours in of_llamagen(3, 2).items() if ours in state}
    assert len(theirs) == len(state)
    return theirs | {LLAMAGEN_STATISTIC: torch.zeros(65536)}


def test_llamagen_reads_and_draws_the_same():
    ours = tiny_vqgan(**LLAMAGEN).double()
    theirs = LlamaGen(as_llamagen(ours.state_dict()))
    pixels = random_pictures(16, 16, 24).double()
    with torch.no_grad():
        ids = theirs.encode(pixels)
        assert torch.equal(ours.encode(pixels), ids)
        assert len(ids.unique()) > 30
        drawn = theirs.decode(ids)
    assert drawn.std() > 0.1
    torch.testing.assert_close(ours.decode(ids), drawn.clamp(-1, 1), rtol=0, atol=1e-10)


def test_the_names_of_llamagen_are_one_to_one():
    ours = tiny_vqgan(**LLAMAGEN)
    state = ours.state_dict()
    theirs = as_llamagen(state)
    assert {name: theirs[name].shape[0] for name in LLAMAGEN_NAMES} == LLAMAGEN_NAMES
    for foreign in (theirs, {"model": theirs}):
        back = from_llamagen(foreign)
        assert back.keys() == state.keys()
        assert all(back[name] is state[name] for name in state)


# name -> length, of channel_multiplier 1, 3, 2 times 32: the decoder counts from the coarsest
LLAMAGEN_NAMES = {
    "encoder.conv_blocks.0.res.0.norm1.weight": 32,
    "encoder.conv_blocks.1.res.0.nin_shortcut.weight": 96,
    "encoder.conv_blocks.1.downsample.conv.weight": 96,
    "encoder.conv_blocks.2.attn.1.proj_out.weight": 64,
    "encoder.mid.0.conv1.weight": 64,
    "encoder.mid.1.q.weight": 64,
    "encoder.mid.2.conv2.bias": 64,
    "decoder.mid.1.norm.weight": 64,
    "decoder.conv_blocks.0.attn.2.k.weight": 64,
    "decoder.conv_blocks.0.upsample.conv.weight": 64,
    "decoder.conv_blocks.1.res.0.nin_shortcut.weight": 96,
    "decoder.conv_blocks.2.res.2.norm1.weight": 32,
    "quantize.embedding.weight": 256,
    "quant_conv.weight": 8,
    "post_quant_conv.weight": 16,
}
