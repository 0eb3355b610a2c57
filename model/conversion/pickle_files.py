"""Reading the tensors of `torch.save`'s files one at a time: Meta's consolidated.*.pth, and vqgan.ckpt.

Such a file is a pickle, which could run code; `weights_only` lets nothing but tensors and plain values through. The
file is mapped into memory, and mapped anew whenever so much of it was read that the pages would add up.
https://docs.pytorch.org/docs/stable/generated/torch.load.html
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .downloads import check_downloaded
from .stored import DTYPES, Checkpoint, Stored, unsupported

State = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # picks the tensors out of what a file holds
MAPPED_BYTES = 2**26  # of a file that may be read before it is mapped anew, which takes some hundredths of a second


class MappedFile:
    """The tensors of a file by name, in pages that the system takes as memory in use once they are read."""

    def __init__(self, path: Path, state: State) -> None:
        self.path, self._state, self._read, self.content = path, state, 0, _load(path, state)

    def tensor(self, name: str, num_bytes: int) -> Tensor:
        if num_bytes > MAPPED_BYTES:  # alone, so that its pages go with it
            return _load(self.path, self._state)[name]
        if self._read + num_bytes > MAPPED_BYTES:
            del self.content  # gives the pages back, but for those of tensors that are in use
            self._read, self.content = 0, _load(self.path, self._state)
        self._read += num_bytes
        return self.content[name]


@dataclass(frozen=True)
class InPickle(Stored):
    mapped: MappedFile

    def read(self) -> Tensor:
        return self.mapped.tensor(self.name, self.num_bytes)


def read_file(path: Path, state: State = dict) -> Checkpoint:
    """The tensors of one file. `state` picks them out of what it holds, where that is more, as a training's.

    FileNotFoundError, or ValueError for a file that is damaged, or holds more than tensors.
    """
    mapped = MappedFile(path, state)
    found: Checkpoint = {}
    for name, tensor in mapped.content.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise ValueError(f"{path}: {name} is a {type(tensor).__name__}, no tensor: save the tensors alone")
        if tensor.dtype not in DTYPES.values():
            raise unsupported(path, name, tensor.dtype)
        found[name] = InPickle(path, name, tensor.dtype, tuple(tensor.shape), mapped)
    return found


def _load(path: Path, state: State) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: download it as well")
    check_downloaded(path)
    mapped = zipfile.is_zipfile(path)  # not so before torch 1.6
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as fault:
        raise ValueError(
            f"{path} is refused, for it is damaged or holds more than tensors, such as code that would run "
            f"({_why(fault)}): get it as safetensors, or save the tensors alone"
        ) from None
    except Exception as fault:  # of any kind, by what the bytes happen to say
        raise ValueError(f"{path} is cut off or no file of torch.save ({_why(fault)}): download it again") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, no tensors by name: it is no checkpoint")
    try:
        return state(content)
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from None


def _why(fault: Exception) -> str:
    """What torch says, without its advice on switching the safety off."""
    lines = [line.strip() for line in str(fault).splitlines()]
    told = next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0] if lines else "")
    return told.removeprefix("WeightsUnpickler error:").split(". ")[0].strip().rstrip(".") or type(fault).__name__
