"""Changes to a codebook: what each code becomes, that nothing else changes, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnigram.tokenizers import codebook_surgery as surgery
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.pixel_tokenizer import PixelTokenizer, load_image_tokenizer
from omnigram.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.index_backpropagation import IndexBackpropagationConfig
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig
from omnigram.tokenizers.quantizers.sim import SimConfig
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig

K = 16
NETWORK = ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False)
TABLES: dict[str, QuantizerConfig] = {
    "ema": MovingAverageConfig(K, 4, 0.9, 1.0, False, 0.01),
    "cosine": MovingAverageConfig(K, 4, 0.9, 1.0, True, 0.01),
    "ecvq": MovingAverageConfig(K, 4, 0.9, 1.0, False, 0.01, rate=0.05),
    "gradient": GradientConfig(K, 4, 0.25, False),
    "gradient, cosine": GradientConfig(K, 4, 0.25, True),
    "ibq": IndexBackpropagationConfig(K, 4, 0.25, 0.05, 1.0),
    "gumbel": GumbelConfig(K, 4, 5e-4, 1.0, 0.1, True),
}
FIXED: dict[str, QuantizerConfig] = {
    "fsq": FiniteScalarConfig((4, 3, 5)),
    "lfq": LookupFreeConfig(K, 0.25, 0.1, 1.0, 1.0),
    "simvq": SimConfig(K, 4, 0.25),
    "multi": MultiCodebookConfig(2, True, K, 4, 0.9, 0.25, False, 0.0),
}
PUBLISHED = ("vqgan", "vqgan, sphere", "movqgan")
every = pytest.mark.parametrize("name", [*TABLES, *PUBLISHED])


def pictures(count: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vectors_of(tokenizer: PixelTokenizer, pixels: Tensor) -> Tensor:
    """What its codes are compared with."""
    seen: list[Tensor] = []
    part: Any = tokenizer.vector_quantizer
    hook = part.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    tokenizer.encode(pixels)
    hook.remove()
    return part.compared(seen[0]).movedim(1, -1).flatten(0, -2)


def made(name: str) -> PixelTokenizer:
    """With codes all over its vectors."""
    torch.manual_seed(0)
    if name in TABLES:
        tokenizer = ImageTokenizer(NETWORK, TABLES[name])
        tokenizer.start_from(pictures(12, seed=1))
        return tokenizer.eval()
    if name == "movqgan":
        published: PixelTokenizer = MoVQGAN(MoVQGANConfig(K, 4, 4, 32, (1, 2), 1, ()))
    else:
        published = VQGAN(VQGANConfig(8, K, 8, 16, 32, (1, 2), 1, normalise_codes=name == "vqgan, sphere"))
    found = vectors_of(published.eval(), pictures(12, seed=1))
    if isinstance(published, MoVQGAN):  # whose random weights make all vectors nearly the same
        with torch.no_grad():
            weights = dict(published.quant_conv.named_parameters())
            weights["conv.bias"].sub_(found.mean(0))
            for weight in weights.values():
                weight.div_(found.std())
        found = vectors_of(published, pictures(12, seed=1))
    published.vector_quantizer.put(torch.arange(K), found[torch.randperm(len(found))[:K]])
    return published


MADE = {name: made(name) for name in [*TABLES, *PUBLISHED]}


@every
@settings(max_examples=8)
@given(order=st.permutations(range(K)))
def test_new_numbers_are_a_bijection(name: str, order: list[int]) -> None:
    old, kept = MADE[name], torch.tensor(order)
    new, became = old.with_codes(kept), kept.argsort()
    ids = old.encode(pictures())
    assert torch.equal(new.encode(pictures()), became[ids])
    assert torch.equal(new.decode(became[ids]), old.decode(ids))
    assert torch.equal(new.with_codes(became).encode(pictures()), ids)
    assert new.with_codes(became).identity == old.identity
    assert (new.identity == old.identity) == (order == sorted(order))
    assert new.settings == old.settings


@every
@settings(max_examples=8)
@given(data=st.data())
def test_codes_that_stay_keep_their_places_and_their_looks(name: str, data: st.DataObject) -> None:
    old = MADE[name]
    kept = torch.tensor(data.draw(st.lists(st.integers(0, K - 1), min_size=2, max_size=K, unique=True)))
    new = old.with_codes(kept)
    assert new.codebook_size == len(kept)
    before, after = old.encode(pictures()), new.encode(pictures())
    stay = torch.isin(before, kept)
    assert torch.equal(kept[after][stay], before[stay])
    assert torch.equal(new.decode(after), old.decode(kept[after]))
    if name != "gumbel":  # whose codes have no distance
        vectors = vectors_of(old, pictures())
        distances = torch.cdist(vectors, surgery.code_vectors(old)[kept]).square()
        if name == "ecvq":  # and the bits of a code by its share of what those that are left were used
            counts = old.vector_quantizer.get_buffer("counts")[kept]  # pyright: ignore[reportAttributeAccessIssue]
            distances = distances - 0.05 * (counts / counts.sum()).log2()
        assert torch.equal(after.flatten(), distances.argmin(1))


@every
def test_it_is_written_and_read_again(name: str, tmp_path: Path) -> None:
    old = MADE[name]
    before = old.identity
    new = old.with_codes(torch.tensor([5, 2, 9]))
    new.save_pretrained(tmp_path)
    again = load_image_tokenizer(tmp_path)
    assert again.identity == new.identity != before == old.identity
    assert torch.equal(again.encode(pictures()), new.encode(pictures()))


def test_averages_go_with_their_codes() -> None:
    old = made("ema").train()
    assert isinstance(old, ImageTokenizer)
    old.quantize(pictures())
    old.quantizer.update_codebook()
    new = old.with_codes(torch.tensor([5, 2, 9]))
    assert new.training
    before, after = old.quantizer.state_dict(), new.quantizer.state_dict()
    for name in ("codebook", "counts", "sums"):
        assert torch.equal(after[name], before[name][[5, 2, 9]])
    assert int(after["updates"]) == int(before["updates"]) == 1


@pytest.mark.parametrize("name", [*TABLES, *PUBLISHED])
def test_a_renumbering_keeps_places_and_adds_up_the_counts(name: str) -> None:
    old, kept = MADE[name], torch.tensor([5, 2, 9])
    became = torch.randint(3, (K,), generator=torch.Generator().manual_seed(0))
    became[kept] = torch.arange(3)
    new = surgery.renumbered(old, surgery.Renumbering(kept, became))
    assert torch.equal(surgery.code_vectors(new), surgery.code_vectors(old)[kept])
    if not isinstance(TABLES.get(name), MovingAverageConfig):
        assert new.identity == old.with_codes(kept).identity
        return
    before, after = (dict(each.named_buffers()) for each in (old, new))
    for average in ("quantizer.counts", "quantizer.sums"):
        expected = torch.stack([before[average][became == code].sum(0) for code in range(3)])
        torch.testing.assert_close(after[average], expected)


def test_a_code_that_took_over_many_costs_the_bits_of_all() -> None:
    """Two codes at 0 and 1 by which a vector in the middle goes to the one that is used more, once counts are added."""
    tokenizer = ImageTokenizer(NETWORK, MovingAverageConfig(4, 1, 0.9, 1.0, False, 0.01, rate=0.1))
    buffers = dict(tokenizer.quantizer.named_buffers())
    buffers["codebook"].copy_(torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
    buffers["counts"].copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    middle = torch.full((1, 1, 1, 1), 0.5)
    assert tokenizer.eval().quantizer(middle).ids.item() == 0
    merged = surgery.Renumbering(torch.tensor([0, 1]), torch.tensor([0, 1, 1, 1]))
    made = surgery.renumbered(tokenizer, merged)
    assert isinstance(made, ImageTokenizer)
    assert made.quantizer(middle).ids.item() == 1


@pytest.mark.parametrize("name", FIXED)
def test_codes_that_are_no_table_are_refused(name: str) -> None:
    tokenizer = ImageTokenizer(ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False), FIXED[name])
    with pytest.raises(ValueError, match=f"codes of {name} cannot be taken out or put elsewhere: "):
        surgery.check_changeable(tokenizer)
    with pytest.raises(ValueError, match=f"codes of {name} cannot be put on vectors: "):
        tokenizer.vector_quantizer.put(torch.empty(0, dtype=torch.int64), torch.empty(0, 4))


@pytest.mark.parametrize("name", [*TABLES, *PUBLISHED])
def test_one_code_is_no_codebook(name: str) -> None:
    surgery.check_changeable(MADE[name])
    if name in TABLES:
        with pytest.raises(ValueError, match="codebook_size=1 must be 2 or more"):
            MADE[name].with_codes(torch.tensor([3]))


counted = st.lists(st.integers(0, 9), min_size=K, max_size=K).map(torch.tensor)
features = st.integers(0, 99).map(lambda seed: torch.rand(K, 3, generator=torch.Generator().manual_seed(seed)))


@given(counts=counted, vectors=features, min_count=st.integers(1, 9))
def test_pruning_keeps_what_is_used(counts: Tensor, vectors: Tensor, min_count: int) -> None:
    kept = [code for code in range(K) if counts[code] >= min_count]
    if len(kept) == K:
        with pytest.raises(ValueError, match="every code is used"):
            surgery.pruning(counts, min_count, vectors)
        return
    if len(kept) < 2:
        with pytest.raises(ValueError, match=f"{len(kept)} of 16 codes would stay"):
            surgery.pruning(counts, min_count, vectors)
        return
    found = surgery.pruning(counts, min_count, vectors)
    assert found.kept.tolist() == kept
    assert found.removed == K - len(kept)
    for code in range(K):
        distances = [float((vectors[code] - vectors[other]).norm()) for other in kept]
        assert distances[int(found.became[code])] == min(distances)


@given(counts=counted, looks=features, closer_than=st.floats(0.01, 0.6))
def test_merging_leaves_no_two_alike(counts: Tensor, looks: Tensor, closer_than: float) -> None:
    if torch.nn.functional.pdist(looks).min() >= closer_than:
        with pytest.raises(ValueError, match="no two codes are closer"):
            surgery.merging(looks, counts, closer_than)
        return
    found = surgery.merging(looks, counts, closer_than)
    assert 2 <= len(found.kept) < K
    assert torch.nn.functional.pdist(looks[found.kept]).min() >= closer_than * 0.999
    target = found.kept[found.became]
    assert (looks - looks[target]).norm(dim=1).max() < closer_than * 1.001
    gone = [code for code in range(K) if code not in found.kept]
    for code in gone:  # by a code that is used as much or more
        near = (looks[found.kept] - looks[code]).norm(dim=1) < closer_than * 1.001
        assert counts[found.kept[near]].max() >= counts[code]


@given(counts=counted, looks=features, share=st.floats(0.05, 0.8))
def test_a_share_of_the_codes_goes(counts: Tensor, looks: Tensor, share: float) -> None:
    found = surgery.merging(looks, counts, surgery.distance_of_share(looks, counts, share))
    assert found.removed >= max(1, round(share * K))


def test_what_cannot_be_merged() -> None:
    counts = torch.ones(4, dtype=torch.int64)
    looks = torch.tensor([[0.0], [1], [2], [3]])
    with pytest.raises(ValueError, match="--closer-than -1 must be above 0"):
        surgery.merging(looks, counts, -1)
    with pytest.raises(ValueError, match=r"no two codes are closer than 0\.5: raise --closer-than above 1"):
        surgery.merging(looks, counts, 0.5)
    with pytest.raises(ValueError, match="all codes are closer than 9"):
        surgery.merging(looks, counts, 9)
    with pytest.raises(ValueError, match="--share 1 must be above 0 and less than 1"):
        surgery.distance_of_share(looks, counts, 1)


@given(counts=counted)
def test_by_frequency(counts: Tensor) -> None:
    found = surgery.by_frequency(counts)
    pairs = [(-int(counts[code]), code) for code in range(K)]
    assert found.kept.tolist() == [code for _, code in sorted(pairs)]
    assert torch.equal(found.kept[found.became], torch.arange(K))


@given(looks=features)
def test_by_similarity_is_a_walk(looks: Tensor) -> None:
    found = surgery.by_similarity(looks)
    order = found.kept.tolist()
    assert sorted(order) == list(range(K))
    assert order[0] == int(looks.sum(1).argmin())
    for place in range(K - 1):
        steps = {code: float((looks[code] - looks[order[place]]).norm()) for code in order[place + 1 :]}
        assert steps[order[place + 1]] <= min(steps.values()) * 1.0001


@given(looks=features)
def test_most_alike_is_the_nearest_other(looks: Tensor) -> None:
    found = surgery.most_alike(looks)
    table = (looks[:, None] - looks[None]).norm(dim=-1).fill_diagonal_(torch.inf)
    torch.testing.assert_close(found.distance, table.min(1).values)
    assert torch.equal(found.code, table.argmin(1))


@every
def test_patches_are_what_a_code_draws_in_the_middle_of_itself(name: str) -> None:
    tokenizer = MADE[name]
    patches = surgery.code_patches(tokenizer, batch_size=5)
    patch = tokenizer.patch
    assert patches.shape == (K, patch, patch, 3)
    pixels = tokenizer.decode(torch.full((1, 3, 3), 7))[0, :, patch : 2 * patch, patch : 2 * patch]
    assert np.abs((pixels.permute(1, 2, 0).numpy() + 1) * 127.5 - patches[7].numpy()).max() <= 0.51
    looks = surgery.patch_features(patches)
    distance = (looks[3] - looks[7]).norm()
    squares = (patches[3].double() - patches[7].double()).square().mean()
    assert float(distance) == pytest.approx(float(squares.sqrt()), rel=1e-4)


def test_patches_of_what_cannot_be_looked_at() -> None:
    blind = VQGAN(VQGANConfig(8, K, 8, 16, 32, (1, 2), 1, decoder=False))
    with pytest.raises(ValueError, match="has no decoder"):
        surgery.code_patches(blind)
    for codebooks in (2, 3, 4):
        several = MultiCodebookConfig(codebooks, True, K, 4, 0.9, 0.25, False, 0.0)
        with pytest.raises(ValueError, match=f"a place has {codebooks} codes: one alone cannot be looked at"):
            surgery.code_patches(ImageTokenizer(NETWORK, several))


@pytest.mark.parametrize("name", [name for name in [*TABLES, *PUBLISHED] if name != "gumbel"])
def test_dead_codes_live_where_errors_were_largest(name: str) -> None:
    old = made(name)
    vectors = vectors_of(old, pictures(12))
    dead = torch.tensor([1, 4, 6])
    old.vector_quantizer.put(dead, torch.full((3, vectors.shape[1]), 1e3))
    if "cosine" in name or "sphere" in name:  # there nothing is far away: on another code
        old.vector_quantizer.put(dead, surgery.code_vectors(old)[[0, 0, 0]])
    before = surgery.code_vectors(old)
    new = surgery.revived(old, dead, pictures(12).split(5))
    after = surgery.code_vectors(new)
    alive = [code for code in range(K) if code not in dead]
    assert torch.equal(after[alive], before[alive])
    assert torch.equal(surgery.code_vectors(old), before)
    used = torch.bincount(new.encode(pictures(12)).flatten(), minlength=K)
    assert (used[dead] > 0).all()
    errors = (vectors - before[old.encode(pictures(12)).flatten()]).square().sum(1)
    if name != "ecvq":  # whose codes are not the nearest
        torch.testing.assert_close(errors, torch.cdist(vectors, before[alive]).square().min(1).values)
    for code in dead.tolist():  # one after the other, as brute force would
        worst = vectors[errors.argmax()]
        torch.testing.assert_close(after[code], worst, atol=1e-4, rtol=1e-4)
        errors = torch.minimum(errors, (vectors - worst).square().sum(1))


def test_what_cannot_be_revived() -> None:
    with pytest.raises(ValueError, match="codes of gumbel cannot be put on vectors"):
        surgery.revived(MADE["gumbel"], torch.tensor([1]), [pictures()])
    flat = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"only \d+ vectors that are no code, for 16 dead codes"):
        surgery.revived(MADE["ema"], torch.arange(K), [flat])
