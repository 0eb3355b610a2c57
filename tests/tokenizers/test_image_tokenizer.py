"""The image tokenizer: shapes, laws of encode and decode, training, and files that are damaged."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_quantizers import SMALL
from safetensors.torch import load_file

from omnigram.tokenizers.image import ImageTokenizer, to_pixels, to_uint8
from omnigram.tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from omnigram.tokenizers.networks.convolutional import AttentionBlock, ConvolutionalConfig, Decoder, Encoder
from omnigram.tokenizers.pixel_tokenizer import PixelTokenizer, load_image_tokenizer
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig, perplexity, places
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig


def awaken(block: torch.nn.Module) -> None:
    """Give the parts of an attention block weights, which start at zero."""
    assert isinstance(block, AttentionBlock)
    for layer in (block.position, block.out, block.down):
        torch.nn.init.normal_(layer.weight, std=0.1)


def networks_of(tokenizer: ImageTokenizer) -> tuple[Encoder, Decoder]:
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, Decoder)
    return encoder, decoder


def codebook_of(tokenizer: ImageTokenizer) -> torch.Tensor:
    return tokenizer.quantizer.get_buffer("codebook")


def made(spatial_norm: bool = False, cosine: bool = False, codebook_size: int = 32) -> ImageTokenizer:
    torch.manual_seed(0)
    network = ConvolutionalConfig(2, (8, 32), (1, 1), (1, 1), spatial_norm, encoder_attention=1, decoder_attention=1)
    quantizer = MovingAverageConfig(codebook_size, 4, 0.9, 0.25, cosine, 0.0)
    tokenizer = ImageTokenizer(network, quantizer)
    encoder, decoder = networks_of(tokenizer)
    for layer in (encoder.layers[-1], decoder.head[1]):  # they start at zero
        assert isinstance(layer, torch.nn.Conv2d)
        torch.nn.init.normal_(layer.weight, std=0.1)
    for block in (encoder.layers[-3], decoder.attention[0]):
        awaken(block)
    with torch.no_grad():
        tokenizer.quantizer.start_from(places(tokenizer.encoder(torch.rand(8, 3, 32, 32) * 2 - 1)))
    return tokenizer.eval()


@pytest.mark.parametrize("spatial_norm", [False, True])
@given(height=st.integers(1, 5), width=st.integers(1, 5), batch=st.integers(1, 3))
def test_codes_and_pictures_have_the_shapes_of_each_other(spatial_norm: bool, height: int, width: int, batch: int):
    tokenizer = made(spatial_norm)
    pixels = torch.rand(batch, 3, height * 4, width * 4) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert tokenizer.patch == 4
    assert codes.shape == (batch, height, width)
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < tokenizer.codebook_size
    decoded = tokenizer.decode(codes)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1


def test_attention_is_that_of_torch():
    block = AttentionBlock(64)
    assert torch.equal(block(picture := torch.randn(2, 64, 3, 5)), picture), "it starts as nothing"
    awaken(block)
    peer = torch.nn.MultiheadAttention(64, 2, batch_first=True)
    assert peer.in_proj_weight is not None
    with torch.no_grad():
        peer.in_proj_weight.copy_(block.qkv.weight)
        peer.out_proj.weight.copy_(block.out.weight)
        peer.out_proj.bias.copy_(block.out.bias)
        x = torch.randn(2, 15, 64)
        torch.testing.assert_close(block._attend(x), peer(x, x, x, need_weights=False)[0])


def test_with_kernel_1_equal_patches_have_equal_codes():
    torch.manual_seed(0)
    network = ConvolutionalConfig(2, (8, 32), (1, 1), (1, 1), False, encoder_kernel=1, decoder_attention=1)
    tokenizer = ImageTokenizer(network, MovingAverageConfig(32, 4, 0.9, 0.25, False, 0.0))
    tokenizer.start_from(torch.rand(8, 3, 32, 32) * 2 - 1)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    codes, patch = tokenizer.encode(pixels)[0], pixels[:, :, 4:8, 8:12]
    assert torch.equal(tokenizer.encode(patch.repeat(1, 1, 2, 3)), codes[1, 2].expand(1, 2, 3))


def test_attention_needs_whole_heads():
    with pytest.raises(ValueError, match="multiple of 32 channels at the last level, not 48"):
        AttentionBlock(48)


@pytest.mark.parametrize("cosine", [False, True])
def test_ids_name_the_nearest_code_and_look_it_up(cosine: bool):
    tokenizer = made(cosine=cosine)
    vectors = tokenizer.encoder(torch.rand(4, 3, 16, 16) * 2 - 1)
    if cosine:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    quantized = tokenizer.quantizer(vectors)
    flat = vectors.movedim(1, -1).reshape(-1, 4)
    nearest = torch.cdist(flat, codebook_of(tokenizer)).argmin(1)  # brute force
    assert torch.equal(quantized.ids.flatten(), nearest)
    torch.testing.assert_close(tokenizer.quantizer.lookup(quantized.ids), quantized.codes)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_autocast_lowers_the_networks_and_not_the_choice_of_codes(config: QuantizerConfig):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ConvolutionalConfig(2, (8, 8), (1, 1), (1, 1), False), config).eval()
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1
    tokenizer.start_from(pixels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        vectors = tokenizer.encoder(pixels)
        quantized = tokenizer.quantize(pixels)
    assert vectors.dtype == torch.bfloat16
    with torch.no_grad():
        alone = tokenizer.quantizer(vectors.float())
    assert torch.equal(quantized.ids, alone.ids)
    assert torch.equal(quantized.codes, alone.codes)


def test_a_row_of_a_batch_does_not_depend_on_the_others():
    tokenizer = made()
    pixels = torch.rand(5, 3, 16, 16) * 2 - 1
    alone = torch.cat([tokenizer.encode(picture[None]) for picture in pixels])
    assert torch.equal(tokenizer.encode(pixels), alone)


def test_gradients_pass_the_quantizer_and_only_training_moves_the_codebook():
    tokenizer = made()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    before = codebook_of(tokenizer).clone()
    tokenizer.encode(pixels)
    assert torch.equal(codebook_of(tokenizer), before)
    tokenizer.train()
    quantized = tokenizer.quantize(pixels)
    assert torch.equal(codebook_of(tokenizer), before), "a step that turns out unsound changes nothing"
    tokenizer.quantizer.update_codebook()
    assert not torch.equal(codebook_of(tokenizer), before)
    tokenizer.decoder(quantized.codes).square().mean().backward()
    linear = networks_of(tokenizer)[0].linear[1]
    assert isinstance(linear, torch.nn.Conv2d)
    assert linear.weight.grad is not None
    assert linear.weight.grad.abs().sum() > 0


def test_the_commitment_pulls_the_encoder_by_its_weight():
    """d/dz of weight * mean((z - code)^2) = 2 * weight * (z - code) / numel: the right term carries the weight."""
    torch.manual_seed(0)
    quantizer = MovingAverageConfig(8, 3, 0.9, 0.25, False, 0.0).build()
    quantizer.start_from(torch.randn(64, 3))
    vectors = torch.randn(2, 3, 4, 4, requires_grad=True)
    codes = quantizer.eval()(vectors).codes.detach()
    quantizer.train()
    quantizer(vectors).loss.backward()
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, 2 * 0.25 * (vectors.detach() - codes) / vectors.numel())


def test_training_starts_from_the_best_linear_reconstruction():
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(
        ConvolutionalConfig(2, (8, 16), (1, 1), (1, 1), False), MovingAverageConfig(32, 6, 0.9, 0.25, False, 0.0)
    )
    pixels = torch.rand(16, 3, 16, 16) * 2 - 1
    tokenizer.network.start_from(tokenizer.encoder, tokenizer.decoder, pixels, whitened=False)
    decoded = tokenizer.decoder(tokenizer.encoder(pixels))
    patches = torch.nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(0)
    left = torch.linalg.svdvals(centred)[6:].square().sum() / patches.numel()  # Eckart and Young
    torch.testing.assert_close((decoded - pixels).square().mean(), left, rtol=1e-4, atol=1e-6)
    advice = r"lower .*codebook_dim \(fsq: give fewer scalar_levels, lfq: lower codebook_size\), or give more pictures"
    with pytest.raises(ValueError, match=f"no 6 principal components: {advice}"):
        tokenizer.network.start_from(tokenizer.encoder, tokenizer.decoder, pixels[:1, :, :4, :4], whitened=False)


def test_more_codes_than_patches_are_refused():
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with pytest.raises(ValueError, match=r"16 patches are too few for 32 codes to begin at: lower .*codebook_size"):
        made(codebook_size=32).start_from(pixels)


EVERY_KIND: dict[str, Callable[[], PixelTokenizer]] = {
    "vqvae": made,
    "vqgan": lambda: VQGAN(VQGANConfig(8, 16, 8, 16, 32, (1, 2), 1)),
    "movqgan": lambda: MoVQGAN(MoVQGANConfig(16, 4, 4, 32, (1, 2), 1, ())),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.full((1, 3, 16, 16), torch.nan), r"pixels reach nan, and have to be finite numbers in -1 \.\. 1"),
        (torch.full((1, 3, 16, 16), -torch.inf), "pixels reach inf"),
        (torch.full((1, 3, 16, 16), 200.0), "pixels reach 200"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"pixels are torch\.uint8, and have to be floating-point"),
        (torch.zeros(0, 3, 16, 16), r"there are no pictures in pixels of shape \(0, 3, 16, 16\)"),
    ],
)
def test_what_cannot_be_pixels_is_refused(kind: str, pixels: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        EVERY_KIND[kind]().encode(pixels)


def test_perplexity_of_even_use_is_the_number_of_codes():
    torch.testing.assert_close(perplexity(torch.full((16,), 1 / 16)), torch.tensor(16.0))
    torch.testing.assert_close(perplexity(torch.tensor([1.0, 0.0])), torch.tensor(1.0))


def test_pixels_and_pictures_are_inverse():
    pictures = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    pixels = to_pixels(pictures)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert torch.equal(to_uint8(pixels), pictures)


def test_a_tokenizer_is_read_as_it_was_written(tmp_path: Path):
    tokenizer = made(spatial_norm=True)
    tokenizer.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.identity == tokenizer.identity
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    with torch.no_grad():
        next(again.parameters()).add_(1e-3)
    assert again.identity != tokenizer.identity


def test_the_identity_and_the_config_of_trained_tokenizers_stay_what_they_were(tmp_path: Path):
    """SHA-256 of the sorted configuration, then of names and bytes of the sorted weights; no word of a kind."""
    tokenizer = made()
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.keys() == {"network", "quantizer"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(load_file(tmp_path / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert tokenizer.identity == digest.hexdigest()


def test_the_class_is_that_of_the_kind_in_the_folder(tmp_path: Path):
    for kind, make in EVERY_KIND.items():
        tokenizer = make()
        tokenizer.save_pretrained(tmp_path / kind)
        assert json.loads((tmp_path / kind / "config.json").read_text()).get("kind", "vqvae") == kind
        again = load_image_tokenizer(tmp_path / kind)
        assert type(again) is type(tokenizer)
        assert again.identity == tokenizer.identity
        assert not again.training
    with pytest.raises(ValueError, match=r"vqgan.config\.json is of .* kind 'vqgan', not 'movqgan'"):
        MoVQGAN.from_pretrained(tmp_path / "vqgan")
    with pytest.raises(ValueError, match="kind 'vqvae', not 'vqgan'"):
        VQGAN.from_pretrained(tmp_path / "vqvae")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"kind": "fsq"}', r"config\.json: kind 'fsq' is none of vqvae, vqgan, movqgan"),
        (b'{"kind": "vqgan", "warp": 1}', r"config\.json is not the configuration .*warp"),
        (b'{"kind": "vqgan", "resolution": 500}', "resolution 500 must be a multiple"),
        (b'{"kind": ["vqgan"]}', "is none of"),
        (b"[]", "no object of settings"),
        (b"\xff\xfe", r"config\.json is not the configuration"),
        (b'{"kind": "vqgan"', r"config\.json is not the configuration"),
    ],
)
def test_a_config_that_names_nothing_known_is_refused_in_one_line(tmp_path: Path, config: bytes, message: str):
    made().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=message) as caught:
        load_image_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokenizer", [VQGAN, MoVQGAN])
def test_damaged_weights_are_named_in_one_line(tmp_path: Path, tokenizer: type[PixelTokenizer]):
    settings = {"base_channels": 32, "channel_multiplier": [1, 2], "codebook_size": 16}
    tokenizer.from_settings(settings).save_pretrained(tmp_path)
    whole = (weights := tmp_path / "model.safetensors").read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"PK\x03\x04" + whole[4:]):
        weights.write_bytes(damage)
        with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights") as caught:
            load_image_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        load_image_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere holds no image tokenizer: config\.json is missing"):
        load_image_tokenizer(tmp_path / "nowhere")


def test_damaged_files_are_named_in_one_line(tmp_path: Path):
    tokenizer = made()
    for damage, named in (("config.json", "config.json"), ("model.safetensors", "model.safetensors")):
        folder = tmp_path / damage
        tokenizer.save_pretrained(folder)
        (folder / damage).write_bytes(b"{}")
        with pytest.raises(ValueError, match=named) as caught:
            ImageTokenizer.from_pretrained(folder)
        assert "\n" not in str(caught.value)
        (folder / damage).unlink()
        with pytest.raises(ValueError, match="is missing"):
            ImageTokenizer.from_pretrained(folder)
    folder = tmp_path / "other"
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantizer"]["codebook_size"] = 16
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights") as caught:
        ImageTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_impossible_sizes_and_settings_are_refused():
    tokenizer = made()
    with pytest.raises(ValueError, match="30 x 32 pixels: sides must be multiples of 4"):
        tokenizer.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="not all in the codebook of 32"):
        tokenizer.decode(torch.full((1, 2, 2), 32))
    with pytest.raises(ValueError, match="codebook_size=1 must be 2"):
        MovingAverageConfig(1, 4, 0.9, 0.25, False, 0.0)
    with pytest.raises(ValueError, match="one number a level"):
        ConvolutionalConfig(4, (8, 16), (1,), (1, 1), False)
