"""Run folders: one folder a run, named after what it is made from, locked while it is worked in, and `latest`.

`runs/<stage>/<name>-<8 hex digits>/` belongs to one configuration on one set of inputs, so the same command finds its
own unfinished work again and a finished one returns at once. `metrics.json` is written last: a run without it is not
finished.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.artefact import (
    FolderLock,
    atomic_write,
    atomic_write_json,
    identity,
    make_folder,
    plain_errors,
    provenance,
    remove_partials,
)

METRICS, RECORD, LATEST = "metrics.json", "run.json", "latest"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A run that this process may write in."""

    folder: Path
    identity: str
    made_from: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        return (self.folder / METRICS).exists()

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json with the run's configuration and provenance, then point `latest` at this run."""
        atomic_write_json(self.folder / METRICS, self.described(metrics))
        point_latest(self.folder)

    def described(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics with the run's configuration and provenance."""
        record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        return {**metrics, "identity": self.identity, "made_from": self.made_from, "provenance": record["provenance"]}


@contextmanager
def open_run(root: Path | str, name: str, made_from: Mapping[str, Any]) -> Iterator[Run]:
    """The run of `made_from` (JSON-able: settings, seed, identities of the inputs), locked for this process.

    Raises FolderBusyError if another process works in it.
    """
    made_from = json.loads(json.dumps(made_from))
    digest = identity(made_from)
    run = Run(Path(root) / f"{name}-{digest[:8]}", digest, made_from)
    make_folder(run.folder)
    link = run.folder.parent / LATEST
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is in the place of the link to the newest run: rename it")
    if run.finished:
        finished_run(run.folder)
        point_latest(run.folder)
        yield run
        return
    with FolderLock(run.folder), plain_errors(run.folder):
        remove_partials(run.folder)
        if not _has_provenance(run.folder / RECORD):
            atomic_write_json(
                run.folder / RECORD, {"identity": digest, "made_from": made_from, "provenance": provenance()}
            )
        yield run


def _has_provenance(record: Path) -> bool:
    """Whether the record of a run is there and whole."""
    try:
        return "provenance" in json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, TypeError):
        return False


def point_latest(folder: Path) -> None:
    """Make `latest` beside `folder` a link to it, in one step."""
    link, partial = folder.parent / LATEST, folder.parent / f".{LATEST}.{os.getpid()}"
    if link.is_symlink() and os.readlink(link) == folder.name:
        return
    partial.unlink(missing_ok=True)
    partial.symlink_to(folder.name)
    os.replace(partial, link)


def finished_run(folder: Path | str) -> dict[str, Any]:
    """metrics.json of a finished run. ValueError if it is not one, with what to do."""
    path = Path(folder) / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is no finished run ({METRICS} is missing): finish it, or name another") from None
    except ValueError:
        metrics = None
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} is damaged: remove it, then run the step again, which measures anew")
    return metrics


def write_config(run: Run, text: str) -> None:
    """Keep the resolved configuration beside the run."""
    atomic_write(run.folder / "config.yaml", text)
