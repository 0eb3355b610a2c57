"""Progress of drawing: a bar with pictures finished, tokens/s and time left; without a terminal a line now and then."""

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..model.generation.events import Event, Finished, Tokens
from .progress import SECONDS_BETWEEN_LINES, duration


class DrawingProgress:
    """`with DrawingProgress(...) as watch:` and let a sampler call `watch(event)`.

    pictures: how many will be finished
    tokens: how many will be written for each of them; None where that is open, and pictures alone tell how far it is
    """

    def __init__(self, what: str, pictures: int, tokens: int | None) -> None:
        self.what, self.pictures = what, pictures
        self.finished = self.written = 0
        self._total = pictures * tokens if tokens else None
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> "DrawingProgress":
        self._started = self._told = monotonic()
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"))
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task(
                self.what, total=self._total or self.pictures, shown=self._shown(self._started)
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Tokens):
            self.written += len(event.ids)
        elif isinstance(event, Finished):
            self.finished += 1
        else:
            return
        now = monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done * (self._total or self.pictures), shown=self._shown(now))
        elif now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            left = ""
            if self._done:
                left = f", {duration((now - self._started) * (1 / self._done - 1))} left"
            self._console.print(f"{self.what}: {self._shown(now)}{left}", highlight=False, soft_wrap=True)

    def _shown(self, now: float) -> str:
        """Pictures finished of all, and tokens a second since the start."""
        rate = self.written / max(now - self._started, 1e-9)
        return f"{self.finished:,} of {self.pictures:,} pictures, {rate:,.0f} tokens/s"

    @property
    def _done(self) -> float:
        """Share that is done, 0 .. 1."""
        return min(1.0, self.written / self._total) if self._total else self.finished / self.pictures
