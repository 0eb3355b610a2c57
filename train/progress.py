"""Progress of long work on the terminal: a bar with an estimate, or now and then a line where there is no terminal."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .steps import StepModule

SECONDS_BETWEEN_LINES = 30.0


class TrainingProgress(Callback):
    """Steps done, the numbers in the module's `shown`, time elapsed and time left."""

    def __init__(self, what: str, max_steps: int) -> None:
        self.what, self.max_steps = what, max_steps
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._told = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StepModule)
        self._started, self._from = time.monotonic(), pl_module.step
        self._told = self._started
        if self._from:
            self.console.print(f"{self.what}: goes on from step {self._from:,} of {self.max_steps:,}")
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            rest = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
            self._bar = Progress(*columns, *rest, console=self.console)
            self._task = self._bar.add_task(self.what, total=self.max_steps, completed=self._from, shown="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        step, now = pl_module.step, time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=_words(pl_module))
        elif now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            left = (now - self._started) / max(1, step - self._from) * (self.max_steps - step)
            self.console.print(
                f"{self.what}: step {step:,} of {self.max_steps:,}, {duration(left)} left, {_words(pl_module)}",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _words(module: StepModule) -> str:
    shown: dict[str, float] = getattr(module, "shown", {})
    return ", ".join(f"{name} {value:,.4g}" for name, value in shown.items())


def duration(seconds: float) -> str:
    """Minutes and seconds, for people."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s"
