"""Incidents on disk: cut off where a run goes on, stops and resumptions kept, none lost with a line that a kill cut."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import Trainer

from omnigram.train.curves import make_loggers
from omnigram.train.incidents import Incidents, read_incidents
from omnigram.train.steps import StepModule
from omnigram.train.world import World

FIRST = cast(Trainer, SimpleNamespace())


def started(folder: Path, step: int = 0) -> Incidents:
    """As a training starts: the logger that is made in between cuts the curves back."""
    incidents = Incidents(folder, step)
    make_loggers(["csv"], folder, step)
    incidents.setup(FIRST, StepModule(), "fit")
    return incidents


def at(step: int) -> StepModule:
    module = StepModule()
    module.steps_done += step
    return module


def test_a_run_that_goes_on_keeps_what_lies_before_its_checkpoint_and_its_history(tmp_path: Path) -> None:
    first = started(tmp_path)
    assert not first.path.exists()  # nothing has happened
    first.add(400, "loss", "a jump\nin two lines")
    first.add(720, "loss", "another, which comes again")
    first.on_exception(FIRST, at(730), RuntimeError("a fault"))
    (tmp_path / "curves.csv").write_text("step,name,value\n720,train/loss,1.5\n")
    started(tmp_path, 500)
    told = [(i.step, i.kind, i.message) for i in read_incidents(first.path)]
    assert told == [
        (400, "loss", "a jump in two lines"),
        (730, "stopped", "RuntimeError: a fault"),
        (500, "resumed", "goes on from step 500, which does 220 steps again"),
    ]


def test_a_kill_is_known_by_what_it_did_not_write(tmp_path: Path) -> None:
    started(tmp_path).add(3, "loss", "a jump")
    with (tmp_path / "incidents.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    again = started(tmp_path, 4)
    lines = [json.loads(line) for line in again.path.read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in lines] == [(3, "loss"), (4, "resumed")]
    assert lines[-1]["message"] == "goes on from step 4; the process before it was killed"
    assert lines[-1]["time"].endswith("Z")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (ValueError("lower it"), "lower it"),
        (IndexError("of ours"), "IndexError: of ours"),
    ],
)
def test_each_end_has_its_words(error: BaseException, message: str, tmp_path: Path) -> None:
    started(tmp_path).on_exception(FIRST, at(7), error)
    [incident] = read_incidents(tmp_path / "incidents.jsonl")
    assert (incident.step, incident.kind, incident.message) == (7, "stopped", message)


def test_sigterm_is_noted_when_its_step_is_saved(tmp_path: Path) -> None:
    module = at(7)
    incidents = started(tmp_path)
    incidents.on_train_end(FIRST, module)
    assert not incidents.path.exists()  # as all steps are done
    module.stopping = True
    incidents.on_train_end(FIRST, module)
    [incident] = read_incidents(incidents.path)
    assert (incident.step, incident.kind) == (7, "stopped")
    assert incident.message == "SIGTERM; the step that was running is saved"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    other = Incidents(tmp_path, 5)
    other.setup(cast(Trainer, SimpleNamespace()), StepModule(world=World(1, 2)), "fit")
    other.add(6, "loss", "a jump")
    assert not list(tmp_path.iterdir())
