"""A conversion as data: each tensor of the target, the tensors it is made of, and the operation between them.

Nothing is computed: values are moved, joined and repeated, so bits stay as they are. Dimensions: H heads, K width of a
head, D width of the model, N parts of a model that was trained on N devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from .safetensors_files import Planned
from .stored import Checkpoint, Stored

Shape = tuple[int, ...]


class Operation(Protocol):
    """Makes a tensor of its sources."""

    def source_shape(self, target: Shape, parts: int) -> Shape:
        """What each source must be, for the target to have its shape."""
        ...

    def __call__(self, sources: Sequence[Stored]) -> Tensor: ...


@dataclass(frozen=True)
class Keep:
    """The one source as it is. Of several the first, after a check that all have the same values."""

    def source_shape(self, target: Shape, parts: int) -> Shape:
        return target

    def __call__(self, sources: Sequence[Stored]) -> Tensor:
        first = sources[0].read()
        for other in sources[1:]:
            if not torch.equal(first, other.read().to(first.dtype)):
                raise ValueError(f"{other.at} differs from that in {sources[0].file}: they are not of one model")
        return first


@dataclass(frozen=True)
class Flatten:
    """A 1 x 1 convolution [out, in, 1, 1] as the linear map that it is."""

    def source_shape(self, target: Shape, parts: int) -> Shape:
        return (*target, 1, 1)

    def __call__(self, sources: Sequence[Stored]) -> Tensor:
        return sources[0].read().flatten(1)


@dataclass(frozen=True)
class Join:
    """N parts along a dimension, read one after the other into their places.

    heads: of a query or key projection [H * K, D] whose rotary pairs are neighbours: they become halves.
    """

    dim: int
    heads: int | None = None

    def source_shape(self, target: Shape, parts: int) -> Shape:
        return (*target[: self.dim], target[self.dim] // parts, *target[self.dim + 1 :])

    def __call__(self, sources: Sequence[Stored]) -> Tensor:
        if len(sources) == 1:
            joined = sources[0].read()
        else:
            shape = list(sources[0].shape)
            shape[self.dim] *= len(sources)
            joined = torch.empty(shape, dtype=sources[0].dtype)
            for place, source in zip(joined.chunk(len(sources), self.dim), sources, strict=True):
                place.copy_(source.read())
        return joined if self.heads is None else halves(joined, self.heads)


@dataclass(frozen=True)
class EachHead:
    """The norm [K] of a head -> one for each of the H heads, [H, K]; part n is that of the n-th share of the heads.

    rotary: pairs are neighbours, and become halves.
    """

    heads: int
    rotary: bool = False

    def source_shape(self, target: Shape, parts: int) -> Shape:
        return target[1:]

    def __call__(self, sources: Sequence[Stored]) -> Tensor:
        norms = torch.stack([source.read() for source in sources])
        if self.rotary:
            norms = rearrange(norms, "n (k pair) -> n (pair k)", pair=2)
        return repeat(norms, "n k -> (n heads) k", heads=self.heads // len(sources)).contiguous()


KEEP = Keep()


def halves(weight: Tensor, heads: int) -> Tensor:
    """Meta's rotary order of a projection's rows, pairs as neighbours -> that of transformers, pairs in two halves."""
    return rearrange(weight, "(h k pair) d -> (h pair k) d", h=heads, pair=2)


@dataclass(frozen=True)
class Rule:
    """`target` is made by `operation` of the tensors with the keys `sources`."""

    target: str
    sources: tuple[str, ...]
    operation: Operation = KEEP


def planned(
    rules: Sequence[Rule], targets: Mapping[str, Tensor], checkpoint: Checkpoint, folder: Path, config: str
) -> list[Planned]:
    """What the rules make, after a check that everything is there and fits; nothing is read yet.

    targets: every tensor that is to be made; its shape and kind (float or integer) count.
    folder, config: where the checkpoint is, and what gave the targets their shapes, for messages.

    ValueError, naming file, tensor and remedy, for a tensor that is missing or has another shape or type.
    """
    made = {rule.target: rule for rule in rules}
    assert len(made) == len(rules)
    assert made.keys() == targets.keys()
    missing = [source for rule in rules for source in rule.sources if source not in checkpoint]
    if missing:
        raise ValueError(
            f"{folder}: tensor {missing[0]}{_more(missing)} is missing, which {config} asks for: "
            "download the weights again, or take the configuration that belongs to them"
        )
    return [_planned(made[name], target, [checkpoint[key] for key in made[name].sources], config) for name, target in
            targets.items()]  # fmt: skip


def _planned(rule: Rule, target: Tensor, sources: Sequence[Stored], config: str) -> Planned:
    parts = len(sources)
    wanted = rule.operation.source_shape(tuple(target.shape), parts)
    for source in sources:
        if source.shape != wanted or (source.dtype.is_floating_point != target.is_floating_point()):
            raise ValueError(
                f"{source.at} is {_kind(source.dtype)} {list(source.shape)}, but {config} asks for "
                f"{_kind(target.dtype)} {list(wanted)}: take the configuration that belongs to the weights"
            )
        if source.dtype != sources[0].dtype and rule.operation is not KEEP:
            raise ValueError(
                f"{source.at} is {source.dtype}, in {sources[0].file.name} {sources[0].dtype}: save all alike"
            )
    make = partial(rule.operation, sources)
    return Planned(rule.target, sources[0].dtype, tuple(target.shape), make)


def check_all_used(rules: Sequence[Rule], checkpoint: Checkpoint, config: str) -> None:
    """ValueError, naming file and tensor, for one that no rule uses."""
    used = {source for rule in rules for source in rule.sources}
    extra = [stored for key, stored in checkpoint.items() if key not in used]
    if extra:
        raise ValueError(
            f"{extra[0].at}{_more(extra)} has no place in a model of {config}: "
            "take the configuration that belongs to the weights, or remove the tensor"
        )


def _more(faults: Sequence[object]) -> str:
    return f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""


def _kind(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else "integer"
