"""The published rule of each quantizer, against other implementations, brute force and definitions."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from made_quantizers import made
from vector_quantize_pytorch import LFQ, VectorQuantize

from omnigram.tokenizers.quantizers.entropy import entropies
from omnigram.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.index_backpropagation import IndexBackpropagationConfig
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.nearest import k_means, nearest
from omnigram.tokenizers.quantizers.quantizer import Quantizer, places
from omnigram.tokenizers.quantizers.sim import SimConfig

vectors_4 = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("cosine", [False, True])
def test_moving_averages_are_those_of_vector_quantize_pytorch(cosine: bool):
    ours = made(MovingAverageConfig(16, 4, 0.8, 0.25, cosine, 0.0)).train()
    peer = VectorQuantize(
        4,
        16,
        decay=0.8,
        commitment_weight=0.25,
        use_cosine_sim=cosine,
        accept_image_fmap=True,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    ).train()
    book: Any = peer._codebook
    for theirs, name in ((book.embed, "codebook"), (book.cluster_size, "counts"), (book.embed_avg, "sums")):
        theirs.data.copy_(ours.state_dict()[name][None])
    for step in range(5):
        vectors = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(step)) + step
        mine, (codes, ids, loss) = ours(vectors), peer(vectors)
        ours.update_codebook()
        assert torch.equal(mine.ids, ids)
        torch.testing.assert_close(mine.codes, codes, rtol=1e-4, atol=1e-5)
        if not cosine:  # there the peer compares with vectors of any length
            torch.testing.assert_close(mine.loss, loss.squeeze())
        torch.testing.assert_close(ours.state_dict()["codebook"], book.embed[0], rtol=1e-4, atol=1e-5)


def test_dead_codes_are_put_on_vectors_of_the_batch():
    quantizer = made(MovingAverageConfig(16, 4, 0.5, 0.25, False, 0.13)).train()
    far = torch.randn(4, 4, 3, 3) + 100  # of all codes, one is nearest
    assert len(quantizer(far).ids.unique()) == 1
    for _ in range(14):
        quantizer(far)
        quantizer.update_codebook()
    assert len(quantizer(far).ids.unique()) > 12
    codes = quantizer.state_dict()["codebook"]
    assert (torch.cdist(codes, places(far)).min(1).values < 3).all()


@pytest.mark.parametrize("cosine", [False, True])
def test_codes_without_vectors_stay_where_they_are_put(cosine: bool):
    """Where none is ever revived: of fewer different vectors than codes, and of vectors that codes are put on."""
    quantizer = made(MovingAverageConfig(16, 4, 0.9, 0.25, cosine, 0.0)).train()
    few = F.normalize(torch.randn(5, 4), dim=1) * 3
    quantizer.start_from(few.repeat(20, 1))
    put = F.normalize(torch.randn(2, 4), dim=1)
    quantizer.put(torch.tensor([3, 7]), put)
    before = quantizer.get_buffer("codebook").clone()
    quantizer(rearrange(few[:1], "n d -> 1 d 1 n"))
    quantizer.update_codebook()
    moved = (quantizer.get_buffer("codebook") - before).norm(dim=1)
    assert (moved < 0.1).all()
    torch.testing.assert_close(before[[3, 7]], put)


@pytest.mark.parametrize("copies", [1, 30])
def test_a_code_is_dead_by_its_share_of_an_even_count(copies: int):
    """Whether the batch is small or large: of 40 vectors 10 for each of 4 codes, of which a tenth is 1."""
    quantizer = made(MovingAverageConfig(4, 2, 0.5, 0.25, False, 0.1))
    uses = copies * torch.tensor([30.0, 7.2, 2.0, 0.8])
    corners = 10 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    for name, value in (("codebook", corners), ("counts", uses), ("sums", corners * uses[:, None])):
        quantizer.get_buffer(name).copy_(value)
    batch = corners.repeat_interleave(copies * torch.tensor([30, 8, 2, 0]), dim=0)
    quantizer.train()(rearrange(batch, "n d -> 1 d 1 n"))
    quantizer.update_codebook()  # its average count of the last one is 0.4 a copy
    expected = copies * torch.tensor([30.0, 7.6, 2.0, 1.0])
    torch.testing.assert_close(quantizer.get_buffer("counts"), expected)
    [revived] = quantizer.get_buffer("codebook")[3:]
    assert (revived == corners[:3]).all(1).any()


def large() -> tuple[Quantizer, Callable[[int], None]]:
    """2,048 codes that were never used, and a step on 64 vectors that are far from all of them."""
    torch.manual_seed(0)
    quantizer = MovingAverageConfig(2048, 4, 0.97, 0.25, False, 0.1).build().train()
    for name in ("counts", "sums"):
        quantizer.get_buffer(name).zero_()

    def step(number: int) -> None:
        quantizer(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(number)) + 100)
        quantizer.update_codebook()

    return quantizer, step


def test_which_of_many_dead_codes_are_revived_is_drawn():
    quantizer, step = large()
    step(0)
    moved = quantizer.get_buffer("codebook")[:, 0] > 50
    assert int(moved.sum()) == 64 + 1  # all vectors of the batch, and the code that was nearest to them
    assert (rearrange(moved, "(region code) -> region code", region=8).sum(1) > 2).all()


def test_a_codebook_far_larger_than_a_batch_comes_to_life():
    """In even use a code is chosen once in 32 steps; nine of ten are chosen often enough not to be replaced."""
    quantizer, step = large()
    for number in range(200):
        step(number)
    assert (quantizer.get_buffer("codebook")[:, 0] > 50).all()
    counts = quantizer.get_buffer("counts")
    alive = rearrange(counts > 0.1 * counts.mean(), "(region code) -> region code", region=8)
    assert (alive.float().mean(1) > 0.8).all()


@given(st.floats(0.01, 3), st.integers(0, 2**31))
def test_a_rate_weighs_distance_against_the_bits_of_a_code(rate: float, seed: int):
    """Chou, Lookabaugh and Gray, equation 8, by brute force; a larger rate never costs more bits."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.rand(16, generator=generator)
    bits = -(counts.clamp_min(0.02 * counts.mean()) / counts.clamp_min(0.02 * counts.mean()).sum()).log2()
    vectors = torch.randn(2, 4, 3, 3, generator=generator)

    def chosen(rate: float) -> torch.Tensor:
        quantizer = made(MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.02, rate)).eval()
        quantizer.counts.copy_(counts)  # pyright: ignore[reportCallIssue]
        return quantizer(vectors).ids.flatten()

    codes = made(MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.02)).state_dict()["codebook"]
    costs = [
        [float((v - c).square().sum() + rate * b) for c, b in zip(codes, bits, strict=True)] for v in places(vectors)
    ]
    ids = chosen(rate)
    for place, row in enumerate(costs):
        assert row[ids[place]] <= min(row) + 1e-4
    assert bits[chosen(2 * rate)].sum() <= bits[ids].sum() + 1e-4 <= bits[chosen(0)].sum() + 2e-4


def test_the_codebooks_term_weighs_one_and_the_encoders_its_commitment():
    """VQ-VAE, equation 3: values of both forms are equal, so gradients tell."""
    quantizer = made(GradientConfig(16, 4, 0.25, False)).train()
    vectors = vectors_4.clone().requires_grad_()
    quantized = quantizer(vectors)
    quantized.loss.backward()
    codes = quantizer.lookup(quantized.ids).detach()
    difference = 2 * (vectors_4 - codes) / vectors_4.numel()
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, 0.25 * difference)
    expected = torch.zeros(16, 4).index_add_(0, quantized.ids.flatten(), -places(difference))
    [parameter] = quantizer.parameters()
    assert parameter.grad is not None
    torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize(("levels", "codes"), [((8, 6, 5), 240), ((8, 5, 5, 5), 1000), ((7, 5, 5, 5, 5), 4375)])
def test_fsq_uses_every_level_of_every_component(levels: tuple[int, ...], codes: int):
    """The sizes of the paper's table 1; each code's vector is quantized to that code."""
    quantizer = FiniteScalarConfig(levels).build().eval()
    ids = torch.arange(codes)[None, :, None]
    found = quantizer.lookup(ids)
    assert len(found.flatten(2).unique(dim=2)[0].T) == codes
    for component, level in enumerate(levels):
        assert len(found[0, component].unique()) == level
    counts = torch.tensor(levels)[:, None, None]
    half, shift = (counts - 1) * 1.001 / 2, (1 - counts % 2) / 2  # the paper's appendix A.1, whose bound is inverted
    inwards = torch.atanh((found * (counts // 2) + shift) / half) - torch.atanh(shift / half)
    assert torch.equal(quantizer(inwards).ids, ids)


def test_lfq_codes_are_bits_and_its_entropies_those_of_the_definition():
    config = LookupFreeConfig(16, 0.25, 0.1, 0.7, 0.5)
    quantizer = made(config).train()
    vectors = vectors_4.clone().requires_grad_()
    quantized = quantizer(vectors)
    assert torch.equal(quantized.codes.detach(), torch.where(vectors_4 > 0, 1.0, -1.0))
    bits = (places(vectors_4) > 0).long()
    assert torch.equal(quantized.ids.flatten(), bits @ torch.tensor([8, 4, 2, 1]))
    codes = quantizer.lookup(torch.arange(16)[None, :, None])[0, :, :, 0].T
    nearness = torch.softmax(-torch.cdist(places(vectors), codes).square() / 0.5, dim=1)  # brute force
    of_vectors = torch.stack([torch.distributions.Categorical(row).entropy() for row in nearness]).mean()
    of_codes = torch.distributions.Categorical(nearness.mean(0)).entropy()
    expected = 0.25 * F.mse_loss(vectors, quantized.codes.detach()) + 0.1 * (of_vectors - 0.7 * of_codes)
    torch.testing.assert_close(quantized.loss, expected, rtol=1e-4, atol=1e-6)
    ours, theirs = (torch.autograd.grad(loss, vectors)[0] for loss in (quantized.loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_lfq_ids_are_those_of_vector_quantize_pytorch():
    peer = LFQ(codebook_size=16, dim=4).eval()
    assert torch.equal(made(LookupFreeConfig(16, 0.25, 0.1, 1.0, 1.0)).eval()(vectors_4).ids, peer(vectors_4).indices)


def test_entropies_of_many_bits_are_counted_in_parts():
    """Of 12 bits: exact for the vectors' entropy, as bits are independent; an upper bound for the codes'."""
    quantizer = LookupFreeConfig(2**12, 0.0, 1.0, 1.0, 1.0).build().train()
    vectors = torch.randn(2, 12, 3, 3)
    stats = quantizer(vectors).stats
    p = torch.sigmoid(4 * places(vectors))
    of_vectors = (torch.special.entr(p) + torch.special.entr(1 - p)).sum(1).mean()
    torch.testing.assert_close(stats["entropy_of_vectors"], of_vectors, rtol=1e-4, atol=1e-5)
    assert stats["entropy_of_codes"] <= 12 * math.log(2)


def test_ibq_passes_gradients_to_every_code():
    quantizer = made(IndexBackpropagationConfig(16, 4, 0.25, 0.05, 1.0)).train()
    vectors = vectors_4.clone().requires_grad_()
    quantized = quantizer(vectors)
    torch.testing.assert_close(quantized.codes, quantizer.lookup(quantized.ids))
    weights = torch.randn_like(vectors_4)
    (quantized.codes * weights).sum().backward()
    [codebook] = quantizer.parameters()
    assert codebook.grad is not None
    assert (codebook.grad.abs().sum(1) > 0).all()
    # the chosen code's own gradient, and that of the probabilities, by their definition
    free, flat = codebook.detach().clone().requires_grad_(), places(vectors_4)
    p = torch.softmax(-torch.cdist(flat, free).square(), dim=1)
    chosen = F.one_hot(quantized.ids.flatten(), 16).float()
    ((p + (chosen - p).detach()) @ free * places(weights)).sum().backward()
    assert free.grad is not None
    torch.testing.assert_close(codebook.grad, free.grad, rtol=1e-3, atol=1e-4)


def test_ibq_loss_is_that_of_the_paper():
    quantizer = made(IndexBackpropagationConfig(16, 4, 0.25, 0.05, 0.5)).train()
    quantized = quantizer(vectors_4)
    [codebook] = quantizer.parameters()
    flat = places(vectors_4)
    p = torch.softmax(-torch.cdist(flat, codebook).square() / 0.5, dim=1)
    hard = codebook[quantized.ids.flatten()]
    of_vectors, of_codes = entropies(quantizer, p)
    expected = 2.25 * F.mse_loss(hard, flat) + 0.05 * (of_vectors - of_codes)
    torch.testing.assert_close(quantized.loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("commitment", "entropy"), [(0.0, 0.0), (0.25, 0.0), (0.0, 0.5)])
def test_each_term_of_ibqs_loss_moves_codes_and_vectors_by_its_weight(commitment: float, entropy: float):
    """Two pulls on the vectors weigh 1, that on the chosen codes `commitment`; through the probabilities all move."""
    quantizer = made(IndexBackpropagationConfig(16, 4, commitment, entropy, 0.5)).train()
    vectors = vectors_4.clone().requires_grad_()
    quantized, [codebook] = quantizer(vectors), quantizer.parameters()
    found = torch.autograd.grad(quantized.loss, (vectors, codebook))
    flat = places(vectors)
    p = torch.softmax(-torch.cdist(flat, codebook).square() / 0.5, dim=1)
    of_vectors = torch.distributions.Categorical(p).entropy().mean()
    of_codes = torch.distributions.Categorical(p.mean(0)).entropy()
    ids = quantized.ids.flatten()
    difference = 2 * (flat - codebook[ids]).detach() / flat.numel()
    # the first term's choice is one-hot in value and p in gradient: d (p C) . -difference, and C's own rows
    choice = F.one_hot(ids, 16).float()
    through_p = -(difference * (p @ codebook.detach())).sum() + entropy * (of_vectors - of_codes)
    to_vectors, to_codes = torch.autograd.grad(through_p, (flat, codebook))
    torch.testing.assert_close(places(found[0]), to_vectors + 2 * difference, rtol=1e-3, atol=1e-6)
    to_codes = to_codes - (1 + commitment) * choice.T @ difference
    torch.testing.assert_close(found[1], to_codes, rtol=1e-3, atol=1e-6)


def test_simvq_pulls_its_map_by_one_and_the_encoder_by_its_commitment():
    quantizer = made(SimConfig(16, 4, 0.25)).train()
    vectors = vectors_4.clone().requires_grad_()
    quantized, [weight] = quantizer(vectors), quantizer.parameters()
    of_vectors, of_map = torch.autograd.grad(quantized.loss, (vectors, weight))
    frozen = quantizer.get_buffer("sim.frozen_codebook")[quantized.ids.flatten()]
    difference = 2 * (places(vectors_4) - frozen @ weight.detach().T) / vectors_4.numel()
    torch.testing.assert_close(places(of_vectors), 0.25 * difference)
    torch.testing.assert_close(of_map, -difference.T @ frozen)


def test_gumbels_divergence_pulls_its_probabilities_to_even_ones():
    """KL = sum p log p + log K, whose gradient with respect to a logit is p (log p - sum p log p)."""
    quantizer = made(GumbelConfig(16, 4, 0.5, 1.0, 0.1, True)).train()
    vectors, flat = vectors_4.clone().requires_grad_(), places(vectors_4)
    weight, bias = (quantizer.get_parameter(f"logits.{name}") for name in ("weight", "bias"))
    found = torch.autograd.grad(quantizer(vectors).loss, (vectors, weight, bias))
    p = torch.softmax(flat @ weight.T + bias, dim=1).detach()
    to_logits = 0.5 * p * (p.log() - (p * p.log()).sum(1, keepdim=True)) / len(flat)
    torch.testing.assert_close(places(found[0]), to_logits @ weight.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found[1], to_logits.T @ flat, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found[2], to_logits.sum(0), rtol=1e-4, atol=1e-7)


def test_simvq_begins_where_the_vectors_lie_and_moves_all_codes_by_one_map():
    torch.manual_seed(0)
    vectors = torch.randn(5000, 4) @ torch.diag(torch.tensor([3.0, 1.0, 0.3, 0.1]))
    quantizer = SimConfig(512, 4, 0.25).build()
    quantizer.start_from(vectors)
    codebook = quantizer.lookup(torch.arange(512)[None, :, None])[0, :, :, 0].T
    torch.testing.assert_close(codebook.T @ codebook / 512, vectors.T @ vectors / 5000, rtol=0.2, atol=0.2)
    assert [tuple(p.shape) for p in quantizer.parameters()] == [(4, 4)]


def test_gumbel_draws_by_its_probabilities_and_pays_their_divergence():
    quantizer = made(GumbelConfig(16, 4, 0.5, 1.0, 0.1, True)).train()
    vectors = vectors_4[:1, :, :1, :1]
    logits = quantizer.get_submodule("logits")(places(vectors))
    even = torch.distributions.Categorical(torch.ones(16))
    divergence = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=logits), even).mean()
    torch.testing.assert_close(quantizer(vectors).loss, 0.5 * divergence)
    many = quantizer(vectors.expand(20000, -1, -1, -1))
    drawn = nearest(places(many.codes.detach()), quantizer.get_parameter("codebook").detach())
    share = torch.bincount(drawn, minlength=16) / 20000
    torch.testing.assert_close(share, logits.softmax(1)[0], rtol=0, atol=0.02)
    temperatures = []
    for progress in (0.0, 0.5, 1.0, 2.0):
        quantizer.set_progress(progress)
        temperatures.append(float(quantizer(vectors).stats["temperature"]))
    assert temperatures == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_a_residual_code_is_of_what_is_left():
    quantizer = made(MultiCodebookConfig(3, True, 16, 4, 0.9, 0.25, False, 0.0)).eval()
    quantized = quantizer(vectors_4)
    left, books = places(vectors_4), [quantizer.get_submodule(f"books.{level}") for level in range(3)]
    for level, book in enumerate(books):
        codebook = book.get_buffer("codebook")
        ids = torch.cdist(left, codebook).argmin(1)
        assert torch.equal(quantized.ids[..., level::3].flatten(), ids + 16 * level)
        left = left - codebook[ids]
    torch.testing.assert_close(places(quantized.codes), places(vectors_4) - left, rtol=1e-4, atol=1e-5)
    errors = [
        float(
            F.mse_loss(
                made(MultiCodebookConfig(n, True, 16, 4, 0.9, 0.25, False, 0.0)).eval()(vectors_4).codes, vectors_4
            )
        )
        for n in (1, 2, 3)
    ]
    assert errors == sorted(errors, reverse=True)


@given(seed=st.integers(0, 20), codes=st.integers(2, 30), same=st.booleans())
def test_every_round_of_k_means_lowers_the_error_and_no_code_stays_empty(seed: int, codes: int, same: bool):
    vectors = torch.randn(100, 3, generator=torch.Generator().manual_seed(seed))
    if same:
        vectors[20:] = vectors[:1]  # nearly all centres begin at one place
    found, errors = [k_means(vectors, codes, rounds) for rounds in range(8)], []
    for centres, _ in found:
        errors.append(float(torch.cdist(vectors, centres).min(1).values.square().sum()))
    assert all(after <= before * 1.0001 + 1e-6 for before, after in pairwise(errors))
    centres, counts = found[-1]
    assert counts.sum() == 100
    assert same or (torch.bincount(nearest(vectors, centres), minlength=codes) > 0).all()
    with pytest.raises(ValueError, match=f"{codes - 1} patches are too few for {codes} codes"):
        k_means(vectors[: codes - 1], codes)
