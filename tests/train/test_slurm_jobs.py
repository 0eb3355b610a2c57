"""`launcher=slurm`: what sbatch is given, arrays and ranks, time limits, faults; on a Slurm of one machine."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_jobs
import pytest
from made_jobs import Scripted
from made_slurm import flags, make_slurm
from omegaconf import OmegaConf

from omnigram.train import slurm_jobs
from omnigram.train.cli import main
from omnigram.train.compose import build, compose_config
from omnigram.train.launching import Launcher, jobs_of

pytest.importorskip("submitit", reason="needs omnigram[cluster]")

MADE = "import os; print('runs/made-' + os.environ.get('SLURM_ARRAY_TASK_ID', 'alone'))"
# a sacct that hides the results of the jobs that it calls completed, until it has done so {shown} times
LATE = """#!/bin/sh
told=$({sacct} "$@")
echo "$told"
case "$told" in *COMPLETED*)
    echo >> hidden
    for file in runs/jobs/*/*_result.pkl; do [ -e "$file" ] && mv "$file" "$file.late"; done
    [ "$(wc -l < hidden)" -lt {shown} ] || for file in runs/jobs/*/*.late; do mv "$file" "${{file%.late}}"; done
esac
exit 0
"""
# a step that is stopped once, then goes on from what it saved
STOPPED = """
import os, pathlib, signal, sys, time
saved, rank = pathlib.Path('saved'), os.environ['SLURM_PROCID']
if saved.exists() or os.environ['SLURM_NTASKS'] == '1':  # or the step before this one
    print('runs/resumed')
    sys.exit()
def stop(*_):
    saved.touch()
    sys.exit({code})
signal.signal(signal.SIGTERM, stop)
pathlib.Path('started-' + rank).touch()
time.sleep(60)
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "slurm"
    programs = make_slurm(folder)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FAKE", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def launch(scripts: Sequence[str], *overrides: str, step: str = "evaluate") -> list[str]:
    return made_jobs.launch(scripts, ["launcher=slurm", "launcher.poll_s=0.1", *overrides], step)


def sbatch_calls(slurm: Path) -> int:
    return (slurm / "calls").read_text().count("sbatch ")


def until(holds: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def test_a_script_asks_for_what_is_configured(slurm: Path) -> None:
    settings = {
        "partition": "big",
        "account": "lab",
        "constraint": "h100",
        "nodes": 2,
        "tasks_per_node": 2,
        "gpus_per_node": 2,
        "cpus_per_task": 4,
        "mem_gb": 1.5,
        "timeout_min": 90,
        "warning_s": 60,
        "setup": "['echo hello > set-up']",
    }
    given = [f"launcher.{name}={value}" for name, value in settings.items()]
    rows = ["launcher.max_requeues=3", "loader.rows=4"]
    assert launch([MADE], *given, *rows, step="pretrain") == ["runs/made-alone"]
    assert Path("set-up").read_text() == "hello\n"
    *_, script = sorted(slurm.glob("*.sh"))
    asked = flags(script)
    expected = {"partition": "big", "account": "lab", "constraint": "h100", "nodes": "2", "ntasks-per-node": "2"}
    expected |= {"gpus-per-node": "2", "cpus-per-task": "4", "mem": "1536MB", "time": "90", "signal": "TERM@60"}
    expected |= {"requeue": "", "job-name": "omnigram-pretrain", "open-mode": "append"}
    assert {name: asked.get(name) for name in expected} == expected
    assert "array" not in asked
    text = script.read_text()
    assert '[ "$status" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]' in text
    outputs = sorted(path.name.rpartition("_")[0][-1] for path in Path("runs/jobs").glob("pretrain-*/*_log.out"))
    assert outputs[-4:] == ["0", "1", "2", "3"]  # of four ranks


def test_several_combinations_are_one_array(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch([MADE] * 3, "launcher.array_parallelism=2") == [f"runs/made-{n}" for n in range(3)]
    [script] = slurm.glob("*.sh")
    assert flags(script)["array"] == "0-2%2"
    told = capsys.readouterr().err
    for number in range(3):
        assert f"omnigram evaluate seed={number}: Slurm job 100_{number}, output in " in told
        assert f"omnigram evaluate seed={number}: done" in told


@pytest.mark.parametrize("code", [75, 143])
def test_a_job_that_nears_its_end_is_requeued_and_goes_on(slurm: Path, code: int) -> None:
    """As training leaves, and as a step that dies of SIGTERM does. Both ranks hear of it."""
    script = STOPPED.format(code=code)
    if code == 143:
        script = script.replace("sys.exit(143)", "signal.signal(15, signal.SIG_DFL), os.kill(os.getpid(), 15)")
    assert launch([script], "launcher.wait=false", "launcher.tasks_per_node=2", "loader.rows=4", step="pretrain") == []
    *_, job = sorted(slurm.glob("*.state"), key=lambda path: path.name)
    until(lambda: Path("started-0").exists() and Path("started-1").exists())
    for rank in (slurm / f"{job.stem}.ranks").read_text().split():
        os.kill(int(rank), signal.SIGTERM)
    until(lambda: job.read_text() == "COMPLETED")
    assert f"scontrol requeue {job.stem}\n" in (slurm / "calls").read_text()


def test_requeues_have_an_end_and_faults_none(slurm: Path) -> None:
    with pytest.raises(ValueError, match=r"^the job failed: omnigram evaluate seed=0: "):
        launch(["import sys; sys.exit(75)"], "launcher.max_requeues=2")
    assert (slurm / "calls").read_text().count("scontrol requeue") == 2
    with pytest.raises(ValueError, match=r"1 of 2 jobs failed: omnigram evaluate seed=1: .*no such thing \(see /"):
        launch([MADE, "import sys; print('no such thing', file=sys.stderr); sys.exit(2)"])
    assert (slurm / "calls").read_text().count("scontrol requeue") == 2


def test_an_interruption_leaves_the_jobs_and_the_same_command_follows_them(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(.05)\nprint('runs/slow')"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("omnigram.train.slurm_jobs.watch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            launch([slow])
    assert "the jobs go on: `squeue -j 100` lists them, `tail -f " in capsys.readouterr().err
    finish = threading.Timer(2, Path("go").absolute().touch)  # while the second launch follows it
    finish.start()
    assert launch([slow]) == ["runs/slow"]
    finish.join()
    assert sbatch_calls(slurm) == 1
    assert "these jobs are there already" in capsys.readouterr().err
    assert launch([slow]) == ["runs/slow"]  # once they have ended, it is a new launch
    assert sbatch_calls(slurm) == 2


@pytest.mark.parametrize("shown", [6, 1000])
def test_a_result_that_is_seen_late_or_never(slurm: Path, shown: int) -> None:
    """As NFS has it. No job that is done may be missing among those that a sweep compares."""
    sacct = slurm / "programs/sacct"
    sacct.rename(slurm / "programs/sacct-true")
    sacct.write_text(LATE.format(sacct=slurm / "programs/sacct-true", shown=shown))
    sacct.chmod(0o755)
    if shown == 6:
        assert launch([MADE] * 2) == ["runs/made-0", "runs/made-1"]
    else:
        wanted = (
            r"^2 of 2 jobs failed: .* Slurm says that it is completed, but its result /.*100_0_0_result\.pkl cannot be"
        )
        with pytest.raises(ValueError, match=wanted + r" read \(see /.*100_0_0_log\.out\)$") as told:
            launch([MADE] * 2)
        assert "\n" not in str(told.value)
    assert Path("hidden").read_text().count("\n") > 5


def test_what_jobs_share_is_made_before_them(slurm: Path) -> None:
    """Tokens of one tokenizer by one job, and pre-training only if that ends well."""
    config = compose_config(["launcher=slurm", "launcher.poll_s=0.1", "launcher.tasks_per_node=2", "loader.rows=4"])
    jobs = [Scripted("pretrain", (f"seed={n}",), config, "import sys; sys.exit(1)") for n in range(2)]
    with pytest.raises(ValueError, match=r"3 of 3 jobs failed: omnigram tokens seed=0, and 2 more"):
        list(build(config, "launcher", Launcher).launch(jobs))
    first, second = (flags(slurm / f"{job}.sh") for job in (100, 101))
    assert (first["job-name"], first["ntasks-per-node"]) == ("omnigram-tokens", "1")
    assert (second["job-name"], second["dependency"], second["ntasks-per-node"]) == (
        "omnigram-pretrain",
        "afterok:100",
        "2",
    )
    assert second["kill-on-invalid-dep"] == "yes"


def test_refusals_are_one_line(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^tokens is done by one process: .*tokens.engine=ray"):
        launch([MADE], "launcher.nodes=2", step="tokens")
    (slurm / "programs/sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"^sbatch refuses the job: no such partition$"):
        launch([MADE])
    monkeypatch.setenv("PATH", str(Path(shutil.which("sh") or "/bin/sh").parent / "nowhere"))
    with pytest.raises(ValueError, match=r"^launcher=slurm: there is no `srun` here"):
        launch([MADE])


def test_a_step_of_the_command_line(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real command in the job, its mistake told by the launcher."""
    assert main(["evaluate", "evaluate.run=nowhere", "launcher=slurm", "launcher.poll_s=0.1"]) == 2
    told = capsys.readouterr().err
    assert "omnigram evaluate evaluate.run=nowhere: Slurm job 100, output in " in told
    assert told.splitlines()[-1].startswith(
        "omnigram: the job failed: omnigram evaluate evaluate.run=nowhere: omnigram: nowhere is no finished run"
    )


def test_jobs_are_the_combinations_without_the_launcher() -> None:
    config = compose_config(["launcher=slurm"])
    [job] = jobs_of("pretrain", [(["model=nano", "launcher=slurm", "launcher.setup=[a]", "seed=1"], config)])
    assert job.name == "omnigram pretrain model=nano seed=1"
    other = OmegaConf.merge(config, {"launcher": {"nodes": 2}})
    with pytest.raises(ValueError, match="launcher cannot differ"):
        jobs_of("pretrain", [([], config), ([], other)])  # pyright: ignore[reportArgumentType]


def test_a_sacct_that_does_not_answer_is_told_once(slurm: Path) -> None:
    import submitit

    (slurm / "programs/sacct").write_text("#!/bin/sh\necho accounting is disabled >&2\nexit 1\n")
    job: Any = SimpleNamespace(id="100")
    slurm_jobs._tell_once.cache_clear()
    with pytest.warns(UserWarning, match=r"sacct does not tell how the jobs are \(accounting is disabled\): ") as told:
        assert slurm_jobs._states(submitit, [job]) == slurm_jobs._states(submitit, [job]) == {}
    assert len(told) == 1
