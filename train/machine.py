"""The machine a run stands on: device, precision, threads, and the Lightning trainer that knows them."""

import logging
import warnings

import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig
from transformers.utils import logging as transformers_logging

from .curves import make_loggers
from .runs import Run

DEVICES = ("auto", "cpu", "cuda", "mps")


def prepare(config: DictConfig) -> torch.device:
    """Set torch up as the configuration asks; the device to work on. ValueError if there is no such device."""
    if config.device not in DEVICES:
        raise ValueError(f"device={config.device!r} is unknown: choose of {', '.join(DEVICES)}")
    if config.threads is not None:
        torch.set_num_threads(int(config.threads))
    torch.set_flush_denormal(True)  # Adam's square roots meet subnormals, which a CPU computes many times slower
    _quiet()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if config.device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[config.device]:
        raise ValueError(f"device={config.device}: this machine has none; set device=auto or device=cpu")
    return torch.device(config.device)


def _quiet() -> None:
    """Leave the terminal to our own lines: others' advice, progress bars and notes on their own code are no help."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the loader is a thread of its own
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def precision(config: DictConfig) -> str:
    """Lightning's word for the precision: `auto` is bf16 where a GPU computes it, float32 elsewhere."""
    if config.precision != "auto":
        return str(config.precision)
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def make_trainer(config: DictConfig, run: Run, callbacks: list[Callback], resumed_step: int) -> Trainer:
    """A trainer that goes on until a callback stops it; progress, checkpoints and curves are ours."""
    device = prepare(config)
    return Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1,
        precision=precision(config),  # pyright: ignore[reportArgumentType] - checked by Lightning
        max_steps=-1,
        max_epochs=-1,
        logger=make_loggers([str(name) for name in config.logger], run.folder, resumed_step),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic="warn" if config.deterministic else False,
    )
