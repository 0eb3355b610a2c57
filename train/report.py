"""`omnigram report`: a run as one page, `report.html`, that needs nothing beside it, and its curves as `report.png`.

Everything is read from the run's folder, so that a run is reported while it is trained, after it was stopped, and when
it is finished. docs/watching.md says what each number means.
"""

import base64
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from ..data.addresses import name_of
from ..data.artefact import atomic_write
from .curves import CURVES, read_curves
from .incidents import INCIDENTS, Incident, read_incidents
from .report_charts import Curves, charts_of, one_page, svg
from .report_page import Shown, page
from .runs import METRICS, RECORD
from .steps import StepModule

REPORT, PICTURE = "report.html", "report.png"
SAMPLES = "samples"  # folder of the grids that were drawn while training
MOST_SAMPLES = 9  # of these on the page
# pages made at the end, and what they show
PAGES = {
    "samples.png": "Drawn of words from the training split, at the end",
    "samples_heldout.png": "Drawn of words from held-out splits, beside the true pictures",
    "reconstructions.png": "Held-out pictures, each beside its reconstruction",
}


@dataclass(frozen=True)
class Recorded:
    """What a run has left so far."""

    name: str
    config: str  # YAML; empty where it was not kept
    record: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Any]  # empty for a run that is not finished
    curves: Curves
    incidents: list[Incident]

    @property
    def step(self) -> int:
        """The last one that a curve has."""
        return int(max((steps[-1] for steps, _ in self.curves.values()), default=0))

    @property
    def shown_config(self) -> str:
        """The configuration with addresses as messages name them, for a page that is sent to others."""

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: clean(inner) for name, inner in value.items()}
            if isinstance(value, list):
                return [clean(inner) for inner in value]
            return name_of(value) if isinstance(value, str) else value

        config = OmegaConf.to_container(OmegaConf.create(self.config or "{}"))
        return OmegaConf.to_yaml(OmegaConf.create(clean(config))) if self.config else ""

    @property
    def max_steps(self) -> int | None:
        """What the configuration says; a run without a decoder is an image tokenizer's."""
        config = OmegaConf.create(self.config or "{}")
        decoder = "model" in self.record.get("made_from", {})
        found = OmegaConf.select(config, "trainer.max_steps" if decoder else "tokenizer.trainer.max_steps")
        return None if found is None else int(found)


def read_run(folder: Path) -> Recorded:
    """ValueError, in one line, for a folder that is no run or holds a damaged file."""
    if not (folder / RECORD).is_file() and not (folder / CURVES).is_file():
        raise ValueError(f"{folder} is no run: it holds neither {RECORD} nor {CURVES}; name a folder of runs/")
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for step, name, value in read_curves(folder / CURVES) if (folder / CURVES).exists() else []:
        steps, values = curves.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    config = folder / "config.yaml"
    return Recorded(
        name=folder.resolve().name,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        record=_json(folder / RECORD),
        metrics=_json(folder / METRICS),
        curves={name: (np.array(steps), np.array(values)) for name, (steps, values) in curves.items()},
        incidents=read_incidents(folder / INCIDENTS),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return found


def write_report(folder: Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write both files into the folder of a run; the page. `metrics` stand in for a metrics.json to be written."""
    run = read_run(folder)
    if metrics is not None:
        run = replace(run, metrics=metrics)
    charts = charts_of(run.curves)
    drawn = [svg(chart, run.incidents, number) for number, chart in enumerate(charts)]
    shown = [*_samples(folder), *_pages(folder)]
    if charts:
        figure = one_page(charts, run.incidents, run.name)
        atomic_write(folder / PICTURE, lambda file: figure.savefig(file, format="png", dpi=100))
    return atomic_write(folder / REPORT, page(run, drawn, shown))


def _samples(folder: Path) -> list[Shown]:
    """Grids drawn while training, evenly spread, the first and the last among them."""
    found = sorted((folder / SAMPLES).glob("step-*.png"))
    number = min(len(found), MOST_SAMPLES)
    spread = [found[round(index)] for index in np.linspace(0, len(found) - 1, number)] if found else []
    return [_picture(path, f"Step {int(path.stem.removeprefix('step-')):,}") for path in spread]


def _pages(folder: Path) -> list[Shown]:
    return [_picture(folder / name, words) for name, words in PAGES.items() if (folder / name).is_file()]


def _picture(path: Path, words: str) -> Shown:
    return Shown(words, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), path.name in PAGES)


class Reports(Callback):
    """The report at every validation, behind what leaves curves and pictures; the first rank writes it."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        if pl_module.step % self.every or not pl_module.world.is_first:
            return
        try:
            write_report(self.folder)
        except (OSError, ValueError) as error:  # a page less is no reason to stop a training
            warnings.warn(f"the report could not be written: {error}", stacklevel=2)
