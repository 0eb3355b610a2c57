"""Out of memory, in one line that says which setting to lower: by what holds most, where `model/memory.py` knows it.

A GPU's allocator raises torch.OutOfMemoryError, a CPU's a RuntimeError, Python and C++ a MemoryError. What the system
kills for want of memory can say nothing; the next start notes in incidents.jsonl that the process was killed.
"""

import contextlib
import os
import resource
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial

import torch
from omegaconf import DictConfig

from ..model.configuration import OmnigramConfig
from ..model.memory import Division, Memory, count_parameters, training_memory
from .machine import precision

GIB = 2.0**30
MARGIN = 0.1  # of the memory, for what the formulas leave out; `omnigram plan` leaves as much
# words of RuntimeErrors: of the CPU's allocator, of oneDNN, of CUDA's libraries
SIGNS = (
    "can't allocate memory",
    "could not create a memory object",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class NotEnoughMemoryError(ValueError):
    """A setting asks for more memory than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what was lacking."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def memory_advice(advice: str | Callable[[], str]) -> Iterator[None]:
    """Within it, what fails for want of memory is a `NotEnoughMemoryError` with the advice, made when it is needed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # its frames hold the tensors, and the advice wants a little memory, too
        told = advice if isinstance(advice, str) else advice()
    else:
        return
    raise NotEnoughMemoryError(f"out of memory: {told}") from None


def training_advice(config: DictConfig, decoder: OmnigramConfig, device: torch.device) -> str:
    """Which setting of pre-training to lower, by the formulas of `omnigram plan`, for one whole replica."""
    parameters = count_parameters(decoder)
    length, rows = int(config.loader.length), int(config.loader.rows)
    muon = config.optimizer.muon_learning_rate is not None
    mixed = precision(config, device).startswith("bf16")
    needs = partial(
        training_memory,
        decoder,
        parameters,
        Division(),
        length=length,
        muon=muon,
        mixed=mixed,
        on_cpu=device.type == "cpu",
    )
    room, needed = total_memory(device), needs(rows=rows)
    fitting = bisect_right(range(1, rows + 1), (1 - MARGIN) * room, key=lambda number: needs(rows=number).total)
    states, step = _divided(needed)
    what = (
        f"loader.rows={rows} of loader.length={length} need about {needed.total / GIB:,.1f} GiB of the "
        f"{room / GIB:,.1f} there are (activations and loss {step / needed.total:.0%}, "
        f"weights, gradients and optimizer {states / needed.total:.0%})"
    )
    if states > (1 - MARGIN) * room:
        return f"{what}: choose a smaller model="
    if fitting >= rows:
        return f"{what}; others may hold the rest: free it, or lower {'loader.rows' if rows > 1 else 'loader.length'}"
    if fitting:
        return f"{what}: lower loader.rows to {fitting} or less"
    return f"{what}: lower {'loader.rows to 1 and ' if rows > 1 else ''}loader.length, or choose a smaller model="


def _divided(memory: Memory) -> tuple[float, float]:
    """Bytes that the model takes whatever the batch is, and bytes of the batch."""
    states = memory.weights + memory.gradients + memory.optimizer + memory.weight_casts + memory.gathered
    return states, memory.total - states


def total_memory(device: torch.device) -> float:
    """Bytes of a GPU; of the machine, or what `ulimit -v` leaves of it."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    there = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return there if limit == resource.RLIM_INFINITY else min(there, float(limit))
