"""The layers of networks: equal to the classes that read published weights, to DALL-E's code, and to torch's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_networks import FLAT
from made_published import random_pictures, shake
from torch import Tensor, nn

from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.movqgan import MoVQGAN
from omnigram.tokenizers.networks.dvae import DVAEConfig
from omnigram.tokenizers.networks.movqgan import MoVQGANNetworkConfig
from omnigram.tokenizers.networks.transformer import Block
from omnigram.tokenizers.networks.vqgan import VQGANNetworkConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.quantizer import places
from omnigram.tokenizers.vqgan import VQGAN


def published_weights(tokenizer: ImageTokenizer, peer: nn.Module) -> None:
    """Ours from those of the class that reads published weights."""
    state = peer.state_dict()
    encoder = {f"network.{name[8:]}": tensor for name, tensor in state.items() if name.startswith("encoder.")}
    encoder |= {name: tensor for name, tensor in state.items() if name.startswith("quant_conv.")}
    tokenizer.encoder.load_state_dict(encoder)
    decoder = {f"network.{name[8:]}": tensor for name, tensor in state.items() if name.startswith("decoder.")}
    decoder |= {name: tensor for name, tensor in state.items() if name.startswith("post_quant_conv.")}
    tokenizer.decoder.load_state_dict(decoder)
    tokenizer.quantizer.load_state_dict({"embedding.weight": state["quantize.embedding.weight"]})


@pytest.mark.parametrize("name", ["vqgan", "movqgan"])
def test_with_published_weights_codes_and_pixels_are_the_published_ones(name: str):
    torch.manual_seed(0)
    network = FLAT[name]
    assert isinstance(network, VQGANNetworkConfig | MoVQGANNetworkConfig)
    shape: Any = network.shape(4)
    peer = (VQGAN if name == "vqgan" else MoVQGAN)(type(shape)(**{**vars(shape), "codebook_size": 64})).eval()
    shake(peer)
    tokenizer = ImageTokenizer(network, GradientConfig(64, 4, 0.25, False)).eval()
    published_weights(tokenizer, peer)
    pixels = random_pictures(8, 16, 24)
    with torch.no_grad():
        vectors = places(tokenizer.encoder(pixels))
        peer.quantize.embedding.weight.copy_(vectors[torch.randint(len(vectors), (64,))])
    published_weights(tokenizer, peer)
    ids = tokenizer.encode(pixels)
    assert len(ids.unique()) > 30
    assert torch.equal(ids, peer.encode(pixels))
    torch.testing.assert_close(tokenizer.decode(ids), peer.decode(ids), rtol=1e-5, atol=1e-5)


def test_a_block_of_the_dvae_is_that_of_its_code():
    """Once more in functions: relu, convolution four times, weighted by the square of the number of blocks."""
    network = DVAEConfig(8, (1, 2), 2, 12)
    torch.manual_seed(0)
    encoder, decoder = network.encoder(5), network.decoder(5)
    x = torch.randn(2, 3, 8, 12)
    state = {name: iter(tensors) for name, tensors in (("e", pairs(encoder)), ("d", pairs(decoder)))}

    def conv(which: str, h: Tensor) -> Tensor:
        weight, bias = next(state[which])
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

    def block(which: str, h: Tensor, changes: bool) -> Tensor:
        inner = h
        for _ in range(4):
            inner = conv(which, inner.relu())
        return (conv(which, h) if changes else h) + inner / 4**2

    h = conv("e", x)
    for level in range(2):
        h = F.max_pool2d(h, 2) if level else h
        h = block("e", block("e", h, changes=level > 0), changes=False)
    torch.testing.assert_close(encoder(x), vectors := conv("e", h.relu()))
    h = conv("d", vectors)
    for level in range(2):
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3) if level else h
        h = block("d", block("d", h, changes=True), changes=False)
    torch.testing.assert_close(decoder(vectors), conv("d", h.relu()))


def pairs(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution in the order of their making."""
    found = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.bias is not None for layer in found)
    return [(layer.weight, layer.bias) for layer in found if layer.bias is not None]


def test_a_block_is_that_of_torch():
    torch.manual_seed(0)
    block = Block(32, 4)
    peer = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    shake(block)
    own = block.state_dict()
    names = {
        "qkv.weight": "self_attn.in_proj_weight",
        "qkv.bias": "self_attn.in_proj_bias",
        "out": "self_attn.out_proj",
    }
    names |= {"norm_1": "norm1", "norm_2": "norm2", "up": "linear1", "down": "linear2"}
    theirs = {}
    for name, tensor in own.items():
        layer, _, last = name.partition(".")
        theirs[names.get(name) or f"{names[layer]}.{last}"] = tensor
    peer.load_state_dict(theirs)
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(block(x), peer(x))
    mask = torch.rand(9, 9) < 0.5
    mask.fill_diagonal_(True)
    torch.testing.assert_close(block(x, mask=mask), peer(x, src_mask=~mask))
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    attention.load_state_dict({name[10:]: tensor for name, tensor in theirs.items() if name.startswith("self_attn.")})
    torch.testing.assert_close(block._attend(x, None, None), attention(x, x, x, need_weights=False)[0])
