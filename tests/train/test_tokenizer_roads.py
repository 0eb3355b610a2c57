"""The whole road behind tokenizers of other shapes: one row of codes, several codes a place, sides of many sizes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from made_road import draw_pictures, overrides
from PIL import Image
from torch import Tensor

from omnigram.data.picture_batches import Pictures
from omnigram.model.bundle import Omnigram
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.networks.network import NetworkConfig
from omnigram.tokenizers.networks.vqgan import VQGANNetworkConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.nearest import k_means
from omnigram.tokenizers.quantizers.quantizer import places
from omnigram.train import tokenizer as tokenizer_step
from omnigram.train.cli import main
from omnigram.train.compose import compose_config
from omnigram.train.image_tokenizer import ImageTokenizerTraining
from omnigram.train.perceptual import PerceptualDistance
from omnigram.train.pretrain import pretrain
from omnigram.train.tokenizer import Reconstructions, Start

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about how they are written

SMALL = ["hidden_size=32", "num_attention_heads=2", "encoder_layers=1", "decoder_layers=1"]
SHORT = ["tokenizer.trainer.max_steps=2", "trainer.max_steps=2", "tokenizer.quantizer.codebook_size=32"]
SHORT += ["evaluation.queries=1", "evaluation.heldout_queries=1", "evaluation.gallery=2", "evaluation.page=1"]
TRANSFORMER = [f"tokenizer.network.{setting}" for setting in SMALL]
QUERIES = ["tokenizer/network=causal_queries", "tokenizer.network.num_queries=6", *TRANSFORMER]


def road(folder: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Omnigram, set[str]]:
    """The export at its end, and the grids of its pictures, a quarter of which are twice as wide as high."""
    pictures = draw_pictures(folder / "pictures")
    for path in sorted(pictures.glob("*-0.png")):
        Image.open(path).resize((64, 32)).save(path)
    monkeypatch.chdir(folder)
    run = pretrain(compose_config([*overrides(pictures), *SHORT, *settings]))
    [record] = (folder / "datasets").glob("tiny-*/dataset.json")
    splits = json.loads(record.read_text())["splits"].values()
    return Omnigram.from_pretrained(run / "export"), {grid for split in splits for grid in split["grids"]}


def test_one_row_of_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    omnigram, grids = road(tmp_path, QUERIES, monkeypatch)
    assert grids == {"1x6"}
    [drawn] = omnigram.draw("red circle")
    assert drawn.size == (64, 64)
    assert omnigram.codes(Image.new("RGB", (40, 90))).shape == (1, 6)
    with pytest.raises(ValueError, match=r"^this model's pictures are one row of codes"):
        omnigram.complete(drawn, rows=1)
    with pytest.raises(ValueError, match=r"^a picture of 128 x 64 pixels: this image tokenizer takes 64 x 64 alone$"):
        omnigram.draw("red circle", size=(128, 64))
    for step, settings, message in (
        ("tokenizer", ["tokenizer.network.resolution=128"], "pictures of 64 pixels are not cut into codes of 128"),
        (
            "tokenizer",
            ["tokenizer.network.resolution=32"],
            "of 64 x 64 pixels: this image tokenizer takes 32 x 32 alone",
        ),
        ("tokenizer", ["tokenizer.quantizer.codebook_size=1048576"], "patches are too few for 1048576 codes to begin"),
        ("tokens", ["tokens.resolution=128"], "of 128 x 128 pixels: this image tokenizer takes 64 x 64 alone"),
    ):
        capsys.readouterr()
        assert main([step, *overrides(tmp_path / "pictures"), *SHORT, *QUERIES, *settings]) != 0
        told = capsys.readouterr().err.strip().splitlines()
        assert message in told[-1]
        assert "Traceback" not in "".join(told)
    assert len(list((tmp_path / "runs/tokenizer").glob("*/run.json"))) == 2, "the one that was trained, and latest"


def test_two_codes_a_place_of_pictures_of_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = ["tokenizer/network=vit", *TRANSFORMER, "tokenizer/quantizer=residual", "tokenizer.pictures.max_ratio=2"]
    omnigram, grids = road(tmp_path, settings, monkeypatch)
    assert grids == {"8x16", "6x20"}, "two codes for each of 8 x 8 and 6 x 10 places"
    [drawn] = omnigram.draw("red circle", size=(48, 80))
    assert drawn.size == (80, 48)
    for width, height in ((64, 64), (80, 48), (200, 125), (60, 70)):  # the nearest in shape, in pixels, not in codes
        rows, columns = omnigram.codes(Image.new("RGB", (width, height))).shape
        assert (rows, columns) == ((6, 20) if width > 1.3 * height else (8, 16))
    [whole] = omnigram.complete(drawn, rows=2)
    assert whole.size == (80, 48)
    assert omnigram.draw("red circle", size=(24, 56))[0].size == (56, 24), "a size never trained on"


# Beginnings, held-out numbers, and what is refused, without the road around them

PLAIN = ConvolutionalConfig(2, (8, 8), (1, 1), (1, 1), False)
SETTINGS = ["tokenizer.quantizer.codebook_size=16", "tokenizer.quantizer.codebook_dim=4"]


def of_sizes(*sizes: tuple[int, int]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, *size, generator=draw) * 2 - 1 for size in sizes]


@pytest.mark.parametrize("network", [PLAIN, VQGANNetworkConfig(32, (1, 2, 2), 1, (2,), latent_channels=8)])
def test_codes_begin_among_pictures_of_all_sizes(network: NetworkConfig):
    batches = of_sizes((16, 24), (24, 16), (20, 20))
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(network, GradientConfig(120, 4, 0.25, False)).eval()
    with pytest.raises(ValueError, match="48 patches are too few for 120 codes to begin at"):
        tokenizer.start_from(batches[0])
    tokenizer.start_from(*batches)
    vectors = torch.cat([places(tokenizer.encoder(pixels).detach()) for pixels in batches])
    torch.testing.assert_close(tokenizer.quantizer.codebook.detach(), k_means(vectors, 120)[0])  # pyright: ignore


def test_components_are_those_of_the_middles_of_all_pictures():
    wide, tall = of_sizes((16, 24), (24, 16))
    tokenizer = ImageTokenizer(PLAIN, GradientConfig(8, 4, 0.25, False))
    tokenizer.start_from(wide, tall)
    middles = torch.cat([wide[..., 4:20], tall[:, :, 4:20]])
    again = ImageTokenizer(PLAIN, GradientConfig(8, 4, 0.25, False))
    again.network.start_from(again.encoder, again.decoder, middles, whitened=False)
    for name in ("encoder.linear.1.weight", "encoder.linear.1.bias", "decoder.linear.0.weight"):
        torch.testing.assert_close(tokenizer.state_dict()[name], again.state_dict()[name])


class Module(ImageTokenizerTraining):
    """Of a small tokenizer, without a trainer; it notes the pixels that it begins at."""

    def __init__(self) -> None:
        settings = compose_config(SETTINGS).tokenizer
        super().__init__(ImageTokenizer(PLAIN, tokenizer_step.quantizer_config(settings.quantizer)), settings)
        self.begun: list[tuple[int, ...]] = []

    def start_from(self, *batches: Tensor) -> None:
        self.begun = [tuple(batch.shape) for batch in batches]
        super().start_from(*batches)


class Counted(list[Any]):
    """Pictures, and how often one was read."""

    def __init__(self, number: int) -> None:
        sizes = [(16, 24), (24, 16), (16, 16)]
        draw = np.random.default_rng(0)
        super().__init__(draw.integers(0, 256, (*sizes[i % 3], 3), dtype=np.uint8) for i in range(number))
        self.read: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return super().__getitem__(index)


def test_a_training_begins_at_pictures_of_all_sizes():
    module = Module()
    Start(cast(Pictures, Counted(9)), 9).on_train_start(cast(Trainer, None), module)
    assert sorted(module.begun) == [(3, 3, 16, 16), (3, 3, 16, 24), (3, 3, 24, 16)]


def test_held_out_numbers_are_of_so_many_pictures_of_the_whole_split_read_once():
    module, pictures, logged = Module(), Counted(50), []
    module.start_from(torch.rand(4, 3, 16, 16) * 2 - 1)
    settings = module.settings.trainer.copy()
    settings.validation_pictures, settings.validate_every_n_steps, settings.evaluation_batch_size = 8, 2, 3
    logger = SimpleNamespace(log_metrics=lambda numbers, step: logged.append((step, numbers)))
    callback = Reconstructions(cast(Pictures, pictures), settings)
    for _ in range(4):
        module.steps_done += 1
        callback.on_train_batch_end(cast(Trainer, SimpleNamespace(loggers=[logger])), module, None, None, 0)
    assert [step for step, _ in logged] == [2, 4]
    assert pictures.read == [0, 7, 14, 21, 28, 35, 42, 49], "spread over the split, and not read again"
    names = {"psnr", "ssim", "drift", "codebook_usage", "codebook_perplexity"}
    assert logged[0][1].keys() == {f"val/{name}" for name in names}
    assert 0 < logged[0][1]["val/codebook_usage"] <= 1
    assert logged[0][1] == logged[1][1]


def far_seeing() -> PerceptualDistance:
    """For pictures of 128 pixels and more."""
    block = [(torch.zeros(3, 3, 3, 3), torch.zeros(3))]
    return PerceptualDistance("lpips", [block] * 8, [torch.ones(3)] * 8, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["tokenizer.pictures.resolution=4", "tokenizer.network.stem=2"],
            "pictures of 4 x 4 pixels are too small for SSIM, which takes 6 or more: raise tokenizer.pictures.resolut",
        ),
        (
            ["tokenizer=movqgan", "tokenizer.discriminator.layers=7"],
            "pictures of 64 x 64 pixels are too small for a discriminator that halves them 7 times: lower tokenizer.d",
        ),
        (
            ["tokenizer=movqgan", "tokenizer.discriminator.layers=6", "tokenizer.pictures.max_ratio=2"],
            "pictures of 48 x 80 pixels are too small for a discriminator that halves them 6 times",
        ),
        (
            ["tokenizer.loss.perceptual=1"],
            "pictures of 64 x 64 pixels are too small for lpips, which takes 128 or more: raise tokenizer.pictures.re",
        ),
    ],
)
def test_pictures_that_are_too_small_are_refused_before_any_is_made(
    settings: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenizer_step, "loss_distance", lambda loss: far_seeing() if loss.perceptual > 0 else None)
    assert main(["tokenizer", *overrides(draw_pictures(tmp_path / "pictures")), *settings]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "datasets").exists()
