"""What runs the combinations of a step: this process (`launcher=inline`), processes beside it, or Slurm.

1. the combinations become jobs, the command `omnigram STEP key=value …` each
2. what several jobs would make at the same time is made before them, by jobs of the step before theirs
3. a launcher starts the jobs; a table tells of each its state and the last line that it wrote
4. the folder that each job made, in the order of the combinations

Hydra's own launcher plugins cannot be plugged in here: they are called by `hydra.main`, and Omnigram composes its
configuration by Hydra's compose API, to check it first (https://hydra.cc/docs/advanced/compose_api/).
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..data.artefact import identity
from .limits import check_rows

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
RANKED = ("pretrain",)  # steps that several processes do together
# step: the one that makes what it needs, and the parts of the configuration on which that depends
BEFORE = {
    "tokenizer": ("data", ("data",)),
    "tokens": ("tokenizer", ("data", "tokenizer", "seed")),
    "pretrain": ("tokens", ("data", "tokenizer", "tokens", "seed")),
}


@dataclass(frozen=True)
class Job:
    """One combination of a step: its overrides, those of the launcher left out, and what they compose."""

    step: str
    overrides: tuple[str, ...]
    config: DictConfig

    @property
    def name(self) -> str:
        return " ".join(("omnigram", self.step, *self.overrides))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "omnigram.train.cli", self.step, *self.overrides]


@dataclass
class Launched:
    """A job on its way."""

    name: str
    log: Path
    state: str = WAITING
    made: Path | None = None
    fault: str = ""  # what it failed of, where its log does not tell

    @property
    def ended(self) -> bool:
        return self.state not in (WAITING, RUNNING)


class Launcher(ABC):
    """Runs jobs."""

    @abstractmethod
    def launch(self, jobs: Sequence[Job]) -> Iterator[Path]:
        """The folder that each job made, in their order. ValueError if one of them fails; the others are run all the
        same where they are processes of their own."""


class InlineLauncher(Launcher):
    """One after the other in this process."""

    def launch(self, jobs: Sequence[Job]) -> Iterator[Path]:
        from .step_commands import STEPS

        for job in jobs:
            if len(jobs) > 1:
                print(job.name, file=sys.stderr)
            module, function, _, _ = STEPS[job.step]
            made = getattr(import_module(f".{module}", __package__), function)(job.config)
            if isinstance(made, Path):
                yield made


def jobs_of(step: str, combinations: Sequence[tuple[list[str], DictConfig]]) -> list[Job]:
    """The jobs of combinations. ValueError where they name several launchers."""
    first = combinations[0][1].launcher
    if any(config.launcher != first for _, config in combinations):
        raise ValueError("launcher cannot differ between the combinations: give it one value")
    return [Job(step, tuple(o for o in overrides if not _of_launcher(o)), config) for overrides, config in combinations]


def _of_launcher(override: str) -> bool:
    return override.lstrip("+~").partition("=")[0].partition(".")[0] == "launcher"


def stages(jobs: Sequence[Job], ranks: int = 1) -> list[list[Job]]:
    """What has to be there before the jobs can run side by side, which is made one after the other; then the jobs.

    Side by side they would make the same tokens in the same folder, and so would the ranks of one.
    """
    from .tokenizer import named_tokenizers  # which needs torch

    step = jobs[0].step
    if (len(jobs) == 1 and ranks == 1) or step not in BEFORE:
        return [list(jobs)]
    before, parts = BEFORE[step]
    if before == "tokenizer" and named_tokenizers(jobs[0].config):
        before, parts = BEFORE["tokenizer"]
    distinct: dict[str, Job] = {}
    for job in jobs:
        named = named_tokenizers(job.config)
        kept = [part for part in parts if part != "seed" or not named]
        resolved = OmegaConf.to_container(job.config, resolve=True, throw_on_missing=False)
        assert isinstance(resolved, dict)
        distinct.setdefault(identity([resolved[part] for part in kept], str(named)), replace(job, step=before))
    return [list(distinct.values()), list(jobs)]


def check_ranks(jobs: Sequence[Job], ranks: int) -> None:
    """ValueError where a step that one process does is to be done by several."""
    if ranks > 1 and jobs[0].step not in RANKED:
        raise ValueError(
            f"{jobs[0].step} is done by one process: set launcher.tasks_per_node=1 and one node"
            + ("; tokens.engine=ray works on several machines" if jobs[0].step == "tokens" else "")
        )
    for job in jobs:
        if job.step in RANKED:
            check_rows(job.config, ranks)


def job_folder(root: str, jobs: Sequence[Job]) -> Path:
    """Where output of these jobs goes, the same for the same jobs."""
    return Path(root) / f"{jobs[0].step}-{identity([job.overrides for job in jobs])[:8]}"


def watch(launched: Sequence[Launched], poll: Callable[[], object], seconds: float, console: Console) -> None:
    """Until all have ended: a table that is kept up to date or, without a terminal, a line at each change of state."""
    told: dict[int, str] = {}
    table = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if table is not None:
        table.start()
    try:
        while True:
            poll()
            if table is not None:
                table.update(_table(launched), refresh=True)
            for number, job in enumerate(launched):
                if table is None and told.get(number) != job.state:
                    told[number] = job.state
                    tell(console, f"{job.name}: {job.state}, output in {job.log}")
            if all(job.ended for job in launched):
                return
            time.sleep(seconds)
    finally:
        if table is not None:
            table.stop()


def check_done(launched: Sequence[Launched]) -> None:
    """ValueError, in one line, that names the jobs which failed and the last line of the first."""
    failed = [job for job in launched if job.state != DONE]
    if failed:
        first, *others = failed
        more = f", and {len(others)} more" if others else ""
        what = f"{len(failed)} of {len(launched)} jobs failed" if len(launched) > 1 else "the job failed"
        raise ValueError(
            f"{what}: {first.name}{more}: {first.fault or last_line(first.log) or first.state} (see {first.log})"
        )


def last_line(log: Path) -> str:
    """The last line of a file that is not empty; also while it is being written."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(launched: Sequence[Launched]) -> Table:
    table = Table(box=None, expand=True)
    for heading in ("job", "state", "last line"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, ratio=1 if heading != "state" else None)
    for job in launched:
        table.add_row(job.name.removeprefix("omnigram "), job.state, last_line(job.log))
    return table
