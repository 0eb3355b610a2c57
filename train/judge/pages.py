"""Pages to look at: pictures beside their reconstructions, and beside what image codecs make of as many bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...data.picture_batches import Pictures
from ...tokenizers.image import ImageTokenizer, to_pixels, to_uint8
from ..pictures_page import contact_sheet
from ..tokenizer_metrics import psnr

GRID = "reconstructions.png"
GRID_PICTURES = 32
COMPARED = 16  # pictures of a comparison
_LINE, _FONT_PIXELS, _MARGIN = 20, 14, 8

Batch = UInt8[Tensor, "b height width 3"]


def reconstruction_page(
    tokenizer: ImageTokenizer,
    pictures: Pictures | Sequence[UInt8[np.ndarray, "height width 3"]],
    device: torch.device | str,
) -> Image.Image:
    """Pictures spread over all, each beside its reconstruction."""
    spread = torch.linspace(0, len(pictures) - 1, min(GRID_PICTURES, len(pictures))).long().tolist()
    shown: list[Image.Image] = []
    for index in spread:
        picture = torch.from_numpy(pictures[index].copy())[None]
        decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_pixels(picture).to(device))))
        shown += [Image.fromarray(picture[0].numpy()), Image.fromarray(decoded[0].cpu().numpy())]
    return contact_sheet(shown, columns=16)


def comparison_page(
    originals: Sequence[Batch], others: Mapping[str, Sequence[Batch]], lines: Sequence[str]
) -> Image.Image:
    """Originals spread over all, each beside what others made of it, with their name and PSNR; above them the lines."""
    places = [(batch, row) for batch, pictures in enumerate(originals) for row in range(len(pictures))]
    spread = torch.linspace(0, len(places) - 1, min(COMPARED, len(places))).long().tolist()
    shown: list[Image.Image] = []
    captions: list[str] = []
    for batch, row in (places[index] for index in spread):
        original = originals[batch][row]
        shown.append(Image.fromarray(original.numpy()))
        captions.append("original")
        for name, batches in others.items():
            other = batches[batch][row]
            shown.append(Image.fromarray(other.numpy()))
            captions.append(f"{name} {float(psnr(original[None], other[None])):.1f} dB")
    columns = (1 + len(others)) * (2 if len(spread) > 1 else 1)
    return _under(lines, contact_sheet(shown, captions, columns=columns))


def _under(lines: Sequence[str], sheet: Image.Image) -> Image.Image:
    font = ImageFont.load_default(_FONT_PIXELS)
    width = max([sheet.width, *(int(font.getlength(line)) + 2 * _MARGIN for line in lines)])
    height = _LINE * len(lines) + _MARGIN
    page = Image.new("RGB", (width, height + sheet.height), "white")
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN // 2 + number * _LINE), line, fill="black", font=font)
    page.paste(sheet, (0, height))
    return page
