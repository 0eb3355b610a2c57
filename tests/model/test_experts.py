"""Mixture of experts: what Mixtral of transformers computes, routing by brute force, and the load-balancing loss."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.experts import MixtureOfExperts, load_balancing_loss
from omnigram.model.feed_forward import FeedForward
from omnigram.model.size import build_on_meta, flops_per_token, parameters_by_group
from omnigram.train.optimizer import hidden_matrices

SHAPE: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
LEFT_PADS = torch.arange(13) >= torch.tensor([[4], [0], [1]])  # rows of 9, 13 and 12 tokens


def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def mixtral(layers: int, experts: int, chosen: int, weight: float) -> tuple[MixtralForCausalLM, OmnigramForCausalLM]:
    """A Mixtral with random weights, and ours with the same."""
    theirs = MixtralForCausalLM(
        MixtralConfig(
            **SHAPE,
            num_hidden_layers=layers,
            num_local_experts=experts,
            num_experts_per_tok=chosen,
            router_aux_loss_coef=weight,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            sliding_window=None,
        )
    )
    ours = OmnigramForCausalLM(
        OmnigramConfig(
            **SHAPE,
            num_hidden_layers=layers,
            num_experts=experts,
            num_experts_per_token=chosen,
            balance_loss_weight=weight,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )
    randomised(theirs)
    ours.load_state_dict(as_ours(theirs.state_dict()), strict=True)
    return theirs, ours.eval()


def as_ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mixtral's weights (or gradients) under our names; transformers stores all experts of a layer in one tensor."""
    made: dict[str, Tensor] = {}
    for name, value in tensors.items():
        before, experts, kind = name.partition("mlp.experts.")
        if not experts:
            made[name.replace("mlp.gate.", "mlp.router.")] = value
            continue
        for index, matrix in enumerate(value):
            if kind == "down_proj":
                made[f"{before}mlp.experts.{index}.down_proj.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                made[f"{before}mlp.experts.{index}.gate_proj.weight"] = gate
                made[f"{before}mlp.experts.{index}.up_proj.weight"] = up
    return made


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    assert None not in found.values()
    return found  # pyright: ignore[reportReturnType]


def assert_close(ours: Tensor, theirs: Tensor, bound: float, name: str = "") -> None:
    """Within `bound` of the tensor's largest magnitude."""
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max(), name


def made_rows(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids with left pads, and labels, -100 for what a pad would have to predict or is."""
    ids = torch.randint(53, LEFT_PADS.shape, generator=torch.Generator().manual_seed(seed))
    return ids, ids.where(LEFT_PADS & LEFT_PADS.roll(1, dims=1), -100)


@pytest.mark.parametrize(("experts", "chosen"), [(4, 2), (5, 1), (3, 3)])
def test_one_layer_has_mixtrals_loss(experts: int, chosen: int) -> None:
    theirs, ours = mixtral(1, experts, chosen, weight=0.3)
    ids, labels = made_rows()
    out = ours(ids, attention_mask=LEFT_PADS.long(), labels=labels)
    expected = theirs(ids, attention_mask=LEFT_PADS.long(), labels=labels, output_router_logits=True)
    assert_close(out.logits[LEFT_PADS], expected.logits[LEFT_PADS], 1e-5)
    assert_close(out.aux_loss, expected.aux_loss, 1e-6)
    assert_close(out.loss, expected.loss, 1e-5)
    out.loss.backward()
    expected.loss.backward()
    wanted = as_ours(gradients(theirs))
    assert set(wanted) == set(gradients(ours))
    for name, gradient in gradients(ours).items():
        assert_close(gradient, wanted[name], 1e-4, name)


def balance_of(logits: Tensor, mask: Tensor) -> Tensor:
    """Mixtral's load-balancing loss of one layer of four experts."""
    loss = load_balancing_loss_func((logits,), 4, 2, mask)
    assert isinstance(loss, Tensor)
    return loss


def test_training_loss_has_mixtrals_gradients_and_the_mean_of_the_layers() -> None:
    """Packed rows against padded ones; transformers' formula applied to each layer, where it would pool them."""
    theirs, ours = mixtral(3, 4, 2, weight=0.5)
    ids, labels = made_rows()
    mask = LEFT_PADS.long()
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    weights = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) * (targets >= 0)
    parts = ours.training_loss(ids, targets, weights, document_ids=torch.where(LEFT_PADS, 0, -1), z_loss=1e-3)
    expected = theirs(ids, attention_mask=mask, output_router_logits=True)
    by_layer = torch.stack([balance_of(logits, mask) for logits in expected.router_logits])
    assert len(by_layer.unique()) == 3
    nats = nn.functional.cross_entropy(expected.logits.flatten(0, 1), targets.flatten(), reduction="none")
    z = expected.logits.logsumexp(-1).square().flatten() * 1e-3
    loss = ((nats + z) * weights.flatten()).sum() + 0.5 * by_layer.mean() * weights.sum()
    assert_close(parts.loss, loss, 1e-5)
    assert_close(parts.nats, (nats * weights.flatten()).sum(), 1e-5)  # without the balance
    parts.loss.backward()
    loss.backward()
    wanted = as_ours(gradients(theirs))
    for name, gradient in gradients(ours).items():
        assert_close(gradient, wanted[name], 1e-4, name)


def layer(experts: int, chosen: int, **options: Any) -> MixtureOfExperts:
    config = OmnigramConfig(**SHAPE, num_experts=experts, num_experts_per_token=chosen, **options)
    torch.manual_seed(experts)
    return randomised(MixtureOfExperts(config))


@given(st.integers(2, 7).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e))), st.integers(1, 9), st.booleans())
@torch.no_grad()
def test_every_token_is_the_sum_over_its_experts(sizes: tuple[int, int], length: int, bias: bool) -> None:
    experts, chosen = sizes
    mixture = layer(experts, chosen, mlp_bias=bias)
    x = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(length))
    out, _ = mixture(x)
    for row, token in ((r, t) for r in range(2) for t in range(length)):
        scores = mixture.router(x[row, token])
        best = sorted(range(experts), key=lambda e: -float(scores[e]))[:chosen]
        total = sum(float(scores[e].exp()) for e in best)
        plain = sum(float(scores[e].exp()) / total * mixture.experts[e](x[row, token]) for e in best)
        torch.testing.assert_close(out[row, token], plain, rtol=1e-5, atol=1e-5)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero() -> None:
    mixture = layer(6, 1)
    out, balance = mixture(torch.randn(1, 1, 32))
    (out.sum() + balance).backward()
    assert all(p.grad is not None for p in mixture.parameters())
    used = [any(bool(p.grad.any()) for p in expert.parameters()) for expert in mixture.experts]  # pyright: ignore
    assert sum(used) == 1


def test_balance_is_k_for_even_use_and_e_for_one_expert() -> None:
    even = torch.full((12, 4), 0.25)
    turns = torch.arange(12)
    choices = torch.stack((turns % 4, (turns + 1) % 4), 1)
    assert float(load_balancing_loss(even, choices)) == 2
    one = torch.zeros(12, 4).index_fill(1, torch.tensor([3]), 1.0)
    assert float(load_balancing_loss(one, torch.full((12, 1), 3))) == 4
    none = torch.zeros(12, dtype=torch.bool)
    assert float(load_balancing_loss(one, torch.full((12, 1), 3), none)) == 0  # a batch of pads


def test_pads_reach_neither_the_loss_nor_its_gradients() -> None:
    _, ours = mixtral(2, 4, 2, weight=0.5)
    ids, labels = made_rows()
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    results = []
    for pad in (7, 31):
        ours.zero_grad()
        padded = ids.where(LEFT_PADS, pad)
        parts = ours.training_loss(padded, targets, torch.ones(targets.shape), torch.where(LEFT_PADS, 0, -1))
        parts.loss.backward()
        results.append({"loss": parts.loss.detach(), **{n: g.clone() for n, g in gradients(ours).items()}})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


def test_descending_the_balance_evens_out_the_use_of_experts() -> None:
    mixture = layer(4, 1)
    x = torch.randn(1, 200, 32, generator=torch.Generator().manual_seed(0)) + 1  # a direction that all tokens share
    before = mixture(x)[1].item()
    descent = torch.optim.SGD(mixture.router.parameters(), lr=0.1)
    for _ in range(40):
        descent.zero_grad()
        mixture(x)[1].backward()
        descent.step()
    assert before > 1.5
    assert mixture(x)[1].item() < 1.1


def test_all_experts_are_stored_and_the_chosen_ones_counted() -> None:
    sizes: dict[str, Any] = {**SHAPE, "num_hidden_layers": 3, "num_experts": 5, "num_experts_per_token": 2}
    config = OmnigramConfig(**sizes)
    expert, router = 3 * 32 * 24, 5 * 32
    assert parameters_by_group(build_on_meta(config))["feed_forward"] == 3 * (5 * expert + router)
    plain = OmnigramConfig(**{**sizes, "num_experts": 0})
    difference = flops_per_token(config, 10) - flops_per_token(plain, 10)
    assert difference == pytest.approx(6 * 3 * (expert + router), rel=1e-12)


def test_muon_takes_the_matrices_of_every_expert() -> None:
    model = OmnigramForCausalLM(OmnigramConfig(**SHAPE, num_hidden_layers=2, num_experts=3))
    taken = {id(p) for p in hidden_matrices(model)}
    experts = [m for m in model.modules() if isinstance(m, FeedForward)]
    assert len(experts) == 6
    assert all(id(p) in taken and p.ndim == 2 for expert in experts for p in expert.parameters())
