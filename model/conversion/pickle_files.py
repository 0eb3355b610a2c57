"""Reading the tensors of `torch.save`'s files one at a time: Meta's consolidated.*.pth, and vqgan.ckpt.

Such a file is a pickle, which could run code; `weights_only` lets nothing but tensors and plain values through. The
file is mapped into memory and opened anew for each tensor, so that pages once read do not stay.
https://docs.pytorch.org/docs/stable/generated/torch.load.html
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .stored import DTYPES, Checkpoint, Stored, unsupported


@dataclass(frozen=True)
class InPickle(Stored):
    def read(self) -> Tensor:
        return _load(self.file)[self.name]


def read_file(path: Path) -> Checkpoint:
    """The tensors of one file, out of Lightning's `state_dict` if they stand there.

    FileNotFoundError, or ValueError for a file that is damaged, or holds more than tensors.
    """
    found: Checkpoint = {}
    for name, tensor in _load(path).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {name} is a {type(tensor).__name__}, no tensor: save the tensors alone")
        if tensor.dtype not in DTYPES.values():
            raise unsupported(path, name, tensor.dtype)
        found[str(name)] = InPickle(path, str(name), tensor.dtype, tuple(tensor.shape))
    return found


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: download it as well")
    mapped = zipfile.is_zipfile(path)  # not so before torch 1.6
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as fault:
        raise ValueError(
            f"{path} is refused, for it is damaged or holds more than tensors, such as code that would run "
            f"({_why(fault)}): get it as safetensors, or save the tensors alone"
        ) from None
    except (RuntimeError, EOFError) as fault:
        raise ValueError(f"{path} is cut off or no file of torch.save ({_why(fault)}): download it again") from None
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, no tensors by name: it is no checkpoint")
    return content


def _why(fault: Exception) -> str:
    """What torch says, without its advice on switching the safety off."""
    lines = [line.strip() for line in str(fault).splitlines()]
    told = next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0] if lines else "")
    return told.removeprefix("WeightsUnpickler error:").split(". ")[0].strip().rstrip(".") or type(fault).__name__
