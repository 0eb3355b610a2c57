"""What a training will need before it is begun: parameters, memory of a GPU by layout, days, and the layout to choose.

The formulas and what they leave out are in docs/plan.md.
"""

from bisect import bisect_right
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import ceil, isfinite
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..model.activations import AUTOCAST, loss_bytes
from ..model.configuration import OmnigramConfig
from ..model.memory import Division, Memory, Parameters, count_parameters, training_memory
from ..model.size import flops_per_token
from ..tokenizers.quantizers import quantizer_config
from .accelerators import accelerator
from .compose import build
from .machine import PRECISIONS

GIB, DAY = 2.0**30, 86400.0
WIDEST = 8  # tensor parallelism beyond this is not tried: each of its layers waits for two sums over all of its GPUs


@dataclass(frozen=True)
class PlanSettings:
    """What is asked, each a word of the command line. ValueError, in one line, for impossible values.

    gpus: all GPUs of the training. gpus_per_node: those that share a fast interconnect.
    accelerator: a name of `accelerators.ACCELERATORS`; peak (operations a second, dense bfloat16) and memory (GiB a
        GPU) are its, unless they are given.
    margin: share of the memory that is left free, for the CUDA context, communication and fragments.
    mfu: model FLOPs utilisation, the share of the peak that the operations of `flops_per_token` reach.
    context: tokens of a row; None is the configuration's loader.length.
    tokens: of the whole training. batch_tokens: of one step of the optimizer, on all GPUs together.
    """

    gpus: int = 8
    gpus_per_node: int = 8
    accelerator: str = "h100"
    peak: float | None = None
    memory: float | None = None
    margin: float = 0.1
    mfu: float = 0.4
    context: int | None = None
    tokens: float = 1e12
    batch_tokens: float = 4e6

    def __post_init__(self) -> None:
        known = None if self.peak and self.memory else accelerator(self.accelerator)
        for name in ("peak", "memory"):
            if getattr(self, name) is None and known is not None:
                object.__setattr__(self, name, getattr(known, name))
        for name, least in {"gpus": 1, "gpus_per_node": 1, "context": 2}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be {least} or more")
        for name in ("peak", "memory", "tokens", "batch_tokens"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"{name}={value:g} must be above 0")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu:g} must be above 0 and at most 1: it is a share of the peak")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin:g} must be at least 0 and less than 1: it is a share of the memory")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ValueError(f"gpus={self.gpus} leaves a node incomplete: give a multiple of {self.gpus_per_node}")

    @property
    def budget(self) -> float:
        """Bytes of a GPU that may be filled."""
        assert self.memory is not None
        return self.memory * GIB * (1 - self.margin)


SETTINGS = tuple(field.name for field in fields(PlanSettings))


@dataclass(frozen=True)
class Layout:
    """A way to lie on GPUs; `name` as the field says it."""

    name: str
    division: Division

    def replicas(self, gpus: int) -> int:
        """Ranks that see different rows."""
        return gpus // self.division.tensor_parallel


def layouts(config: OmnigramConfig, gpus: int, gpus_per_node: int) -> Iterator[Layout]:
    """What is tried, in this order: each divides more, or computes or sends more, than the one before."""
    node = min(gpus, gpus_per_node)
    yield Layout("DDP" if gpus > 1 else "one GPU", Division())
    if gpus > 1:
        yield Layout(f"FSDP {gpus}", Division(gpus))
    base = f"FSDP {gpus}" if gpus > 1 else "one GPU"
    yield Layout(f"{base}, checkpointing", Division(gpus, checkpointing=True))
    for parallel in range(2, min(node, WIDEST) + 1):
        heads = (config.num_attention_heads, config.num_key_value_heads or 1, config.intermediate_size)
        if node % parallel == 0 and not any(size % parallel for size in heads):
            shards = gpus // parallel
            base = f"FSDP {shards}, " if shards > 1 else ""
            yield Layout(f"{base}checkpointing, TP {parallel}", Division(shards, parallel, checkpointing=True))


@dataclass(frozen=True)
class Step:
    """One step of the optimizer: rows of `context` tokens that a GPU takes at a time, and how often before it."""

    rows: int
    accumulation: int
    batch_tokens: int
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """All that the command tells. Memory in bytes; `one_row` is each layout's with one row a GPU."""

    model: str
    vocab_size: int
    settings: PlanSettings
    optimizer: str
    precision: str
    parameters: Parameters
    flops_per_token: float
    one_row: dict[Layout, Memory]
    chosen: Layout | None  # None: nothing fits
    step: Step | None
    whole_logits: float
    advice: tuple[str, ...]

    @property
    def tokens_per_day(self) -> float:
        assert self.settings.peak is not None
        return self.settings.gpus * self.settings.peak * self.settings.mfu / self.flops_per_token * DAY

    @property
    def days(self) -> float:
        return self.settings.tokens / self.tokens_per_day

    def fits(self, layout: Layout) -> bool:
        return self.one_row[layout].total <= self.settings.budget

    def as_dict(self) -> dict[str, Any]:
        """For programs: bytes, tokens and operations as plain numbers."""
        chosen = None
        if self.chosen is not None and self.step is not None:
            chosen = {"layout": self.chosen.name, **asdict(self.chosen.division), **asdict(self.step)}
            chosen["memory"] = self.step.memory.as_dict()
        return {
            "model": self.model,
            "vocab_size": self.vocab_size,
            "settings": asdict(self.settings),
            "optimizer": self.optimizer,
            "precision": self.precision,
            "parameters": {
                **self.parameters.by_group,
                "total": self.parameters.total,
                "active": self.parameters.active,
            },
            "flops_per_token": self.flops_per_token,
            "tokens_per_day": self.tokens_per_day,
            "days": self.days,
            "gpu_hours": self.days * 24 * self.settings.gpus,
            "memory_budget": self.settings.budget,
            "layouts": [
                {"layout": at.name, **asdict(at.division), "memory": memory.as_dict(), "fits": self.fits(at)}
                for at, memory in self.one_row.items()
            ],
            "loss_head_whole_logits": self.whole_logits,
            "suggested": chosen,
            "advice": list(self.advice),
        }


def make_plan(config: DictConfig, settings: PlanSettings) -> Plan:
    """The plan of `omnigram pretrain` with this configuration. ValueError for what cannot be trained."""
    decoder = decoder_config(config)
    context = settings.context or int(config.loader.length)
    if context > decoder.max_position_embeddings:
        raise ValueError(
            f"context={context} is more than model.max_position_embeddings={decoder.max_position_embeddings}: "
            "lower the one or raise the other"
        )
    settings = PlanSettings(**{**asdict(settings), "context": context})
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision={config.precision!r} is unknown: choose of {', '.join(PRECISIONS)}")
    mixed, muon = config.precision != "32-true", config.optimizer.muon_learning_rate is not None
    shape = deepcopy(decoder)
    shape._attn_implementation = "sdpa"  # what is counted needs no kernel, which may be of a package that is not here
    parameters = count_parameters(shape)
    memory = partial(training_memory, decoder, parameters, length=context, muon=muon, mixed=mixed)
    found = list(layouts(decoder, settings.gpus, settings.gpus_per_node))
    one_row = {layout: memory(layout.division, rows=1) for layout in found}
    chosen = next((layout for layout in found if one_row[layout].total <= settings.budget), None)
    step = None
    if chosen is not None:
        rows, accumulation = _rows(settings, context, chosen, memory)
        tokens = rows * accumulation * chosen.replicas(settings.gpus) * context
        step = Step(rows, accumulation, tokens, memory(chosen.division, rows=rows))
    at_once = context * (step.rows if step else 1)
    return Plan(
        model=str(config.get("model_name") or "decoder"),
        vocab_size=decoder.vocab_size,
        settings=settings,
        optimizer="Muon and AdamW" if muon else "AdamW",
        precision="bf16-mixed" if mixed else "32-true",
        parameters=parameters,
        flops_per_token=flops_per_token(shape, (context + 1) / 2),
        one_row=one_row,
        chosen=chosen,
        step=step,
        whole_logits=loss_bytes(decoder, AUTOCAST, at_once).whole,
        advice=tuple(_advice(decoder, settings, one_row, step, mixed)),
    )


def decoder_config(config: DictConfig) -> OmnigramConfig:
    """The decoder, with as many ids as the tokenizers of the configuration may make where no model fixes them."""
    if "path" in config.model:
        return build(config, "model", OmnigramConfig)
    text, codes = int(config.tokenizer.text.vocab_size), quantizer_config(config.tokenizer.quantizer).num_codes
    filled: dict[str, Any] = {}
    if OmegaConf.is_missing(config.model, "vocab_size"):
        filled["vocab_size"] = text + codes
    own_layers = config.model.get("modality_norms") or config.model.get("modality_key_value")
    if own_layers and config.model.modality_ranges is None:
        vocab_size = filled.get("vocab_size") or int(config.model.vocab_size)
        filled["modality_ranges"] = [[max(0, vocab_size - codes), min(codes, vocab_size)]]
    return build(config, "model", OmnigramConfig, **filled)


def _rows(settings: PlanSettings, context: int, layout: Layout, memory: Any) -> tuple[int, int]:
    """Rows at a time and accumulation: the fewest passes that fit, of as equal size as can be.

    Together they come to batch_tokens, or to the next larger batch that divides evenly.
    """
    wanted = max(1, round(settings.batch_tokens / context / layout.replicas(settings.gpus)))
    most = bisect_right(range(1, wanted + 1), settings.budget, key=lambda n: memory(layout.division, rows=n).total)
    accumulation = ceil(wanted / most)
    return ceil(wanted / accumulation), accumulation


def _advice(
    decoder: OmnigramConfig, settings: PlanSettings, one_row: dict[Layout, Memory], step: Step | None, mixed: bool
) -> Iterator[str]:
    """Lines on what does not fit, and on what would be better otherwise."""
    if step is None:
        layout = min(one_row, key=lambda layout: one_row[layout].total)
        needed = one_row[layout]
        rest = needed.activations + max(needed.recomputed, needed.loss_head)
        states = needed.total - rest
        change = "raise gpus or memory" if states > settings.budget else "lower context, or raise gpus or memory"
        yield (
            f"nothing fits: the least is {needed.total / GIB:.1f} GiB a GPU ({layout.name}), "
            f"{settings.budget / GIB:.1f} GiB are free: {change}"
        )
    elif step.batch_tokens > 1.5 * settings.batch_tokens:
        yield (
            f"one row a GPU makes a batch of {step.batch_tokens:,} tokens, more than batch_tokens="
            f"{settings.batch_tokens:g}: lower gpus or context, or raise batch_tokens"
        )
    if decoder._attn_implementation in ("sdpa", "eager"):
        yield (
            f"model.attn_implementation={decoder._attn_implementation} keeps a mask of each pair of a row's tokens and "
            "repeats grouped keys and values: flash_attention_2 keeps neither"
        )
    if not mixed:
        yield "precision=32-true: the peak is that of bfloat16 products, set peak= to that of float32"
