"""Checkpoints that are whole or absent, whatever happens while they are written, and say so where they do not fit."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from omnigram.train import checkpoints
from omnigram.train.checkpoints import Checkpoints, load_model, load_step, newest_checkpoint
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare
from omnigram.train.steps import StepModule, Steps


class Numbered(NamedTuple):
    state: dict[str, int]


class Module(StepModule):
    """Four weights that one optimizer moves by the number of the step, and a large buffer."""

    large: Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(width))
        self.register_buffer("large", torch.zeros(1000))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([self.weight], lr=0.1)

    def training_step(self, batch: Numbered, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self.weight * (self.step + 1)).sum())
        assert self.may_update("a.rate=1")
        optimizer.step()
        self.large += 1


def train(folder: Path, steps: int, every: int = 1, module: Module | None = None, **options: Any) -> Module:
    module, newest = module or Module(), newest_checkpoint(folder)
    first = load_step(newest)
    saving = Checkpoints(folder, every, steps, newest, **options)
    quiet: Any = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=[Steps(0), saving], **quiet)
    batches: Any = [Numbered({"next": number}) for number in range(first + 1, 100)]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


def steps_of(folder: Path) -> list[int]:
    return sorted(load_step(path) for path in folder.glob("step-*"))


@pytest.fixture(autouse=True)
def quiet() -> None:
    prepare(compose_config(["device=cpu", "threads=1"]))


def test_what_is_written_is_the_state_of_its_step_and_not_of_later_ones(tmp_path: Path) -> None:
    train(tmp_path, 9, every=3, keep=9)
    assert steps_of(tmp_path) == [3, 6, 9]
    for step in steps_of(tmp_path):
        module = Module()
        load_model(tmp_path / f"step-{step:08d}", module)
        assert module.step == step
        assert module.large.eq(step).all()
        assert module.resumed_states == [{"next": step}]


def test_going_on_is_as_never_having_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 9)
    train(tmp_path / "parts", 4)
    parts = train(tmp_path / "parts", 9)
    assert parts.weight.equal(whole.weight)
    assert parts.step == whole.step == 9


def test_the_newest_and_every_so_many_are_kept(tmp_path: Path) -> None:
    train(tmp_path, 11, keep=2, keep_every=4)
    assert steps_of(tmp_path) == [4, 8, 10, 11]
    with pytest.raises(ValueError, match="checkpoints kept: 0 must be 1 or more"):
        Checkpoints(tmp_path, 1, 1, keep=0)


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest", "half a manifest"])
def test_a_damaged_one_is_passed_over_and_replaced(damage: str, tmp_path: Path) -> None:
    train(tmp_path, 3, keep=3)
    newest = tmp_path / "step-00000003"
    [data] = newest.glob("*.distcp")
    manifest = newest / "checkpoint.json"
    if damage == "cut":
        os.truncate(data, data.stat().st_size - 1)
    elif damage == "missing":
        data.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        os.truncate(manifest, 20)
    with pytest.warns(UserWarning, match=r"step-00000003 is damaged and is passed over: "):
        found = newest_checkpoint(tmp_path)
    assert found == tmp_path / "step-00000002"
    with pytest.warns(UserWarning, match="passed over"):
        train(tmp_path, 3)
    assert newest_checkpoint(tmp_path) == newest


def test_a_damaged_one_costs_none_of_the_good_ones_before_it(tmp_path: Path) -> None:
    train(tmp_path, 8, every=2, keep=9)
    for data in (tmp_path / "step-00000008").glob("*.distcp"):
        data.unlink()
    shutil.copytree(tmp_path / "step-00000006", tmp_path / "step-00000006-backup")
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        train(tmp_path, 7, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000007", "step-00000006-backup"}
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000007"


def test_a_part_on_the_disk_of_another_machine_makes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoints._written
    monkeypatch.setattr(checkpoints, "_written", lambda folder: whole(folder) | {"__1_0.distcp"})
    with pytest.raises(ValueError, match=r"step-00000001 lacks __1_0\.distcp, which another rank wrote: all machines"):
        train(tmp_path, 2)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    train(tmp_path, 2)
    shutil.copytree(tmp_path / "step-00000002", tmp_path / ".step-00000003.partial")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    train(tmp_path, 4)
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 2)
    with pytest.raises(ValueError, match=r"step-00000002 does not fit this run: .*weight"):
        train(tmp_path, 4, module=Module(width=5))


def test_a_full_disk_stops_the_run_in_one_line_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 2)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"step-0000000\d cannot be written: the disk is full: free some space"):
        train(tmp_path, 6)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".*"))
    assert train(tmp_path, 6).step == 6


def test_sigterm_while_one_is_written_waits_for_it_and_saves_the_step_that_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, module = checkpoints.async_save, Module()

    def interrupted(state: dict[str, dict[str, Tensor]], **options: Any) -> Any:
        writing = real(state, **options)
        if int(state["model"]["steps_done"]) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return writing

    monkeypatch.setattr(checkpoints, "async_save", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    assert train(tmp_path, 9, keep=9, module=module).step == 4  # the step after, which agrees on it
    assert module.stopping
    assert signal.getsignal(signal.SIGTERM) == handler
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    monkeypatch.undo()
    assert train(tmp_path, 9).weight.equal(train(tmp_path / "whole", 9).weight)


def test_the_next_one_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk slower than training: nothing is written twice at a time, and all of it in the end."""
    begun: list[int] = []
    real = checkpoints.async_save

    def slow(state: dict[str, dict[str, Tensor]], **options: Any) -> Any:
        future = real(state, **options)
        begun.append(int(state["model"]["steps_done"]))
        assert len([path for path in tmp_path.glob(".*.partial") if path.is_dir()]) <= 1
        return future

    monkeypatch.setattr(checkpoints, "async_save", slow)
    train(tmp_path, 5, keep=5)
    assert begun == steps_of(tmp_path) == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "step-00000005/checkpoint.json").read_text())["step"] == 5
