"""The chunked loss against its definition in float64, with gradients, and its masks against faults others shipped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_memory import Live
from torch import Tensor

from omnigram.model.loss import LossParts, Partition, weighted_cross_entropy

VOCABULARY, WIDTH = 23, 6
PARTITIONS: list[Partition] = [(4, 7), (11, 12), (0, 5)]  # ranges may overlap


def plain(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, partition: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Token by token, by the book: (loss, nats of each token)."""
    loss, nats = hidden.new_zeros(()), []
    for x, target, weight, index in zip(hidden, targets.tolist(), weights, partition.tolist(), strict=True):
        start, size = PARTITIONS[index] if index >= 0 else (0, VOCABULARY)
        logits = (head @ x)[start : start + size]
        token = -torch.log_softmax(logits, 0)[target - start] if target >= 0 else hidden.new_zeros(())
        if target >= 0:
            loss = loss + weight * (token + z_loss * torch.logsumexp(logits, 0) ** 2)
        nats.append(token * (weight != 0))
    return loss, torch.stack(nats) if nats else hidden.new_zeros(0)


def example(seed: int, tokens: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random tokens of every partition, a third of them without weight or without target."""
    generator = torch.Generator().manual_seed(seed)
    partition = torch.randint(-1, len(PARTITIONS), (tokens,), generator=generator)
    ranges = [*PARTITIONS, (0, VOCABULARY)]
    low, size = (torch.tensor([r[i] for r in ranges])[partition] for i in (0, 1))
    targets = low + (torch.rand(tokens, generator=generator) * size).long()
    targets[torch.rand(tokens, generator=generator) < 0.15] = -100
    weights = torch.rand(tokens, generator=generator, dtype=dtype)
    weights[torch.rand(tokens, generator=generator) < 0.15] = 0
    return {
        "hidden": torch.randn(tokens, WIDTH, generator=generator, dtype=dtype).requires_grad_(),
        "head_weight": torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_(),
        "targets": targets,
        "weights": weights,
        "target_partition": partition,
    }


def run(x: dict[str, Tensor], z_loss: float = 0.3, chunk: int | None = None) -> LossParts:
    return weighted_cross_entropy(
        x["hidden"],
        x["head_weight"],
        x["targets"],
        x["weights"],
        partitions=PARTITIONS,
        target_partition=x["target_partition"],
        z_loss=z_loss,
        chunk=chunk,
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), tokens=st.integers(0, 30), chunk=st.sampled_from([None, 1, 4]), z=st.floats(0, 1))
def test_value_and_gradients_are_those_of_the_definition(seed: int, tokens: int, chunk: int | None, z: float) -> None:
    x = example(seed, tokens)
    ours = run(x, z, chunk)
    leaves = [x["hidden"], x["head_weight"]]
    grads = torch.autograd.grad(ours.loss * 1.7, leaves)
    zero = 0.0 * (leaves[0].sum() + leaves[1].sum())
    loss, nats = plain(x["hidden"], x["head_weight"], x["targets"], x["weights"], x["target_partition"], z)
    expected = torch.autograd.grad((loss + zero) * 1.7, leaves)
    torch.testing.assert_close(ours.loss, loss)
    torch.testing.assert_close(ours.token_nats, nats.detach())
    torch.testing.assert_close(ours.nats, (nats * x["weights"]).sum().detach())
    torch.testing.assert_close(ours.nats + z * ours.z, ours.loss.detach())
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_gradcheck_without_partitions() -> None:
    x = example(1, 9)
    targets = x["targets"].clamp(min=0)

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return weighted_cross_entropy(hidden, head, targets, x["weights"], z_loss=0.1, chunk=4).loss

    assert torch.autograd.gradcheck(loss, (x["hidden"], x["head_weight"]))


def test_float32_and_bfloat16_stay_close_to_float64() -> None:
    exact = run(example(2, 64))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        x = example(2, 64)
        x = {key: value.detach().to(dtype) if value.is_floating_point() else value for key, value in x.items()}
        x["hidden"].requires_grad_()
        parts = run(x)
        assert parts.loss.dtype == torch.float32
        assert abs(parts.loss.item() / exact.loss.item() - 1) < tolerance
        parts.loss.backward()
        assert x["hidden"].grad is not None
        assert x["hidden"].grad.dtype == dtype


def test_pads_and_forced_tokens_move_neither_loss_nor_z_loss() -> None:
    """Emu3's SFT left pads in the labels; a Lumina run died of a z-loss whose mask was shifted against the labels."""
    x = example(3, 40)
    before = run(x)
    silent = (x["weights"] == 0) | (x["targets"] < 0)
    assert 0 < silent.sum() < 40
    grad = torch.autograd.grad(before.loss, x["hidden"])[0]
    assert (grad[silent] == 0).all()
    assert (grad[~silent].abs().sum(1) > 0).all()
    with torch.no_grad():
        x["hidden"][silent] = 1e3
    after = run(x)
    for name in ("loss", "nats", "weight", "z"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


def test_sums_of_micro_batches_add_up() -> None:
    x = example(4, 30)
    whole = run(x)
    rows = ("hidden", "targets", "weights", "target_partition")
    parts = [run({**x, **{key: x[key][part] for key in rows}}) for part in (slice(0, 11), slice(11, 30))]
    for name in ("loss", "nats", "weight", "z"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))


def test_a_partition_costs_less_than_the_whole_vocabulary_and_says_so_in_nats() -> None:
    x = example(5, 50)
    free = {**x, "target_partition": torch.full_like(x["target_partition"], -1)}
    assert (run(x).token_nats <= run(free).token_nats + 1e-12).all()


def test_beside_the_gradients_one_chunk_of_logits_is_alive() -> None:
    tokens, vocabulary, width, chunk = 64, 5000, 16, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    head = torch.randn(vocabulary, width, requires_grad=True)
    targets, weights = torch.arange(tokens), torch.ones(tokens)
    live = Live([hidden, head, targets, weights])
    held = live.now
    with live:
        weighted_cross_entropy(hidden, head, targets, weights, chunk=chunk).loss.mul(0.5).backward()
    assert live.most - held < 1.02 * 4 * (vocabulary * width + tokens * width + chunk * vocabulary) + 4096


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    x = example(8, 12)
    leaves = [x["hidden"], x["head_weight"]]
    loss = run(x).loss * 0.3
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss * 2, leaves)
    for grad, before, again in zip(first, kept, second, strict=True):
        assert torch.equal(grad, before)
        torch.testing.assert_close(again, 2 * before)


def test_a_target_outside_of_its_partition_is_named() -> None:
    x = example(6, 10)
    x["targets"][3], x["target_partition"][3], x["weights"][3] = 22, 0, 1.0
    with pytest.raises(ValueError, match=r"target id 22 lies outside of its softmax's range 4\.\.10"):
        run(x)


def test_partitions_come_with_their_index() -> None:
    x = example(7, 4)
    with pytest.raises(ValueError, match="target_partition"):
        weighted_cross_entropy(x["hidden"], x["head_weight"], x["targets"], x["weights"], partitions=PARTITIONS)
