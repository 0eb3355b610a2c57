"""Out of memory, in one line that says which setting to lower: by what holds most, where `model/memory.py` knows it.

A GPU's allocator raises torch.OutOfMemoryError, a CPU's a RuntimeError, Python and C++ a MemoryError. What the system
kills for want of memory can say nothing; the next start notes in incidents.jsonl that the process was killed.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator

import torch
from omegaconf import DictConfig

from ..model.configuration import OmnigramConfig
from ..model.memory import Division, Memory, count_parameters, training_memory
from .machine import precision
from .world import World

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


def training_advice(config: DictConfig, decoder: OmnigramConfig, device: torch.device, world: World) -> str:
    """Which setting to change, by the formulas of `omnigram plan`: first those with which the run goes on."""
    settings, length = config.trainer, int(config.loader.length)
    rows, parts = config.loader.rows // world.data_size, int(settings.accumulation)  # rows of this process
    shards = world.data_size if settings.strategy == "fsdp" else 1
    muon = config.optimizer.muon_learning_rate is not None
    mixed = precision(config, device).startswith("bf16")
    room, parameters = total_memory(device), count_parameters(decoder)

    def needs(parts: int, checkpointing: bool) -> Memory:
        division = Division(shards, world.tensor, checkpointing)
        on_cpu = device.type == "cpu"
        batch = {"rows": rows // parts, "length": length}
        return training_memory(decoder, parameters, division, **batch, muon=muon, mixed=mixed, on_cpu=on_cpu)

    def fits(parts: int, checkpointing: bool) -> bool:
        return needs(parts, checkpointing).total <= (1 - MARGIN) * room

    recomputing = bool(settings.activation_checkpointing)
    needed = needs(parts, recomputing)
    states, step = _divided(needed)
    at_once = f"{rows // parts} rows at once" if rows // parts > 1 else "one row"
    what = (
        f"{at_once} of loader.length={length}: about {needed.total / GIB:,.1f} GiB of the "
        f"{room / GIB:,.1f} there are (activations and loss {step / needed.total:.0%}, "
        f"weights, gradients and optimizer {states / needed.total:.0%})"
    )
    divisors = [number for number in range(parts, rows + 1) if rows % number == 0 and number % parts == 0]
    if states > (1 - MARGIN) * room:
        more = "" if shards > 1 else ", or deal it to several GPUs (trainer.strategy=fsdp)"
        return f"{what}: choose a smaller model={more}"
    if fits(parts, recomputing):
        lower = f"raise trainer.accumulation to {divisors[1]}" if len(divisors) > 1 else "lower loader.length"
        return f"{what}; others may hold the rest: free it, or {lower}"
    for also in sorted({recomputing, True}):
        for number in divisors:
            if fits(number, also):
                changes = [f"trainer.accumulation={number}"] if number > parts else []
                changes += ["trainer.activation_checkpointing=true"] if also > recomputing else []
                return f"{what}: set {' and '.join(changes)}, with which this run goes on"
    return f"{what}: lower loader.length, or choose a smaller model="


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
