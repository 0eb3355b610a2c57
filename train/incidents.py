"""What happened to a run: alarms, steps left out, stops and resumptions, a line of JSON each in `incidents.jsonl`.

    {"step": 730, "time": "2026-11-28T06:40:35Z", "kind": "loss", "message": "..."}

A run that goes on from step 500 does steps 501 to 730 again, and what happened in them happens again: it is cut off, as
the curves are. Stops and resumptions stay, for they are of this run's history, not of its steps.
"""

import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from ..data.artefact import atomic_write
from .curves import CURVES, read_curves
from .steps import StepModule
from .world import World, lost_rank

INCIDENTS = "incidents.jsonl"
STOPPED, RESUMED = "stopped", "resumed"


class Incident(NamedTuple):
    """step: steps that were finished. time: UTC. kind: of `alarms.py`, or a stop or a resumption."""

    step: int
    time: str
    kind: str
    message: str


class Incidents(Callback):
    """The incidents of a run on disk; it notes starts and stops itself. Only the first rank writes.

    It is made before the run's loggers, which cut the curves back to `resumed_step`.

    resumed_step: of the checkpoint that the run goes on from; 0 at its beginning.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.path, self.resumed_step = folder / INCIDENTS, resumed_step
        self._reached = _reached(folder)  # now, for the logger of the run cuts the curves back
        self._writes = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, StepModule)
        self._writes = pl_module.world.is_first
        if not self._writes:
            return
        before = read_incidents(self.path)
        if not (before or self.resumed_step):
            return
        kept = [i for i in before if i.step <= self.resumed_step or i.kind in (STOPPED, RESUMED)]
        atomic_write(self.path, "".join(_line(incident) for incident in kept))
        killed = "" if before and before[-1].kind == STOPPED else "; the process before it was killed"
        lost = max(0, self._reached - self.resumed_step)
        again = f", which does {lost:,} step{'s' * (lost != 1)} again" if lost else ""
        size = pl_module.world.size
        ranks = f" with {size} processes" if size > 1 else ""
        self.add(self.resumed_step, RESUMED, f"goes on from step {self.resumed_step:,}{ranks}{again}{killed}")

    def add(self, step: int, kind: str, message: str) -> None:
        """Note it, in one line."""
        if self._writes:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(Incident(step, now, kind, " ".join(message.split()))))
            except OSError as error:  # a line less is no reason to stop a training, or to hide why it stops
                warnings.warn(f"an incident could not be noted: {error}", stacklevel=2)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, StepModule)
        self.add(pl_module.step, STOPPED, _told(exception, pl_module.world))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StepModule)
        if pl_module.stopping:
            self.add(pl_module.step, STOPPED, "SIGTERM; the step that was running is saved")


def _told(exception: BaseException, world: World) -> str:
    """What stopped a run, as the terminal says it; with its kind where it is no mistake of a user."""
    if isinstance(exception, KeyboardInterrupt):
        return "interrupted"
    if isinstance(exception, RuntimeError) and (lost := lost_rank(exception, world)):
        return str(lost)
    return str(exception) if isinstance(exception, OSError | ValueError) else f"{type(exception).__name__}: {exception}"


def read_incidents(path: Path) -> list[Incident]:
    """Those of a run, in the order in which they were noted; a line cut off by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Incident(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _line(incident: Incident) -> str:
    return json.dumps(incident._asdict(), ensure_ascii=False) + "\n"


def _reached(folder: Path) -> int:
    """The last step that a run has curves of; 0 where it has none."""
    rows = read_curves(folder / CURVES) if (folder / CURVES).exists() else []
    return max((step for step, _, _ in rows), default=0)


def count_by_kind(incidents: list[Incident]) -> dict[str, Any]:
    """kind -> how often."""
    return {kind: sum(incident.kind == kind for incident in incidents) for kind in sorted({i.kind for i in incidents})}
