"""An image tokenizer without loss on the pictures made for it, and what else a judge is shown."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from omnigram.data.fitting import Fitting
from omnigram.tokenizers.pixel_tokenizer import PixelTokenizer
from omnigram.train.judge.picture_sets import PictureSet
from omnigram.train.judge.subject import Subject

PATCH, CODES = 4, 16


class Greys(PixelTokenizer):
    """Each code is a patch of one grey."""

    kind = "greys"
    patch = PATCH  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    codebook_size = CODES  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        super().__init__()
        self.greys = nn.Parameter(torch.arange(CODES) * 17 / 127.5 - 1, requires_grad=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        return cls()

    def _ids(self, pixels: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(pixels, PATCH).mean(1)
        return (means[..., None] - self.greys).abs().argmin(-1)

    def _pixels(self, ids: Tensor) -> Tensor:
        greys = self.greys[ids].repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        return greys[:, None].expand(-1, 3, -1, -1)


def subject(side: int = 32) -> Subject:
    return Subject(Path("greys"), Greys().eval(), Fitting(PATCH, side))


def patches(number: int, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Pictures of patches of the tokenizer's greys: nothing of them is lost."""
    codes = np.random.default_rng(seed).integers(0, CODES, (number, side // PATCH, side // PATCH, 1))
    whole = np.kron(codes * 17, np.ones((1, PATCH, PATCH, 3))).astype(np.uint8)
    return list(whole)


def scenes(number: int, side: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Pictures with slopes, edges and a little noise, which codecs and tokenizers lose something of."""
    draw = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side] / side
    pictures = []
    for _ in range(number):
        base, slope, disc = draw.uniform(40, 200, 3), draw.uniform(-60, 60, (2, 3)), draw.uniform(0, 255, 3)
        picture = base + down[..., None] * slope[0] + across[..., None] * slope[1]
        y, x, radius = draw.uniform(0.2, 0.8, 3)
        picture[(down - y) ** 2 + (across - x) ** 2 < (radius / 3) ** 2] = disc
        pictures.append((picture + draw.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8))
    return pictures


def picture_set(pictures: list[np.ndarray]) -> PictureSet:
    return PictureSet("made", {"folder": "made"}, pictures)


def write_pictures(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder
