"""What an image tokenizer is worth on pictures it has not seen: PSNR, SSIM, and how much of its codebook it uses.

Pixels are compared in 0 .. 1 after rounding to 8 bits, as a viewer would see them.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ..tokenizers.image import ImageTokenizer, to_pixels, to_uint8
from ..tokenizers.quantizers.quantizer import perplexity

MAX_PSNR = 60.0  # dB: of a picture that comes back exactly
LEAST_SIDE = 6  # pixels: the Gaussian window of SSIM reaches 5 beyond a pixel, and is continued by a reflection


def psnr(first: UInt8[Tensor, "b height width 3"], second: UInt8[Tensor, "b height width 3"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each picture, in dB; 10 log10(255^2 / mean squared error), at most 60."""
    error = (first.float() - second.float()).square().mean(dim=(1, 2, 3)) / 255**2
    return -10 * error.clamp_min(10 ** (-MAX_PSNR / 10)).log10()


def ssim(first: UInt8[Tensor, "b height width 3"], second: UInt8[Tensor, "b height width 3"]) -> Float[Tensor, " b"]:
    """Structural similarity of each picture, with the Gaussian window of 11 pixels (https://doi.org/10.1109/TIP.2003.819861).

    ValueError for a side below LEAST_SIDE.
    """
    check_side(*first.shape[1:3])
    unit = [pictures.permute(0, 3, 1, 2).float() / 255 for pictures in (second, first)]
    found = structural_similarity_index_measure(unit[0], unit[1], data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.reshape(-1)


def check_side(height: int, width: int) -> None:
    """ValueError for pictures that are too small to be measured."""
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"pictures of {height} x {width} pixels are too small for SSIM, which takes {LEAST_SIDE} or more: raise "
            "tokenizer.pictures.resolution (or evaluate.resolution)"
        )


@torch.no_grad()
def measure_reconstruction(
    tokenizer: ImageTokenizer, batches: Iterable[UInt8[Tensor, "b height width 3"]], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Over all pictures: `psnr` and `ssim` as means over pictures, `psnr_of_mean_error` (of the pooled error), `drift`.

    Drift is the share of codes that change when a reconstruction is encoded again. With `codebook_numbers` of the
    codes, before they are encoded again. ValueError for pictures with a side below LEAST_SIDE.
    """
    ratios, similarities, drifts = [], [], []
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    for pictures in batches:
        codes = tokenizer.encode(to_pixels(pictures).to(device))
        decoded = tokenizer.decode(codes)
        rounded = to_uint8(decoded).cpu()
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        ratios.append(psnr(pictures, rounded))
        similarities.append(ssim(pictures, rounded))
        drifts.append((tokenizer.encode(to_pixels(rounded).to(device)) != codes).float().mean(dim=(1, 2)).cpu())
    ratio = torch.cat(ratios)
    return {
        "psnr": float(ratio.mean()),
        "psnr_of_mean_error": float(-10 * (10 ** (-ratio / 10)).mean().log10()),
        "ssim": float(torch.cat(similarities).mean()),
        "drift": float(torch.cat(drifts).mean()),
        "pictures": len(ratio),
        **codebook_numbers(counts),
    }


@torch.no_grad()
def measure_codebook(
    tokenizer: ImageTokenizer, batches: Iterable[UInt8[Tensor, "b height width 3"]], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """`codebook_numbers` of the codes of all pictures."""
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    for pictures in batches:
        codes = tokenizer.encode(to_pixels(pictures).to(device)).cpu()
        counts += torch.bincount(codes.flatten(), minlength=tokenizer.codebook_size)
    return codebook_numbers(counts)


def codebook_numbers(counts: Int[Tensor, " codes"]) -> dict[str, float]:
    """`codebook_usage` (share of the codes that occur) and `codebook_perplexity`, of how often each code came."""
    share = counts / counts.sum()
    return {"codebook_usage": float((counts > 0).float().mean()), "codebook_perplexity": float(perplexity(share))}
