"""A module that counts its own steps, the same on all ranks, and leaves out those that would spoil its weights."""

import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .world import World


class StepModule(LightningModule):
    """A module that counts its own steps: Lightning counts those of each optimizer, and there may be several."""

    steps_done: torch.Tensor
    steps_skipped: torch.Tensor  # of these, without an update
    skipped_in_a_row: torch.Tensor
    seconds: torch.Tensor  # of training, without the stops between

    def __init__(self, max_skipped: int = 0, world: World | None = None) -> None:
        """max_skipped: how many steps in a row may be without an update because something is not a finite number.

        world: those that train this module together; the first one alone may train another before.
        """
        super().__init__()
        self.world = world or World()
        if max_skipped < 0:
            raise ValueError(f"max_skipped_steps={max_skipped} must be 0 (stop at once) or more")
        self.max_skipped = max_skipped
        for name in ("steps_done", "steps_skipped", "skipped_in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.data_state: dict[str, Any] | None = None  # of this rank's data after the last step; None at the start
        self.resumed_states: list[dict[str, Any]] | None = None  # of all ranks, at the checkpoint gone on from
        self.asked_to_stop = False  # this rank alone
        self.stopping = False  # all ranks, after this step
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

        setting: what one would lower. ValueError after more than `max_skipped` steps in a row without an update. The
        ranks also agree here on whether to stop after this step, as one of them may have been asked to.
        """
        faulty = [name for name, number in numbers.items() if not torch.isfinite(number)]
        told = torch.tensor([len(faulty), self.asked_to_stop], dtype=torch.int32, device=self.device)
        skip, self.stopping = (bool(flag) for flag in self.world.most(told).tolist())
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


class Steps(Callback):
    """Seed torch before each step from (seed, step), and count steps and seconds after it. First of the callbacks.

    What a resumed run draws is what an undisturbed one would. Each part of a batch has draws of its own.
    """

    def __init__(self, seed: int, part: int = 0) -> None:
        self.seed, self.part = seed, part
        self._since = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, StepModule)
        torch.manual_seed(self.seed * 1_000_003 + pl_module.step + (self.part << 48))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        now = time.monotonic()
        pl_module.seconds += now - self._since
        pl_module.steps_done += 1
        pl_module.data_state = batch.state
        self._since = now
