"""Attention over packed rows on a CPU, a document at a time, as flash-attention's variable-length kernel on a GPU.

torch's CPU kernel with a [T, T] mask computes every pair of a row's tokens, most of them only to mask them out. This
runs the same kernel (causal, without a mask) on each document's slice, so that the cost is the sum of the documents'
squares; pads cost nothing and give zeros. As a custom operator it is one opaque node of a compiled graph, whatever
the lengths. Dimensions: B rows, T tokens of a row, N = B * T, H heads, K width of a head.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_documents(
    query: Float[Tensor, "b h t k"],
    key: Float[Tensor, "b g t k"],
    value: Float[Tensor, "b g t k"],
    document_ids: Int[Tensor, "b t"],
    scaling: float,
) -> Float[Tensor, "b t h k"]:
    """Causal attention within the documents of each row; key and value heads divide the query heads."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out, _ = _document_attention(*flat, document_ids, scaling)
    return out.unflatten(0, document_ids.shape)


def documents(document_ids: Int[Tensor, "b t"]) -> list[tuple[int, int]]:
    """First token and end of every document, in the rows laid end to end; pads (negative ids) are left out."""
    first = torch.ones_like(document_ids, dtype=torch.bool)
    first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = first.flatten().nonzero().flatten()
    padding = (document_ids.flatten()[starts] < 0).tolist()
    bounds = [*starts.tolist(), document_ids.numel()]
    return [(start, end) for start, end, pad in zip(bounds[:-1], bounds[1:], padding, strict=True) if not pad]


def _heads_first(x: Tensor, start: int, end: int) -> Tensor:
    """[N, H, K] or [N, H] to the [1, H, L, K] or [1, H, L] of one document, as a view."""
    return x[None, start:end].transpose(1, 2)


@torch.library.custom_op("omnigram::document_attention", mutates_args=())
def _document_attention(
    query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """[N, H, K] queries, keys and values to [N, H, K] outputs and [N, H] logs of the softmax denominators."""
    out = torch.zeros(query.shape, dtype=query.dtype)
    log_z = torch.zeros(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for start, end in documents(document_ids):
        q, k, v = (_heads_first(x, start, end) for x in (query, key, value))
        part, part_log_z = _forward(q, k, v, 0.0, True, scale=scaling)
        _heads_first(out, start, end).copy_(part)
        _heads_first(log_z, start, end).copy_(part_log_z)
    return out, log_z


@torch.library.custom_op("omnigram::document_attention_backward", mutates_args=())
def _document_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_z: Tensor,
    document_ids: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = (
        torch.zeros(query.shape, dtype=query.dtype),
        torch.zeros(query.shape, dtype=query.dtype),
        torch.zeros(query.shape, dtype=query.dtype),
    )
    for start, end in documents(document_ids):
        given = (_heads_first(x, start, end) for x in (grad_out, query, key, value, out, log_z))
        for grad, part in zip(grads, _backward(*given, 0.0, True, scale=scaling), strict=True):
            _heads_first(grad, start, end).copy_(part)
    return grads


@_document_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    log_z = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), log_z


@_document_attention_backward.register_fake
def _(grad_out: Tensor, query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, document_ids, ctx.scaling = inputs
    ctx.save_for_backward(query, key, value, *output, document_ids)


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, log_z, document_ids = ctx.saved_tensors
    grads = _document_attention_backward(grad_out, query, key, value, out, log_z, document_ids, ctx.scaling)
    return (*grads, None, None)


_document_attention.register_autograd(_differentiate, setup_context=_save)
