"""`launcher=local`: jobs as processes of this machine, a few at a time, each with its output in a file.

The ranks of a job are told of one another as torchrun does it, in RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
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
        slots = self._environments(min(self.at_a_time, len(jobs)))
        folder = make_folder(job_folder(self.root, jobs))
        *first, last = stages(jobs, self.ranks)
        with _terminable():
            for stage in first:
                _run([_Process(job, folder / f"before-{n}", 1) for n, job in enumerate(stage)], slots[:1])
            done = [_Process(job, folder / f"{n}", self.ranks) for n, job in enumerate(last)]
            _run(done, slots)
        yield from (process.made for process in done if process.made is not None)

    def _environments(self, slots: int) -> list[dict[str, str]]:
        """What the jobs of each slot see: GPUs of their own. ValueError where there are not so many."""
        if not self.gpus:
            return [dict(os.environ)] * slots
        import torch  # late, for the jobs alone need it

        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = torch.cuda.device_count()
        if there < slots * self.gpus:
            seen = "" if named is None else f" in CUDA_VISIBLE_DEVICES={named}"
            raise ValueError(
                f"launcher.gpus_per_node={self.gpus} for {slots} jobs at a time (launcher.array_parallelism) needs "
                f"{slots * self.gpus} GPUs, and there are {there}{seen}: lower one of the two"
            )
        names = named.split(",") if named else [str(number) for number in range(there)]
        owned = [names[slot * self.gpus : (slot + 1) * self.gpus] for slot in range(slots)]
        return [{**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(own)} for own in owned]


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
                _end(self.processes, signal.SIGTERM)  # the other ranks, which would wait for the one that failed
            self.state = FAILED if any(codes) else DONE
            self.made = Path(last_line(self.out)) if self.state == DONE and last_line(self.out) else None


def _end(processes: Sequence["subprocess.Popen[bytes]"], how: signal.Signals) -> None:
    """Ask all processes to end, as whoever started us was asked. What has not ended in a minute is killed.

    So is what is left when we are asked again, as by a second Ctrl-C.
    """
    deadline = time.monotonic() + GRACE_S
    try:
        for process in processes:
            process.send_signal(how)
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
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
        running = [process for job in jobs if not job.ended for process in job.processes]
        _end(running, signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
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
