"""From a picture to the pixels that a published image tokenizer was trained on, to the bit as its source has them.

| value                  | source                                                                                     |
| ---------------------- | ------------------------------------------------------------------------------------------ |
| CHAMELEON              | https://github.com/facebookresearch/chameleon, chameleon/inference/image_tokenizer.py      |
| CHAMELEON_TRANSFORMERS | transformers' ChameleonImageProcessor: other roundings, and white is .989                  |
| EMU3                   | https://github.com/baaivision/Emu3, emu3/tokenizer/image_processing_emu3visionvq.py        |
| EMU3_TRANSFORMERS      | transformers' Emu3ImageProcessor: its defaults, with the mean and deviation of CLIP        |
| EMU3_5                 | https://github.com/baaivision/Emu3.5, src/utils/input_utils.py, image_area of Emu3.5-Image |

A picture goes through five steps: its transparency, a resize, a centred crop, `scale`, and `mean` with `std`. Each is a
field or two, so that a source is a value. Dimensions: h, w sides of what comes out, in pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

RGB = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes pixels: data only, rebuilt by `Preprocessing(**dataclasses.asdict(…))`, also through JSON.

    resize: "keep", or how the new size follows from the old one:
        "short_side"        the short side becomes `side`, the long one is rounded (Meta)
        "short_side_floor"  the same, the long one is cut to an integer (transformers)
        "area_range"        multiples of `multiple`, between `min_pixels` and `max_pixels` in all (Emu3)
        "area"              multiples of `multiple`, about `max_pixels` in all (Emu3.5)
    resample: filter of the resize by PIL's name in lower case, such as "bicubic".
    transparency: "ignore", or how a picture lies on white: "composite" in PIL's integers, "blend" in reals that are
        then cut to integers, but with the alpha of an RGB picture (a transparent colour) ignored (Meta).
    crop: height and width about the centre, with black where the picture is smaller.
    scale, mean, std: pixels are (scale * v - mean) / std for the values v = 0 .. 255 of each colour.
    precision: of what follows the scale; "float64" rounds once, at the end.
    min_side, max_ratio: a picture with a shorter side or with sides more different than that is refused. Without need
        of the source, `max_ratio` keeps a strip of pixels from becoming a picture of gigabytes.

    ValueError in one line for what contradicts itself.
    """

    transparency: str
    resize: str
    scale: float
    mean: RGB
    std: RGB
    precision: str = "float32"
    resample: str = "bicubic"
    side: int | None = None
    multiple: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    crop: tuple[int, int] | None = None
    min_side: int = 1
    max_ratio: float = 200

    def __post_init__(self) -> None:
        for name in ("mean", "std", "crop"):  # lists, when they come from JSON
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _one_of("transparency", self.transparency, _ON_WHITE)
        _one_of("resize", self.resize, _SIZES)
        _one_of("resample", self.resample, FILTERS)
        _one_of("precision", self.precision, ("float32", "float64"))
        for name in ("side", "multiple", "min_pixels", "max_pixels"):
            value, needed = getattr(self, name), name in _NEEDS[self.resize]
            if (value is not None) != needed or (value is not None and value < 1):
                what = "a positive number" if needed else "None"
                raise ValueError(f"{name}={value!r} with resize={self.resize!r}: set it to {what}")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}")
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise ValueError(f"crop={self.crop} must be a height and a width, or None")
        if self.scale == 0 or len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise ValueError(f"scale={self.scale}, mean={self.mean}, std={self.std}: three colours each, none by 0")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that a picture of these gets before the crop. ValueError for one that is refused."""
        if height < 1 or width < 1:
            raise ValueError(f"a picture of {width} x {height} pixels is empty")
        if min(height, width) < self.min_side:
            raise ValueError(f"a picture of {width} x {height} pixels: no side may be below min_side={self.min_side}")
        if max(height, width) > self.max_ratio * min(height, width):
            raise ValueError(
                f"a picture of {width} x {height} pixels: one side may be max_ratio={self.max_ratio:g} "
                "times the other; crop it"
            )
        return _SIZES[self.resize](height, width, **{name: getattr(self, name) for name in _NEEDS[self.resize]})

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The h and w of the pixels of a picture of this height and width."""
        size = self.resized(height, width)
        return self.crop or size

    def __call__(self, picture: Image.Image) -> Float[Tensor, "3 h w"]:
        """A picture of any mode -> its pixels, float32. ValueError for an empty one, and for sides that are refused."""
        height, width = self.resized(picture.height, picture.width)
        picture = _ON_WHITE[self.transparency](picture)
        if self.resize != "keep":
            picture = picture.resize((width, height), FILTERS[self.resample])
        if self.crop is not None:
            crop_height, crop_width = self.crop
            top, left = (height - crop_height) // 2, (width - crop_width) // 2
            picture = picture.crop((left, top, left + crop_width, top + crop_height))
        mean, std = np.array(self.mean, self.precision), np.array(self.std, self.precision)
        scaled = (np.asarray(picture, np.float64) * self.scale).astype(self.precision)
        pixels = ((scaled - mean) / std).astype(np.float32)
        return rearrange(torch.from_numpy(pixels), "h w c -> c h w").contiguous()

    def invert(self, pixels: Float[Tensor, "3 h w"]) -> Image.Image:
        """Pixels -> an RGB picture, rounded to the nearest value and clamped to 0 .. 255 (the sources cut instead)."""
        mean, std = (torch.tensor(value, dtype=torch.float64) for value in (self.mean, self.std))
        values = (rearrange(pixels.detach().cpu().double(), "c h w -> h w c") * std + mean) / self.scale
        return Image.fromarray(values.round().clamp(0, 255).to(torch.uint8).numpy())


def _one_of(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is none of {', '.join(choices)}")


def _ignore(picture: Image.Image) -> Image.Image:
    if "transparency" in picture.info:  # PIL would warn of what is wanted here
        picture = picture.copy()
        del picture.info["transparency"]
    return picture.convert("RGB")


def _composite(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _blend(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    values = np.asarray(picture.convert("RGBA"))
    alpha = values[:, :, 3:] / 255
    return Image.fromarray(((1 - alpha) * 255 + alpha * values[:, :, :3]).astype(np.uint8))


def _short_side(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / min(height, width)
    return round(scale * height), round(scale * width)


def _short_side_floor(height: int, width: int, side: int) -> tuple[int, int]:
    short = min(height, width)
    return int(side * height / short), int(side * width / short)


def _area_range(height: int, width: int, multiple: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    near = round(height / multiple) * multiple, round(width / multiple) * multiple
    if near[0] * near[1] > max_pixels:
        ratio = math.sqrt(height * width / max_pixels)
        steps = (max(1, math.floor(side / ratio / multiple)) for side in (height, width))
    elif near[0] * near[1] < min_pixels:
        ratio = math.sqrt(min_pixels / (height * width))
        steps = (math.ceil(side * ratio / multiple) for side in (height, width))
    else:
        return near
    new_height, new_width = (step * multiple for step in steps)
    return new_height, new_width


def _area(height: int, width: int, multiple: int, max_pixels: int) -> tuple[int, int]:
    aspect = width / height
    new_height = int((max_pixels / aspect) ** 0.5)
    new_width = int(new_height * aspect)
    new_height, new_width = (max(1, (side + multiple // 2) // multiple) * multiple for side in (new_height, new_width))
    return new_height, new_width


_ON_WHITE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "ignore": _ignore,
    "composite": _composite,
    "blend": _blend,
}
_SIZES: dict[str, Callable[..., tuple[int, int]]] = {
    "keep": lambda height, width: (height, width),
    "short_side": _short_side,
    "short_side_floor": _short_side_floor,
    "area_range": _area_range,
    "area": _area,
}
_NEEDS = {  # the fields that each of them takes
    "keep": (),
    "short_side": ("side",),
    "short_side_floor": ("side",),
    "area_range": ("multiple", "min_pixels", "max_pixels"),
    "area": ("multiple", "max_pixels"),
}
FILTERS = {name.lower(): value for name, value in Image.Resampling.__members__.items()}

CHAMELEON = Preprocessing(
    transparency="blend",
    resize="short_side",
    side=512,
    resample="lanczos",
    crop=(512, 512),
    scale=1 / 127.5,
    mean=(1.0, 1.0, 1.0),
    std=(1.0, 1.0, 1.0),
    precision="float64",
)
CHAMELEON_TRANSFORMERS = replace(
    CHAMELEON, transparency="composite", resize="short_side_floor", scale=0.0078, precision="float32"
)
EMU3 = Preprocessing(
    transparency="ignore",
    resize="area_range",
    multiple=8,
    min_pixels=512 * 512,
    max_pixels=1024 * 1024,
    scale=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    min_side=8,
    max_ratio=5,
)
EMU3_TRANSFORMERS = replace(
    EMU3,
    transparency="composite",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    min_side=1,
    max_ratio=200,
)
EMU3_5 = Preprocessing(
    transparency="ignore",
    resize="area",
    multiple=16,
    max_pixels=1024 * 1024,
    scale=1 / 127.5,
    mean=(1.0, 1.0, 1.0),
    std=(1.0, 1.0, 1.0),
    precision="float64",
)
