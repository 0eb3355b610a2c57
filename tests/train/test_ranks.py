"""`omnigram pretrain` started by torchrun: two processes make one run, and one that is lost loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_road import draw_pictures, overrides, run

from omnigram.train.checkpoints import load_step, newest_checkpoint
from omnigram.train.curves import read_curves

STEPS = ["trainer.max_steps=12", "trainer.log_every_n_steps=1", "trainer.sample_pictures=0"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which everything is made but the decoder, and the settings."""
    folder = tmp_path_factory.mktemp("before")
    arguments = overrides(draw_pictures(folder / "pictures"))
    done = run("tokens", arguments, folder)
    assert done.returncode == 0, done.stderr
    return folder, [*arguments, *STEPS]


@pytest.fixture
def there(before: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    folder, arguments = before
    shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path, arguments


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Whatever becomes of a test, torchrun and with it its ranks end."""
    yield
    for launcher in STARTED:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.communicate()
    STARTED.clear()


def start(arguments: list[str], folder: Path, *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    command = [*launcher, "-m", "omnigram.train.cli", "pretrain", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    STARTED.append(launcher)
    return launcher


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Process numbers of the ranks."""
    found: list[int] = []
    for number in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        rank = next((int(word[5:]) for word in environment if word.startswith(b"RANK=")), None)
        if rank is not None:
            found.insert(rank, int(number))
    return found


def at_the_first_checkpoint(launcher: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 200
    while not list(folder.glob("runs/pretrain/*/checkpoints/step-*")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def of_ours(told: str) -> list[str]:
    """Lines of tracebacks that lead through our code; torchrun has one of its own."""
    return [line for line in told.splitlines() if "/train/" in line or "/data/" in line]


def logged_steps(folder: Path) -> list[int]:
    [curves] = folder.glob("runs/pretrain/tiny-*/curves.csv")
    return sorted(step for step, name, _ in read_curves(curves) if name == "train/loss")


def test_a_rank_is_killed_and_one_process_goes_on(there: tuple[Path, list[str]]) -> None:
    folder, arguments = there
    launcher = start([*arguments, "trainer.strategy=fsdp", "trainer.checkpoint_every_n_steps=3"], folder)
    at_the_first_checkpoint(launcher, folder)
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "omnigram: rank 0 lost the others: one of the 2 processes has ended" in told
    assert not of_ours(told)
    [checkpoints] = folder.glob("runs/pretrain/tiny-*/checkpoints")
    step = load_step(newest_checkpoint(checkpoints))
    assert 3 <= step < 12
    done = run("pretrain", [*arguments, "trainer.checkpoint_every_n_steps=3"], folder)
    assert done.returncode == 0, done.stderr
    assert f"goes on from step {step} of 12" in done.stderr
    assert logged_steps(folder) == list(range(1, 13))


def test_the_whole_road_is_gone_by_two_processes(there: tuple[Path, list[str]]) -> None:
    """The first rank trains the tokenizer alone while the other waits."""
    folder, arguments = there
    for part in ("datasets", "runs"):
        shutil.rmtree(folder / part)
    launcher = start([*arguments, "trainer.strategy=fsdp", "trainer.compile=false", "trainer.max_steps=4"], folder)
    made, told = launcher.communicate(timeout=280)
    assert launcher.returncode == 0, told
    assert (folder / made.strip() / "export/model.safetensors").is_file()
    assert (folder / made.strip() / "report.html").is_file()
    [curves] = folder.glob("runs/pretrain/tiny-*/curves.csv")
    assert any(name == "val/bits_image" for _, name, _ in read_curves(curves))


def test_sigterm_to_one_rank_stops_all_after_the_same_step(there: tuple[Path, list[str]]) -> None:
    folder, arguments = there
    launcher = start([*arguments, "trainer.checkpoint_every_n_steps=3"], folder)
    at_the_first_checkpoint(launcher, folder)
    os.kill(ranks_of(launcher)[1], signal.SIGTERM)
    _, told = launcher.communicate(timeout=120)
    assert told.count("omnigram: terminated; the same command goes on from here") == 2
    assert "exitcode  : 75" in told
    [checkpoints] = folder.glob("runs/pretrain/tiny-*/checkpoints")
    step = load_step(newest_checkpoint(checkpoints))
    assert logged_steps(folder) == list(range(1, step + 1))  # the step that was running was the last, and is kept
    again = start([*arguments, "trainer.checkpoint_every_n_steps=3"], folder)
    made, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    assert made.splitlines() == [str(Path("runs/pretrain", checkpoints.parent.name))]  # told once
    assert told.count(f"goes on from step {step} of 12") == 1
    assert logged_steps(folder) == list(range(1, 13))


def test_what_cannot_be_dealt_is_said_once_in_one_line(there: tuple[Path, list[str]]) -> None:
    folder, arguments = there
    launcher = start([*arguments, "loader.rows=3"], folder)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "omnigram: loader.rows=3 cannot be dealt to 2 processes: set a multiple of 2" in told
    assert not (folder / "runs/pretrain").exists()


def test_the_first_rank_s_fault_stops_the_others_with_its_reason(there: tuple[Path, list[str]]) -> None:
    folder, arguments = there
    shutil.rmtree(folder / "pictures")
    for data in folder.glob("datasets/*/dataset.json"):
        data.unlink()
    launcher = start(arguments, folder)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert not of_ours(told)
    assert "omnigram: rank 1 stops, as the first rank did: " in told


def test_torchrun_restarts_what_was_killed_and_goes_on(there: tuple[Path, list[str]]) -> None:
    folder, arguments = there
    launcher = start([*arguments, "trainer.checkpoint_every_n_steps=3"], folder, "--max-restarts=1")
    at_the_first_checkpoint(launcher, folder)
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)
    made, told = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, told
    assert made.count("runs/pretrain/") == 1
    assert "goes on from step" in told
    assert logged_steps(folder) == list(range(1, 13))
    [incidents] = folder.glob("runs/pretrain/tiny-*/incidents.jsonl")
    stopped, resumed = [json.loads(line)["message"] for line in incidents.read_text().splitlines()]
    assert stopped == "rank 0 lost the others: one of the 2 processes has ended"
    assert "with 2 processes" in resumed
