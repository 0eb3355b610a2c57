"""The memory of a GPU in training, part by part, for a decoder that is on each GPU whole or divided over several.

What a parameter costs follows ZeRO, section 3 (https://arxiv.org/abs/1910.02054), in float32 as Lightning's bf16-mixed
and FSDP2 with `MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32)` keep it; what a token costs is in
`activations.py`. Tensor parallelism divides the layers' projections as in https://arxiv.org/abs/1909.08053.
All in bytes. Dimensions: P parameters, S GPUs over which a replica's parameters are divided.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import nn

from .activations import AUTOCAST, BFLOAT16, FLOAT32, block_bytes, kept_bytes, loss_bytes
from .attention import Attention
from .configuration import OmnigramConfig
from .experts import MixtureOfExperts
from .size import build_on_meta, parameters_by_group

WIDE, NARROW = 4, 2  # bytes of a float32 and of a bfloat16


@dataclass(frozen=True)
class Parameters:
    """How many parameters a decoder has, and of which kinds; made by `count_parameters`."""

    by_group: dict[str, int]  # embedding, attention, feed_forward, norms, head
    active: int  # those that one token passes through
    linear: int  # weights and biases of linear layers in blocks: what autocast narrows
    matrices: int  # their weights alone: what Muon trains
    divided: int  # projections of attention and feed-forward: what tensor parallelism divides
    block: int  # one block
    block_divided: int  # what tensor parallelism divides of it

    @property
    def total(self) -> int:
        return sum(self.by_group.values())


def count_parameters(config: OmnigramConfig) -> Parameters:
    """Counts on the meta device, without memory for the weights."""
    model = build_on_meta(config)
    by_group = parameters_by_group(model)
    block = model.model.layers[0]
    linear = [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    routers = [m.router for m in model.modules() if isinstance(m, MixtureOfExperts)]
    linear_size, routers_size = _size(linear), _size(routers)
    block_linear = _size([m for m in block.modules() if isinstance(m, nn.Linear)])
    return Parameters(
        by_group=by_group,
        active=sum(by_group.values()) - _idle(config, model),
        linear=linear_size,
        matrices=sum(m.weight.numel() for m in linear),
        divided=linear_size - routers_size,
        block=_size([block]),
        block_divided=block_linear - routers_size // config.num_hidden_layers,
    )


def _size(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _idle(config: OmnigramConfig, model: nn.Module) -> int:
    """Parameters of experts, norms, keys and values that a token does not pass through."""
    idle = 0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            experts = _size([module.experts])
            idle += experts - experts * module.num_chosen // len(module.experts)
        elif isinstance(module, Attention) and config.modality_key_value:
            keys = _size([module.k_proj, module.v_proj])
            idle += keys - keys // config.num_modalities
    if config.modality_norms:
        idle += config.num_hidden_layers * 2 * config.hidden_size * (config.num_modalities - 1)
    return idle


@dataclass(frozen=True)
class Division:
    """How a decoder lies on GPUs.

    shards: GPUs over which each weight, gradient and optimizer state is divided (FSDP2); 1 is a whole replica on each.
    tensor_parallel: GPUs of a node over which the work of a layer is divided as well.
    checkpointing: keep the input of each block only, and compute the rest again.
    """

    shards: int = 1
    tensor_parallel: int = 1
    checkpointing: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, part by part. Each part is at its highest; `total` adds what is there at the same time.

    recomputed and loss_head never meet: the loss is over when the first block is computed again.
    """

    weights: float
    gradients: float  # those of the step before are there until the forward pass is over
    optimizer: float
    weight_casts: float  # bfloat16 copies that autocast keeps until the step is over
    gathered: float  # FSDP2: whole weights of the layers at work, and a whole layer's gradients
    activations: float
    recomputed: float  # one block's activations, with checkpointing
    loss_head: float

    @property
    def total(self) -> float:
        always = self.weights + self.gradients + self.optimizer + self.weight_casts + self.gathered + self.activations
        return always + max(self.recomputed, self.loss_head)

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def training_memory(
    config: OmnigramConfig,
    parameters: Parameters,
    division: Division,
    rows: int,
    length: int,
    muon: bool,
    mixed: bool = True,
    on_cpu: bool = False,
) -> Memory:
    """The memory of a GPU that trains `rows` rows of `length` tokens at a time.

    Args:
        parameters: `count_parameters(config)`.
        muon: Muon trains the hidden matrices, with one number for each; AdamW has two.
        mixed: bfloat16 products (bf16-mixed) in place of float32 throughout (32-true).
        on_cpu: as the reference machine without a GPU does it, see `kept_bytes`.
    """
    tokens, parallel = rows * length, division.tensor_parallel
    divided = division.shards > 1
    precision = (BFLOAT16 if divided else AUTOCAST) if mixed else FLOAT32
    here = (parameters.total - parameters.divided + parameters.divided / parallel) / division.shards
    matrices = parameters.matrices / parallel / division.shards
    states = 2 * WIDE * here - (WIDE * matrices if muon else 0)
    kept = kept_bytes(config, precision, length, division.checkpointing, parallel, on_cpu)
    again = block_bytes(config, precision, length, parallel, on_cpu) if division.checkpointing else 0.0
    return Memory(
        weights=WIDE * here,
        gradients=WIDE * here,
        optimizer=states,
        weight_casts=NARROW * parameters.linear / parallel if precision is AUTOCAST else 0.0,
        gathered=_gathered(config, parameters, parallel, precision.weight) if divided else 0.0,
        activations=tokens * kept,
        recomputed=tokens * again,
        loss_head=loss_bytes(config, precision, tokens).chunked,
    )


def _gathered(config: OmnigramConfig, parameters: Parameters, parallel: int, size: int) -> float:
    """Whole weights that FSDP2 holds: embedding, head and last norm; a block at work and the one that is fetched
    meanwhile; and a block's gradients, as they were made and in float32 on their way to their shards."""
    block = parameters.block - parameters.block_divided + parameters.block_divided / parallel
    root = parameters.total - config.num_hidden_layers * parameters.block
    return size * root + (2 * size + size + WIDE) * block
