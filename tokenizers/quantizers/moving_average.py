"""A codebook that follows its vectors by exponential moving averages, on the unit sphere if wanted.

VQ-VAE (https://arxiv.org/abs/1711.00937, appendix A.1); revived codes as in Jukebox (https://arxiv.org/abs/2005.00341,
section 3.1); the sphere as in ViT-VQGAN (https://arxiv.org/abs/2110.04627, section 3.1); `rate` as in
entropy-constrained vector quantization (Chou, Lookabaugh and Gray, https://doi.org/10.1109/29.17498).

vector-quantize-pytorch, which tests compare it with, draws the vectors of revived codes on each rank by itself: here
several ranks do what one would do with all of their batches.

Dimensions: B batch, D dimension of a code, h w grid of codes, K codes, N vectors.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .nearest import k_means, nearest
from .quantizer import CodebookConfig, Quantized, Quantizer, places, straight_through

SMOOTHING = 1e-5  # of the counts that sums are divided by
NEW = 0.1  # of the mean count: what a code that is put on a vector counts as, where no code is ever dead


@dataclass(frozen=True)
class MovingAverageConfig(CodebookConfig):
    """
    decay: of the moving averages that the codebook is made of, 0 .. 1
    commitment: weight of the loss that pulls the encoder to its code
    cosine: codes and vectors have length 1
    dead_code_threshold: a code whose average count a batch falls below this share of the mean of all codes' is replaced
        by a vector of the batch
    rate: squared distance that a bit is worth: of two codes about as near, the one that is used more is chosen, so that
        codes are easier to predict and a reconstruction keeps its codes; 0 takes the nearest
    """

    kind = "ema"

    decay: float
    commitment: float
    cosine: bool
    dead_code_threshold: float
    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay < 1:
            raise ValueError(f"tokenizer.quantizer.decay={self.decay} must lie between 0 and 1")
        if self.rate < 0:
            raise ValueError(f"tokenizer.quantizer.rate={self.rate} must be 0 or more")

    def build(self) -> "MovingAverageQuantizer":
        return MovingAverageQuantizer(self)


class MovingAverageQuantizer(Quantizer):
    """The nearest entry of the codebook, or with a `rate` the one at the least distance and code length."""

    per_code = ("codebook", "counts", "sums")

    config: MovingAverageConfig
    codebook: Float[Tensor, "k d"]
    counts: Float[Tensor, " k"]
    sums: Float[Tensor, "k d"]
    updates: Int[Tensor, ""]

    def __init__(self, config: MovingAverageConfig) -> None:
        super().__init__(config)
        codebook = torch.randn(config.codebook_size, config.codebook_dim)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1) if config.cosine else codebook)
        self.register_buffer("counts", torch.ones(config.codebook_size))  # of a batch, on average
        self.register_buffer("sums", self.codebook.clone())  # of the vectors of each code, likewise
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._seen: tuple[Tensor, Tensor] | None = None  # vectors and their ids, of the last batch

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        vectors = self.compared(vectors)
        ids = nearest(vectors.movedim(1, -1).to(self.codebook.dtype), self.codebook, self.costs())
        codes = self.lookup(ids).to(vectors.dtype)
        loss = self.config.commitment * F.mse_loss(vectors, codes)
        if self.training:
            self._seen = places(vectors.detach()).to(self.codebook.dtype), ids.flatten()
        return Quantized(straight_through(vectors, codes), ids, loss, self.counted(ids))

    def compared(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return F.normalize(vectors, dim=1) if self.config.cosine else vectors

    def costs(self) -> Float[Tensor, " k"] | None:
        """What each code's length in bits, -log2 of its share, adds to its squared distance; None for a rate of 0.

        A code that was hardly ever used counts as one that is about to be revived.
        """
        if not self.config.rate:
            return None
        counts = self.counts.clamp_min(max(self.config.dead_code_threshold, SMOOTHING) * self.counts.mean())
        return -self.config.rate * (counts / counts.sum()).log2()

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return self.codebook[ids].movedim(-1, 1)

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """k-means of the vectors; a centre that was moved last, and has none yet, counts as one of a vector."""
        centres, counts = k_means(vectors, self.config.codebook_size, on_sphere=self.config.cosine)
        counts = counts.clamp_min(1)
        self.codebook.copy_(centres)
        self.counts.copy_(counts)
        self.sums.copy_(centres * counts[:, None])

    @torch.no_grad()
    def update_codebook(self) -> None:
        """Move the averages and the codebook; revive codes that are hardly used."""
        if self._seen is None:
            return
        (vectors, ids), self._seen = self._seen, None
        counts = self.ranks.sum(torch.bincount(ids, minlength=len(self.codebook)).to(vectors.dtype))
        sums = self.ranks.sum(torch.zeros_like(self.codebook).index_add_(0, ids, vectors))
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + SMOOTHING * len(self.counts)) * total
        codebook = self.sums / smoothed[:, None]
        self.codebook.copy_(F.normalize(codebook, dim=-1) if self.config.cosine else codebook)
        self._revive(vectors)
        self.updates += 1

    def _revive(self, vectors: Float[Tensor, "n d"]) -> None:
        """Put dead codes on vectors of the batch, no two on the same; the draw is of the number of updates.

        Of more dead codes than vectors it is also drawn which of them are revived.
        """
        dead = (self.counts < self._least_count).nonzero().flatten()
        if not len(dead):
            return
        vectors = self.ranks.concatenate(vectors)
        draw = torch.Generator().manual_seed(int(self.updates))
        number = min(len(dead), len(vectors))
        codes, chosen = (
            each[torch.randperm(len(each), generator=draw)[:number].to(each.device)] for each in (dead, vectors)
        )
        self.put(codes, chosen)

    @property
    def _least_count(self) -> Float[Tensor, ""]:
        """Of a code that is not dead."""
        return self.config.dead_code_threshold * self.counts.mean()

    @torch.no_grad()
    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None:
        # with no count the next update would move them to the origin
        count = self._least_count if self.config.dead_code_threshold else NEW * self.counts.mean()
        self.codebook[codes] = vectors
        self.counts[codes] = count
        self.sums[codes] = vectors * count

    @torch.no_grad()
    def count_with(self, old: "MovingAverageQuantizer", became: Int[Tensor, " k"]) -> None:
        """Averages as if the `old` codes' vectors had gone to what each of these codes became; codes stay in place."""
        for averages, before in ((self.counts, old.counts), (self.sums, old.sums)):
            averages.zero_().index_add_(0, became.to(averages.device), before)
