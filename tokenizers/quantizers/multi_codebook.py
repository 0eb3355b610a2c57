"""Several codes a place: each of what the one before it left, or each of its share of the components.

Residual: SoundStream (https://arxiv.org/abs/2107.03312, section III-C), RQ-VAE (https://arxiv.org/abs/2203.01941).
Shares: UniTok (https://arxiv.org/abs/2502.20321, section 3.2).

The codes of a place stand beside one another in its row of ids, [b, h, w * L], and number l counts from l * K on: to
what reads ids this is a wider grid of one larger codebook.

Dimensions: B batch, D dimension of the vectors, h w places, L codes of a place, K codes of each codebook.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .moving_average import MovingAverageConfig, MovingAverageQuantizer
from .quantizer import Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class MultiCodebookConfig(QuantizerConfig):
    """
    codebooks: codes of a place
    residual: each code is of what the one before it left; else each is of its share of the components
    codebook_size: codes of each codebook
    codebook_dim: dimension of the vectors; a multiple of `codebooks` if they are shared out
    decay, commitment, cosine, dead_code_threshold: of each codebook, as in ema
    """

    kind = "multi"

    codebooks: int
    residual: bool
    codebook_size: int
    codebook_dim: int
    decay: float
    commitment: float
    cosine: bool
    dead_code_threshold: float

    def __post_init__(self) -> None:
        if self.codebooks < 1:
            raise ValueError(f"tokenizer.quantizer.codebooks={self.codebooks} must be 1 or more")
        if not self.residual and self.codebook_dim % self.codebooks:
            raise ValueError(
                f"tokenizer.quantizer.codebook_dim={self.codebook_dim} cannot be shared out among "
                f"tokenizer.quantizer.codebooks={self.codebooks}: set a multiple"
            )
        if self.residual and self.cosine:
            raise ValueError("tokenizer.quantizer.cosine=true has no residual: set cosine or residual to false")
        self.each  # noqa: B018 - checks the rest

    @property
    def least_vectors(self) -> int:
        return self.codebook_size

    @property
    def each(self) -> MovingAverageConfig:
        """Of one codebook."""
        dim = self.codebook_dim if self.residual else self.codebook_dim // self.codebooks
        return MovingAverageConfig(
            self.codebook_size, dim, self.decay, self.commitment, self.cosine, self.dead_code_threshold
        )

    @property
    def num_codes(self) -> int:
        return self.codebooks * self.codebook_size

    @property
    def dim(self) -> int:
        return self.codebook_dim

    @property
    def levels(self) -> int:
        return self.codebooks

    def build(self) -> "MultiCodebookQuantizer":
        return MultiCodebookQuantizer(self)


class MultiCodebookQuantizer(Quantizer):
    """Codebooks that follow their vectors by moving averages."""

    fixed = "a place has several codes, of codebooks that are equally large"

    config: MultiCodebookConfig

    def __init__(self, config: MultiCodebookConfig) -> None:
        super().__init__(config)
        self.books = nn.ModuleList(MovingAverageQuantizer(config.each) for _ in range(config.codebooks))

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized:
        for book in self._books():
            book.ranks = self.ranks
        found: list[Quantized] = []
        if self.config.residual:
            left = vectors
            for book in self._books():
                found.append(book(left))
                left = left - found[-1].codes.detach()
            total = torch.stack([each.codes.detach() for each in found]).sum(0)
            codes = vectors + (total - vectors).detach()
        else:
            shares = vectors.chunk(self.config.codebooks, dim=1)
            found = [book(share) for book, share in zip(self._books(), shares, strict=True)]
            codes = torch.cat([each.codes for each in found], dim=1)
        ids = torch.stack([each.ids + level * self.config.codebook_size for level, each in enumerate(found)], dim=-1)
        ids = ids.flatten(-2)
        loss = torch.stack([each.loss for each in found]).mean()
        return Quantized(codes, ids, loss, self.counted(ids))

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        each = ids.unflatten(-1, (-1, self.config.codebooks)).unbind(-1)
        found = [
            book.lookup(level_ids % self.config.codebook_size)  # also of a code that a decoder drew for another level
            for book, level_ids in zip(self._books(), each, strict=True)
        ]
        return torch.stack(found).sum(0) if self.config.residual else torch.cat(found, dim=1)

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """k-means of the vectors, and of what is left of them."""
        shares = [vectors] if self.config.residual else list(vectors.chunk(self.config.codebooks, dim=1))
        for level, book in enumerate(self._books()):
            share = shares[0] if self.config.residual else shares[level]
            book.start_from(share)
            if self.config.residual:
                shares = [share - book.lookup(book.eval()(share.T[None, :, :, None]).ids)[0, :, :, 0].T]
                book.train(self.training)

    def update_codebook(self) -> None:
        for book in self._books():
            book.update_codebook()

    def _books(self) -> list[MovingAverageQuantizer]:
        return [book for book in self.books if isinstance(book, MovingAverageQuantizer)]
