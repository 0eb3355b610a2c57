"""Retrieval against a plain search, on planted cases, and through the tokenizer whatever the sizes."""

import numpy as np
import pytest
import torch
from made_evaluation import NAMES, PATCH, STYLES, known, oracle, palette, tiny

from omnigram.model.generation import tasks
from omnigram.train.captioned_pictures import choose, gallery_of
from omnigram.train.retrieval import Gallery, decoded, describe_codes, draw_each, pixels_16

PICTURES = [known(name, style) for name in NAMES for style in STYLES]
CONCEPTS = [picture.concept for picture in PICTURES]


def gallery() -> Gallery:
    codes = [picture.codes for picture in PICTURES]
    return Gallery(describe_codes(palette(), codes, {"pixels": pixels_16})["pixels"], CONCEPTS)


def test_retrieval_as_a_plain_search_counts_it() -> None:
    random = np.random.default_rng(0)
    features, queries = random.normal(size=(40, 6)), random.normal(size=(25, 6))
    concepts, asked = random.choice(list("abcdef"), 40).tolist(), random.choice(list("abcdefg"), 25).tolist()
    top1 = top5 = chance = 0.0
    for query, concept in zip(queries, asked, strict=True):
        order = sorted(range(40), key=lambda n: sum((features[n] - query) ** 2))
        top1 += concepts[order[0]] == concept
        top5 += concept in [concepts[n] for n in order[:5]]
        chance += np.mean([other == concept for other in concepts])
    found = Gallery(torch.from_numpy(features), concepts).retrieve(torch.from_numpy(queries), asked)
    assert found == pytest.approx((top1 / 25, top5 / 25, chance / 25))
    assert 0 < found.top1 < found.top5 < 1


def test_a_sampler_that_draws_what_is_asked_is_always_found() -> None:
    drawn = draw_each(oracle().sampler, PICTURES)
    found = gallery().retrieve(describe_codes(palette(), drawn, {"pixels": pixels_16})["pixels"], CONCEPTS)
    assert found.top1 == found.top5 == 1
    assert found.chance == pytest.approx(2 / 16)


def test_a_sampler_that_draws_something_else_is_never_found() -> None:
    wrong = {f"{name}, {style}": f"{NAMES[n - 1]}, {style}" for n, name in enumerate(NAMES) for style in STYLES}
    drawn = draw_each(oracle(wrong).sampler, PICTURES)
    found = gallery().retrieve(describe_codes(palette(), drawn, {"pixels": pixels_16})["pixels"], CONCEPTS)
    assert found.top1 == 0


def test_pixels_are_averaged_over_areas() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)
    means = pictures.reshape(2, 16, 2, 16, 3, 3).mean((2, 4)) / 255  # [n, 16, 16, 3]
    ours = pixels_16(torch.from_numpy(pictures)).reshape(2, 3, 16, 16).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.numpy(), means, atol=1e-6)


def test_pictures_of_several_sizes_keep_their_places() -> None:
    random = np.random.default_rng(0)
    codes = [random.integers(0, 16, size) for size in ((2, 2), (1, 3), (2, 2), (2, 2), (1, 3))]
    together = describe_codes(palette(), codes, {"pixels": pixels_16}, batch_size=2)["pixels"]
    alone = [describe_codes(palette(), [grid], {"pixels": pixels_16})["pixels"][0] for grid in codes]
    torch.testing.assert_close(together, torch.stack(alone))
    shapes = {n: tuple(p.shape) for ns, ps in decoded(palette(), codes, 2) for n, p in zip(ns, ps, strict=True)}
    assert shapes == {n: (grid.shape[0] * PATCH, grid.shape[1] * PATCH, 3) for n, grid in enumerate(codes)}


def test_sample_i_is_the_one_of_seed_i() -> None:
    sampler = tiny().sampler
    drawn = draw_each(sampler, PICTURES[:3], seed=7, batch_size=2)
    for number, picture in enumerate(PICTURES[:3]):
        [alone] = tasks.draw(sampler, picture.wordings[0], size=(2, 2), seed=7 + number)
        np.testing.assert_array_equal(drawn[number], alone)


def test_queries_take_styles_in_turn() -> None:
    chosen = choose(PICTURES, 7, seed=3)
    assert [picture.style for picture in chosen] == [STYLES[n % 2] for n in range(7)]
    assert len({picture.key for picture in chosen}) == 7
    assert chosen == choose(PICTURES, 7, seed=3) != choose(PICTURES, 7, seed=4)
    uneven = [known(name, "flat") for name in NAMES[:5]] + [known(NAMES[0], "round")]
    assert sorted(p.key for p in choose(uneven, 99, seed=0)) == sorted(p.key for p in uneven)


def test_a_smaller_gallery_keeps_what_is_asked_for() -> None:
    wanted = {NAMES[3], NAMES[6]}
    fewer = gallery_of(PICTURES, wanted, 6, seed=0)
    assert len(fewer) == 6
    assert sum(picture.concept in wanted for picture in fewer) == 4
    assert gallery_of(PICTURES, wanted, 16, seed=0) == PICTURES
