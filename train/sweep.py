"""The end of a sweep over model sizes: one table and one plot of the runs that finished.

table.csv, table.md    a row a run, by parameters
sweep.png              held-out bits against parameters, and against the arithmetic of training
"""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from ..data.artefact import atomic_write
from .runs import METRICS, finished_run

TABLE, TABLE_TEXT, PLOT = "table.csv", "table.md", "sweep.png"
# metrics.json -> heading of the table
COLUMNS = {
    "parameters": "parameters",
    "train_tokens": "training tokens",
    "train_flops": "training FLOPs",
    "bits_per_picture": "held-out bits a picture",
    "tokens_per_second": "tokens/s",
    "train_seconds": "seconds",
}
LOSS = "bits_per_picture"


def summarise_sweep(run_folders: Iterable[Path | str], out: Path | str, console: Console | None = None) -> Path:
    """Gather finished runs into the folder `out`, which is made; print the table.

    ValueError for no run, for one that is not finished or whose metrics.json lacks a column, and for other tokens.
    """
    folders = [Path(folder) for folder in dict.fromkeys(run_folders)]
    rows = sorted((_row(folder) for folder in folders), key=lambda row: row["parameters"])
    if not rows:
        raise ValueError("a sweep needs at least one finished run: none was named")
    tokens = [finished_run(folder).get("made_from", {}).get("tokens") for folder in folders]
    for folder, other in zip(folders, tokens, strict=True):
        if other != tokens[0]:
            raise ValueError(f"{folder} learnt other tokens than {folders[0]}: their bits cannot be compared")
    out = Path(out)
    atomic_write(out / TABLE, _csv(rows))
    atomic_write(out / TABLE_TEXT, _markdown(rows))
    figure = _plot(rows)
    atomic_write(out / PLOT, lambda file: figure.savefig(file, format="png", dpi=150))
    (console or Console()).print(_table(rows))
    return out


def _row(folder: Path) -> dict[str, Any]:
    """One run: the name of its model, its folder, and the columns."""
    metrics = finished_run(folder)
    for column in COLUMNS:
        if column == LOSS and metrics.get(column) is None:
            raise ValueError(
                f"{folder} has no {COLUMNS[LOSS]}, for its data have no split test or val: raise data.splits.test="
            )
        if not isinstance(metrics.get(column), int | float):
            raise ValueError(f"{folder / METRICS} has no number {column!r}: evaluate the run again")
    name = str(metrics.get("model", folder.resolve().name))
    return {"model": name, **{column: metrics[column] for column in COLUMNS}, "run": str(folder)}


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", box=MARKDOWN)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["model"], *(_number(row[column]) for column in COLUMNS))
    return table


def _markdown(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=1000, color_system=None).print(_table(rows))
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip().splitlines()) + "\n"


def _number(value: float) -> str:
    """1234567 -> 1,234,567; 1.5e11 -> 1.50e+11; 412.345 -> 412.3."""
    if value >= 1e11:
        return f"{value:.2e}"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, rows, "parameters")
    _panel(right, rows, "train_flops")
    left.set_ylabel(COLUMNS[LOSS])
    return figure


def _panel(axes: Axes, rows: list[Mapping[str, Any]] | list[dict[str, Any]], across: str) -> None:
    points = sorted((row[across], row[LOSS], row["model"]) for row in rows)
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o")
    for x, y, name in points:
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 6))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15)
    axes.set_xlabel(COLUMNS[across])
    axes.grid(alpha=0.3)
