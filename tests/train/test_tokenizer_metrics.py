"""Numbers of a tokenizer against their definitions, and the discriminator's part in training."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from omnigram.tokenizers.image import ImageTokenizer, to_pixels, to_uint8
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.train.image_tokenizer import ImageTokenizerTraining, PatchDiscriminator
from omnigram.train.tokenizer_metrics import measure_codebook, measure_reconstruction, psnr


def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    made = ImageTokenizer(
        ConvolutionalConfig(2, (8, 8), (1, 1), (1, 1), False), MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.0)
    )
    made.start_from(torch.rand(16, 3, 16, 16) * 2 - 1)
    return made.eval()


def test_psnr_is_its_definition_and_has_an_end():
    first = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    second = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    error = (first.numpy().astype(float) - second.numpy()) ** 2
    expected = 20 * np.log10(255) - 10 * np.log10(error.mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(psnr(first, second).numpy(), expected, rtol=1e-5)
    assert psnr(first, first).tolist() == [60.0] * 3


def test_reconstruction_and_codebook_are_counted_over_all_pictures():
    made = tokenizer()
    pictures = torch.randint(0, 256, (10, 16, 16, 3), dtype=torch.uint8)
    measured = measure_reconstruction(made, pictures.split(4))
    codes = made.encode(to_pixels(pictures))
    decoded = to_uint8(made.decode(codes))
    assert measured["pictures"] == 10
    assert measured["psnr"] == pytest.approx(float(psnr(pictures, decoded).mean()), abs=1e-4)
    assert measured["drift"] == pytest.approx(
        float((made.encode(to_pixels(decoded)) != codes).float().mean()), abs=1e-6
    )
    assert -1 <= measured["ssim"] < 1
    counted = measure_codebook(made, pictures.split(4))
    used = np.unique(codes.numpy(), return_counts=True)[1]
    share = used / used.sum()
    assert counted["codebook_usage"] == pytest.approx(len(used) / 16)
    assert counted["codebook_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_the_adversarial_gradient_is_made_as_long_as_the_others():
    settings = OmegaConf.create(
        {
            "trainer": {"ema_decay": 0.9, "max_skipped_steps": 1},
            "discriminator": {"channels": 8, "layers": 2, "weight": 0.5},
        }
    )
    module = ImageTokenizerTraining(tokenizer().train(), settings)
    assert isinstance(module.discriminator, PatchDiscriminator)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    decoded = module.tokenizer.decoder(module.tokenizer.quantize(pixels).codes)
    loss, adversarial = (decoded - pixels).square().mean(), -module.discriminator(decoded).mean()
    weight = module._adversarial_weight(loss, adversarial)
    layer = module.tokenizer.decoder.last_layer
    pull, push = (torch.autograd.grad(term, layer, retain_graph=True)[0].norm() for term in (loss, adversarial))
    torch.testing.assert_close(weight * push, 0.5 * pull, rtol=1e-3, atol=1e-6)
    assert not weight.requires_grad
