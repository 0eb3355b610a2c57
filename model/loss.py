"""Weighted cross-entropy of a linear head with z-loss and partitioned softmax, never holding all logits.

The loss and its gradients are computed together, a chunk of tokens at a time (as Liger's fused linear cross-entropy,
https://arxiv.org/abs/2410.10989, does): a chunk's logits become its gradients in place and are dropped, so that the
backward pass only scales what is there. Tokens without weight cost nothing. z-loss: https://arxiv.org/abs/2204.02311.
Partitioned softmax: inside a block the grammar already says which range comes next, so the softmax runs over that
range of the vocabulary alone. Dimensions: N tokens, D width of the model, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Partition = tuple[int, int]  # first id and number of ids of a contiguous range of the vocabulary

CHUNK_LOGITS = 2**20  # logits of one chunk: four MiB of float32 stay in a CPU's cache
CHUNK_TOKENS = 256  # but no fewer tokens than this: each chunk reads the head, and reads and writes its gradient


class LossParts(NamedTuple):
    """Sums over the tokens, so that micro-batches and ranks add up; divide by the global sum of weights.

    Only `loss` is differentiable. Sums are float32 (float64 for float64 inputs).
    """

    loss: Float[Tensor, ""]  # sum of weight * (nats + z_loss * log(Z)^2)
    nats: Float[Tensor, ""]  # sum of weight * nats
    weight: Float[Tensor, ""]  # sum of the weights
    z: Float[Tensor, ""]  # sum of weight * log(Z)^2
    token_nats: Float[Tensor, " n"]  # -log p(target) of each token, unweighted; 0 where the weight is 0
    token_log_z: Float[Tensor, " n"]  # log of each token's softmax denominator; 0 where the weight is 0


def weighted_cross_entropy(
    hidden: Float[Tensor, "n d"],
    head_weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    weights: Float[Tensor, " n"],
    partitions: Sequence[Partition] | None = None,
    target_partition: Int[Tensor, " n"] | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LossParts:
    """Sum over tokens of weight * (-log softmax(hidden @ head_weight.T)[target] + z_loss * log(Z)^2).

    Args:
        hidden: hidden states after the last norm.
        head_weight: the head's matrix, one row an id.
        targets: id that follows each token; negative (-100) where there is none.
        weights: weight of each token's loss, 0 for pads and forced tokens. The z-loss has the same weights and hence
            the same mask.
        partitions: (first id, number of ids) of the ranges that a softmax may be restricted to.
        target_partition: index into `partitions` for each token, -1 for a softmax over the whole vocabulary.
        z_loss: weight of the squared log of the softmax denominator (Chameleon and PaLM: 1e-5 to 1e-4).
        chunk: tokens whose logits are held at once; by default as many as have about a million logits.

    Raises:
        ValueError: a weighted target outside of its partition or of the vocabulary.
    """
    if (partitions is None) != (target_partition is None):
        raise ValueError("partitioned loss needs both partitions and target_partition")
    weights = torch.where(targets < 0, 0.0, weights.to(_wide(hidden.dtype)))
    loss, token_nats, token_log_z = _WeightedCrossEntropy.apply(
        hidden, head_weight, targets, weights, tuple(partitions or ()), target_partition, z_loss, chunk
    )
    nats = (weights * token_nats).sum()
    return LossParts(loss, nats, weights.sum(), (weights * token_log_z.square()).sum(), token_nats, token_log_z)


class _WeightedCrossEntropy(torch.autograd.Function):
    """The differentiable sum; gradients are made in the forward pass, and only those that are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        partitions: tuple[Partition, ...],
        target_partition: Tensor | None,
        z_loss: float,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = weights.dtype
        token_nats = torch.zeros_like(weights)
        token_log_z = torch.zeros_like(weights)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(head_weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for start, size, tokens in _chunks(targets, weights, partitions, target_partition, head_weight.shape[0], chunk):
            rows = head_weight[start : start + size]
            x = hidden[tokens]
            weight = weights[tokens, None]
            target = targets[tokens, None] - start
            product = x @ rows.T
            narrow = product.dtype
            logits = product.to(wide)
            del product
            target_logit = logits.gather(1, target)
            highest = logits.amax(1, keepdim=True)
            unnormalised = logits.sub_(highest).exp_()
            total = unnormalised.sum(1, keepdim=True)
            log_z = highest + total.log()
            token_nats[tokens] = (log_z - target_logit).squeeze(1)
            token_log_z[tokens] = log_z.squeeze(1)
            if grad_hidden is None and grad_weight is None:
                continue
            # d loss / d logits = weight * ((1 + 2 z log Z) softmax - one_hot(target))
            slope = unnormalised.mul_(weight * (1 + 2 * z_loss * log_z) / total)
            slope = slope.scatter_add_(1, target, -weight).to(rows.dtype)
            if grad_hidden is not None:
                grad_hidden[tokens] = (slope @ rows).to(grad_hidden.dtype)
            if grad_weight is not None:
                total_grad = grad_weight[start : start + size]
                if narrow == slope.dtype == total_grad.dtype:
                    total_grad.addmm_(slope.T, x)  # without room for the product
                else:
                    total_grad += slope.T @ x
            del logits, unnormalised, slope  # one array, which would live on while the next chunk's is made
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(head_weight.dtype))
        ctx.mark_non_differentiable(token_nats, token_log_z)
        loss = (weights * (token_nats + z_loss * token_log_z.square())).sum()
        return loss, token_nats, token_log_z

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # in place where nobody can come back: a large head's gradient is there once
        again = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
        scale = torch.mul if again else Tensor.mul_
        grads = (None if grad is None else scale(grad, grad_loss.to(grad.dtype)) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None, None, None)


def _chunks(
    targets: Tensor,
    weights: Tensor,
    partitions: tuple[Partition, ...],
    target_partition: Tensor | None,
    vocab_size: int,
    chunk: int | None,
) -> Iterator[tuple[int, int, Tensor]]:
    """The weighted tokens by partition, in chunks: (first id, number of ids, indices of the tokens)."""
    counted = weights != 0
    ranges = {-1: (0, vocab_size), **dict(enumerate(partitions))}
    for index, (start, size) in ranges.items():
        chosen = counted if target_partition is None else counted & (target_partition == index)
        tokens = chosen.nonzero().squeeze(1)
        if tokens.numel():
            low, high = (int(end) for end in targets[tokens].aminmax())
            if low < start or high >= start + size:
                raise ValueError(
                    f"target id {low if low < start else high} lies outside of its softmax's range "
                    f"{start}..{start + size - 1}: the tokens were written with another vocabulary"
                )
            step = chunk or max(CHUNK_TOKENS, CHUNK_LOGITS // size)
            yield from ((start, size, part) for part in tokens.split(step))
        if target_partition is None:
            return


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of softmax and sums: at least float32."""
    return torch.promote_types(dtype, torch.float32)
