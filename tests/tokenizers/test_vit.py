"""The ViT: places as rotations of a grid, rows that are no columns, and the start at the best linear map."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_networks import FLAT, awaken
from made_published import random_pictures
from torch import Tensor

from omnigram.tokenizers.networks.transformer import Rotation, grid_rotation
from omnigram.tokenizers.networks.vit import ViTConfig


def test_rotations_are_products_of_complex_numbers():
    rotation = grid_rotation(3, 5, 16, torch.device("cpu"))
    x = torch.randn(2, 4, 15, 16)
    turned = rotation(x)
    for place in range(15):
        row, column = divmod(place, 5)
        angles = [row * 100 ** (-i / 4) for i in range(4)] + [column * 100 ** (-i / 4) for i in range(4)]
        product = torch.complex(x[:, :, place, :8], x[:, :, place, 8:]) * torch.polar(
            torch.ones(8), torch.tensor(angles)
        )
        torch.testing.assert_close(turned[:, :, place], torch.cat((product.real, product.imag), dim=-1))


@settings(max_examples=20)
@given(st.tuples(*[st.integers(0, 6)] * 4), st.tuples(*[st.integers(0, 5)] * 2))
def test_rotated_products_know_offsets_alone(places_: tuple[int, int, int, int], shift: tuple[int, int]):
    rotation = grid_rotation(12, 12, 8, torch.device("cpu"))
    q, k = torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)

    def product(r1: int, c1: int, r2: int, c2: int) -> Tensor:
        turned = [
            Rotation(rotation.cos[12 * r + c, None], rotation.sin[12 * r + c, None])(x[None])[0]
            for x, r, c in ((q, r1, c1), (k, r2, c2))
        ]
        return turned[0] @ turned[1]

    r1, c1, r2, c2 = places_
    moved = product(r1 + shift[0], c1 + shift[1], r2 + shift[0], c2 + shift[1])
    torch.testing.assert_close(moved, product(r1, c1, r2, c2), rtol=1e-4, atol=1e-4)


def test_a_vit_tells_places_apart():
    """Of a picture that is turned by a right angle, codes are not those turned: rows are not columns."""
    network = ViTConfig(4, 32, 2, 2, 2)
    torch.manual_seed(0)
    encoder = network.encoder(4)
    awaken(encoder)
    pixels = torch.ones(1, 3, 16, 16)
    pixels[..., :8, :4] = -1  # each patch is of one colour, so that only places could tell
    turned = encoder(pixels.mT)
    assert not torch.allclose(encoder(pixels), turned.mT, atol=1e-4)


def test_a_vit_starts_from_the_best_linear_reconstruction():
    torch.manual_seed(0)
    network = FLAT["vit"]
    encoder, decoder = network.encoder(6), network.decoder(6)
    pixels = random_pictures(16, 16, 16)
    network.start_from(encoder, decoder, pixels, whitened=False)
    patches = F.unfold(pixels, 4, stride=4).transpose(1, 2).flatten(0, 1)
    left = torch.linalg.svdvals(patches - patches.mean(0))[6:].square().sum() / patches.numel()  # Eckart and Young
    torch.testing.assert_close((decoder(encoder(pixels)) - pixels).square().mean(), left, rtol=1e-4, atol=1e-6)
