"""How fast a run is and what it waits for: curves under `speed/`, `codes/`, and the totals in metrics.json.

Time is divided into steps, waiting for data, and the rest: validation, pictures, checkpoints, reports. What is told a
second, and the model FLOPs utilisation (MFU, https://arxiv.org/abs/2204.02311, appendix B), are of steps and waiting,
without the first step of each start, which compiles. docs/watching.md explains each number.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import IterableDataset

from .batch_counts import BatchCounts
from .machine_rate import dtype_of, peak_memory, product_rate
from .steps import StepModule
from .world import World

GIB = 2.0**30
TOTALS = ("step_seconds", "wait_seconds", "wall_seconds", "flops", "possible_flops", "peak_memory_gib")


class Telemetry(Callback):
    """Second of the callbacks, behind `Steps`: what comes after it is counted as the rest.

    every: steps between points of the curves, the same as the module's.
    """

    def __init__(self, counts: BatchCounts, every: int, world: World | None = None) -> None:
        self.counts, self.every, self.world = counts, every, world or World()
        self.sums = torch.zeros(counts.size, dtype=torch.int64)  # of this rank since the last point
        self._before_clock = torch.zeros_like(self.sums)  # of these, what the clock has not seen
        self.totals = dict.fromkeys(TOTALS, 0.0)
        self.rate = 0.0  # of a matrix product, a second
        self._waited = 0.0  # for data, since the clock began

    def timed(self, batches: Iterable[Any]) -> IterableDataset[Any]:
        """The batches; the time in which they let the training wait is counted."""
        return _Timed(self, batches)

    def state_dict(self) -> dict[str, Any]:
        """Called on every rank when a checkpoint is saved: the counts of all come to the first one, which writes it."""
        for sums in (self.sums, self._before_clock):
            self.world.sum(sums)
            if self.world.data_rank:
                sums.zero_()
        return {"sums": self.sums.tolist(), "totals": dict(self.totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.world.data_rank:
            self.sums = torch.tensor(state_dict["sums"], dtype=torch.int64)
        self.totals = dict(state_dict["totals"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self.sums = self.sums.to(device)
        self._before_clock = torch.zeros_like(self.sums)
        self.rate = product_rate(device, dtype_of(str(trainer.precision)))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._steps = -1  # of the clock; it begins with the end of the first one
        self._seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        self._seconds += time.perf_counter() - self._step_began
        self._steps += 1
        self.counts.add(self.sums, batch, pl_module)
        if self._steps == 0:
            self._before_clock.copy_(self.sums)
            self._restart()
        if (pl_module.step - 1) % self.every == 0:
            self._tell(trainer, pl_module)

    def _restart(self) -> None:
        self._since, self._waited, self._seconds, self._steps = time.perf_counter(), 0.0, 0.0, 0

    def _tell(self, trainer: Trainer, module: StepModule) -> None:
        steps = self._steps
        wall = time.perf_counter() - self._since
        clock = torch.tensor([self._seconds, self._waited, wall, self.rate], dtype=torch.float64).to(module.device)
        most = torch.tensor(float(peak_memory(module.device)), dtype=torch.float64).to(module.device)
        timed = self.world.sum(self.sums - self._before_clock)
        sums = self.world.sum(self.sums)
        step_seconds, waited, wall, rate = self.world.mean(clock).tolist()
        rate *= self.world.size  # of all devices together
        self.world.most(most)
        values = self.counts.shares(sums)
        values["speed/peak_memory_gib"] = float(most) / GIB
        if steps:
            busy = step_seconds + waited
            speed = {name: number / busy for name, number in self.counts.rates(timed).items()}
            speed |= {"step_seconds": step_seconds / steps, "data_wait": waited / wall}
            speed["elsewhere"] = max(0.0, 1 - busy / wall)
            flops = self.counts.flops(timed)
            if flops is not None:
                speed |= {"mfu": flops / (rate * busy), "product_flops": rate}
            values |= {f"speed/{name}": value for name, value in speed.items()}
            self._show(module, speed)
            of_window = (step_seconds, waited, wall, flops or 0.0, rate * busy)
            for name, value in zip(TOTALS, of_window, strict=False):
                self.totals[name] += value
        self.totals["peak_memory_gib"] = max(self.totals["peak_memory_gib"], float(most) / GIB)
        if self.world.is_first:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=module.step)
        self.sums.zero_()
        self._before_clock.zero_()
        self._restart()

    def _show(self, module: StepModule, speed: dict[str, float]) -> None:
        for name, words in {"tokens_per_second": "tokens/s", "pictures_per_second": "pictures/s", "mfu": "MFU"}.items():
            if name in speed:
                module.shown[words] = speed[name]

    def metrics(self) -> dict[str, float | None]:
        """What metrics.json keeps, over the whole training; None for what was not measured, as of very few steps."""
        totals, timed = self.totals, self.totals["wall_seconds"] > 0
        with_flops = totals["possible_flops"] > 0 and totals["flops"] > 0
        return {
            "mfu": round(totals["flops"] / totals["possible_flops"], 4) if with_flops else None,
            "data_wait": round(totals["wait_seconds"] / totals["wall_seconds"], 4) if timed else None,
            "peak_memory_gib": round(totals["peak_memory_gib"], 3),
        }


class _Timed(IterableDataset[Any]):
    """Batches whose making is timed, as long as it holds the training up."""

    def __init__(self, telemetry: Telemetry, batches: Iterable[Any]) -> None:
        self.telemetry, self.batches = telemetry, batches

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.telemetry._waited += time.perf_counter() - began
            yield batch
