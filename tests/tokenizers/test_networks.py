"""The networks: one behaviour of all around several quantizers, the published layers of each, and what is refused."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_published import random_pictures, shake
from torch import Tensor, nn

from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.kinds import kind_settings
from omnigram.tokenizers.movqgan import MoVQGAN
from omnigram.tokenizers.networks import KINDS, network_config
from omnigram.tokenizers.networks import network as network_file
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.networks.dvae import DVAEConfig
from omnigram.tokenizers.networks.movqgan import MoVQGANNetworkConfig
from omnigram.tokenizers.networks.network import NetworkConfig, encoded
from omnigram.tokenizers.networks.queries import QueriesConfig
from omnigram.tokenizers.networks.transformer import Block, Rotation, grid_rotation
from omnigram.tokenizers.networks.vit import ViTConfig
from omnigram.tokenizers.networks.vqgan import VQGANNetworkConfig
from omnigram.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig, places
from omnigram.tokenizers.vqgan import VQGAN

EMA = MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.0)
QUANTIZERS: dict[str, QuantizerConfig] = {
    "ema": EMA,
    "gradient": GradientConfig(16, 4, 0.25, False),
    "fsq": FiniteScalarConfig((4, 3, 5)),
    "lfq": LookupFreeConfig(16, 0.25, 0.1, 1.0, 1.0),
    "gumbel": GumbelConfig(16, 4, 5e-4, 1.0, 0.1, True),
    "residual": MultiCodebookConfig(2, True, 16, 4, 0.9, 0.25, False, 0.0),
}
FLAT: dict[str, NetworkConfig] = {  # of any size, all f4
    "convolutional": ConvolutionalConfig(2, (8, 32), (1, 1), (1, 1), False, encoder_attention=1, decoder_attention=1),
    "convolutional, spatial norm": ConvolutionalConfig(4, (32,), (1,), (1,), True, decoder_attention=1),
    "vqgan": VQGANNetworkConfig(32, (1, 2, 2), 1, (2,), latent_channels=8),
    "movqgan": MoVQGANNetworkConfig(32, (1, 2, 2), 1, (2,), temporal_downsample_factor=4),
    "dvae": DVAEConfig(32, (1, 1, 2), 1, 16),
    "vit": ViTConfig(4, 32, 2, 1, 1),
}
ORDERED = QueriesConfig(16, 4, 6, 32, 2, 2, 2, causal=True, tail_dropout=0.5)
SMALL: dict[str, NetworkConfig] = {
    **FLAT,
    "queries": QueriesConfig(16, 4, 6, 32, 2, 1, 1, causal=False, tail_dropout=0.0),
    "queries, ordered": ORDERED,
}
every = pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)


@torch.no_grad()
def awaken(module: nn.Module) -> None:
    """Give weights that start at zero values that matter."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)


def made(network: NetworkConfig, quantizer: QuantizerConfig = EMA) -> ImageTokenizer:
    """In eval mode."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(network, quantizer).eval()
    awaken(tokenizer)
    tokenizer.start_from(random_pictures(8, 16, 16))
    return tokenizer


@cache
def shared(network: NetworkConfig) -> ImageTokenizer:
    """The same, for tests that leave it as it is."""
    return made(network)


def test_every_kind_is_tested_here_and_its_settings_go_back():
    assert {network.kind for network in SMALL.values()} == set(KINDS)
    for network in SMALL.values():
        assert network_config(kind_settings(network)) == network


# What all of them do


@pytest.mark.parametrize("network", FLAT.values(), ids=FLAT)
@settings(max_examples=5)
@given(height=st.integers(1, 5), width=st.integers(1, 5), batch=st.integers(1, 3))
def test_pictures_of_any_shape_go_there_and_back(network: NetworkConfig, height: int, width: int, batch: int):
    tokenizer = shared(network)
    pixels = random_pictures(batch, 4 * height, 4 * width)
    ids = tokenizer.encode(pixels)
    assert ids.shape == (batch, height, width)
    assert tokenizer.grid(4 * height, 4 * width) == (height, width)
    assert tokenizer.size(height, width) == (4 * height, 4 * width)
    assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.codebook_size
    assert tokenizer.decode(ids).shape == pixels.shape


@every
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_gradients_reach_every_weight_around_any_quantizer(network: NetworkConfig, quantizer: QuantizerConfig):
    tokenizer = made(network, quantizer).train()
    pixels = random_pictures(4, 16, 16)
    quantized = tokenizer.quantize(pixels)
    rows, columns = tokenizer.grid(16, 16)
    assert quantized.ids.shape == (4, rows, columns)
    decoded = tokenizer.decoder(quantized.codes)
    assert decoded.shape == pixels.shape
    (F.mse_loss(decoded, pixels) + quantized.loss).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    assert tokenizer.decoder.last_layer.grad is not None


@every
def test_training_lowers_the_loss(network: NetworkConfig):
    tokenizer = made(network).train()
    pixels = F.interpolate(random_pictures(4, 4, 4), scale_factor=4.0)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        quantized = tokenizer.quantize(pixels)
        loss = F.mse_loss(tokenizer.decoder(quantized.codes), pixels) + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@every
def test_the_last_layer_makes_the_pixels(network: NetworkConfig):
    """Its output is affine in this weight: scaled by s, what it adds to the pixels grows by s."""
    decoder = made(network).decoder
    codes = torch.randn(2, 4, *network.grid(16, 16))
    with torch.no_grad():
        found = []
        for scale in (0.0, 1.0, 3.0):
            before = decoder.last_layer.clone()
            decoder.last_layer.mul_(scale)
            found.append(decoder(codes))
            decoder.last_layer.copy_(before)
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2] - found[0], 3 * (found[1] - found[0]), rtol=1e-3, atol=1e-4)


@every
def test_a_row_of_a_batch_does_not_depend_on_the_others(network: NetworkConfig):
    tokenizer = shared(network)
    pixels = random_pictures(5, 16, 16)
    ids = tokenizer.encode(pixels)
    assert len(ids.unique()) > 3
    assert torch.equal(ids, torch.cat([tokenizer.encode(picture[None]) for picture in pixels]))
    alone = torch.cat([tokenizer.decode(row[None]) for row in ids])
    torch.testing.assert_close(tokenizer.decode(ids), alone, rtol=1e-4, atol=1e-5)


@every
def test_a_tokenizer_is_read_as_it_was_written(network: NetworkConfig, tmp_path: Path):
    tokenizer = shared(network)
    tokenizer.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.network == network
    assert again.identity == tokenizer.identity
    ids = tokenizer.encode(random_pictures(3, 16, 16))
    assert torch.equal(again.encode(random_pictures(3, 16, 16)), ids)
    assert torch.equal(again.decode(ids), tokenizer.decode(ids))


@every
@pytest.mark.parametrize("sides", [(2, 2), (16, 2), (18, 16), (0, 16)])
def test_sides_that_are_no_whole_codes_are_refused_in_one_line(network: NetworkConfig, sides: tuple[int, int]):
    tokenizer = shared(network)
    with pytest.raises(ValueError, match=rf"{sides[0]} x {sides[1]} pixels: sides must be multiples of") as caught:
        tokenizer.encode(torch.zeros(1, 3, *sides))
    assert "\n" not in str(caught.value)


@every
def test_many_pictures_are_encoded_in_parts_alike(network: NetworkConfig, monkeypatch: pytest.MonkeyPatch):
    encoder = shared(network).encoder
    pixels = random_pictures(7, 16, 16)
    whole = encoded(encoder, pixels)
    monkeypatch.setattr(network_file, "TOGETHER", 3 * 16 * 16)
    torch.testing.assert_close(encoded(encoder, pixels), whole, rtol=1e-4, atol=1e-5)


SCALED = {name: network for name, network in SMALL.items() if network.kind not in ("convolutional", "vit")}


@pytest.mark.parametrize("network", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("whitened", [False, True])
def test_vectors_begin_with_unit_variance(network: NetworkConfig, whitened: bool):
    torch.manual_seed(0)
    encoder, decoder = network.encoder(4).eval(), network.decoder(4)
    pixels = random_pictures(64, 16, 16)
    network.start_from(encoder, decoder, pixels, whitened)
    vectors = places(encoder(pixels).detach())
    torch.testing.assert_close(vectors.mean(0), torch.zeros(4), rtol=0, atol=1e-2)
    variances = vectors.var(0)
    torch.testing.assert_close(variances.mean(), torch.tensor(1.0), rtol=1e-2, atol=0)
    if whitened:
        torch.testing.assert_close(variances, torch.ones(4), rtol=1e-2, atol=0)


# VQGAN, MoVQGAN, dVAE


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


# Transformers


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


def test_rotations_are_products_of_complex_numbers():
    rotation = grid_rotation(3, 5, 16, torch.device("cpu"))
    x = torch.randn(2, 4, 15, 16)
    turned = rotation(x)
    for place in range(15):
        row, column = divmod(place, 5)
        angles = [row * 100 ** (-i / 4) for i in range(4)] + [column * 100 ** (-i / 4) for i in range(4)]
        product = torch.complex(x[:, :, place, :8], x[:, :, place, 8:]) * torch.polar(
            torch.ones(8), torch.tensor(angles)
        )
        torch.testing.assert_close(turned[:, :, place], torch.cat((product.real, product.imag), dim=-1))


@settings(max_examples=20)
@given(st.tuples(*[st.integers(0, 6)] * 4), st.tuples(*[st.integers(0, 5)] * 2))
def test_rotated_products_know_offsets_alone(places_: tuple[int, int, int, int], shift: tuple[int, int]):
    rotation = grid_rotation(12, 12, 8, torch.device("cpu"))
    q, k = torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)

    def product(r1: int, c1: int, r2: int, c2: int) -> Tensor:
        turned = [
            Rotation(rotation.cos[12 * r + c, None], rotation.sin[12 * r + c, None])(x[None])[0]
            for x, r, c in ((q, r1, c1), (k, r2, c2))
        ]
        return turned[0] @ turned[1]

    r1, c1, r2, c2 = places_
    moved = product(r1 + shift[0], c1 + shift[1], r2 + shift[0], c2 + shift[1])
    torch.testing.assert_close(moved, product(r1, c1, r2, c2), rtol=1e-4, atol=1e-4)


def test_a_vit_tells_places_apart():
    """Of a picture that is turned by a right angle, codes are not those turned: rows are not columns."""
    network = ViTConfig(4, 32, 2, 2, 2)
    torch.manual_seed(0)
    encoder = network.encoder(4)
    awaken(encoder)
    pixels = torch.ones(1, 3, 16, 16)
    pixels[..., :8, :4] = -1  # each patch is of one colour, so that only places could tell
    turned = encoder(pixels.mT)
    assert not torch.allclose(encoder(pixels), turned.mT, atol=1e-4)


def test_a_vit_starts_from_the_best_linear_reconstruction():
    torch.manual_seed(0)
    network = FLAT["vit"]
    encoder, decoder = network.encoder(6), network.decoder(6)
    pixels = random_pictures(16, 16, 16)
    network.start_from(encoder, decoder, pixels, whitened=False)
    patches = F.unfold(pixels, 4, stride=4).transpose(1, 2).flatten(0, 1)
    left = torch.linalg.svdvals(patches - patches.mean(0))[6:].square().sum() / patches.numel()  # Eckart and Young
    torch.testing.assert_close((decoder(encoder(pixels)) - pixels).square().mean(), left, rtol=1e-4, atol=1e-6)


# Queries


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_causal_query_does_not_depend_on_later_ones(first: int):
    torch.manual_seed(0)
    pixels = random_pictures(2, 16, 16)
    for causal in (True, False):
        encoder = QueriesConfig(16, 4, 6, 32, 2, 3, 1, causal, 0.0).encoder(4)
        before = encoder(pixels)
        encoder.queries[first:].normal_()
        after = encoder(pixels)
        assert torch.equal(before[..., :first], after[..., :first]) == causal
        changed = (before != after)[..., first:].any(dim=1)
        assert changed.all()


@torch.no_grad()
def test_every_query_sees_every_patch_and_those_before_it():
    torch.manual_seed(0)
    encoder = ORDERED.encoder(4)
    pixels = random_pictures(1, 16, 16)
    before = encoder(pixels)
    for row in range(4):
        for column in range(4):
            other = pixels.clone()
            other[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] *= -1
            assert (encoder(other) != before).any(dim=1).all(), (row, column)
    encoder.queries[0].normal_()
    assert (encoder(pixels) != before).any(dim=1).all()


def test_the_first_codes_are_decoded_alone_and_trained_for_it():
    tokenizer = made(ORDERED)
    ids = tokenizer.encode(random_pictures(3, 16, 16))
    wholes = [tokenizer.decode(ids[..., :length]) for length in range(1, 7)]
    assert all(whole.shape == (3, 3, 16, 16) for whole in wholes)
    assert all(not torch.equal(wholes[-1], part) for part in wholes[:-1])
    other = ids.clone()
    other[..., 3:] = (other[..., 3:] + 1) % 16
    assert torch.equal(tokenizer.decode(other[..., :3]), wholes[2])
    decoder = tokenizer.decoder.train()
    codes = tokenizer.quantizer.lookup(ids)
    with torch.no_grad():
        of_length = [decoder.eval()(codes[..., :length]) for length in range(1, 7)]
        decoder.train()
        lengths = []
        for seed in range(200):
            torch.manual_seed(seed)
            decoded = decoder(codes)
            lengths.append(next(n for n, part in enumerate(of_length, 1) if torch.equal(part, decoded)))
    counts = torch.bincount(torch.tensor(lengths), minlength=7)[1:]
    assert (counts[:5] > 5).all(), "of half of the steps each length an equal share"
    assert counts[5] > 80, "of the others all codes"


def test_pictures_and_grids_of_another_size_are_refused():
    tokenizer = shared(SMALL["queries"])
    assert tokenizer.grid(16, 16) == (1, 6)
    assert tokenizer.size(1, 6) == (16, 16)
    with pytest.raises(ValueError, match=r"^a picture of 32 x 16 pixels: this image tokenizer takes 16 x 16 alone$"):
        tokenizer.encode(torch.zeros(1, 3, 32, 16))
    for shape in ((1, 5), (1, 7), (2, 3)):
        with pytest.raises(ValueError, match=rf"^{shape[0]} x {shape[1]} codes are no picture: it has 1 row of 6$"):
            tokenizer.decode(torch.zeros(1, *shape, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1 row of 1 to 6$"):
        made(ORDERED).decode(torch.zeros(1, 1, 7, dtype=torch.int64))
    residual = made(SMALL["queries"], QUANTIZERS["residual"])
    assert residual.grid(16, 16) == (1, 12)
    with pytest.raises(ValueError, match="11 columns of codes are no whole number of places of 2 codes"):
        residual.decode(torch.zeros(1, 1, 11, dtype=torch.int64))


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("vqgan", {"base_channels": 48}, r"base_channels 48 .* must be multiples of the 32 groups"),
        ("vqgan", {"channel_multiplier": []}, "at least one level"),
        ("vqgan", {"attention_levels": [3]}, r"attention_levels=\[3\] must be indices of the 3 levels .*: 0 \.\. 2"),
        ("vqgan", {"latent_channels": 0}, "latent_channels 0 must be 1 or more"),
        ("movqgan", {"temporal_downsample_factor": 3}, r"temporal_downsample_factor 3 must be 1, 2, 4, …"),
        ("movqgan", {"attention_levels": [-1]}, r"attention_levels=\[-1\] must be indices"),
        ("dvae", {"base_channels": 6}, r"base_channels=6 times .*\[1, 1, 2\] must be multiples of 4"),
        ("dvae", {"channel_multiplier": []}, "must be multiples of 4"),
        ("vit", {"hidden_size": 36}, r"hidden_size=36 must be a multiple of four times .*num_attention_heads=2"),
        ("queries", {"num_attention_heads": 3}, r"hidden_size=32 must be a multiple of four times"),
        ("queries", {"resolution": 18}, r"resolution=18 must be a multiple of .*patch_size=4"),
        ("queries", {"kind": "magic"}, r"network\.kind=magic is unknown: there is convolutional, "),
        ("queries", {"levels": 3}, r"network\.levels is no setting of queries, which takes resolution, "),
    ],
)
def test_settings_that_cannot_be_are_named(network: str, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        network_config({**kind_settings(SMALL[network]), **changes})
    assert "\n" not in str(caught.value)
