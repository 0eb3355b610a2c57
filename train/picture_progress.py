"""Pictures counted while batches of them go by: a bar with an estimate, or now and then a line without a terminal."""

import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from .progress import SECONDS_BETWEEN_LINES, duration


def counted(batches: Iterable[Tensor], what: str, total: int, console: Console) -> Iterator[Tensor]:
    """The batches. what: is done to their pictures, for people; total: of the pictures."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    done, started = 0, time.monotonic()
    told = started
    with Progress(*columns, *times, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - told >= SECONDS_BETWEEN_LINES:
                told, left = now, (now - started) / done * (total - done)
                line = f"{what}: picture {done:,} of {total:,}, {duration(left)} left"
                console.print(line, highlight=False, soft_wrap=True)
