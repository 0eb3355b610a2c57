"""The entropy terms of quantizers whose codes are probabilities: each vector should be sure, all codes should be used.

MAGVIT-v2 (https://arxiv.org/abs/2310.05737, equation 6).

Dimensions: N vectors, K codes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .quantizer import Quantizer


class Entropies(NamedTuple):
    """In nats."""

    of_vectors: Float[Tensor, ""]  # of each, the mean over all ranks: low where vectors are sure of their codes
    of_codes: Float[Tensor, ""]  # of their mean over the vectors of all ranks: high where all codes are used


def entropies(quantizer: Quantizer, probabilities: Float[Tensor, "n k"]) -> Entropies:
    """Of the probabilities of codes; gradients are those of the whole batch, see `Quantizer.mean_over_ranks`."""
    of_vectors = _entropy(probabilities).mean()
    mean = quantizer.mean_over_ranks(probabilities.mean(0))
    return Entropies(quantizer.mean_over_ranks(of_vectors), _entropy(mean))


def _entropy(probabilities: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """With a gradient of zero, not of infinity, where a probability has become zero."""
    return torch.special.entr(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).sum(-1)
