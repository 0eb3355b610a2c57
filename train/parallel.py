"""How several devices share the training of a decoder: beside the model, not in it.

ddp: each rank holds everything and takes its rows of the batch. fsdp: weights, gradients and optimizer states are
dealt over the ranks as well (FSDP2, https://arxiv.org/abs/2304.11277), a block gathered when it is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.initialization import no_init_weights

from ..model.decoder import OmnigramForCausalLM
from .world import World

STRATEGIES = ("ddp", "fsdp")


def strategy(settings: DictConfig, world: World) -> Strategy | str:
    """Lightning's strategy for a `trainer` part of the configuration. ValueError for an unknown word."""
    name = settings.strategy
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy={name!r} is unknown: choose of {', '.join(STRATEGIES)}")
    if world.size == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)
    return ModelParallelStrategy(data_parallel_size=world.size, tensor_parallel_size=1)


def parallelise(model: OmnigramForCausalLM, settings: DictConfig, mesh: DeviceMesh | None) -> None:
    """Apply a `trainer` part of the configuration to a decoder; `mesh` is Lightning's of fsdp, None for a whole one."""
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
    if mesh is None:
        if settings.compile:
            model.model.compile(dynamic=False)
        return
    mesh = mesh["data_parallel"]
    for layer in model.model.layers:
        assert isinstance(layer, nn.Module)
        if settings.compile:
            layer.compile(dynamic=False)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "training_loss")


@contextmanager
def without_reduction(model: nn.Module, trainer_strategy: Any) -> Iterator[None]:
    """Within it gradients are added up on each rank and not over the ranks, for all but the last part of a batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        with trainer_strategy.block_backward_sync():
            yield


def clip_gradients(model: nn.Module, longest: float) -> Tensor:
    """Scale the gradients to at most this length; the length they had, over all ranks."""
    length = nn.utils.clip_grad_norm_(model.parameters(), longest)
    return length.full_tensor() if isinstance(length, DTensor) else length


def whole_model(model: OmnigramForCausalLM, world: World) -> OmnigramForCausalLM | None:
    """The decoder with all of its weights, on the first rank; None on the others. All ranks have to call it.

    It is `model` itself where that is whole, else a copy: the first rank needs room for it.
    """
    if not isinstance(model, FSDPModule):
        return model if world.is_first else None
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not world.is_first:
        return None
    with no_init_weights():
        whole = OmnigramForCausalLM(model.config)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    return whole.to(model.device)  # pyright: ignore[reportArgumentType] - transformers wraps `to`
