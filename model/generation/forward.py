"""A forward of the decoder over sequences of different lengths, whose keys and values lie in a `Store`.

Dimensions: N sequences, T tokens that are fed, D width of the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from .cache import LaneCache

_MASKED = ("sdpa", "eager")  # attention implementations that take any mask

Step = Callable[..., Float[Tensor, "n t d"]]  # `run`, or what stands in for it


def run(
    model: PreTrainedModel,
    store: list[Tensor],
    ids: Int[Tensor, "n t"],
    positions: Int[Tensor, "n t"],
    span: int,
    slots: Int[Tensor, " n"] | None,
) -> Float[Tensor, "n t d"]:
    """Hidden states of ids at their positions; see `LaneCache`."""
    mask = (torch.arange(span, device=positions.device) <= positions[:, :, None])[:, None]
    return model.base_model(
        input_ids=ids,
        attention_mask=additive(model, mask),
        position_ids=positions,
        past_key_values=LaneCache(store, slots, positions, span),
        use_cache=True,
    ).last_hidden_state


def additive(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """A boolean mask as the model's attention takes it: eager adds it to the scores."""
    if model.config._attn_implementation == "sdpa":
        return mask
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, lowest)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients, and with an attention that takes masks; afterwards the model is as it was."""
    implementation = model.config._attn_implementation or "eager"
    training = [module for module in model.modules() if module.training] if model.training else []
    if training:
        model.eval()
    if implementation not in _MASKED:
        model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:  # and no other: parts may have been in evaluation before
            module.training = True
        if implementation not in _MASKED:
            model.set_attn_implementation(implementation)
