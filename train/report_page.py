"""The page of a report: HTML in one file, plain, for light and dark, for a wide screen and a phone."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from .incidents import RESUMED, STOPPED, Incident

if TYPE_CHECKING:
    from .report import Recorded

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #6a7078; --line: #d9dce0; --box: #f6f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --paper: #16181b; --faint: #9aa1a9; --line: #34383d; --box: #1f2226; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .4rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
p, figcaption, .faint { color: var(--faint); margin: .2rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin-top: 1rem; }
.tiles div { background: var(--box); border-radius: .4rem; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: .8rem; }
.charts svg { width: 100%; height: auto; display: block; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 1rem; }
figure { margin: 0; } figure.wide { grid-column: 1 / -1; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.alarm { color: #d03b3b; font-weight: 600; }
pre { background: var(--box); padding: .7rem; border-radius: .4rem; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; }
"""
# metrics or curves -> heading and form of the tiles; what a run lacks is left out
TILES: tuple[tuple[str, str, str], ...] = (
    ("parameters", "parameters", "{:,.0f}"),
    ("train_tokens", "training tokens", "{:,.0f}"),
    ("train_seconds", "minutes of training", "{:,.1f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("mfu", "MFU", "{:.1%}"),
    ("data_wait", "waiting for data", "{:.1%}"),
    ("peak_memory_gib", "GiB at the peak", "{:,.2f}"),
    ("pad_share", "pads", "{:.1%}"),
    ("steps_skipped", "steps left out", "{:,.0f}"),
    ("bits_per_picture", "held-out bits a picture", "{:,.1f}"),
    ("psnr", "dB PSNR", "{:.2f}"),
    ("ssim", "SSIM", "{:.3f}"),
    ("codebook_usage", "of the codebook used", "{:.1%}"),
)
# what a run that is not finished tells by the last point of a curve
LATEST = {
    "tokens_per_second": ("speed/tokens_per_second", "train/tokens_per_second"),
    "mfu": ("speed/mfu",),
    "data_wait": ("speed/data_wait",),
    "peak_memory_gib": ("speed/peak_memory_gib",),
    "pad_share": ("train/pad_share",),
    "steps_skipped": ("train/steps_skipped",),
    "psnr": ("val/psnr",),
    "ssim": ("val/ssim",),
}
APART = ("made_from", "provenance")  # of metrics.json, shown elsewhere


class Shown(NamedTuple):
    """A picture of the page: its words, its data as an address, whether it takes the whole width."""

    words: str
    data: str
    wide: bool


def page(run: "Recorded", charts: Sequence[str], pictures: Sequence[Shown]) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        f"<p>{escape(_state(run))}</p>",
        _tiles(run),
        _section("Curves", "".join(f"<div>{chart}</div>" for chart in charts), "charts"),
        f"<h2>Incidents</h2>{_incidents(run.incidents)}",
        _section("Pictures", "".join(map(_figure, pictures)), "samples"),
    ]
    if run.metrics:
        numbers = {name: value for name, value in run.metrics.items() if name not in APART}
        parts.append(f"<h2>Final numbers</h2>{_table(numbers.items())}")
    if provenance := run.record.get("provenance"):
        parts.append(f"<h2>Made by</h2>{_table(_flat(provenance))}")
    if inputs := {name: value for name, value in run.record.get("made_from", {}).items() if isinstance(value, str)}:
        parts.append(f"<h2>Made from</h2>{_table(inputs.items())}")
    if config := run.shown_config:
        parts.append(
            f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _state(run: "Recorded") -> str:
    """Finished, or how far it is, and when it was begun."""
    of = f" of {run.max_steps:,}" if run.max_steps else ""
    state = "finished" if run.metrics else f"not finished: step {run.step:,}{of}"
    made = run.record.get("provenance", {})
    begun = f", begun {made['created']}" if "created" in made else ""
    return f"{state}{begun}"


def _tiles(run: "Recorded") -> str:
    tiles = []
    for name, heading, form in TILES:
        value = run.metrics.get(name)
        if value is None:
            value = next((run.curves[curve][1][-1] for curve in LATEST.get(name, ()) if curve in run.curves), None)
        if isinstance(value, int | float):
            shown = form.format(value / 60 if name == "train_seconds" else value)
            tiles.append(f"<div><b>{shown}</b><span class='faint'>{escape(heading)}</span></div>")
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _section(title: str, inside: str, kind: str) -> str:
    return f"<h2>{title}</h2><div class='{kind}'>{inside or '<p>none yet</p>'}</div>"


def _figure(picture: Shown) -> str:
    words, wide = escape(picture.words), " class='wide'" if picture.wide else ""
    return f"<figure{wide}><img alt='{words}' src='{picture.data}'><figcaption>{words}</figcaption></figure>"


def _incidents(incidents: Sequence[Incident]) -> str:
    if not incidents:
        return "<p>none</p>"
    rows = []
    for step, time, kind, message in incidents:
        alarm = "" if kind in (STOPPED, RESUMED) else " class='alarm'"
        rows.append(
            f"<tr><td class='number'>{step:,}</td><td>{escape(time)}</td><td{alarm}>{escape(kind)}</td>"
            f"<td>{escape(message)}</td></tr>"
        )
    head = "<tr><th>step</th><th>time</th><th>what</th><th></th></tr>"
    return f"<div class='scroll'><table>{head}{''.join(rows)}</table></div>"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"<td class='number'>{_number(value)}</td>"
        return f"<td>{escape('none' if value is None else str(value))}</td>"

    body = "".join(f"<tr><td>{escape(name)}</td>{cell(value)}</tr>" for name, value in rows)
    return f"<div class='scroll'><table>{body}</table></div>"


def _number(value: float) -> str:
    """1234567 -> 1,234,567; .123456789 -> 0.123457; 1.5e14 -> 1.5e+14."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value
