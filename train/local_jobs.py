"""`launcher=local`: jobs as processes of this machine, a few at a time, each with its output in a file.

The ranks of a job are told of one another as torchrun does it, in RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from ..data.artefact import make_folder
from .launching import (
    DONE,
    FAILED,
    RUNNING,
    Job,
    Launched,
    Launcher,
    check_done,
    check_ranks,
    job_folder,
    last_line,
    stages,
    watch,
)
from .termination import Terminated

POLL_S, GRACE_S = 0.5, 60


class LocalLauncher(Launcher):
    """Processes of this machine, which end with the launcher; for the arguments see conf/launcher/local.yaml."""

    def __init__(self, array_parallelism: int, tasks_per_node: int, gpus_per_node: int, folder: str) -> None:
        self.at_a_time, self.ranks, self.gpus = array_parallelism, tasks_per_node, gpus_per_node
        self.root = folder

    def launch(self, jobs: Sequence[Job]) -> Iterator[Path]:
        check_ranks(jobs, self.ranks)
        folder = make_folder(job_folder(self.root, jobs))
        *first, last = stages(jobs, self.ranks)
        done: list[_Process] = []
        with _terminable():
            for stage in first:
                _run([_Process(job, folder / f"before-{n}", 1) for n, job in enumerate(stage)], [self._environment(0)])
            slots = [self._environment(slot) for slot in range(min(self.at_a_time, len(last)))]
            done = [_Process(job, folder / f"{n}", self.ranks) for n, job in enumerate(last)]
            _run(done, slots)
        yield from (process.made for process in done if process.made is not None)

    def _environment(self, slot: int) -> dict[str, str]:
        """What the jobs of a slot see: GPUs of their own."""
        if not self.gpus:
            return dict(os.environ)
        there = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = there.split(",") if there else [str(n) for n in range(self.gpus * self.at_a_time)]
        own = names[slot * self.gpus : (slot + 1) * self.gpus]
        if len(own) < self.gpus:
            raise ValueError(
                f"launcher.gpus_per_node={self.gpus} for {self.at_a_time} jobs at a time, "
                f"but CUDA_VISIBLE_DEVICES={there}: lower launcher.array_parallelism"
            )
        return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(own)}


class _Process(Launched):
    """The processes of a job: one, or one a rank. Rank 0 writes the job's output."""

    def __init__(self, job: Job, path: Path, ranks: int) -> None:
        super().__init__(job.name, path.with_suffix(".log"))
        self.out, self.job, self.ranks = path.with_suffix(".out"), job, ranks
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.ranks):
            own = _rank(rank, self.ranks, port) if self.ranks > 1 else {}
            log = self.log if rank == 0 else self.log.with_suffix(f".rank{rank}.log")
            with log.open("ab") as errors, (self.out if rank == 0 else Path(os.devnull)).open("wb") as out:
                # a session of its own: Ctrl-C is for the launcher, which then ends its jobs
                self.processes.append(
                    subprocess.Popen(
                        self.job.command,
                        env={**environment, **own},
                        stdout=out,
                        stderr=errors,
                        start_new_session=True,
                    )
                )
        self.state = RUNNING

    def poll(self) -> None:
        codes = [process.poll() for process in self.processes]
        if self.ended or not codes:
            return
        if any(codes) or None not in codes:
            if any(codes):
                self.end(signal.SIGTERM)  # the other ranks, which would wait for the one that failed
            self.state = FAILED if any(codes) else DONE
            self.made = Path(last_line(self.out)) if self.state == DONE and last_line(self.out) else None

    def end(self, how: signal.Signals) -> None:
        """Ask the processes to end, as whoever started us was asked; what does not end in a minute is killed."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(how)
        for process in self.processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _run(jobs: Sequence[_Process], slots: list[dict[str, str]]) -> None:
    """All jobs, as many at a time as there are slots. ValueError if one failed, when all have ended."""
    free, used = list(slots), dict[int, dict[str, str]]()

    def poll() -> None:
        for number, job in enumerate(jobs):
            job.poll()
            if job.ended and number in used:
                free.append(used.pop(number))
        for number, job in enumerate(jobs):
            if free and not job.ended and not job.processes:
                used[number] = free.pop(0)
                job.start(used[number])

    try:
        watch(jobs, poll, POLL_S, Console(stderr=True))
    except BaseException as stop:
        for job in jobs:
            if job.processes and not job.ended:
                job.end(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        raise
    check_done(jobs)


def _rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "omnigram"}
    return {**{name: str(number) for name, number in numbers.items()}, **names}


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM of this process is Terminated: the jobs get it too, and save the step that they are at."""

    def note(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
