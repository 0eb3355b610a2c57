"""What batches held, counted where they lie, so that no step waits for its counts: one flat tensor of sums.

Sums add up over batches and ranks. Dimensions: V ids of the vocabulary, K codes of an image tokenizer.
"""

from typing import Protocol

import torch
from torch import Tensor

from ..data.packing import PackedBatch
from ..data.picture_batches import PictureBatch
from ..model.configuration import OmnigramConfig
from ..model.size import step_flops
from ..tokenizers.quantizers.quantizer import perplexity
from ..tokenizers.vocabulary import Vocabulary
from .steps import StepModule


class BatchCounts(Protocol):
    """Counts of one kind of batch."""

    size: int  # of the flat tensor of sums

    def add(self, sums: Tensor, batch: object, module: StepModule) -> None:
        """Add a batch to the sums [size], which are int64 and stay on their device."""
        ...

    def rates(self, sums: Tensor) -> dict[str, float]:
        """What is told a second: name -> how many there were."""
        ...

    def shares(self, sums: Tensor) -> dict[str, float]:
        """What needs no clock: name of the curve -> value."""
        ...

    def flops(self, sums: Tensor) -> float | None:
        """Floating-point operations that the steps could not do without; None where nobody has counted them."""
        ...


class TokenCounts:
    """Of packed batches: sums are V counts of ids, then pairs, places, logits."""

    def __init__(self, vocabulary: Vocabulary, decoder: OmnigramConfig, partitions: list[tuple[int, int]] | None):
        self.vocabulary, self.size = vocabulary, vocabulary.size + 3
        self.needs = step_flops(decoder)
        self._sizes = torch.tensor([size for _, size in partitions]) if partitions else None  # of each softmax

    def add(self, sums: Tensor, batch: object, module: StepModule) -> None:
        assert isinstance(batch, PackedBatch)
        held, weighted = batch.document >= 0, batch.weights > 0
        sums[: self.vocabulary.size].scatter_add_(0, batch.ids.flatten(), held.flatten().long())
        if self._sizes is None:
            logits = weighted.sum() * self.vocabulary.size
        else:
            self._sizes = self._sizes.to(sums.device)
            logits = (self._sizes[batch.partition.clamp_min(0).long()] * weighted).sum()
        sums[-3] += ((batch.position + 1) * held).sum()
        sums[-2] += batch.ids.numel()
        sums[-1] += logits

    def rates(self, sums: Tensor) -> dict[str, float]:
        """Tokens of each modality; specials are text."""
        total = float(sums[: self.vocabulary.size].sum())
        codes = {codes.name: float(sums[codes.start : codes.stop].sum()) for codes in self.vocabulary.ranges[1:]}
        text = {f"tokens_per_second_{self.vocabulary.modalities[0]}": total - sum(codes.values())}
        return {"tokens_per_second": total, **text, **{f"tokens_per_second_{name}": n for name, n in codes.items()}}

    def shares(self, sums: Tensor) -> dict[str, float]:
        tokens, places = float(sums[: self.vocabulary.size].sum()), float(sums[-2])
        found = {"train/pad_share": 1 - tokens / max(1.0, places)}
        for codes in self.vocabulary.ranges[1:]:
            found |= codebook_use(sums[codes.start : codes.stop], codes.name)
        return found

    def flops(self, sums: Tensor) -> float | None:
        pairs, _, logits = (float(value) for value in sums[-3:])
        return self.needs.needed(float(sums[: self.vocabulary.size].sum()), pairs, logits)


class PictureCounts:
    """Of batches of pictures: sums are K counts of codes, then pictures."""

    def __init__(self, codebook_size: int) -> None:
        self.size = codebook_size + 1

    def add(self, sums: Tensor, batch: object, module: StepModule) -> None:
        assert isinstance(batch, PictureBatch)
        ids = module.codes
        assert ids is not None, "a step of the image tokenizer leaves its codes"
        sums[:-1].scatter_add_(0, ids.flatten(), torch.ones_like(ids.flatten()))
        sums[-1] += len(batch.pictures)

    def rates(self, sums: Tensor) -> dict[str, float]:
        return {"pictures_per_second": float(sums[-1])}

    def shares(self, sums: Tensor) -> dict[str, float]:
        return codebook_use(sums[:-1], "image")

    def flops(self, sums: Tensor) -> float | None:
        return None  # of its convolutions


def codebook_use(counts: Tensor, name: str) -> dict[str, float]:
    """Share of the codes that occurred at all, and their perplexity; nothing where none occurred."""
    total = counts.sum()
    if not total:
        return {}
    return {
        f"codes/used_{name}": float((counts > 0).float().mean()),
        f"codes/perplexity_{name}": float(perplexity(counts.double() / total)),
    }
