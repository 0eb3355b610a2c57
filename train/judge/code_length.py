"""How many bits pictures cost as codes: written with a fixed length, and by an entropy coder that knows nothing before.

The coder is adaptive: before each code it gives code k the probability (times k came + 1/2) / (codes so far + K/2), the
estimate of Krichevsky and Trofimov (https://doi.org/10.1109/TIT.1981.1056331). So the table of frequencies is paid for,
and the order of the codes does not matter. It looks at no neighbours: what a decoder makes of the codes is a number of
its own, `bits_per_picture` of a pre-training run.

Dimensions: L codes of a place, K codes of each codebook; counts of the codes of L codebooks, one after the other.
"""

import math

import torch
from jaxtyping import Int
from torch import Tensor


def fixed_bits(num_codes: int, levels: int = 1) -> float:
    """Bits of one code, where each place has one from each of `levels` codebooks of num_codes / levels codes."""
    return math.log2(num_codes / levels)


def adaptive_bits(counts: Int[Tensor, " codes"], levels: int = 1) -> float:
    """Bits of all that was counted, by an adaptive entropy coder for each of the codebooks."""
    per_level = counts.double().reshape(levels, -1)
    size, total = per_level.shape[1], per_level.sum(1)
    half = torch.tensor(0.5, dtype=torch.float64)
    nats = torch.lgamma(total + size / 2) - torch.lgamma(torch.full_like(total, size / 2))
    nats = nats - (torch.lgamma(per_level + half) - torch.lgamma(half)).sum(1)
    return float(nats.sum()) / math.log(2)
