"""The nearest of many codes, and where a codebook may begin.

Dimensions: N vectors, K codes, D dimension of a code.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DISTANCES = 2**25  # most distances in memory at once, 128 MiB of float32


@torch.no_grad()
def nearest(
    vectors: Float[Tensor, "*grid d"], codebook: Float[Tensor, "k d"], costs: Float[Tensor, " k"] | None = None
) -> Int[Tensor, "*grid"]:
    """The code at the least squared distance, to which `costs` of each code are added; of several, the first.

    The square is multiplied out in the order of the published models, whose ids would differ in near-ties else.
    """
    lengths = codebook.square().sum(1)
    if costs is not None:
        lengths = lengths + costs
    ids = [
        (part.square().sum(1, keepdim=True) + lengths - 2 * (part @ codebook.T)).argmin(1)
        for part in vectors.flatten(0, -2).split(max(1, DISTANCES // len(codebook)))
    ]
    return torch.cat(ids).view(vectors.shape[:-1])


def check_beginning(vectors: int, codebook_size: int) -> None:
    """ValueError for fewer vectors than codes."""
    if vectors < codebook_size:
        raise ValueError(
            f"{vectors} patches are too few for {codebook_size} codes to begin at: lower "
            "tokenizer.quantizer.codebook_size, raise tokenizer.trainer.init_pictures, or give more pictures"
        )


@torch.no_grad()
def k_means(
    vectors: Float[Tensor, "n d"], codebook_size: int, rounds: int = 10, on_sphere: bool = False
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Centres of clusters and how many vectors each has: Lloyd's rounds from vectors that are drawn the same each time.

    A centre that loses all of its vectors moves to the one that is farthest from its own. With `on_sphere` vectors and
    centres have length 1. ValueError for fewer vectors than codes.
    """
    check_beginning(len(vectors), codebook_size)
    if on_sphere:
        vectors = F.normalize(vectors, dim=-1)
    draw = torch.Generator().manual_seed(0)
    centres = vectors[torch.randperm(len(vectors), generator=draw)[:codebook_size].to(vectors.device)]
    counts = vectors.new_ones(codebook_size)
    for _ in range(rounds):
        ids = nearest(vectors, centres)
        counts = torch.bincount(ids, minlength=codebook_size).to(vectors.dtype)
        empty = (counts == 0).nonzero().flatten()
        away = (vectors - centres[ids]).square().sum(1).topk(len(empty)).indices
        centres = torch.zeros_like(centres).index_add_(0, ids, vectors) / counts.clamp_min(1)[:, None]
        centres[empty] = vectors[away]
        if on_sphere:
            centres = F.normalize(centres, dim=-1)
    return centres, counts
