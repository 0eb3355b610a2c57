"""The VQGAN: codes equal to transformers' Chameleon, a decoder stated twice, foreign names, and bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_published import (
    TINY_VQGAN,
    count_ties,
    random_pictures,
    real_pictures,
    scatter,
    shake,
    tiny_vqgan,
)
from torch import Tensor
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from omnigram.tokenizers.checkpoint_names import taming_state
from omnigram.tokenizers.codebook_tokenizer import COMMITMENT, codebook
from omnigram.tokenizers.pixel_tokenizer import load_weights
from omnigram.tokenizers.quantizers import nearest
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig


def made_peer(**changes: Any) -> tuple[ChameleonVQVAE, VQGAN]:
    """transformers' Chameleon on random weights, and ours loaded from its config and state."""
    torch.manual_seed(0)
    settings = VQGANConfig(**TINY_VQGAN | changes).to_hf()
    peer = ChameleonVQVAE(ChameleonVQVAEConfig(**settings)).eval()
    shake(peer)
    ours = VQGAN(VQGANConfig.from_hf(peer.config.to_dict())).eval()
    return peer, ours


def encoded(peer: Any, pixels: Tensor) -> Tensor:
    return peer.encode(pixels).image_tokens


@pytest.mark.parametrize("pictures", [random_pictures, real_pictures])
@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        ({}, (32, 32)),
        ({"attn_resolutions": (16, 4), "channel_multiplier": (1, 2, 3)}, (16, 16)),
        ({"attn_resolutions": (8,), "channel_multiplier": (3, 1, 2), "num_res_blocks": 2}, (16, 24)),
        ({"attn_type": None, "attn_resolutions": (8,), "channel_multiplier": (1, 3), "dropout": 0.1}, (20, 12)),
    ],
)
def test_codes_are_those_of_chameleon(
    changes: dict[str, Any], sides: tuple[int, int], pictures: Callable[[int, int, int], Tensor]
):
    if pictures is real_pictures:
        pytest.importorskip("emoji", reason="needs pip install 'omnigram[pictures]'")
    peer, ours = made_peer(**changes)
    pixels = pictures(64, *sides)
    with torch.no_grad():
        vectors = peer.quant_conv(peer.encoder(pixels)).movedim(1, -1).flatten(0, 2)
        scatter(peer.quantize.embedding, vectors)
        load_weights(ours, peer.state_dict(), "peer")
        theirs = encoded(peer, pixels)
    ids = ours.encode(pixels)
    assert ids.shape == (64, sides[0] // ours.patch, sides[1] // ours.patch)
    assert len(ids.unique()) > 30
    ties = count_ties(ids, theirs, vectors, ours.quantize.embedding.weight)
    assert ties < ids.numel() / 100, "equal ids would say little"


def test_of_equally_near_codes_the_first_is_taken_as_by_chameleon():
    peer, ours = made_peer()
    pixels = random_pictures(64, 16, 16)
    with torch.no_grad():
        vectors = peer.quant_conv(peer.encoder(pixels)).movedim(1, -1).flatten(0, 2)
        scatter(peer.quantize.embedding, vectors)
        peer.quantize.embedding.weight[128:] = peer.quantize.embedding.weight[:128]  # each code twice
        load_weights(ours, peer.state_dict(), "peer")
        theirs = encoded(peer, pixels)
    ids = ours.encode(pixels)
    assert int(ids.max()) < 128
    assert count_ties(ids, theirs, vectors, ours.quantize.embedding.weight) == ids.numel()


def test_codes_do_not_depend_on_the_memory_of_pixels():
    """In channels_last, torch's group norm is a thousand times less exact on the CPU where a picture is nearly flat."""
    tokenizer = tiny_vqgan()
    pixels = 0.9 + 0.1 * random_pictures(16, 16, 16)
    other = pixels.to(memory_format=torch.channels_last)
    assert torch.equal(tokenizer(other).codes, tokenizer(pixels).codes)


def test_names_are_those_of_chameleon_and_the_config_goes_back():
    peer, ours = made_peer(attn_resolutions=(8,), channel_multiplier=(1, 2, 3))
    theirs = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == theirs
    again = ChameleonVQVAEConfig(**ours.config.to_hf())
    assert again.to_dict() == peer.config.to_dict()
    assert VQGANConfig() == VQGANConfig.from_taming(CHAMELEON_YAML)
    with torch.device("meta"):  # the published size
        chameleon, encoder = ChameleonVQVAE(ChameleonVQVAEConfig()), VQGAN(VQGANConfig(decoder=False))
    assert {name: tensor.shape for name, tensor in encoder.state_dict().items()} == {
        name: tensor.shape for name, tensor in chameleon.state_dict().items()
    }


# `model.params` of the published vqgan.yaml, but for its loss
CHAMELEON_YAML: dict[str, Any] = {
    "embed_dim": 256,
    "n_embed": 8192,
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 512,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


def test_the_decoder_has_the_published_parameters():
    """Counted by hand: a 3 x 3 convolution of i to o channels 9io + o, a norm 2c, a shortcut io + o."""
    with torch.device("meta"):
        tokenizer = VQGAN(VQGANConfig())
    assert tokenizer.decoder is not None
    parts = {
        "conv_in": 1_180_160,
        "mid": 2 * 4_721_664 + 1_051_648,
        "up.4": 3 * 4_721_664 + 2_359_808,
        "up.3": 1_902_848 + 2 * 1_181_184 + 590_080,
        "up.2": 3 * 1_181_184 + 590_080,
        "up.1": 476_288 + 2 * 295_680 + 147_584,
        "up.0": 3 * 295_680,
        "norm_out": 256,
        "conv_out": 3_459,
    }
    for name, count in parts.items():
        assert sum(p.numel() for p in tokenizer.decoder.get_submodule(name).parameters()) == count, name
    assert sum(p.numel() for p in tokenizer.decoder.parameters()) == sum(parts.values()) == 39_294_851
    assert sum(p.numel() for p in tokenizer.parameters()) == 68_718_467
    shapes = {name: tuple(tensor.shape) for name, tensor in tokenizer.decoder.state_dict().items()}
    assert len(shapes) == 164
    expected = {
        "conv_in.weight": (512, 256, 3, 3),
        "mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "up.4.block.0.conv1.weight": (512, 512, 3, 3),
        "up.4.block.2.norm2.bias": (512,),
        "up.4.upsample.conv.weight": (512, 512, 3, 3),
        "up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "up.1.block.0.conv1.weight": (128, 256, 3, 3),
        "up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "norm_out.weight": (128,),
        "conv_out.weight": (3, 128, 3, 3),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert not [name for name in shapes if ".attn." in name or name.startswith("up.0.upsample")]


def test_a_checkpoint_of_taming_loads_without_its_loss():
    source = tiny_vqgan(attn_resolutions=(4,))
    loss = {
        "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(64, 3, 3, 3),
        "loss.logvar": torch.zeros(()),
    }
    checkpoint = {"epoch": 7, "state_dict": source.state_dict() | loss}
    ours = VQGAN(source.config).eval()
    load_weights(ours, taming_state(checkpoint), "vqgan.ckpt")
    assert ours.identity == source.identity
    assert taming_state(source.state_dict()).keys() == source.state_dict().keys()
    with pytest.raises(ValueError, match=r"^vqgan\.ckpt does not hold .*: colorize has no place in it$"):
        load_weights(
            ours, taming_state({"state_dict": source.state_dict() | {"colorize": torch.zeros(3)}}), "vqgan.ckpt"
        )


@settings(max_examples=15)
@given(height=st.integers(1, 5), width=st.integers(1, 5), batch=st.integers(1, 3))
def test_codes_and_pictures_have_the_shapes_of_each_other(height: int, width: int, batch: int):
    tokenizer = tiny_vqgan(attn_resolutions=(8,))
    pixels = random_pictures(batch, 4 * height, 4 * width)
    ids = tokenizer.encode(pixels)
    assert tokenizer.patch == 4
    assert ids.shape == (batch, height, width)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.codebook_size
    decoded = tokenizer.decode(ids)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1


def test_the_codebook_is_searched_in_parts_alike(monkeypatch: pytest.MonkeyPatch):
    tokenizer, pixels = tiny_vqgan(), random_pictures(8, 32, 32)
    ids = tokenizer.encode(pixels)
    monkeypatch.setattr(nearest, "DISTANCES", 256 * 7)
    assert torch.equal(tokenizer.encode(pixels), ids)


@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_pass_the_codebook_and_the_commitment_weighs_the_encoder(normalise: bool):
    torch.manual_seed(0)
    quantize = codebook(16, 3, normalise)
    torch.nn.init.normal_(quantize.embedding.weight)
    vectors = torch.randn(2, 3, 4, 4, requires_grad=True)
    quantized = quantize(vectors)
    (straight,) = torch.autograd.grad(quantized.codes.sum(), vectors, retain_graph=True)
    if normalise:
        assert straight.abs().sum() > 0
        torch.testing.assert_close(quantized.codes.norm(dim=1), torch.ones(2, 4, 4))
        return
    torch.testing.assert_close(straight, torch.ones_like(straight))
    quantized.loss.backward()
    assert vectors.grad is not None
    assert quantize.embedding.weight.grad is not None
    away = 2 * (vectors - quantize.lookup(quantized.ids)).detach() / vectors.numel()
    torch.testing.assert_close(vectors.grad, COMMITMENT * away)
    pull = torch.zeros(16, 3).index_add(0, quantized.ids.flatten(), away.movedim(1, -1).flatten(0, 2))
    torch.testing.assert_close(quantize.embedding.weight.grad, -pull)


def test_it_trains_end_to_end_and_encodes_without_dropout():
    tokenizer = tiny_vqgan(dropout=0.5).train()
    pixels = random_pictures(2, 16, 16)
    ids = tokenizer.encode(pixels)
    assert tokenizer.training
    assert torch.equal(ids, tokenizer.encode(pixels))
    quantized = tokenizer(pixels)
    (F.mse_loss(tokenizer.draw(quantized.codes), pixels) + quantized.loss).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_gives_back_what_was_written(dtype: torch.dtype, tmp_path: Path):
    tokenizer = tiny_vqgan(attn_resolutions=(8,), normalise_codes=True).to(dtype)
    tokenizer.save_pretrained(tmp_path)
    again = VQGAN.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert again.identity == tokenizer.identity
    assert {tensor.dtype for tensor in again.state_dict().values()} == {dtype}
    ids = tokenizer.encode(pixels := random_pictures(2, 16, 16))
    assert torch.equal(again.encode(pixels), ids)
    assert torch.equal(again.decode(ids), tokenizer.decode(ids))
    with torch.no_grad():
        again.encoder.conv_in.weight[0, 0, 0, 0] += 1
    assert again.identity != tokenizer.identity


def refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused_in_one_line():
    tokenizer = tiny_vqgan()
    refused(lambda: tokenizer.encode(torch.zeros(1, 3, 30, 32)), "30 x 32 pixels: sides must be multiples of 4")
    refused(lambda: tokenizer.encode(torch.zeros(1, 1, 32, 32)), r"\(1, 1, 32, 32\) .* axes \[b 3 height width\]")
    refused(lambda: tokenizer.encode(torch.zeros(3, 32, 32)), r"shape \(3, 32, 32\) do not have the axes")
    refused(lambda: tokenizer.decode(torch.full((1, 2, 2), 256)), r"256 .. 256 are not all in the codebook of 256")
    refused(lambda: tokenizer.decode(torch.full((1, 2, 2), -1)), "not all in the codebook")
    refused(lambda: tokenizer.decode(torch.zeros(4, dtype=torch.int64)), r"shape \(4,\) do not have the axes \[b h w\]")
    refused(lambda: tiny_vqgan(decoder=False).decode(torch.zeros(1, 2, 2, dtype=torch.int64)), "no decoder.*vqgan.ckpt")


def test_impossible_configurations_are_refused_in_one_line():
    refused(lambda: VQGANConfig(resolution=500), "resolution 500 must be a multiple of the patch of 16 pixels")
    refused(lambda: VQGANConfig(base_channels=48), r"base_channels 48 .* multiples of the 32 groups")
    refused(lambda: VQGANConfig(channel_multiplier=()), "at least one level")
    refused(lambda: VQGANConfig(attn_type="linear"), "attn_type 'linear'")
    refused(lambda: VQGANConfig(codebook_size=0), "codebook_size 0")
    refused(lambda: VQGANConfig.from_hf({"double_latent": True}), "double_latent True .* must be False")
    refused(lambda: VQGANConfig(normalise_codes=True).to_hf(), "normalise_codes")
    network = CHAMELEON_YAML["ddconfig"]
    refused(lambda: VQGANConfig.from_taming({"n_embed": 4}), "'ddconfig' is missing")
    refused(lambda: VQGANConfig.from_taming(CHAMELEON_YAML | {"ddconfig": {"ch": 128}}), "'z_channels' is missing")
    refused(lambda: VQGANConfig.from_taming(CHAMELEON_YAML | {"remap": "coco.npy"}), "remap 'coco.npy'")
    for key, value, message in (("tanh_out", True, "tanh_out True"), ("warp", 2, r"ddconfig\.warp is not known")):
        refused(
            lambda k=key, v=value: VQGANConfig.from_taming(CHAMELEON_YAML | {"ddconfig": network | {k: v}}), message
        )


def test_weights_of_another_model_are_named():
    tokenizer = tiny_vqgan()
    state = tokenizer.state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "decoder.conv_out.bias"}
    refused(lambda: load_weights(tokenizer, missing, "a.ckpt"), r"^a\.ckpt .*: decoder\.conv_out\.bias is missing$")
    other = tiny_vqgan(embed_dim=6).state_dict()
    refused(
        lambda: load_weights(tokenizer, other, "a.ckpt"),
        r"quant_conv\.weight is \[6, 16, 1, 1\], not \[8, 16, 1, 1\], and 3 more such faults$",
    )
