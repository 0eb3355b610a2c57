"""The charts of a run's report, from its curves: one panel a question, as SVG for the page and together as one picture.

A training curve of many points is shown as the mean of neighbours, on a band of what they were; held-out points as they
are. Incidents are marked where they happened.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .incidents import RESUMED, STOPPED, Incident

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> steps, values

COLOURS = ("#2f7ec0", "#d97a1f", "#2c9c69", "#b45fc4", "#c9a400", "#7f7f7f")
ALARM, STOP = "#d03b3b", "#8a8a8a"
INK = "#010203"  # stands for the colour of the page's text, whatever it is
POINTS = 100  # of a curve; more are averaged
MARKS = 40  # incidents that are marked; more would hide the curves


@dataclass(frozen=True)
class Panel:
    """Curves that answer one question. names: patterns of curves; a group in them is the word in title and labels."""

    title: str
    unit: str
    names: tuple[str, ...]
    log: bool = False
    from_zero: bool = False
    percent: bool = False


class Line(NamedTuple):
    """A curve and what it is called."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    heldout: bool


class Chart(NamedTuple):
    """A panel with the curves that a run has of it."""

    panel: Panel
    title: str
    lines: list[Line]


PANELS = (
    Panel("Loss", "nats a token", (r"train/loss",), log=True),
    Panel("Bits of a target: {}", "bits", (r"(?:train|val|heldout_style)/bits_(\w+)",), log=True),
    Panel(
        "Reconstruction error",
        "of pixels from -1 to 1",
        (r"train/l1", r"train/l2", r"train/perceptual_hed", r"train/lpips", r"train/quantizer"),
        log=True,
    ),
    Panel("PSNR of held-out pictures", "dB", (r"val/psnr",)),
    Panel("SSIM and drift of held-out pictures", "share", (r"val/ssim", r"val/drift"), from_zero=True),
    Panel("Adversary", "loss", (r"train/discriminator", r"train/adversarial")),
    Panel("Gradient norm", "before clipping", (r"train/gradient_norm",), log=True),
    Panel("Output norm", "root mean square of log Z", (r"train/log_z",), from_zero=True),
    Panel("Learning rate", "", (r"train/learning_rate", r"train/muon_learning_rate"), from_zero=True),
    Panel("Throughput", "tokens a second", (r"(?:speed|train)/tokens_per_second\w*",), from_zero=True),
    Panel("Throughput", "pictures a second", (r"speed/pictures_per_second",), from_zero=True),
    Panel("Model FLOPs utilisation", "of a matrix product", (r"speed/mfu",), from_zero=True, percent=True),
    Panel(
        "Time outside of steps", "of all time", (r"speed/data_wait", r"speed/elsewhere"), from_zero=True, percent=True
    ),
    Panel("Time of a step", "seconds", (r"speed/step_seconds",), from_zero=True),
    Panel("Peak memory", "GiB", (r"speed/peak_memory_gib",), from_zero=True),
    Panel("Codes used", "of the codebook", (r"codes/used_\w+", r"train/usage"), from_zero=True, percent=True),
    Panel("Perplexity of the codes", "codes", (r"codes/perplexity_\w+", r"train/perplexity"), from_zero=True),
    Panel("Pads", "of all places", (r"train/pad_share",), from_zero=True, percent=True),
    Panel("Steps left out", "so far", (r"train/steps_skipped",), from_zero=True),
)
LABELS = {  # of curves in panels that hold several; others are called after the end of their name
    "val/psnr": "PSNR",
    "val/ssim": "SSIM",
    "val/drift": "drift",
    "train/learning_rate": "AdamW",
    "train/muon_learning_rate": "Muon",
    "train/tokens_per_second": "all",
    "speed/tokens_per_second": "all",
    "speed/data_wait": "waiting for data",
    "speed/elsewhere": "validation, checkpoints, reports",
    "train/usage": "of one batch",
    "train/perplexity": "of one batch",
}
PREFIXES = ("tokens_per_second_", "used_", "perplexity_")
SPLITS = {"train": "training", "val": "held-out concepts", "heldout_style": "held-out styles"}


def charts_of(curves: Curves) -> list[Chart]:
    """The panels of which the run has curves, in their order."""
    charts = []
    for panel in PANELS:
        if panel.title == "Loss" and "train/l1" in curves:
            panel = replace(panel, unit="weighted sum of errors")
        found: dict[str, list[Line]] = {}
        for pattern in panel.names:
            for name in curves:
                match = re.fullmatch(pattern, name)
                if match and np.isfinite(curves[name][1]).any():
                    word = match[1] if match.groups() else ""
                    found.setdefault(word, []).append(_line(name, *curves[name], by_split=bool(word)))
        for word, lines in found.items():
            if panel.title != "Steps left out" or any(line.values.max() > 0 for line in lines):
                charts.append(Chart(panel, panel.title.format(word), lines))
    return charts


def _line(name: str, steps: np.ndarray, values: np.ndarray, by_split: bool) -> Line:
    split, _, what = name.partition("/")
    if by_split:
        label = SPLITS[split]
    else:
        start = next((prefix for prefix in PREFIXES if what.startswith(prefix)), "")
        label = LABELS.get(name, what.removeprefix(start).replace("_", " "))
    finite = np.isfinite(values)
    return Line(label, steps[finite], values[finite], split not in ("train", "speed", "codes"))


def svg(chart: Chart, incidents: Sequence[Incident], number: int) -> str:
    """The chart to stand in a page, in the colour of its text; `number` keeps its names apart from other charts'."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.family": "sans-serif"}):
        _draw(figure.subplots(), chart, incidents, INK)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)  # needless within HTML
    drawn = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', drawn, count=1)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{number}-", drawn)


def one_page(charts: Sequence[Chart], incidents: Sequence[Incident], title: str) -> Figure:
    """All charts as one picture, three in a row."""
    columns = min(3, max(1, len(charts)))
    rows = max(1, ceil(len(charts) / columns))
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, chart in zip(every, charts, strict=False):
        _draw(axes, chart, incidents, "black")
    for axes in every[len(charts) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, chart: Chart, incidents: Sequence[Incident], ink: str) -> None:
    panel = chart.panel
    axes.set_title(chart.title, fontsize=10, color=ink, loc="left")
    axes.set_ylabel(panel.unit, fontsize=9, color=ink)
    axes.set_xlabel("step", fontsize=9, color=ink)
    axes.tick_params(colors=ink, labelsize=8)
    axes.grid(color=ink, alpha=0.15, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set(color=ink, alpha=0.4, visible=side in ("left", "bottom"))
    for line, colour in zip(chart.lines, _colours(), strict=False):
        _draw_line(axes, line, colour)
    for drawn in axes.lines[1:]:
        if np.array_equal(drawn.get_ydata(), axes.lines[0].get_ydata()):  # or it would hide the first one
            drawn.set_linestyle((0, (4, 4)))
    _scale(axes, chart)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    last = max(line.steps.max() for line in chart.lines)
    axes.set_xlim(0, last * 1.02 + 1)
    for incident in incidents[-MARKS:]:
        colour = STOP if incident.kind in (STOPPED, RESUMED) else ALARM
        axes.axvline(incident.step, color=colour, linewidth=0.9, linestyle=(0, (3, 2)), alpha=0.8, zorder=1)
    if len(chart.lines) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=ink, loc="best")


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _draw_line(axes: Axes, line: Line, colour: str) -> None:
    style = {"color": colour, "linewidth": 1.4, "label": line.label}
    if line.heldout or len(line.steps) <= 1.5 * POINTS:
        marker = "o" if line.heldout or len(line.steps) == 1 else None
        axes.plot(line.steps, line.values, marker=marker, markersize=3.5, **style)
        return
    groups = np.array_split(np.arange(len(line.steps)), POINTS)
    steps = [line.steps[group].mean() for group in groups]
    low, mean, high = ([f(line.values[group]) for group in groups] for f in (np.min, np.mean, np.max))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, mean, **style)


def _scale(axes: Axes, chart: Chart) -> None:
    values = np.concatenate([line.values for line in chart.lines])
    if chart.panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    if chart.panel.log and values.min() > 0 and values.max() > 5 * values.min():  # or an axis has hardly a label
        axes.set_yscale("log")
        few = values.max() / values.min() < 300
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif chart.panel.from_zero and values.min() >= 0:
        axes.set_ylim(0, values.max() * 1.08 or 1)
        if values.max() >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
