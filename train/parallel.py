"""How several devices share the training of a decoder: beside the model, not in it.

ddp: each rank holds everything and takes its rows of the batch. fsdp: weights, gradients and optimizer states are
dealt over the ranks as well (FSDP2, https://arxiv.org/abs/2304.11277), a block gathered when it is computed. With
tensor_parallel=n each n ranks also share the matrices of a block, by heads and by hidden units
(https://arxiv.org/abs/1909.08053), and take the same rows. In this order: tensor parallelism, activation
checkpointing, compile, FSDP2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers.initialization import no_init_weights

from ..model.decoder import OmnigramForCausalLM
from .world import World

STRATEGIES = ("ddp", "fsdp")


def strategy(settings: DictConfig, world: World) -> Strategy | str:
    """Lightning's strategy for a `trainer` part of the configuration. ValueError for an unknown word."""
    name = settings.strategy
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy={name!r} is unknown: choose of {', '.join(STRATEGIES)}")
    if name == "ddp" and settings.tensor_parallel > 1:
        raise ValueError(f"trainer.tensor_parallel={settings.tensor_parallel} needs trainer.strategy=fsdp")
    if world.size == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)
    return ModelParallelStrategy(data_parallel_size=world.data_size, tensor_parallel_size=world.tensor)


def parallelise(model: OmnigramForCausalLM, settings: DictConfig, mesh: DeviceMesh | None, mixed: bool = False) -> None:
    """Apply a `trainer` part of the configuration to a decoder.

    mesh: Lightning's of fsdp; None for a decoder that is whole on each rank.
    mixed: under fsdp, layers are gathered and compute in bfloat16; gradients are reduced in float32. Without a mesh
        that is autocast's to do.
    """
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        _share_matrices(model, mesh["tensor_parallel"])
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
    if mesh is None:
        if settings.compile:
            model.model.compile(dynamic=False)
        return
    mesh = mesh["data_parallel"]
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if mixed else None
    options: dict[str, Any] = {"mesh": mesh} | ({"mp_policy": policy} if policy else {})
    for layer in model.model.layers:
        assert isinstance(layer, nn.Module)
        if settings.compile:
            layer.compile(dynamic=False)
        fully_shard(layer, **options)
    fully_shard(model, **options)
    register_fsdp_forward_method(model, "training_loss")


class _EachHead(ParallelStyle):
    """A norm of heads where each rank has its own heads; weights of single heads are dealt with them."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def place(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
            for key, parameter in list(module.named_parameters(recurse=False)):
                placement = Shard(0) if parameter.ndim > 1 else Replicate()
                module.register_parameter(key, nn.Parameter(distribute_tensor(parameter, mesh, [placement])))

        def enter(module: nn.Module, inputs: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
            return DTensor.from_local(inputs[0], mesh, [Shard(2)], run_check=False)  # [B, T, heads, K]

        def leave(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
            return output.to_local()

        return distribute_module(module, device_mesh, place, enter, leave)  # pyright: ignore[reportArgumentType]


def _share_matrices(model: OmnigramForCausalLM, mesh: DeviceMesh) -> None:
    """Deal the heads and the hidden units of every block. ValueError where they cannot be dealt."""
    config, size = model.config, mesh.size()
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ValueError(f"trainer.tensor_parallel={size} does not divide model.{name}={getattr(config, name)}")
    if config.separate_modalities or config.num_experts:
        raise ValueError("trainer.tensor_parallel goes with neither experts nor layers of single modalities: set 1")
    plan: dict[str, ParallelStyle] = {
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        **{f"self_attn.{name}_norm": _EachHead() for name in "qk" if config.qk_norm != "none"},
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for layer in model.model.layers:
        assert isinstance(layer, nn.Module)
        parallelize_module(layer, mesh, plan)


@contextmanager
def without_reduction(model: nn.Module, trainer_strategy: Any) -> Iterator[None]:
    """Within it gradients are added up on each rank and not over the ranks, for all but the last part of a batch.

    Under FSDP2 each part is reduced: whole gradients that wait for the last one would take the memory that is saved.
    """
    if isinstance(model, FSDPModule):
        yield
    else:
        with trainer_strategy.block_backward_sync():
            yield


def clip_gradients(model: nn.Module, longest: float) -> Tensor:
    """Scale the gradients to at most this length; the length they had, over all ranks."""
    by_mesh: dict[DeviceMesh | None, list[nn.Parameter]] = {}  # torch adds up those of one mesh
    for parameter in model.parameters():
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            by_mesh.setdefault(mesh, []).append(parameter)
    lengths: list[Tensor] = []
    for parameters in by_mesh.values():
        length = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        lengths.append(length.full_tensor() if isinstance(length, DTensor) else length)
    total = lengths[0] if len(lengths) == 1 else torch.stack(lengths).square().sum().sqrt()
    for parameters in by_mesh.values():
        nn.utils.clip_grads_with_norm_(parameters, longest, total)
    return total


def whole_model(model: OmnigramForCausalLM, world: World) -> OmnigramForCausalLM | None:
    """The decoder with all of its weights, on the first rank; None on the others. All ranks have to call it.

    It is `model` itself where that is whole, else a copy in the memory of the machine, not of its GPU.
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
    return whole
