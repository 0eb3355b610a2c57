"""The curves of a run as CSV that survives a restart: rows `step,name,value`, cut back to the step resumed from."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from ..data.artefact import atomic_write

CURVES = "curves.csv"
HEADER = ["step", "name", "value"]


class CurveLogger(Logger):
    """Append every scalar to `curves.csv`. Lightning's own CSV logger deletes what an interrupted run has written."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        super().__init__()
        self.path = folder / CURVES
        kept = [row for row in read_curves(self.path) if row[0] <= resumed_step] if self.path.exists() else []
        atomic_write(self.path, _csv([HEADER, *kept]))

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in config.yaml already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        rows = [[step, name, repr(float(value))] for name, value in metrics.items() if name != "epoch"]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_csv(rows))


def read_curves(path: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of each row; a last line without its end, cut off by a kill or a full disk, is left out.

    ValueError names the file and the row that is none.
    """
    rows = []
    whole = path.read_bytes().rpartition(b"\n")[0].decode("utf-8", "replace")
    for row in csv.reader(io.StringIO(whole, newline="")):
        if row == HEADER:
            continue
        try:
            step, name, value = row
            rows.append((int(step), name, float(value)))
        except ValueError:
            raise ValueError(f"{path} is damaged: {','.join(row)!r} is no row step,name,value: remove it") from None
    return rows


def _csv(rows: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def make_loggers(names: list[str], folder: Path, resumed_step: int) -> list[Logger]:
    """Loggers by name: csv, tensorboard, wandb. Raises ValueError for another name, or if wandb is not installed."""
    loggers: list[Logger] = []
    for name in names:
        if name == "csv":
            loggers.append(CurveLogger(folder, resumed_step))
        elif name == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False))
        elif name == "wandb":
            try:
                loggers.append(WandbLogger(project="omnigram", name=folder.name, save_dir=folder))
            except ModuleNotFoundError:
                raise ValueError("logger wandb is not installed: pip install 'omnigram[wandb]'") from None
        else:
            raise ValueError(f"logger {name!r} is unknown: choose of csv, tensorboard, wandb")
    return loggers


def log_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Show an RGB picture beside the curves, where the logger shows pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
