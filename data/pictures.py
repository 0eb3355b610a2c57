"""Encoded pictures of any kind -> RGB of the sizes the image tokenizer takes.

H x W x 3 pixels, uint8. Transparent pictures are laid over white, animations give their first frame, the orientation
that a camera noted is applied. What cannot be a training picture is refused with the reason.
"""

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000  # a picture of more is refused before any of it is decoded
MIN_SIDE = 8  # pixels
# Pillow knows many more; among them are those that start a program (EPS) or unpack without bound
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def _open(data: bytes, max_pixels: int, min_side: int) -> Image.Image:
    """The picture with only its header read; ValueError when its size is out of bounds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"picture has more than {max_pixels:,} pixels") from None
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise ValueError(f"picture cannot be decoded: {_first_line(error, 'unknown format')}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"picture has more than {max_pixels:,} pixels")
    if min(width, height) < min_side:
        raise ValueError(f"picture has a side of fewer than {min_side} pixels")
    return image


def _first_line(error: Exception, unknown: str) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return unknown  # its message holds the address of a buffer
    return (str(error).splitlines() or [type(error).__name__])[0]


def verify(data: bytes, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE) -> tuple[int, int]:
    """(height, width) of a picture that `decode` will take; ValueError with the reason otherwise.

    All of the file is read, but a JPEG at an eighth of its size, which finds the same faults faster.
    """
    image = _open(data, max_pixels, min_side)
    width, height = image.size
    try:
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of unknown range")
    except Exception as error:  # as above: any kind, here of the pixels behind the header
        raise ValueError(f"picture cannot be decoded: {_first_line(error, 'broken')}") from None
    return height, width


def decode(data: bytes, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE) -> Image.Image:
    """The picture as RGB; ValueError with the reason when it cannot be one."""
    image = _open(data, max_pixels, min_side)
    try:
        image.load()
        return _rgb(_oriented(image))
    except Exception as error:  # as above: any kind, here of the pixels behind the header
        raise ValueError(f"picture cannot be decoded: {_first_line(error, 'broken')}") from None


def _oriented(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken note about the orientation does not make the picture a broken one
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def aspect_buckets(area_pixels: int, multiple: int, max_ratio: float = 1.0) -> list[tuple[int, int]]:
    """Sizes (H, W) of about `area_pixels` whose sides are multiples of `multiple`, H/W from 1/max_ratio to max_ratio.

    For each shorter side the longest other one that stays within the area; sorted from wide to tall. The square that
    fits is always among them: `aspect_buckets(64 * 64, 8)` is `[(64, 64)]`.
    """
    if multiple < 1 or area_pixels < multiple * multiple:
        raise ValueError(f"area_pixels={area_pixels} holds no square of multiple={multiple} pixels")
    if max_ratio < 1:
        raise ValueError(f"max_ratio={max_ratio} must be 1 or more")
    square = math.isqrt(area_pixels) // multiple * multiple
    sizes = {(square, square)}
    for short in range(multiple, square + 1, multiple):
        long = area_pixels // short // multiple * multiple
        if long / short <= max_ratio:
            sizes |= {(short, long), (long, short)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def buckets_of(resolution: int, patch: int, max_ratio: float = 1.0) -> list[tuple[int, int]]:
    """`aspect_buckets` of the area of a square with a side of `resolution` pixels, which has to be whole codes."""
    if resolution < patch or resolution % patch:
        below = max(1, resolution // patch) * patch
        near = f"{below}" if resolution < patch else f"{below} or {below + patch}"
        raise ValueError(
            f"pictures of {resolution} pixels are not cut into codes of {patch} pixels: "
            f"set tokenizer.pictures.resolution (or tokens.resolution) to {near}"
        )
    return aspect_buckets(resolution * resolution, patch, max_ratio)


def fit(image: Image.Image, buckets: list[tuple[int, int]]) -> np.ndarray:
    """uint8 [H, W, 3] of the bucket nearest in aspect: resized (LANCZOS) to cover it, the overhang cut off evenly."""
    width, height = image.size
    aspect = math.log(height / width)
    h, w = min(buckets, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), size))
    fitted = ImageOps.fit(image, (w, h), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))
    return np.asarray(fitted, dtype=np.uint8)
