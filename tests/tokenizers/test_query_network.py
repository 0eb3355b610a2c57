"""Learned queries: what each of them sees, the first codes decoded alone, and the one size that is taken."""

import pytest
import torch
from made_networks import ORDERED, QUANTIZERS, SMALL, made, shared
from made_published import random_pictures

from omnigram.tokenizers.networks.queries import QueriesConfig


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_causal_query_does_not_depend_on_later_ones(first: int):
    torch.manual_seed(0)
    pixels = random_pictures(2, 16, 16)
    for causal in (True, False):
        encoder = QueriesConfig(16, 4, 6, 32, 2, 3, 1, causal, 0.0).encoder(4)
        before = encoder(pixels)
        encoder.queries[first:].normal_()
        after = encoder(pixels)
        assert torch.equal(before[..., :first], after[..., :first]) == causal
        changed = (before != after)[..., first:].any(dim=1)
        assert changed.all()


@torch.no_grad()
def test_every_query_sees_every_patch_and_those_before_it():
    torch.manual_seed(0)
    encoder = ORDERED.encoder(4)
    pixels = random_pictures(1, 16, 16)
    before = encoder(pixels)
    for row in range(4):
        for column in range(4):
            other = pixels.clone()
            other[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] *= -1
            assert (encoder(other) != before).any(dim=1).all(), (row, column)
    encoder.queries[0].normal_()
    assert (encoder(pixels) != before).any(dim=1).all()


def test_the_first_codes_are_decoded_alone_and_trained_for_it():
    tokenizer = made(ORDERED)
    ids = tokenizer.encode(random_pictures(3, 16, 16))
    wholes = [tokenizer.decode(ids[..., :length]) for length in range(1, 7)]
    assert all(whole.shape == (3, 3, 16, 16) for whole in wholes)
    assert all(not torch.equal(wholes[-1], part) for part in wholes[:-1])
    other = ids.clone()
    other[..., 3:] = (other[..., 3:] + 1) % 16
    assert torch.equal(tokenizer.decode(other[..., :3]), wholes[2])
    decoder = tokenizer.decoder.train()
    codes = tokenizer.quantizer.lookup(ids)
    with torch.no_grad():
        of_length = [decoder.eval()(codes[..., :length]) for length in range(1, 7)]
        decoder.train()
        lengths = []
        for seed in range(200):
            torch.manual_seed(seed)
            decoded = decoder(codes)
            lengths.append(next(n for n, part in enumerate(of_length, 1) if torch.equal(part, decoded)))
    counts = torch.bincount(torch.tensor(lengths), minlength=7)[1:]
    assert (counts[:5] > 5).all(), "of half of the steps each length an equal share"
    assert counts[5] > 80, "of the others all codes"


def test_pictures_and_grids_of_another_size_are_refused():
    tokenizer = shared(SMALL["queries"])
    assert tokenizer.grid(16, 16) == (1, 6)
    assert tokenizer.size(1, 6) == (16, 16)
    with pytest.raises(ValueError, match=r"^a picture of 32 x 16 pixels: this image tokenizer takes 16 x 16 alone$"):
        tokenizer.encode(torch.zeros(1, 3, 32, 16))
    for shape in ((1, 5), (1, 7), (2, 3)):
        with pytest.raises(ValueError, match=rf"^{shape[0]} x {shape[1]} codes are no picture: it has 1 row of 6$"):
            tokenizer.decode(torch.zeros(1, *shape, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1 row of 1 to 6$"):
        made(ORDERED).decode(torch.zeros(1, 1, 7, dtype=torch.int64))
    residual = made(SMALL["queries"], QUANTIZERS["residual"])
    assert residual.grid(16, 16) == (1, 12)
    with pytest.raises(ValueError, match="11 columns of codes are no whole number of places of 2 codes"):
        residual.decode(torch.zeros(1, 1, 11, dtype=torch.int64))
