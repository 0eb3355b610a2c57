"""How steady codes are: when a reconstruction is encoded again, and when the picture is moved or resized.

| number                  | what it is                                                                            |
| ----------------------- | ------------------------------------------------------------------------------------- |
| `drift`                 | share of codes that change when the reconstruction is encoded again                   |
| `drift_2`, `drift_5`    | share that differs from the first codes after that many rounds                        |
| `codes_kept_shift_D`    | share of codes that stay when the picture moves D pixels down and right                |
| `psnr_shift_D`          | dB of the reconstruction of the moved picture                                         |
| `psnr_scale_P`          | dB of the reconstruction of the picture at P % of its size, on a canvas as before      |

A picture that is moved or made smaller is continued with its edge. What moves by whole codes is compared with the
codes it moved to, what moves by less with those in the same place; so is everything where codes are no places of the
picture, as those of `networks/queries.py`. After a resize no code has a counterpart.

Dimensions: B batch, H W pixels, h w grid of codes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from ..tokenizer_metrics import psnr
from .subject import Subject

ROUNDS = (1, 2, 5)
SHIFTS = (1, 2, 4)  # pixels
SCALES = (0.9, 1.1)

Batch = UInt8[Tensor, "b height width 3"]
Codes = Int[Tensor, "b h w"]


class Stability:
    """Sums over batches; `numbers` are means over pictures."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._values: dict[str, list[Tensor]] = {}

    def add(self, pictures: Batch, codes: Codes, reconstruction: Batch) -> None:
        """Pictures with what their tokenizer made of them."""
        again = reconstruction
        for number in range(1, max(ROUNDS) + 1):
            coded = self.subject.encode(again)
            if number in ROUNDS:
                name = "drift" if number == 1 else f"drift_{number}"
                self._note(name, 1 - _kept(codes, coded))
            if number < max(ROUNDS):
                again = self.subject.decode(coded)
        for pixels in SHIFTS:
            moved = shifted(pictures, pixels)
            coded = self.subject.encode(moved)
            self._note(f"codes_kept_shift_{pixels}", self._kept_after_shift(codes, coded, pictures, pixels))
            self._note(f"psnr_shift_{pixels}", psnr(moved, self.subject.decode(coded)))
        for scale in SCALES:
            other = rescaled(pictures, scale)
            decoded = self.subject.decode(self.subject.encode(other))
            self._note(f"psnr_scale_{round(100 * scale)}", psnr(other, decoded))

    def numbers(self) -> dict[str, float]:
        return {name: float(torch.cat(values).mean()) for name, values in self._values.items()}

    def _note(self, name: str, values: Tensor) -> None:
        self._values.setdefault(name, []).append(values.float().cpu())

    def _kept_after_shift(self, before: Codes, after: Codes, pictures: Batch, pixels: int) -> Tensor:
        patch, levels = self.subject.tokenizer.patch, self.subject.levels
        (rows, columns), (height, width) = before.shape[1:], pictures.shape[1:3]
        if (rows * patch, columns * patch) != (height, width * levels):
            return _kept(before, after)
        down, right = pixels // patch, pixels // patch * levels
        return _kept(before[:, : rows - down, : columns - right], after[:, down:, right:])


def shifted(pictures: Batch, pixels: int) -> Batch:
    """Moved down and right by so many pixels; what comes in is the edge."""
    rows, columns = ((torch.arange(side) - pixels).clamp_min(0) for side in pictures.shape[1:3])
    return pictures[:, rows][:, :, columns]


def rescaled(pictures: Batch, scale: float) -> Batch:
    """At `scale` times their size about the centre, cut off or continued by the edge to the size they had."""
    height, width = pictures.shape[1:3]
    sides = [max(1, round(side * scale)) for side in (height, width)]
    pixels = pictures.permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, sides, mode="bicubic", antialias=True, align_corners=False)
    rows, columns = (
        (torch.arange(side) - (side - new) // 2).clamp(0, new - 1)
        for side, new in zip((height, width), sides, strict=True)
    )
    placed = pixels[:, :, rows][:, :, :, columns]
    return placed.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _kept(first: Codes, second: Codes) -> Tensor:
    """The share of equal codes in each picture."""
    return (first == second).float().flatten(1).mean(1)
