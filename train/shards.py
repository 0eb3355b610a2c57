"""`make data`: a source of documents -> shards on disk, `datasets/<name>/`.

1. the request: the configuration of the data group and the source's fingerprint; a finished folder with the same one
   is returned at once, a finished folder with another one is refused
2. documents of the source, in its order -> their split -> the shards of that split; after a stop finished ones are kept
3. dataset.json, written last: a folder without it is not a data set yet
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..data.addresses import recorded
from ..data.artefact import FolderLock, atomic_write_json, identity, provenance, remove_partials
from ..data.document import Document
from ..data.record import DATASET, DOCUMENTS, FORMAT_VERSION
from ..data.shards import RECORDS, ShardWriter
from ..data.sources import Source
from ..data.splits import SPLITS, Splits
from .compose import build

# settings that decide whether a run goes on, not what it makes
NO_PART_OF_REQUEST = ("max_skipped", "network")


def make_shards(config: DictConfig) -> Path:
    """Make the data set that `config.data` describes, unless it is there; the folder that holds it.

    Errors: ValueError when the folder holds a data set of another configuration, or too many samples are broken;
    FolderBusyError when another run works in the folder; OSError when the disk is full or not writable.
    """
    data = config.data
    folder = Path(data.folder)
    source, splits = build(config, "data.source", Source), build(config, "data.splits", Splits)
    settings = OmegaConf.to_container(data, resolve=True)
    assert isinstance(settings, dict)
    made_from = _made_from(settings, source)
    if _finished(folder, made_from):
        return folder
    console = Console(stderr=True)
    with FolderLock(folder):
        if _finished(folder, made_from):  # by the run that held the lock
            return folder
        request = identity(made_from)
        _discard_other(folder, request)
        for note in source.notes:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        shards = _write(source, splits, folder, int(data.samples_per_shard), request, console)
        record = _record(str(data.name), source, shards, made_from, settings)
        atomic_write_json(folder / DATASET, record)
        shutil.rmtree(folder / RECORDS, ignore_errors=True)
    for line in _summary(folder, record):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return folder


def _made_from(settings: dict[Any, Any], source: Source) -> dict[str, Any]:
    """All that decides the contents: the settings but for names and tolerances, and the source's fingerprint."""
    chosen = {name: value for name, value in settings.items() if name not in ("name", "folder")}
    chosen["source"] = {name: value for name, value in chosen["source"].items() if name not in NO_PART_OF_REQUEST}
    told = {**chosen, "fingerprint": source.fingerprint()}
    return {"format": DOCUMENTS, "format_version": FORMAT_VERSION, **recorded(told)}


def _finished(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether the folder holds this data set; ValueError when it holds another, or something else."""
    path = folder / DATASET
    if not path.exists():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file: choose another folder with data.folder=")
        ours = folder / RECORDS
        if folder.is_dir() and not ours.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise ValueError(f"{folder} holds files that are no data set: choose another folder with data.name=")
        return False
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["made_from"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no description of a data set: remove the folder or set data.name=") from None
    if there == json.loads(json.dumps(made_from)):
        return True
    changes = "; ".join(_differences(there, made_from)[:3])
    raise ValueError(f"{folder} holds a data set of another configuration ({changes}): remove it or set data.name=")


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for n in names for line in _differences(old.get(n), new.get(n), f"{at}.{n}" if at else n)]
    return [] if old == new else [f"{at} was {old!r}, is {new!r}"]


def _discard_other(folder: Path, request: str) -> None:
    """Remove what killed runs left of other requests, and all that is half written; keep this request's shards."""
    remove_partials(folder)
    records = folder / RECORDS
    records.mkdir(exist_ok=True)
    remove_partials(records)
    for path in sorted(records.glob("*.json")):
        if not _is_record_of(path, request):
            (folder / path.stem).unlink(missing_ok=True)
            path.unlink()


def _is_record_of(path: Path, request: str) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["request"] == request
    except (ValueError, KeyError, TypeError):  # damaged
        return False


def _write(
    source: Source, splits: Splits, folder: Path, samples_per_shard: int, request: str, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """The records of the shards of each split."""
    styles = source.styles_of_concepts()
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(folder, split, samples_per_shard, request)) for split in SPLITS
        }
        done = set().union(*(writer.done for writer in writers.values()))
        for document in _shown(source, done, console):
            writers[splits.split_of(document, styles)].add(document)
    return {split: writer.finished for split, writer in writers.items() if writer.finished}


def _shown(source: Source, done: set[str], console: Console) -> Iterator[Document]:
    """The documents that are not done yet, with a progress bar and an estimate."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("estimate"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console) as progress:
        task = progress.add_task("shards", total=source.length())
        if done:
            progress.console.print(f"{len(done)} documents are there from an earlier run", highlight=False)
        for document in source.documents(done):
            yield document
            progress.update(task, completed=source.skipped.seen)
        progress.update(task, completed=source.skipped.seen)


def _record(
    name: str,
    source: Source,
    shards: dict[str, list[dict[str, Any]]],
    made_from: dict[str, Any],
    settings: dict[Any, Any],
) -> dict[str, Any]:
    """The contents of dataset.json."""
    if "train" not in shards:
        raise ValueError(
            f"the source has no document for the split train ({source.skipped.seen} samples seen): "
            "lower data.splits.val= and data.splits.test=, or change data.splits.seed="
        )
    contents = {split: [(shard["file"], shard["sha256"]) for shard in listed] for split, listed in shards.items()}
    return {
        "format": DOCUMENTS,
        "format_version": FORMAT_VERSION,
        "name": name,
        "identity": identity(DOCUMENTS, FORMAT_VERSION, source.prompt_template, contents),
        "license": source.license,
        "attribution": source.attribution,
        "prompt_template": source.prompt_template,
        "styles": list(source.styles),
        "splits": {
            split: {
                "documents": sum(shard["documents"] for shard in listed),
                "pictures": sum(shard["pictures"] for shard in listed),
                "shards": listed,
            }
            for split, listed in shards.items()
        },
        "skipped": source.skipped.to_json(),
        "made_from": made_from,
        "config": recorded(settings),
        "provenance": provenance(),
    }


def _summary(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{split} {entry['documents']:,}" for split, entry in record["splits"].items())
    yield f"{folder}: {counts} documents; licence {record['license']}"
    first = {entry["reason"]: entry["key"] for entry in reversed(record["skipped"]["first"])}
    for reason, count in record["skipped"]["by_reason"].items():
        yield f"skipped {count:,}: {reason}" + (f" (first {first[reason]})" if reason in first else "")
    for split in ("val", "test"):
        if record["config"]["splits"].get(split) and split not in record["splits"]:
            yield f"warning: no document fell into {split}: raise data.splits.{split}= or change data.splits.seed="
    if record["config"]["splits"].get("heldout_style") and "heldout_style" not in record["splits"]:
        yield "warning: data.splits.heldout_style= has no effect: the source does not know its styles beforehand"
