"""`launcher=slurm`: each combination a Slurm job, several as one array, written and submitted by submitit.

https://github.com/facebookincubator/submitit

How a job outlives its time limit: Slurm sends SIGTERM to every process of every rank `warning_s` seconds before it,
and when it preempts the job. Training saves the step that is running and exits with 75; the batch script sees 75 and
has the job requeued, which then goes on from its last checkpoint. submitit's own way, SIGUSR2 and a `checkpoint()` in
rank 0 alone, would leave the other ranks without a word. `scancel` ends the batch script as well: nothing is requeued.
"""

import contextlib
import json
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.artefact import atomic_write_json, make_folder
from .job_command import RunCommand
from .launching import (
    DONE,
    RUNNING,
    WAITING,
    Job,
    Launched,
    Launcher,
    check_done,
    check_ranks,
    job_folder,
    stages,
    tell,
    watch,
)
from .termination import REQUEUE

SUBMITTED = "jobs.json"
RESULT_POLLS = 10  # for which the result of a job may stay out of sight, as a network's file system shows it late
# words of sacct for jobs that are not at their end
WAIT = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SUSPENDED", "PREEMPTED", "CONFIGURING", "UNKNOWN")
RUN = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING")


@dataclass
class SlurmLauncher(Launcher):
    """Jobs of a Slurm cluster; for the arguments see conf/launcher/slurm.yaml.

    ValueError where submitit is not installed, or this is no machine of a Slurm cluster.
    """

    partition: str | None
    account: str | None
    constraint: str | None
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: float
    timeout_min: int
    warning_s: int
    max_requeues: int
    array_parallelism: int
    setup: list[str]
    wait: bool
    poll_s: float
    folder: str

    def __post_init__(self) -> None:
        try:
            import submitit
        except ImportError:
            raise ValueError(
                "launcher=slurm needs a package that is not installed: pip install 'omnigram[cluster]', "
                "or set launcher=local"
            ) from None
        self.submitit = submitit

    def launch(self, jobs: Sequence[Job]) -> Iterator[Path]:
        check_ranks(jobs, self.nodes * self.tasks_per_node)
        folder = make_folder(job_folder(self.folder, jobs)).absolute()
        console = Console(stderr=True)
        launched = self._submitted(folder, console) or self._submit(jobs, folder)
        ids = ",".join(dict.fromkeys(job.id.partition("_")[0] for job in launched))
        for job in launched:
            tell(console, f"{job.name}: Slurm job {job.id}, output in {job.log}")
        if not self.wait:
            tell(console, _follow(ids, launched[-1].log))
            return
        try:
            watch(launched, lambda: self._poll(launched), self.poll_s, console)
        except KeyboardInterrupt:
            tell(console, f"the jobs go on: {_follow(ids, launched[-1].log)}; the same command follows them again")
            raise
        (folder / SUBMITTED).unlink(missing_ok=True)
        check_done(launched)
        yield from (job.made for job in launched[-len(jobs) :] if job.made is not None)

    def _submit(self, jobs: Sequence[Job], folder: Path) -> list["_SlurmJob"]:
        """Each stage as a job or an array; one depends on the stage before it."""
        launched: list[_SlurmJob] = []
        dependency: str | None = None
        *first, last = stages(jobs, self.nodes * self.tasks_per_node)
        for stage in (*first, last):
            executor = self._executor(folder, stage[0].step, dependency, whole=stage is last)
            with _plain_errors(), executor.batch():
                submitted = [executor.submit(RunCommand(job.command)) for job in stage]
            launched += [
                _SlurmJob(job.name, given.paths.stdout, id=given.job_id, ranks=given.num_tasks, submitted=given)
                for job, given in zip(stage, submitted, strict=True)
            ]
            dependency = f"afterok:{submitted[0].job_id.partition('_')[0]}"
            # after each stage, so that no job is forgotten
            atomic_write_json(folder / SUBMITTED, [{"name": j.name, "id": j.id, "ranks": j.ranks} for j in launched])
        return launched

    def _executor(self, folder: Path, step: str, dependency: str | None, whole: bool) -> Any:
        """submitit's executor for jobs of a step; `whole` with all ranks, else a process of its own each, in turn."""
        try:
            executor = self.submitit.SlurmExecutor(folder)
        except RuntimeError:
            raise ValueError(
                "launcher=slurm: there is no `srun` here: run it on a machine of the cluster, or set launcher=local"
            ) from None
        again = f'[ "$status" -eq {REQUEUE} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {self.max_requeues} ]'
        executor.update_parameters(
            job_name=f"omnigram-{step}",
            partition=self.partition,
            account=self.account,
            constraint=self.constraint,
            nodes=self.nodes if whole else 1,
            ntasks_per_node=self.tasks_per_node if whole else 1,
            gpus_per_node=self.gpus_per_node or None,
            cpus_per_task=self.cpus_per_task,
            mem=f"{round(self.mem_gb * 1024)}MB",
            time=self.timeout_min,
            array_parallelism=self.array_parallelism if whole else 1,
            dependency=dependency,
            setup=self.setup or None,
            teardown=["status=$?", f'if {again}; then scontrol requeue "$SLURM_JOB_ID"; fi', 'exit "$status"'],
            wckey=None,
            stderr_to_stdout=True,
            srun_args=["--wait=60"],  # seconds that ranks may outlive the first that has ended
            additional_parameters={
                "signal": f"TERM@{self.warning_s}",
                "requeue": True,
                "kill-on-invalid-dep": "yes",  # where what has to be there before failed
            },
        )
        return executor

    def _submitted(self, folder: Path, console: Console) -> list["_SlurmJob"]:
        """The same jobs, where they were submitted before and are not at their end."""
        try:
            listed = json.loads((folder / SUBMITTED).read_text(encoding="utf-8"))
            launched = [_SlurmJob.again(folder, self.submitit, **entry) for entry in listed]
        except (FileNotFoundError, ValueError, TypeError):
            return []
        states = _states(self.submitit, launched)
        if not any(states.get(job.id, "UNKNOWN") in (*WAIT, *RUN) for job in launched):
            return []
        tell(console, "these jobs are there already, and are followed")
        return launched

    def _poll(self, launched: Sequence["_SlurmJob"]) -> None:
        states = _states(self.submitit, [job for job in launched if not job.ended])
        for job in launched:
            if not job.ended:
                job.look(states.get(job.id, "UNKNOWN"))


@dataclass
class _SlurmJob(Launched):
    """A job that was submitted."""

    id: str = ""
    ranks: int = 1
    submitted: Any = None
    word: str = ""  # of sacct, when it was looked at last
    unseen: int = 0  # how often its result was looked for in vain

    @classmethod
    def again(cls, folder: Path, submitit: Any, name: str, id: str, ranks: int) -> "_SlurmJob":
        given = submitit.SlurmJob(folder, id, list(range(ranks)))
        return cls(name, given.paths.stdout, id=id, ranks=ranks, submitted=given)

    def look(self, word: str) -> None:
        """Take in the state that sacct tells. An end counts when it is told twice: a lost node's job is requeued."""
        first, self.word = self.word != word, word
        if word in WAIT:
            self.state = WAITING
        elif word in RUN or first:
            self.state = RUNNING
        elif word == "COMPLETED":
            self._take(self.submitted.task(0))
        else:
            self.state = word.lower()

    def _take(self, task: Any) -> None:
        """The folder that it made, of its result; it fails when that stays out of sight."""
        file = task.paths.result_pickle
        try:
            made = task.result() if file.exists() else None  # without the file submitit would wait for it
        except Exception:  # of whatever kind, by what lies in the file
            made = None
        self.unseen += made is None
        if made is not None:
            self.state, self.made = DONE, Path(made) if made else None
        elif self.unseen > RESULT_POLLS:
            self.state = "completed"
            self.fault = f"Slurm says that it is completed, but its result {file} cannot be read"


def _states(submitit: Any, jobs: Sequence[_SlurmJob]) -> dict[str, str]:
    """What sacct says of jobs, by their ids; nothing where it cannot be asked just now."""
    ids = dict.fromkeys(job.id.partition("_")[0] for job in jobs)
    if not ids:
        return {}
    command = ["sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", "-j", ",".join(ids)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        _tell_once(" ".join((getattr(error, "stderr", None) or str(error)).split()))
        return {}
    rows = submitit.slurm.slurm.SlurmInfoWatcher().read_info(told)
    return {job: row["State"].split(" ")[0].rstrip("+") for job, row in rows.items()}  # "CANCELLED by 1000"


@cache
def _tell_once(reason: str) -> None:
    warnings.warn(f"sacct does not tell how the jobs are ({reason}): they are followed when it does", stacklevel=3)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What sbatch refuses is a ValueError of one line."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise ValueError(f"sbatch refuses the job: {' '.join(str(error).split())}") from None


def _follow(ids: str, log: Path) -> str:
    return f"`squeue -j {ids}` lists them, `tail -f {log}` shows the last, `scancel {ids}` ends them"
