"""The machine a run stands on: device, precision, threads, and the Lightning trainer that knows them."""

import logging
import os
import shutil
import signal
import sys
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from .curves import make_loggers
from .parallel import strategy
from .runs import Run
from .steps import StepModule
from .termination import Terminated
from .warned import warn_in_one_line
from .world import World, lost_rank

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "32-true", "bf16-mixed")


def prepare(config: DictConfig) -> torch.device:
    """Set torch up as the configuration asks; the device to work on. ValueError if there is no such device."""
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(int(config.threads))
    torch.set_flush_denormal(True)  # Adam's square roots meet subnormals, which a CPU computes many times slower
    # or deterministic runs write all memory twice
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    quiet()
    return device


def choose_device(name: str, key: str = "device") -> torch.device:
    """The device of a name; `auto` takes the best there is. ValueError names the setting `key`."""
    if name not in DEVICES:
        raise ValueError(f"{key}={name!r} is unknown: choose of {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if not available[name]:
        raise ValueError(f"{key}={name}: this machine has none; set {key}=auto or {key}=cpu")
    return torch.device(name)


def quiet() -> None:
    """Leave the terminal to our own lines: others' advice, progress bars and notes on their own code are no help."""
    warn_in_one_line()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the loader is a thread of its own
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # a process alone writes its checkpoints as it is meant to
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized.*")


def check_compiler(device: torch.device) -> None:
    """ValueError where torch.compile would not find its C++ compiler for kernels of the CPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile=true needs a C++ compiler, and there is no {compiler}: install one (on Debian: apt "
            "install g++), or set trainer.compile=false, which is slower"
        )


def precision(config: DictConfig, device: torch.device) -> str:
    """Lightning's word for the precision: `auto` is bf16 where a GPU computes it, float32 elsewhere."""
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision={config.precision!r} is unknown: choose of {', '.join(PRECISIONS)}")
    if config.precision != "auto":
        return str(config.precision)
    return "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


def make_trainer(
    config: DictConfig,
    run: Run,
    callbacks: list[Callback],
    resumed_step: int,
    world: World | None = None,
    reduced_by_module: bool = False,
) -> Trainer:
    """A trainer that goes on until a callback stops it; progress, checkpoints and curves are ours.

    reduced_by_module: the module averages its gradients over the world itself.
    """
    device = prepare(config)
    world = world or World()
    names = [str(name) for name in config.logger] if world.is_first else []
    return Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        **_layout(config, device, world, reduced_by_module),
        max_steps=-1,
        max_epochs=-1,
        logger=make_loggers(names, run.folder, resumed_step),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic="warn" if config.deterministic else False,
    )


def _layout(config: DictConfig, device: torch.device, world: World, reduced_by_module: bool) -> dict[str, Any]:
    """What Lightning is told of the precision, and of the other processes: nothing where it need not know them."""
    told = precision(config, device)
    if world.size > 1 and reduced_by_module:
        own = torch.device("cuda", world.local_rank) if device.type == "cuda" else device
        return {"devices": 1, "num_nodes": 1, "strategy": SingleDeviceStrategy(own), "precision": told}
    if world.size > 1 and config.trainer.strategy == "fsdp":
        told = "32-true"  # FSDP2 narrows the layers that it gathers, and needs no autocast
    nodes = world.size // world.local_size
    chosen = strategy(config.trainer, world)
    return {"devices": world.local_size, "num_nodes": nodes, "strategy": chosen, "precision": told}


def fit(trainer: Trainer, module: StepModule, batches: DataLoader) -> None:
    """`trainer.fit`; an interruption stays one, where Lightning exits with code 1.

    Raises Terminated after SIGTERM, once the step that was running is saved, and LostRankError where another process
    of the run has ended.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, batches)
    except SIGTERMException:
        raise Terminated from None
    except SystemExit:
        signal.signal(signal.SIGINT, handler)  # which Lightning has switched off
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        raise lost_rank(error, module.world) or error from error
    if any(module.world.gather(module.stopping or module.asked_to_stop)):  # also after the last step
        raise Terminated
