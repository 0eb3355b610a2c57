"""`launcher=local`: processes of this machine, in turn or side by side, alone or as ranks; how they end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_jobs
import pytest
from made_road import command, draw_pictures, overrides

# counts the jobs that run beside it, of which it waits for some; the made folder is the last line
BESIDE = """
import pathlib, time
mine = pathlib.Path('beside-{number}')
mine.touch()
end = time.monotonic() + 60
while (most := len(list(pathlib.Path().glob('beside-*')))) < {wanted} and time.monotonic() < end:
    time.sleep(.02)
print('note')
print('runs/' + str(most))
if {wanted} == 1:
    time.sleep(.3)
    mine.unlink()
"""
RANKS = """
import json, os, pathlib
names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'TORCHELASTIC_RUN_ID')
pathlib.Path('rank-' + os.environ.get('RANK', 'none')).write_text(json.dumps([os.environ.get(n) for n in names]))
print('runs/' + os.environ.get('RANK', 'none'))
"""
# a launcher with jobs that tell by which signal they were ended, and when they were asked
ENDED = """
import sys
sys.path.insert(0, {tests!r})
from made_jobs import launch
from omnigram.train import cli, step_commands
script = '''
import os, pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path('asked-%d').write_text(str(time.monotonic()))
    time.sleep({saving})
    pathlib.Path('ended-%d').write_text(str(number))
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
pathlib.Path('process-%d.new').write_text(str(os.getpid()))
os.rename('process-%d.new', 'process-%d')
time.sleep(60)
'''
scripts = [script.replace('%d', str(number)) for number in range({jobs})]
step_commands.launched = lambda *_: launch(scripts, ["launcher=local", "launcher.array_parallelism={jobs}"])
sys.exit(cli.main(["evaluate"]))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def launch(scripts: list[str], *overrides: str, step: str = "evaluate") -> list[str]:
    return made_jobs.launch(scripts, ["launcher=local", *overrides], step)


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_as_many_at_a_time_as_asked(at_a_time: int, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = [BESIDE.format(number=number, wanted=at_a_time if number < 2 else 1) for number in range(3)]
    made = launch(scripts, f"launcher.array_parallelism={at_a_time}")
    assert made[:2] == [f"runs/{at_a_time}"] * 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if ": done" in line and "seed=1" in line]
    assert [line for line in told if "seed=2: waiting" in line]


def test_ranks_know_one_another() -> None:
    assert launch([RANKS], "launcher.tasks_per_node=2", "loader.rows=4", step="pretrain") == ["runs/0"]
    first, second = (json.loads(Path(f"rank-{rank}").read_text()) for rank in range(2))
    assert [first[:4], second[:4]] == [["0", "0", "2", "127.0.0.1"], ["1", "1", "2", "127.0.0.1"]]
    assert first[4:] == second[4:]
    assert int(first[4]) > 0
    assert json.loads(Path("rank-none").read_text())[0] is None  # the tokens before them, by one process


def test_one_that_fails_leaves_the_others_their_turn(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 jobs failed: omnigram evaluate seed=1: no room \(see runs/jobs/eval"):
        launch(["print('runs/a')", "import sys; sys.exit('no room')", "print('runs/c')"])
    assert "omnigram evaluate seed=2: done" in capsys.readouterr().err


def test_a_rank_that_fails_ends_the_others() -> None:
    script = "import os, sys, time\nif os.environ.get('RANK') == '0': time.sleep(60)\nsys.exit(os.environ.get('RANK'))"
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"the job failed: omnigram pretrain seed=0"):
        launch([script], "launcher.tasks_per_node=2", "loader.rows=4", step="pretrain")
    assert time.monotonic() - before < 50


def test_each_job_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(
        gpus: int, at_a_time: int, script: str = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    ) -> list[str]:
        settings = [f"launcher.gpus_per_node={gpus}", f"launcher.array_parallelism={at_a_time}"]
        return launch([f"import time; time.sleep(1); {script}"] * 2, *settings)

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen(2, 2) == ["0,1", "2,3"]
    assert seen(4, 1) == ["0,1,2,3"] * 2
    assert seen(1, 9) == ["0", "1"]  # there are no more jobs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,9")
    assert seen(2, 2) == ["4,5", "6,9"]
    assert seen(0, 2) == ["4,5,6,9"] * 2


@pytest.mark.parametrize(
    ("named", "there"), [(None, "0"), ("", "0 in CUDA_VISIBLE_DEVICES="), ("4,5,6", "3 in .*=4,5,6")]
)
def test_gpus_that_are_not_there_are_asked_for_in_vain(
    named: str | None, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(named.split(",")) if named else 0)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    asked = (
        r"^launcher\.gpus_per_node=2 for 2 jobs at a time \(launcher\.array_parallelism\) needs 4 GPUs, and there are "
    )
    with pytest.raises(ValueError, match=rf"{asked}{there}: lower one of the two$"):
        launch(["print('runs/a')"] * 2, "launcher.gpus_per_node=2", "launcher.array_parallelism=2")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("sent", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "terminated")]
)
def test_jobs_end_with_the_launcher_as_it_does(sent: signal.Signals, code: int, told: str) -> None:
    """All jobs are asked at once, not each when the one before it has saved."""
    with launcher_of(jobs=3, saving=3) as launcher:
        launcher.send_signal(sent)
        _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == code
    assert [Path(f"ended-{number}").read_text() for number in range(3)] == [str(int(sent))] * 3
    asked = [float(Path(f"asked-{number}").read_text()) for number in range(3)]
    assert max(asked) - min(asked) < 2
    assert err.splitlines()[-1] == f"omnigram: {told}; the same command goes on from here"


def test_a_second_interruption_leaves_no_job_behind() -> None:
    with launcher_of(jobs=3, saving=50) as launcher:
        processes = [int(Path(f"process-{number}").read_text()) for number in range(3)]
        launcher.send_signal(signal.SIGINT)
        until(lambda: all(Path(f"asked-{number}").exists() for number in range(3)))
        assert all(map(lives, processes))
        launcher.send_signal(signal.SIGINT)
        _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert not any(map(lives, processes))
    assert not list(Path().glob("ended-*"))
    assert err.splitlines()[-1] == "omnigram: interrupted; the same command goes on from here"


@contextlib.contextmanager
def launcher_of(jobs: int, saving: int) -> Iterator["subprocess.Popen[str]"]:
    """A launcher whose jobs have started, and take so many seconds to save."""
    script = ENDED.format(tests=str(Path(__file__).parent), jobs=jobs, saving=saving)
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as launcher:
        until(lambda: launcher.poll() is not None or len(list(Path().glob("process-?"))) == jobs)
        assert launcher.poll() is None, launcher.communicate()
        yield launcher


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_real_steps_and_what_they_share() -> None:
    """Two tokenizers at once on one data set, which is made before them; as inline, but for where the output goes."""
    pictures = draw_pictures(Path("pictures"))
    settings = [*overrides(pictures), "tokenizer.trainer.max_steps=2", "-m", "seed=0,1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> Any:
        line = command("tokenizer", [*settings, *more])
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)

    done = run("launcher=local", "launcher.array_parallelism=2")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    for number, folder in enumerate((first, second)):
        assert json.loads((Path(folder) / "metrics.json").read_text())["seed"] == number
    lines = done.stderr.splitlines()
    assert "omnigram data experiment=tiny" in lines[0]
    assert [line for line in lines if "seed=1: running" in line]
    assert run().stdout.splitlines() == [first, second]
