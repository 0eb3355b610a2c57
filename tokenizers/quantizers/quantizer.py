"""What every quantizer is: vectors to codes and back, with a loss and statistics.

Dimensions: B batch, D dimension of a code, h w grid of codes, K codes, N vectors.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..kinds import Kind


class Quantized(NamedTuple):
    """What every quantizer returns."""

    codes: Float[Tensor, "b d h w"]  # the quantized vectors; gradients pass to the encoder
    ids: Int[Tensor, "b h w"]  # which code, 0 .. K - 1; a residual quantizer has more columns, see there
    loss: Float[Tensor, ""]  # what the quantizer asks of the encoder and of its codes, already weighted
    stats: dict[str, Tensor]  # scalars worth a curve: `perplexity` and `usage` of this batch, and parts of the loss


class Ranks(Protocol):
    """The processes that train together, each on its part of a batch, of as many pictures; of about as many places."""

    @property
    def size(self) -> int: ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all ranks, in place, without gradients."""
        ...

    def concatenate(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of any lengths, one after the other, without gradients."""
        ...


class Alone:
    """A process that trains by itself."""

    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def concatenate(self, tensor: Tensor) -> Tensor:
        return tensor


@dataclass(frozen=True)
class QuantizerConfig(Kind, ABC):
    """The settings of one kind of quantizer, which it makes."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """How many ids there are."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the vectors."""

    @property
    def levels(self) -> int:
        """Codes of one place of the grid."""
        return 1

    @property
    def least_vectors(self) -> int:
        """Of how many vectors its codes begin at least."""
        return 0

    @abstractmethod
    def build(self) -> "Quantizer": ...


@dataclass(frozen=True)
class CodebookConfig(QuantizerConfig):
    """Of a quantizer that chooses one of `codebook_size` vectors, 2 or more, of `codebook_dim` components."""

    codebook_size: int
    codebook_dim: int

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ValueError(f"tokenizer.quantizer.codebook_size={self.codebook_size} must be 2 or more")
        if self.codebook_dim < 1:
            raise ValueError(f"tokenizer.quantizer.codebook_dim={self.codebook_dim} must be 1 or more")

    @property
    def num_codes(self) -> int:
        return self.codebook_size

    @property
    def least_vectors(self) -> int:
        return self.codebook_size

    @property
    def dim(self) -> int:
        return self.codebook_dim


class Quantizer(nn.Module, ABC):
    """Vectors [B, D, h, w] to codes.

    ranks: who trains together; only in training mode are they asked, so that one rank may evaluate by itself.
    """

    whitened = False  # whether it wants vectors whose components have a variance of 1 each, at the start
    per_code: ClassVar[tuple[str, ...]] = ()  # its weights that have a row for each code, by name
    fixed: ClassVar[str] = ""  # why no code can be taken out of it, where that is so

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.ranks: Ranks = Alone()

    @abstractmethod
    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Quantized: ...

    @abstractmethod
    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors of codes."""

    def compared(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors as they are compared with codes."""
        return vectors

    def with_codes(self, codes: Int[Tensor, " n"]) -> "Quantizer":
        """The same with these of its codes alone, in this order: code i is what `codes[i]` was.

        ValueError for fewer than two, or where codes are no entries of a table.
        """
        if self.fixed:
            raise ValueError(f"codes of {self.config.kind} cannot be taken out or put elsewhere: {self.fixed}")
        made = dataclasses.replace(self.config, codebook_size=len(codes)).build()
        weights = self.state_dict()
        made.load_state_dict({name: w[codes] if name in self.per_code else w for name, w in weights.items()})
        return made.to(weights[self.per_code[0]])

    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None:
        """Move codes onto vectors, as `compared` gives them. ValueError where a code is more than its vector."""
        raise ValueError(f"codes of {self.config.kind} cannot be put on vectors: {self.fixed}")

    def start_from(self, vectors: Float[Tensor, "n d"]) -> None:
        """Begin at codes that suit these vectors, the same on every rank."""

    def update_codebook(self) -> None:
        """Let the codes follow the vectors that were quantized last in training mode, once that step is found sound."""

    def set_progress(self, progress: float) -> None:
        """Tell how much of the training is done, 0 .. 1."""

    def counted(self, ids: Int[Tensor, "b h w"]) -> dict[str, Tensor]:
        """`perplexity` and `usage` of a batch, of all ranks."""
        counts = self._over_ranks(torch.bincount(ids.flatten(), minlength=self.config.num_codes).float())
        return {"perplexity": perplexity(counts / counts.sum()), "usage": (counts > 0).float().mean()}

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        return self.ranks.sum(tensor) if self.training else tensor

    def mean_over_ranks(self, mean: Tensor) -> Tensor:
        """The mean of the ranks' means, whose gradient goes to this rank's own.

        Averaged over ranks, as gradients are, that is the gradient of the mean over the whole batch.
        """
        if not self.training or self.ranks.size == 1:
            return mean
        return mean + (self.ranks.sum(mean.detach().clone()) / self.ranks.size - mean.detach())


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """The codes, whose gradients go to the vectors (https://arxiv.org/abs/1308.3432)."""
    return vectors + (codes - vectors).detach()


def perplexity(share: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """exp of the entropy of code frequencies that sum to 1: the number of codes in even use that would be as varied."""
    return torch.special.entr(share).sum().exp()


def places(vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "n d"]:
    """Every place of the grids as a row."""
    return vectors.movedim(1, -1).flatten(0, -2)


def check_temperature(temperature: float) -> None:
    """ValueError for a temperature that probabilities cannot have."""
    if temperature <= 0:
        raise ValueError(f"tokenizer.quantizer.temperature={temperature} must be above 0")
