"""Reading and writing safetensors a tensor at a time, by plain reads: mapped pages would count as memory in use.

The format: https://huggingface.co/docs/safetensors. Eight bytes with the length of a JSON header, the header (name ->
type, shape, first and last byte), then the bytes of all tensors without gaps. A large model is several such files and
an index of which tensor is in which.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...tokenizers.pixel_tokenizer import WEIGHTS
from .downloads import check_downloaded
from .stored import DTYPES, Checkpoint, Stored, unsupported

INDEX = f"{WEIGHTS}.index.json"
SHARD_BYTES = 4 * 10**9
_LONGEST_HEADER = 10**8  # bytes, as the format has it
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class InSafetensors(Stored):
    """`offset`: of its first byte in the file."""

    offset: int

    def read(self) -> Tensor:
        content = torch.empty(self.num_bytes, dtype=torch.uint8)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset)
            left = content.numpy().data
            while left:
                count = file.readinto(left)
                if not count:
                    raise ValueError(f"{self.at} ends early: the file became shorter while it was read")
                left = left[count:]
        return content.view(self.dtype).reshape(self.shape)


def read_file(path: Path) -> Checkpoint:
    """The tensors of one file. ValueError if it is no whole safetensors file, or has a type that is not converted."""
    check_downloaded(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is cut off or no safetensors file: its header is not whole; download it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: (str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is no safetensors file: its header is damaged; download it again") from None
    found: Checkpoint = {}
    end = 0
    for name, (kind, shape, first, stop) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if kind not in DTYPES:
            raise unsupported(path, name, kind)
        if first != end or stop - first != prod(shape) * DTYPES[kind].itemsize:
            raise ValueError(f"{path}: tensor {name} does not lie where the header says it does; download it again")
        found[name] = InSafetensors(path, name, DTYPES[kind], shape, 8 + length + first)
        end = stop
        if 8 + length + end > size:
            raise ValueError(f"{path} is cut off: tensor {name} is not all there; download it again")
    if 8 + length + end != size:
        raise ValueError(f"{path} has {size - 8 - length - end} bytes behind its tensors; download it again")
    return found


def read_folder(folder: Path) -> Checkpoint:
    """The tensors of a model: of model.safetensors, or of all files that its index names.

    FileNotFoundError or ValueError for a folder without, and for an index and files that contradict each other.
    """
    if (folder / WEIGHTS).is_file():
        return read_file(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        remedy = "download it again"
        if pickled is not None:
            remedy = f"{pickled.name} is not read: load it with transformers and save_pretrained it as safetensors"
        raise FileNotFoundError(f"{folder} holds no weights, neither {WEIGHTS} nor {INDEX}: {remedy}")
    check_downloaded(index)
    try:
        listed: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index} is no index of safetensors: it has no weight_map; download it again") from None
    found: Checkpoint = {}
    for shard in sorted(set(map(str, listed.values()))):
        path = folder / shard
        if Path(shard).name != shard or not path.is_file():
            tensor = next(name for name, file in listed.items() if file == shard)
            raise FileNotFoundError(f"{path} is missing, in which {INDEX} has tensor {tensor}: download it as well")
        for name, stored in read_file(path).items():
            if name in found:
                raise ValueError(f"{stored.at} is in {found[name].file.name} as well: remove it from one of them")
            if listed.get(name) != shard:
                raise ValueError(f"{stored.at} is not where {INDEX} has it: download both again")
            found[name] = stored
    for name, shard in listed.items():
        if name not in found:
            raise ValueError(f"{folder / shard}: tensor {name} is missing, which {INDEX} has there: download it again")
    return found


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written, and how its content is made."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_file(path: Path, tensors: Sequence[Planned], advance: Callable[[int], None]) -> None:
    """Write a file, one tensor in memory at a time, and sync it. `advance` hears of the bytes of each."""
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # so that each lies at a multiple of its item
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        first, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            content = tensor.make()
            assert (content.dtype, tuple(content.shape)) == (tensor.dtype, tensor.shape), tensor.name
            file.write(content.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del content
            advance(tensor.num_bytes)
        file.flush()
        os.fsync(file.fileno())


def write_folder(
    folder: Path, tensors: Sequence[Planned], advance: Callable[[int], None], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a model as one file, or as several with an index where it is larger than `shard_bytes`."""
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(each.num_bytes for each in (*shards[-1], tensor)) > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_file(folder / WEIGHTS, tensors, advance)
        return
    listed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, advance)
        listed |= {tensor.name: name for tensor in shard}
    total = sum(tensor.num_bytes for tensor in tensors)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(listed.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n")
