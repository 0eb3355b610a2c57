"""The discriminator of patches: what it takes, and what of a picture each score sees."""

import pytest
import torch
from torch import nn

from omnigram.train.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("layers", "grid", "edge"), [(1, (16, 24), 5), (2, (8, 12), 11), (3, (4, 6), 23)])
def test_each_level_halves_the_grid_and_scores_see_their_patch(layers: int, grid: tuple[int, int], edge: int) -> None:
    """edge: pixels that the first score sees: with n of a level seen, 2 n + 2 of the one before; less the padding."""
    torch.manual_seed(0)
    made = PatchDiscriminator(8, layers)
    for norm in (module for module in made.modules() if isinstance(module, nn.GroupNorm)):
        norm.forward = nn.Identity().forward  # which sees the whole picture
    pixels = torch.randn(1, 3, 32, 48, requires_grad=True)
    scores = made(pixels)
    assert scores.shape == (1, 1, *grid)
    (seen,) = torch.autograd.grad(scores[0, 0, 0, 0], pixels)
    rows, columns = (seen[0].abs().amax((0, axis)).nonzero().flatten() for axis in (2, 1))
    assert rows.tolist() == columns.tolist() == list(range(edge))


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.discriminator\.channels=6 must be a multiple of 4"):
        PatchDiscriminator(6, 2)
    made = PatchDiscriminator(4, 3)
    assert made(torch.zeros(1, 3, 8, 8)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="7 x 16 pixels are too small for a discriminator that halves them 3 times"):
        made(torch.zeros(1, 3, 7, 16))
