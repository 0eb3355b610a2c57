"""The kernel distance of KID: an unbiased estimate of MMD^2 with a cubic kernel, and how sure it is.

KID: https://arxiv.org/abs/1801.01401; MMD and its estimates: https://jmlr.org/papers/v13/gretton12a.html, lemma 6.

The papers average over random subsets to save work. Here every pair of pictures counts once: the same expected value,
with less noise and no seed; and the error comes from leaving each picture out (jackknife).

Dimensions: N and M pictures, F features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 512  # of a kernel matrix in memory at once


class KernelDistance(NamedTuple):
    """MMD^2, which may be below 0 where the sets are alike, and its standard error."""

    value: float
    error: float


def kernel_distance(first: Float[Tensor, "n f"], second: Float[Tensor, "m f"], paired: bool = False) -> KernelDistance:
    """Of two sets of features with k(x, y) = (x . y / F + 1)^3. ValueError for fewer than 3 pictures.

    paired: picture i of one set is made from picture i of the other; such pairs are left out, for they are no
        independent draws, and a set compared with itself is then exactly 0
    """
    if paired and len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} pictures are no pairs")
    for features in (first, second):
        if len(features) < 3:
            raise ValueError(f"a kernel distance and its error need 3 pictures or more, not {len(features)}")
    n, m = len(first), len(second)
    first, second = first.double(), second.double()
    within1, within2 = _row_sums(first, first, leave_diagonal=True), _row_sums(second, second, leave_diagonal=True)
    across1, across2 = _row_sums(first, second, paired), _row_sums(second, first, paired)
    sum1, sum2, across = within1.sum(), within2.sum(), across1.sum()
    pairs = n * (n - 1) if paired else n * m
    value = sum1 / (n * (n - 1)) + sum2 / (m * (m - 1)) - 2 * across / pairs
    if paired:
        less = (n - 1) * (n - 2)
        left_out = (sum1 - 2 * within1 + sum2 - 2 * within2 - 2 * (across - across1 - across2)) / less
        variance = _jackknife(left_out)
    else:
        without1 = (sum1 - 2 * within1) / ((n - 1) * (n - 2)) - 2 * (across - across1) / ((n - 1) * m)
        without2 = (sum2 - 2 * within2) / ((m - 1) * (m - 2)) - 2 * (across - across2) / (n * (m - 1))
        variance = _jackknife(without1) + _jackknife(without2)
    return KernelDistance(float(value), float(variance.sqrt()))


def _row_sums(first: Float[Tensor, "n f"], second: Float[Tensor, "m f"], leave_diagonal: bool) -> Float[Tensor, " n"]:
    """Sums over the rows of the kernel matrix, a few rows at a time."""
    sums = []
    for start in range(0, len(first), ROWS):
        kernel = (first[start : start + ROWS] @ second.T / first.shape[1] + 1) ** 3
        if leave_diagonal:
            kernel.diagonal(start).zero_()
        sums.append(kernel.sum(1))
    return torch.cat(sums)


def _jackknife(left_out: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The variance of an estimate, from its values with each one left out."""
    n = len(left_out)
    return (n - 1) / n * (left_out - left_out.mean()).square().sum()
