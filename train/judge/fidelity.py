"""How near reconstructions are to their originals, by measures of pixels and of features.

| number             | of                                                                    | better |
| ------------------ | --------------------------------------------------------------------- | ------ |
| `psnr`, `ssim`     | pixels, mean over pictures                                            | higher |
| `perceptual_hed`   | features of an edge detector's VGG16, mean over pictures; no LPIPS     | lower  |
| `rfid_efficientnet`| Fréchet distance of EfficientNet features; no FID of Inception         | lower  |
| `kid_efficientnet` | kernel distance of the same, with its standard error                  | lower  |

Dimensions: B batch, H W pixels, F features.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor

from ...tokenizers.image import to_pixels
from ..perceptual import perceptual_distance as edge_vgg_distance
from ..picture_features import PictureFeatures
from ..tokenizer_metrics import psnr, ssim
from .frechet import frechet_distance
from .kernel_distance import kernel_distance

Batch = UInt8[Tensor, "b height width 3"]
Features = Callable[[Batch], Float[Tensor, "b f"]]
Distance = Callable[[Float[Tensor, "b 3 height width"], Float[Tensor, "b 3 height width"]], Float[Tensor, " b"]]


class Fidelity:
    """Measures reconstructions of some originals; the originals' features are computed once.

    features, distance: None leaves out the numbers that need them, which are then None
    """

    def __init__(
        self, originals: Sequence[Batch], features: Features | None, distance: Distance | None, device: torch.device
    ) -> None:
        self.originals, self.features, self.distance, self.device = originals, features, distance, device
        self._original_features = self._of_all(originals) if features is not None else None

    @torch.no_grad()
    def measure(self, reconstructions: Iterable[Batch]) -> dict[str, float | None]:
        """The table above for reconstructions in batches like those of the originals."""
        ratios, similarities, distances, described = [], [], [], []
        for original, reconstruction in zip(self.originals, reconstructions, strict=True):
            ratios.append(psnr(original, reconstruction))
            similarities.append(ssim(original, reconstruction))
            if self.distance is not None:
                first, second = (to_pixels(pictures).to(self.device) for pictures in (original, reconstruction))
                distances.append(self.distance(first, second).cpu())
            if self.features is not None:
                described.append(self.features(reconstruction).cpu())
        measured: dict[str, float | None] = {"psnr": _mean(ratios), "ssim": _mean(similarities)}
        measured |= {"perceptual_hed": _mean(distances) if distances else None}
        measured |= dict.fromkeys(("rfid_efficientnet", "kid_efficientnet", "kid_efficientnet_error"))
        if self._original_features is not None and len(self._original_features) > 2:
            features = torch.cat(described)
            kid = kernel_distance(self._original_features, features, paired=True)
            measured["rfid_efficientnet"] = frechet_distance(self._original_features, features)
            measured |= {"kid_efficientnet": kid.value, "kid_efficientnet_error": kid.error}
        return measured

    def _of_all(self, batches: Sequence[Batch]) -> Float[Tensor, "n f"]:
        assert self.features is not None
        return torch.cat([self.features(batch).cpu() for batch in batches])


def picture_features(device: torch.device, console: Console) -> Features | None:
    """EfficientNet's pooled features; None, and one line, if the packages are missing."""
    try:
        return PictureFeatures(device).pooled
    except ModuleNotFoundError as fault:
        console.print(f"judged without rFID and KID: {fault}", style="yellow", highlight=False, soft_wrap=True)
        return None


def perceptual_distance(device: torch.device, console: Console) -> Distance | None:
    """The edge-VGG distance, also where a tokenizer was trained on LPIPS, so that all judgements compare.

    None, and one line, if its packages are missing.
    """
    try:
        return edge_vgg_distance().to(device)
    except ModuleNotFoundError as fault:
        console.print(f"judged without a perceptual distance: {fault}", style="yellow", highlight=False, soft_wrap=True)
        return None


def _mean(parts: Sequence[Tensor]) -> float:
    return float(torch.cat(list(parts)).mean())
