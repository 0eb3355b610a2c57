"""Checkpoints of a training run: whole or absent, the newest few kept, every draw a function of the step."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..data.artefact import plain_errors, sync_folder


class StepModule(LightningModule):
    """A module that counts its own steps: Lightning counts those of each optimizer, and there may be several."""

    steps_done: torch.Tensor
    steps_skipped: torch.Tensor  # of these, without an update
    skipped_in_a_row: torch.Tensor
    seconds: torch.Tensor  # of training, without the stops between

    def __init__(self, max_skipped: int = 0) -> None:
        """max_skipped: how many steps in a row may be without an update because something is not a finite number."""
        super().__init__()
        if max_skipped < 0:
            raise ValueError(f"max_skipped_steps={max_skipped} must be 0 (stop at once) or more")
        self.max_skipped = max_skipped
        for name in ("steps_done", "steps_skipped", "skipped_in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.data_state: dict[str, Any] | None = None  # of the data after the last step; None at the start
        self.shown: dict[str, float] = {}  # numbers for the terminal
        self.watched: dict[str, torch.Tensor] = {}  # scalars of the last step, detached: what alarms look at
        self.codes: torch.Tensor | None = None  # ids of codes that the last step made, of an image tokenizer

    @property
    def step(self) -> int:
        """Steps finished."""
        return int(self.steps_done)

    def every_optimizer(self) -> list[Any]:
        """All optimizers, as a list also where there is one."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def may_update(self, setting: str, **numbers: torch.Tensor) -> bool:
        """Whether all numbers are finite, on every rank: before an update, so that weights and checkpoints stay sound.

        setting: what one would lower. ValueError after more than `max_skipped` steps in a row without an update.
        """
        faulty = [name for name, number in numbers.items() if not torch.isfinite(number)]
        skip = torch.tensor(len(faulty), dtype=torch.int32, device=self.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(skip, torch.distributed.ReduceOp.MAX)
        if not skip:
            self.skipped_in_a_row.zero_()
            return True
        what = f"the {' and '.join(faulty)} of step {self.step + 1}" if faulty else "a number of another rank"
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.max_skipped:
            row = f", as {self.max_skipped} steps before it" if self.max_skipped else ""
            raise ValueError(f"{what} is not a finite number{row}: lower {setting}")
        self.steps_skipped += 1
        warnings.warn(f"{what} is not a finite number: the step is left out", stacklevel=2)
        return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["data_state"], checkpoint["step"] = self.data_state, self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.data_state = checkpoint["data_state"]


def load_step(path: Path | None) -> int:
    """Steps that a checkpoint of `Checkpoints` has behind it, by its name; 0 for none."""
    return 0 if path is None else int(path.stem.removeprefix("step-"))


class Steps(Callback):
    """Seed torch before each step from (seed, step), and count steps and seconds after it. First of the callbacks.

    What a resumed run draws is what an undisturbed one would.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._since = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, StepModule)
        torch.manual_seed(self.seed * 1_000_003 + pl_module.step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        now = time.monotonic()
        pl_module.seconds += now - self._since
        pl_module.steps_done += 1
        pl_module.data_state = batch.state
        self._since = now


class Checkpoints(Callback):
    """Save every so many steps, and end the run after `max_steps`.

    Last of the callbacks: what a step leaves in curves and pictures is there before its checkpoint is.
    """

    def __init__(self, folder: Path, every: int, max_steps: int, keep: int = 2) -> None:
        if every < 1 or max_steps < 1:
            raise ValueError(f"checkpoint_every_n_steps={every} and max_steps={max_steps} must be 1 or more")
        self.folder, self.every, self.max_steps, self.keep = folder, every, max_steps, keep

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        step = pl_module.step
        if step % self.every == 0 or step >= self.max_steps or trainer.received_sigterm:
            self.save(trainer, step)
        if step >= self.max_steps:
            trainer.should_stop = True

    def save(self, trainer: Trainer, step: int) -> None:
        """Write beside, sync, rename; then drop the oldest."""
        path = self.folder / f"step-{step:08d}.ckpt"
        partial = path.with_suffix(".partial")
        with plain_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                trainer.save_checkpoint(partial)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
                sync_folder(self.folder)
            finally:
                partial.unlink(missing_ok=True)
        for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
            old.unlink()
