"""The networks: one behaviour of all, around several quantizers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_networks import FLAT, QUANTIZERS, SMALL, made, shared
from made_published import random_pictures

from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.kinds import kind_settings
from omnigram.tokenizers.networks import KINDS, network_config
from omnigram.tokenizers.networks import network as network_file
from omnigram.tokenizers.networks.network import NetworkConfig, encoded
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig, places

every = pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)


def test_every_kind_is_tested_here_and_its_settings_go_back():
    assert {network.kind for network in SMALL.values()} == set(KINDS)
    for network in SMALL.values():
        assert network_config(kind_settings(network)) == network


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
