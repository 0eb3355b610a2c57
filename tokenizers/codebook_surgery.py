"""Changes to a trained codebook: codes taken out, put together, renumbered or revived, and what they look like.

Every change but revival is a `Renumbering`, which says of each old code what it became. Encoder and decoder stay as
they are, so what a code decodes to stays too.

Dimensions: K codes before, N after, F features of a code, D dimension of a vector, h w grid of codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from .image import ImageTokenizer, to_uint8
from .pixel_tokenizer import PixelTokenizer
from .quantizers.moving_average import MovingAverageQuantizer
from .quantizers.nearest import DISTANCES

ALONE = 3  # rows and columns of one code, of which the middle one is looked at
CANDIDATES = 50_000  # vectors with the largest errors among which dead codes are spread


@dataclass(frozen=True, eq=False)
class Renumbering:
    """kept [N]: which old code each new one is. became [K]: the new code of each old one."""

    kept: Int[Tensor, " n"]
    became: Int[Tensor, " k"]

    def __post_init__(self) -> None:
        assert len(self.kept) == len(self.kept.unique())
        assert torch.equal(self.became[self.kept], torch.arange(len(self.kept)))
        assert 0 <= int(self.became.min()) <= int(self.became.max()) < len(self.kept)

    @property
    def removed(self) -> int:
        """How many codes there are fewer."""
        return len(self.became) - len(self.kept)


class Likeness(NamedTuple):
    """Of each code [K]: the code most like it, and how far away that is."""

    distance: Float[Tensor, " k"]
    code: Int[Tensor, " k"]


@torch.no_grad()
def code_patches(tokenizer: PixelTokenizer, batch_size: int = 256) -> UInt8[Tensor, "k patch patch 3"]:
    """What each code decodes to among codes of its own kind: the middle of a grid of 3 x 3.

    ValueError for a tokenizer that has no decoder, several codes a place, or grids of other sizes.
    """
    if not tokenizer.can_decode:
        raise ValueError("this image tokenizer has no decoder: its codes cannot be looked at")
    _check_single(tokenizer)
    tokenizer.size(ALONE, ALONE)
    patch, device = tokenizer.patch, next(tokenizer.parameters()).device
    middle = slice(ALONE // 2 * patch, (ALONE // 2 + 1) * patch)
    found = []
    for codes in torch.arange(tokenizer.codebook_size, device=device).split(batch_size):
        grids = repeat(codes, "k -> k h w", h=ALONE, w=ALONE)
        found.append(to_uint8(tokenizer.decode(grids)[:, :, middle, middle].float()).cpu())
    return torch.cat(found)


def patch_features(patches: UInt8[Tensor, "k patch patch 3"]) -> Float[Tensor, "k f"]:
    """Features whose distance is the root mean squared difference of two patches, in grey levels of 255."""
    flat = rearrange(patches.float(), "k y x c -> k (y x c)")
    return flat / flat.shape[1] ** 0.5


@torch.no_grad()
def code_vectors(tokenizer: PixelTokenizer) -> Float[Tensor, "k d"]:
    """The vector of each code. ValueError for a tokenizer without a codebook, or with several codes a place."""
    _check_single(tokenizer)
    codes = torch.arange(tokenizer.codebook_size, device=next(tokenizer.parameters()).device)
    return rearrange(tokenizer.vector_quantizer.lookup(codes[:, None, None]), "k d 1 1 -> k d").float().cpu()


def most_alike(features: Float[Tensor, "k f"]) -> Likeness:
    """Each code's nearest other one, by Euclidean distance."""
    assert len(features) > 1
    distances, codes = [], []
    for part in torch.arange(len(features)).split(max(1, DISTANCES // len(features))):
        distance = _distances(features[part], features)
        distance[torch.arange(len(part)), part] = torch.inf
        least = distance.min(1)
        distances.append(least.values)
        codes.append(least.indices)
    return Likeness(torch.cat(distances), torch.cat(codes))


def check_changeable(tokenizer: PixelTokenizer) -> None:
    """ValueError for a tokenizer whose codes are no entries of a table."""
    tokenizer.vector_quantizer.with_codes(torch.arange(tokenizer.codebook_size))


def pruning(counts: Int[Tensor, " k"], min_count: int, vectors: Float[Tensor, "k d"]) -> Renumbering:
    """Codes that were counted less than `min_count` times go to the kept code nearest by vector; the order stays.

    ValueError if none would go, or fewer than two would stay.
    """
    if min_count < 1:
        raise ValueError(f"--min-count {min_count} must be 1 or more")
    stays = counts >= min_count
    if bool(stays.all()):
        raise ValueError(f"every code is used {int(counts.min())} times or more: raise --min-count {min_count}")
    if int(stays.sum()) < 2:
        left = f"{int(stays.sum())} of {len(counts)} codes would stay"
        raise ValueError(f"{left}, and a codebook has two or more: lower --min-count {min_count}, or give more --data")
    return _to_nearest(stays, vectors)


def merging(features: Float[Tensor, "k f"], counts: Int[Tensor, " k"], closer_than: float) -> Renumbering:
    """Codes closer than that to a more used one that stays become the nearest such; the order of the others stays.

    No two that stay are closer than `closer_than`, and none that goes is farther than that from what it becomes.
    ValueError if none would go, or fewer than two would stay.
    """
    if not closer_than > 0:
        raise ValueError(f"--closer-than {closer_than:g} must be above 0")
    stays = _apart(features, counts, closer_than)
    if bool(stays.all()):
        least = float(most_alike(features).distance.min())
        raise ValueError(f"no two codes are closer than {closer_than:g}: raise --closer-than above {least:.3g}")
    if int(stays.sum()) < 2:
        raise ValueError(f"all codes are closer than {closer_than:g}, and a codebook has two or more: lower it")
    return _to_nearest(stays, features)


def distance_of_share(features: Float[Tensor, "k f"], counts: Int[Tensor, " k"], share: float) -> float:
    """A distance for `merging` at which about this share of the codes goes, and at least one."""
    if not 0 < share < 1:
        raise ValueError(f"--share {share:g} must be above 0 and less than 1")
    wanted = max(1, round(share * len(counts)))
    low, high = 0.0, 2 * float((features - features.mean(0)).norm(dim=1).max()) + 1e-3
    for _ in range(30):
        middle = (low + high) / 2
        goes = len(counts) - int(_apart(features, counts, middle).sum())
        if goes == wanted:
            return middle
        low, high = (middle, high) if goes < wanted else (low, middle)
    return high


def by_frequency(counts: Int[Tensor, " k"]) -> Renumbering:
    """The most used code is number 0; equally used ones keep their order."""
    return _reordered(counts.argsort(descending=True, stable=True))


def by_similarity(features: Float[Tensor, "k f"]) -> Renumbering:
    """A walk from the code with the least sum of features, always on to the nearest code where it has not been."""
    here = int(features.sum(1).argmin())
    places = (features - features.mean(0)).double()
    lengths = places.square().sum(1)
    order = [here]
    for _ in range(len(features) - 1):
        here_place = places[here]
        lengths[here] = torch.inf
        here = int((lengths - 2 * (places @ here_place)).argmin())
        order.append(here)
    return _reordered(torch.tensor(order))


def renumbered(tokenizer: PixelTokenizer, renumbering: Renumbering) -> PixelTokenizer:
    """The tokenizer with the codes that are kept; where it counts how often each is used, with the counts of all.

    ValueError where codes are no entries of a table.
    """
    made = tokenizer.with_codes(renumbering.kept)
    old, new = tokenizer.vector_quantizer, made.vector_quantizer
    if isinstance(old, MovingAverageQuantizer) and isinstance(new, MovingAverageQuantizer):
        new.count_with(old, renumbering.became)
    return made


@torch.no_grad()
def revived(
    tokenizer: PixelTokenizer, dead: Int[Tensor, " n"], pixels: Iterable[Float[Tensor, "b 3 height width"]]
) -> PixelTokenizer:
    """The tokenizer with `dead` codes on vectors of these pictures: each on the one that is now farthest from any code.

    ValueError where codes cannot be put on vectors, or for fewer different vectors than dead codes.
    """
    made = tokenizer.with_codes(torch.arange(tokenizer.codebook_size))
    vectors, errors = torch.empty(0), torch.empty(0)
    for batch in pixels:
        found, error = _errors(tokenizer, batch)
        vectors, errors = (torch.cat(pair) if len(pair[0]) else pair[1] for pair in ((vectors, found), (errors, error)))
        worst = errors.topk(min(CANDIDATES, len(errors))).indices
        vectors, errors = vectors[worst], errors[worst]
    chosen = []
    for number in range(len(dead)):
        if not len(errors) or float(errors.max()) <= 0:
            raise ValueError(f"the pictures have only {number} vectors that are no code, for {len(dead)} dead codes")
        chosen.append(vectors[errors.argmax()])
        errors = torch.minimum(errors, (vectors - chosen[-1]).square().sum(1))
    quantizer, device = made.vector_quantizer, next(made.parameters()).device
    quantizer.put(dead.to(device), torch.stack(chosen).to(device))
    return made


def _errors(
    tokenizer: PixelTokenizer, pixels: Float[Tensor, "b 3 height width"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """The vectors of pictures as they are compared with codes, and their squared distances from their own."""
    quantizer = tokenizer.vector_quantizer
    assert isinstance(quantizer, nn.Module)
    seen: list[Tensor] = []
    hook = quantizer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        ids = tokenizer.encode(pixels)
    finally:
        hook.remove()
    vectors = rearrange(quantizer.compared(seen[0]), "b d h w -> (b h w) d").float().cpu()
    codes = rearrange(quantizer.lookup(ids), "b d h w -> (b h w) d").float().cpu()
    return vectors, (vectors - codes).square().sum(1)


def _check_single(tokenizer: PixelTokenizer) -> None:
    if isinstance(tokenizer, ImageTokenizer) and (levels := tokenizer.quantizer.config.levels) > 1:
        raise ValueError(f"a place has {levels} codes: one alone cannot be looked at")


def _apart(features: Float[Tensor, "k f"], counts: Int[Tensor, " k"], closer_than: float) -> Bool[Tensor, " k"]:
    """Which codes stay when each, the most used first, stays only if none that stays is closer."""
    stays = torch.zeros(len(counts), dtype=torch.bool)
    free = torch.ones(len(counts), dtype=torch.bool)
    for part in counts.argsort(descending=True, stable=True).split(max(1, DISTANCES // len(counts))):
        candidates = part[free[part]]
        near = _distances(features[candidates], features) < closer_than
        for row, code in enumerate(candidates.tolist()):
            if free[code]:
                stays[code] = True
                free &= ~near[row]
    return stays


def _to_nearest(stays: Bool[Tensor, " k"], features: Float[Tensor, "k f"]) -> Renumbering:
    """Codes that do not stay become the nearest one that does."""
    kept = stays.nonzero().flatten()
    parts = features.split(max(1, DISTANCES // len(kept)))
    became = torch.cat([_distances(part, features[kept]).argmin(1) for part in parts])
    became[kept] = torch.arange(len(kept))
    return Renumbering(kept, became)


def _reordered(order: Int[Tensor, " k"]) -> Renumbering:
    return Renumbering(order, order.argsort())


def _distances(some: Float[Tensor, "m f"], all_: Float[Tensor, "k f"]) -> Float[Tensor, "m k"]:
    """By matrix products, which lose the difference of near ones in 32 bits, and do not in 64 around the middle."""
    middle = all_.mean(0)
    pair = (some - middle).double(), (all_ - middle).double()
    return torch.cdist(*pair, compute_mode="use_mm_for_euclid_dist").float()
