"""The MoVQGAN: codes, pictures and clips equal to transformers' Emu3, BAAI's names, and bad input."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_published import count_ties, random_pictures, real_pictures, scatter, shake
from torch import Tensor
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from omnigram.tokenizers.checkpoint_names import from_emu3
from omnigram.tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from omnigram.tokenizers.pixel_tokenizer import load_weights

TINY: dict[str, Any] = {
    "codebook_size": 256,
    "embed_dim": 4,
    "base_channels": 32,
    "channel_multiplier": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (1,),
}
CONFIGS = [
    ({}, (16, 16)),
    ({"attn_resolutions": (1, 2), "channel_multiplier": (1, 3, 3), "embed_dim": 6}, (16, 24)),
    ({"attn_resolutions": (), "channel_multiplier": (3, 1, 2), "temporal_downsample_factor": 2}, (20, 12)),
    ({"num_res_blocks": 2, "temporal_downsample_factor": 8}, (8, 12)),
]


def made_peer(**changes: Any) -> tuple[Emu3VQVAE, MoVQGAN]:
    """transformers' Emu3 on random weights, and ours loaded from its config and state."""
    torch.manual_seed(0)
    peer = Emu3VQVAE(Emu3VQVAEConfig(**MoVQGANConfig(**TINY | changes).to_hf())).eval()
    shake(peer)
    with torch.no_grad():
        peer.decoder.conv_out.weight.mul_(0.2)  # pictures about as bright as pictures are
    vectors = vectors_of(peer, random_pictures(16, 16, 16))
    scatter(peer.quantize.embedding, vectors)
    return peer, loaded(peer)


def loaded(peer: Emu3VQVAE) -> MoVQGAN:
    ours = MoVQGAN(MoVQGANConfig.from_hf(peer.config.to_dict())).eval()
    load_weights(ours, peer.state_dict(), "peer")
    return ours


@torch.no_grad()
def vectors_of(peer: Emu3VQVAE, pixels: Tensor) -> Tensor:
    """What the peer quantizes, [N, D], of pictures or clips."""
    if pixels.ndim == 4:
        pixels = pixels[:, None].expand(-1, peer.config.temporal_downsample_factor, -1, -1, -1)
    latents = peer.encoder(pixels).transpose(1, 2)
    return peer.quant_conv(latents).movedim(1, -1).flatten(0, 3)


@torch.no_grad()
def encoded(peer: Any, pixels: Tensor) -> Tensor:
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    if pixels.ndim == 5:  # of a clip it cuts frames instead of rows, so none must be cut
        sizes = torch.full((len(pixels), 2), 10**6)
    return torch.stack(peer.encode(pixels, sizes).image_tokens)


@torch.no_grad()
def decoded(peer: Emu3VQVAE, ids: Tensor) -> Tensor:
    return peer.decode(ids).clamp(-1, 1)


@pytest.mark.parametrize("pictures", [random_pictures, real_pictures])
@pytest.mark.parametrize(("changes", "sides"), CONFIGS)
def test_codes_and_pictures_are_those_of_emu3(
    changes: dict[str, Any], sides: tuple[int, int], pictures: Callable[[int, int, int], Tensor]
):
    if pictures is real_pictures:
        pytest.importorskip("emoji", reason="needs pip install 'omnigram[pictures]'")
    peer, _ = made_peer(**changes)
    pixels = pictures(64, *sides)
    vectors = vectors_of(peer, pixels)
    scatter(peer.quantize.embedding, vectors)
    ours = loaded(peer)
    ids = ours.encode(pixels)
    assert ids.shape == (64, sides[0] // ours.patch, sides[1] // ours.patch)
    assert len(ids.unique()) > 30
    ties = count_ties(ids, encoded(peer, pixels), vectors, ours.quantize.embedding.weight)
    assert ties < ids.numel() / 100, "equal ids would say little"
    drawn = decoded(peer, ids[:16])
    assert drawn.shape == (16, 3, *sides)
    assert 0.1 < drawn.std() < 0.8
    again = ours.decode(ids[:16])
    print(f"decoded pictures differ by {float((again - drawn).abs().max()):.1e} at most")  # pytest -rP shows it
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [4, 8])
@pytest.mark.parametrize(("changes", "sides"), CONFIGS[:3])
def test_clips_are_those_of_emu3(changes: dict[str, Any], sides: tuple[int, int], frames: int):
    peer, ours = made_peer(**changes)
    clips = random_pictures(4 * frames, *sides).unflatten(0, (4, frames))
    factor = ours.config.temporal_downsample_factor
    ids = ours.encode_clip(clips)
    assert ids.shape == (4, frames // factor, sides[0] // ours.patch, sides[1] // ours.patch)
    ties = count_ties(ids, encoded(peer, clips), vectors_of(peer, clips), ours.quantize.embedding.weight)
    assert ties < ids.numel() / 100, "equal ids would say little"
    drawn = decoded(peer, ids)
    assert drawn.shape == clips.shape
    again = ours.decode_clip(ids)
    print(f"decoded clips differ by {float((again - drawn).abs().max()):.1e} at most")
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)
    assert drawn[:, 0].sub(drawn[:, -1]).abs().max() > 0.1, "frames differ"


def test_a_picture_is_a_still_clip_of_which_the_first_frame_is_drawn():
    _, ours = made_peer()
    pixels = random_pictures(2, 16, 16)
    ids = ours.encode(pixels)
    assert torch.equal(ours.encode_clip(pixels[:, None].repeat(1, 4, 1, 1, 1)), ids[:, None])
    torch.testing.assert_close(ours.decode_clip(ids[:, None])[:, 0], ours.decode(ids))


def test_no_frame_depends_on_a_later_one():
    _, ours = made_peer()
    clip = random_pictures(12, 16, 16)[None]
    ids = ours.encode_clip(clip)
    changed = clip.clone()
    changed[:, 8:] = -changed[:, 8:]
    again = ours.encode_clip(changed)
    assert torch.equal(again[:, :2], ids[:, :2])
    assert not torch.equal(again[:, 2], ids[:, 2])
    assert torch.equal(ours.decode_clip(again)[:, :8], ours.decode_clip(ids)[:, :8])


def test_names_are_those_of_emu3_and_the_config_goes_back():
    peer, ours = made_peer(**CONFIGS[1][0])
    assert ours.config.to_hf().items() <= peer.config.to_dict().items()
    assert Emu3VQVAEConfig(**ours.config.to_hf()).to_dict() == peer.config.to_dict()
    with torch.device("meta"):  # the published size
        emu3, published = Emu3VQVAE(Emu3VQVAEConfig()), MoVQGAN(MoVQGANConfig())
    for theirs, own in ((peer, ours), (emu3, published)):
        assert {name: tensor.shape for name, tensor in own.state_dict().items()} == {
            name: tensor.shape for name, tensor in theirs.state_dict().items()
        }
    assert sum(parameter.numel() for parameter in published.parameters()) == 270_740_287


def baai_shapes(config: MoVQGANConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of BAAI's Emu3-VisionTokenizer, as its own code lays them out."""
    d, widths = config.embed_dim, config.widths

    def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def batch_norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from layer(name, d)
        yield from ((f"{name}.running_mean", (d,)), (f"{name}.running_var", (d,)), (f"{name}.num_batches_tracked", ()))

    def norm(name: str, c: int, spatial: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from layer(f"{name}.norm_layer" if spatial else name, c)
        if spatial:
            yield from layer(f"{name}.conv_y", c, d, 1, 1)
            yield from layer(f"{name}.conv_b", c, d, 1, 1)

    def residual(name: str, i: int, o: int, spatial: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}.norm1", i, spatial)
        yield from layer(f"{name}.conv1", o, i, 3, 3)
        yield from norm(f"{name}.norm2", o, spatial)
        yield from layer(f"{name}.conv2", o, o, 3, 3)
        if i != o:
            yield from layer(f"{name}.nin_shortcut", o, i, 1, 1)

    def attention(name: str, c: int, spatial: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}.norm", c, spatial)
        for part in ("q", "k", "v", "proj_out"):
            yield from layer(f"{name}.{part}", c, c, 1, 1)

    for side, spatial in (("encoder", False), ("decoder", True)):
        yield from layer(f"{side}.conv_in", *((widths[-1], d, 3, 3) if spatial else (config.base_channels, 3, 3, 3)))
        width = widths[-1] if spatial else config.base_channels
        for level in reversed(range(len(widths))) if spatial else range(len(widths)):
            name = f"{side}.{'up' if spatial else 'down'}.{level}"
            for block in range(config.num_res_blocks + spatial):
                yield from residual(f"{name}.block.{block}", width, widths[level], spatial)
                width = widths[level]
                if level in config.attn_resolutions:
                    yield from attention(f"{name}.attn.{block}", width, spatial)
            if spatial and level:
                yield from layer(f"{name}.upsample.conv", width, width, 3, 3)
            if not spatial and level < len(widths) - 1:
                yield from layer(f"{name}.downsample.conv", width, width, 3, 3)
        for block in ("block_1", "block_2"):
            yield from residual(f"{side}.mid.{block}", widths[-1], widths[-1], spatial)
        yield from attention(f"{side}.mid.attn_1", widths[-1], spatial)
        yield from norm(f"{side}.norm_out", width, spatial)
        yield from layer(f"{side}.conv_out", *((3, width, 3, 3) if spatial else (d, width, 3, 3)))
        for index in range(2):
            yield from layer(f"{side}.time_conv.{index}.conv.conv", d, d, 3 if spatial else 4, 3, 3)
        for index in range(config.num_res_blocks):
            for part in "12":
                yield from batch_norm(f"{side}.time_res_stack.{index}.norm{part}")
                yield from layer(f"{side}.time_res_stack.{index}.conv{part}.conv", d, d, 3, 3, 3)
    yield "quantize.embedding.weight", (config.codebook_size, d)
    yield from layer("quant_conv.conv", d, d, 3, 1, 1)
    yield from layer("post_quant_conv.conv", d, d, 3, 1, 1)


def test_the_names_of_baai_become_those_of_emu3():
    config = MoVQGANConfig(**TINY | {"channel_multiplier": (1, 2, 2), "attn_resolutions": (1, 2), "num_res_blocks": 2})
    state = {name: torch.full(shape, float(index)) for index, (name, shape) in enumerate(baai_shapes(config))}
    renamed = from_emu3(state)
    assert len(renamed) == len(state)
    ours, peer = MoVQGAN(config), Emu3VQVAE(Emu3VQVAEConfig(**config.to_hf()))
    load_weights(ours, renamed, "BAAI")
    peer.load_state_dict(renamed)
    pairs = {
        "encoder.mid.attn_1.norm.bias": "encoder.middle_block.attn_norm.bias",
        "encoder.mid.attn_1.v.weight": "encoder.middle_block.attn_1.v_proj.weight",
        "encoder.down.1.attn.1.norm.weight": "encoder.down_block.down.1.attn_norms.1.weight",
        "encoder.down.1.attn.0.q.bias": "encoder.down_block.down.1.attn.0.q_proj.bias",
        "decoder.up.2.attn.2.norm.conv_y.weight": "decoder.up_block.up.2.attn_norms.2.conv_y.weight",
        "decoder.up.1.attn.0.k.weight": "decoder.up_block.up.1.attn.0.k_proj.weight",
        "decoder.up.1.attn.0.proj_out.weight": "decoder.up_block.up.1.attn.0.out_proj.weight",
        "decoder.mid.block_2.norm1.norm_layer.weight": "decoder.middle_block.block_2.norm1.norm_layer.weight",
        "decoder.time_res_stack.1.norm2.running_var": "decoder.time_res_stack.1.norm2.running_var",
        "encoder.norm_out.weight": "encoder.norm_out.weight",
    }
    for theirs, own in pairs.items():
        assert torch.equal(peer.state_dict()[own].flatten(), state[theirs].flatten()), theirs


@settings(max_examples=10)
@given(height=st.integers(1, 4), width=st.integers(2, 4), batch=st.integers(1, 2), codes=st.integers(1, 3))
def test_codes_and_clips_have_the_shapes_of_each_other(height: int, width: int, batch: int, codes: int):
    tokenizer = MoVQGAN(MoVQGANConfig(**TINY)).eval()
    clips = random_pictures(batch * 4 * codes, 2 * height, 2 * width).unflatten(0, (batch, 4 * codes))
    ids = tokenizer.encode_clip(clips)
    assert ids.shape == (batch, codes, height, width)
    assert ids.dtype == torch.int64
    decoded_clips = tokenizer.decode_clip(ids)
    assert decoded_clips.shape == clips.shape
    assert decoded_clips.abs().max() <= 1
    pictures = clips[:, 0]
    assert tokenizer.decode(tokenizer.encode(pictures)).shape == pictures.shape


def test_encoding_leaves_running_statistics_alone_and_training_reaches_all_but_unused_weights():
    _, tokenizer = made_peer()
    tokenizer.train()
    pixels = random_pictures(2, 16, 16)
    before = {name: buffer.clone() for name, buffer in tokenizer.named_buffers()}
    ids = tokenizer.encode(pixels)
    tokenizer.decode(ids)
    assert all(torch.equal(before[name], buffer) for name, buffer in tokenizer.named_buffers())
    assert tokenizer.training
    quantized = tokenizer(pixels)
    assert quantized.codes.shape == (2, 4, 8, 8)
    (F.mse_loss(tokenizer.draw(quantized.codes), pixels) + quantized.loss).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_gives_back_what_was_written(dtype: torch.dtype, tmp_path: Path):
    _, tokenizer = made_peer()
    tokenizer.to(dtype).save_pretrained(tmp_path)
    again = MoVQGAN.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert again.identity == tokenizer.identity
    ids = tokenizer.encode(pixels := random_pictures(2, 16, 16))
    assert torch.equal(again.encode(pixels), ids)
    assert torch.equal(again.decode(ids), tokenizer.decode(ids))


def refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused_in_one_line():
    _, tokenizer = made_peer()
    refused(lambda: tokenizer.encode(torch.zeros(1, 3, 15, 16)), "15 x 16 pixels: sides must be multiples of 2")
    refused(lambda: tokenizer.encode_clip(torch.zeros(1, 4, 3, 16, 15)), "16 x 15 pixels")
    refused(
        lambda: tokenizer.encode_clip(torch.zeros(1, 6, 3, 16, 16)), "6 frames: their number must be a multiple of 4"
    )
    refused(lambda: tokenizer.encode_clip(torch.zeros(4, 3, 16, 16)), r"axes \[b frames 3 height width\]")
    refused(lambda: tokenizer.encode(torch.zeros(1, 4, 3, 16, 16)), r"axes \[b 3 height width\]")
    refused(lambda: tokenizer.encode_clip(torch.zeros(1, 0, 3, 16, 16)), "0 frames")
    refused(lambda: tokenizer.decode(torch.full((1, 2, 2), 256)), "not all in the codebook of 256")
    refused(lambda: tokenizer.decode_clip(torch.full((1, 1, 2, 2), -1)), "not all in the codebook of 256")
    refused(lambda: tokenizer.decode_clip(torch.zeros(1, 2, 2, dtype=torch.int64)), r"axes \[b t h w\]")


def test_impossible_configurations_are_refused_in_one_line():
    refused(lambda: MoVQGANConfig(temporal_downsample_factor=3), "temporal_downsample_factor 3 must be 1, 2, 4")
    refused(lambda: MoVQGANConfig(base_channels=40), "base_channels 40")
    refused(lambda: MoVQGANConfig(codebook_size=0), "codebook_size 0")
    refused(lambda: MoVQGANConfig(attn_resolutions=(0,)).to_hf(), r"attn_resolutions \[0\].* 1024 channels only")
    published = Emu3VQVAEConfig().to_dict()
    for key, value in {
        "latent_channels": 8,
        "num_attention_heads": 4,
        "double_latent": True,
        "hidden_size": 512,
    }.items():
        refused(lambda k=key, v=value: MoVQGANConfig.from_hf(published | {k: v}), f"{key} .* is not supported")
