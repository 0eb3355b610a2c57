"""How pictures become inputs of an image tokenizer: fitted to buckets, or as the source of an imported one has it.

Dimensions: H x W pixels.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL.Image import Image

from ..tokenizers.preprocessing import Preprocessing
from .pictures import buckets_of, fit


@dataclass(frozen=True)
class Fitting:
    """One of three ways; part of what tokens are.

    resolution, max_ratio: buckets of about the area of a square with this side in pixels, with sides of the tokenizer's
        `patch`; longer to shorter side, 1 crops all to squares
    sizes: buckets (H, W) in pixels
    preprocessing: that of an imported tokenizer
    """

    patch: int
    resolution: int | None = None
    max_ratio: float = 1.0
    sizes: tuple[tuple[int, int], ...] = ()
    preprocessing: Preprocessing | None = None

    @cached_property
    def buckets(self) -> list[tuple[int, int]]:
        """ValueError for a resolution that is not whole codes."""
        if self.preprocessing is not None:
            return []
        if self.sizes:
            return list(self.sizes)
        assert self.resolution is not None
        return buckets_of(self.resolution, self.patch, self.max_ratio)

    def ready(self, picture: Image) -> np.ndarray:
        """What the tokenizer takes: uint8 [H, W, 3], or float32 pixels [3, H, W] after preprocessing."""
        return fit(picture, self.buckets) if self.preprocessing is None else self.preprocessing(picture).numpy()

    def shown(self, picture: Image) -> np.ndarray:
        """The same for people, and to compare reconstructions with: uint8 [H, W, 3]."""
        if self.preprocessing is None:
            return self.ready(picture)
        return np.asarray(self.preprocessing.invert(self.preprocessing(picture)))

    @property
    def record(self) -> dict[str, Any]:
        """What decides it beside the tokenizer, as JSON has it."""
        if self.preprocessing is not None:
            fields: dict[str, Any] = {"preprocessing": dataclasses.asdict(self.preprocessing)}
        elif self.sizes:
            fields = {"sizes": self.sizes}
        else:
            fields = {"resolution": self.resolution, "max_ratio": self.max_ratio}
        return json.loads(json.dumps(fields))

    @classmethod
    def of(cls, record: Mapping[str, Any], patch: int) -> "Fitting":
        """The inverse of `record`; further keys are let alone."""
        if "preprocessing" in record:
            return cls(patch, preprocessing=Preprocessing(**record["preprocessing"]))
        if "sizes" in record:
            return cls(patch, sizes=tuple((height, width) for height, width in record["sizes"]))
        return cls(patch, int(record["resolution"]), float(record["max_ratio"]))
