"""A tensor where it lies: its name, type, shape and file are known, and its content is read when it is asked for.

A checkpoint is a mapping of keys to such tensors. Keys are the tensors' names, or "file:name" where several files
have tensors of one name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

# What is converted, by the names that safetensors has for them: nothing is ever rounded, so other floats are refused.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass(frozen=True)
class Stored(ABC):
    """`file` holds a tensor `name` of this type and shape."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def at(self) -> str:
        """For messages."""
        return f"{self.file}: tensor {self.name}"

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read(self) -> Tensor:
        """The content; memory is taken for this tensor alone, and is free again when the result is dropped."""


Checkpoint = dict[str, Stored]


def keyed(prefix: str, checkpoint: Checkpoint) -> Checkpoint:
    """The same tensors under keys that other files do not have."""
    return {f"{prefix}:{key}": stored for key, stored in checkpoint.items()}


def unsupported(file: Path, name: str, dtype: object) -> ValueError:
    """The error for a tensor of another type."""
    return ValueError(
        f"{file}: tensor {name} is of type {str(dtype).removeprefix('torch.')}, and only float32, float16 and bfloat16 "
        "are converted: save it as one of these"
    )
