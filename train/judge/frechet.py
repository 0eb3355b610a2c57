"""The Fréchet distance between two sets of features, each taken for a Gaussian.

FID: https://arxiv.org/abs/1706.08500. There the features are Inception's; here they are whatever is given, so a number
is named after its features and is no FID of a paper. It falls with the number of pictures: compare equal numbers alone.

Dimensions: N and M pictures, F features.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "n f"], second: Float[Tensor, "m f"]) -> float:
    """|mean1 - mean2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^1/2), in float64. ValueError for fewer than 2 pictures.

    C = A^T A for the centred features A over (N - 1)^1/2, so the last trace is the sum of the singular values of
    A1 A2^T: no root of a matrix is taken, and fewer pictures than features are no trouble.
    """
    for features in (first, second):
        if len(features) < 2:
            raise ValueError(f"{len(features)} picture has no covariance: a Fréchet distance needs 2 or more")
    first, second = first.double(), second.double()
    root1, root2 = _root(first), _root(second)
    trace = torch.linalg.svdvals(root1 @ root2.T).sum()
    means = (first.mean(0) - second.mean(0)).square().sum()
    return max(0.0, float(means + root1.square().sum() + root2.square().sum() - 2 * trace))


def _root(features: Float[Tensor, "n f"]) -> Float[Tensor, "k f"]:
    """R with R^T R the covariance, of at most F rows."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R
