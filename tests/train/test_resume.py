"""kill -9 or SIGTERM in the middle of training, then the same command: as if the run had never been stopped."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random

import pytest
from made_road import command, draw_pictures, overrides, run
from safetensors.torch import load_file

from omnigram.tokenizers.image import ImageTokenizer
from omnigram.train.curves import read_curves
from omnigram.train.incidents import RESUMED, STOPPED, read_incidents

STEPS = ["trainer.max_steps=12", "tokenizer.trainer.max_steps=12"]
EVERY = ["trainer.log_every_n_steps=1", "tokenizer.trainer.log_every_n_steps=1"]


def curves(path: Path) -> list[tuple[int, str, float]]:
    """Every point but the speed, which no two runs share."""
    return sorted(point for point in read_curves(path) if not point[1].startswith("speed/"))


def stop_after_a_checkpoint(number: signal.Signals, arguments: list[str], folder: Path, stage: str) -> tuple[int, str]:
    """Start pre-training and send a signal as soon as a stage has its first checkpoint. -> exit code, stderr.

    SIGKILL waits for a step behind the checkpoint, which is then to be done again.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command("pretrain", arguments), cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (lost_steps(folder, stage) if number == signal.SIGKILL else checkpoints(folder, stage)):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate()
    assert not list(folder.glob(f"runs/{stage}/*/metrics.json")), "it was finished before it could be stopped"
    return process.returncode, told.decode()


def checkpoints(folder: Path, stage: str) -> list[int]:
    """Their steps."""
    return [int(path.name.removeprefix("step-")) for path in folder.glob(f"runs/{stage}/*/checkpoints/step-*")]


def lost_steps(folder: Path, stage: str) -> int:
    """How many lie behind the newest checkpoint; 0 without one."""
    saved = checkpoints(folder, stage)
    reached = [step for path in folder.glob(f"runs/{stage}/*/curves.csv") for step, _, _ in read_curves(path)]
    return max(reached) - max(saved) if saved else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = [*overrides(draw_pictures(folder / "pictures")), *STEPS, *EVERY]
    done = run("pretrain", arguments, folder)
    assert done.returncode == 0, done.stderr
    return folder, arguments


@pytest.mark.parametrize(
    ("stage", "number"),
    [(stage, number) for stage in ("tokenizer", "pretrain") for number in (signal.SIGKILL, signal.SIGTERM)],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    stage: str, number: signal.Signals, undisturbed: tuple[Path, list[str]], tmp_path: Path
):
    whole, arguments = undisturbed
    code, told = stop_after_a_checkpoint(number, arguments, tmp_path, stage)
    if number == signal.SIGTERM:
        assert code == 75
        assert told.splitlines()[-1] == "omnigram: terminated; the same command goes on from here"
    else:
        assert code == -signal.SIGKILL
    lost = lost_steps(tmp_path, stage)
    done = run("pretrain", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on from step" in done.stderr
    told = [(i.kind, i.message) for i in read_incidents(tmp_path / f"runs/{stage}/latest/incidents.jsonl")]
    assert [kind for kind, _ in told if kind in (STOPPED, RESUMED)] == [*([STOPPED] * (code == 75)), RESUMED]
    assert told[-1][1].endswith("the process before it was killed") == (code != 75)
    if code != 75:
        assert f", which does {lost} step{'s' * (lost != 1)} again; " in told[-1][1]
    for other in ("tokenizer", "pretrain"):
        expected = curves(whole / f"runs/{other}/latest/curves.csv")
        assert [step for step, name, _ in expected if name == "train/loss"] == list(range(1, 13))
        assert {step for step, name, _ in expected if name.startswith("val/")} == {4, 8, 12}
        assert curves(tmp_path / f"runs/{other}/latest/curves.csv") == expected
    image = [ImageTokenizer.from_pretrained(f / "runs/tokenizer/latest/image").identity for f in (whole, tmp_path)]
    assert image[0] == image[1]
    weights = [load_file(f / "runs/pretrain/latest/export/model.safetensors") for f in (whole, tmp_path)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_random_kills_change_nothing(
    undisturbed: tuple[Path, list[str]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9 at any moment, of the training, while a checkpoint is written, or of the process that makes batches.

    Checkpoints follow each other so closely that one is being written most of the time.
    """
    whole, asked = undisturbed
    arguments = [*asked, "trainer.checkpoint_every_n_steps=1"]
    for part in ("datasets", "runs/tokenizer"):
        shutil.copytree(whole / part, tmp_path / part, symlinks=True)
    wanted, kills, at_work = int(request.config.getoption("--kills")), 0, list[str]()  # pyright: ignore[reportArgumentType]
    if not wanted:
        pytest.skip("takes minutes: ask for it by --kills N")
    random = Random(wanted)
    while kills < wanted:
        process = subprocess.Popen(
            command("pretrain", [*arguments, f"loader.workers={kills % 2}"]),
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        before = set(tmp_path.glob("runs/pretrain/*/checkpoints/step-*"))
        while process.poll() is None and set(tmp_path.glob("runs/pretrain/*/checkpoints/step-*")) == before:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.15))
        if list(tmp_path.glob("runs/pretrain/*/metrics.json")):  # it came to its end: from the start once more
            process.communicate()
            shutil.rmtree(tmp_path / "runs/pretrain")
            continue
        victim, children = process.pid, children_of(process.pid)
        if kills % 2 and children and random.random() < 0.5:
            victim = children[-1]
        at_work += [path.name for path in tmp_path.glob("runs/pretrain/*/checkpoints/.*.partial")]
        os.kill(victim, signal.SIGKILL)
        _, told = process.communicate(timeout=60)
        if process.returncode == 0:  # it needed that process no more
            shutil.rmtree(tmp_path / "runs/pretrain")
            continue
        if victim != process.pid:
            assert process.returncode == 2, told
            assert b"omnigram: " in told.splitlines()[-1]
        kills += 1
    done = run("pretrain", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert curves(tmp_path / "runs/pretrain/latest/curves.csv") == curves(whole / "runs/pretrain/latest/curves.csv")
    weights = [load_file(f / "runs/pretrain/latest/export/model.safetensors") for f in (whole, tmp_path)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    print(f"{kills} kills, {len(at_work)} of them while a checkpoint was written")


def children_of(process: int) -> list[int]:
    """Processes that make batches for a process, and that live."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []
