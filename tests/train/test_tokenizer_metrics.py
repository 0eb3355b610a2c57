"""Numbers of a tokenizer against their definitions."""

import io
from itertools import count

import numpy as np
import pytest
import torch
from rich.console import Console

from omnigram.tokenizers.image import ImageTokenizer, to_pixels, to_uint8
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.train import picture_progress
from omnigram.train.picture_progress import counted as shown
from omnigram.train.tokenizer_metrics import LEAST_SIDE, measure_codebook, measure_reconstruction, psnr, ssim


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
    assert counted == {name: measured[name] for name in counted}
    used = np.unique(codes.numpy(), return_counts=True)[1]
    share = used / used.sum()
    assert counted["codebook_usage"] == pytest.approx(len(used) / 16)
    assert counted["codebook_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_ssim_says_which_pictures_are_too_small():
    pictures = torch.randint(0, 256, (2, LEAST_SIDE, 16, 3), dtype=torch.uint8)
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match=r"^pictures of 5 x 16 pixels are too small for SSIM, which takes 6 or more"):
        ssim(pictures[:, 1:], pictures[:, 1:])


def test_batches_go_by_with_an_estimate(monkeypatch: pytest.MonkeyPatch):
    batches = torch.zeros(10, 2, 2, 3).split(4)
    seconds = count(step=20)
    monkeypatch.setattr(picture_progress.time, "monotonic", lambda: next(seconds))
    told = io.StringIO()
    assert list(shown(batches, "codes in use", 10, Console(file=told))) == list(batches)
    # a batch takes 20 s, and a line comes after 30 s or more
    assert told.getvalue() == "codes in use: picture 8 of 10, 0 min 10 s left\n"


def test_a_terminal_gets_a_bar():
    told = io.StringIO()
    batches = torch.zeros(10, 2, 2, 3).split(4)
    assert len(list(shown(batches, "codes in use", 10, Console(file=told, force_terminal=True, width=100)))) == 3
    assert "codes in use" in told.getvalue()
    assert "10/10" in told.getvalue()
