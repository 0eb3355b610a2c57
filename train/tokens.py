"""`make tokens`: shards + tokenizers -> token shards, `datasets/<name>-<identity of the tokenizers>/`.

1. the tokenizers of a run, `text.model` and `image/`; with how pictures are fitted they name the folder
2. one output shard for each input shard: same number, same samples, same order; after a stop finished ones are kept;
   in this process, or by workers on Ray (`tokens.engine`), with the same bytes
3. vocabulary.json, and dataset.json last: a folder without it is no data set yet
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..data.artefact import FolderLock, atomic_write, atomic_write_json, identity, provenance, remove_partials
from ..data.encoding import DocumentEncoder
from ..data.fitting import Fitting
from ..data.record import DATASET, DOCUMENTS, FORMAT_VERSION, TOKENS, VOCABULARY, read_record
from ..data.shards import RECORDS
from ..data.splits import TRAIN
from ..model.codec import CARD, Codec
from .machine import choose_device
from .shards import make_shards
from .token_shards import Advance, Shard, ShardWork, each_shard
from .tokenizer import read_tokenizers, tokenizer_run

LOCAL, RAY = ENGINES = ("local", "ray")
# the records of all shards, in any order, each when its shard is there
Engine = Callable[[ShardWork, Sequence[Shard], DocumentEncoder, Advance], Iterable[dict[str, Any]]]


def make_tokens(config: DictConfig) -> Path:
    """Encode the data set of `config.data` as `config.tokens` says, unless that is done; the folder of tokens.

    Raises:
        FileNotFoundError: no tokenizer run.
        ValueError: the inputs do not belong together, a shard is not as its data set says, a sample is broken.
        OSError: another run works in the folder, the disk is full or not writable.
    """
    options = config.tokens
    engine = make_engine(config)
    folder = tokenizer_run(config)
    # workers of Ray move the tokenizers to a device of their own
    device = "cpu" if options.engine == RAY else choose_device(options.device, "tokens.device")
    codec = read_tokenizers(folder, device)
    return write_tokens(
        make_shards(config),
        codec,
        fitting_of(codec, *_sizes(config, folder)),
        batch_size=int(options.batch_size),
        workers=int(options.workers),
        share=float(options.share),
        device=device,
        engine=engine,
    )


def _sizes(config: DictConfig, folder: Path) -> tuple[int, float]:
    """Resolution and largest ratio of pictures: as asked, else as the tokenizer run in the folder was trained."""
    trained = folder / "config.yaml"
    is_run = trained.is_file() and not (folder / CARD).is_file()  # an export has pictures of its own sizes
    settings = OmegaConf.load(trained) if is_run else config
    resolution, max_ratio = (
        OmegaConf.select(settings, f"tokenizer.pictures.{name}") if config.tokens[name] is None else config.tokens[name]
        for name in ("resolution", "max_ratio")
    )
    return int(resolution), float(max_ratio)


def make_engine(config: DictConfig) -> Engine:
    """What carries the shards out, as `tokens.engine` says. ValueError where there is no such engine."""
    options = config.tokens
    if options.engine not in ENGINES:
        raise ValueError(f"tokens.engine={options.engine!r} is unknown: choose of {', '.join(ENGINES)}")
    if options.engine == LOCAL:
        return each_shard
    from .ray_tokens import RayEngine

    return RayEngine(options.device, options.processes)


def fitting_of(codec: Codec, resolution: int, max_ratio: float) -> Fitting:
    """How pictures are fitted: as an imported model does it, else as `resolution` and `max_ratio` say.

    ValueError for sizes that the tokenizer does not take.
    """
    if codec.card.preprocessing is not None:
        return Fitting(codec.patch, preprocessing=codec.card.preprocessing)
    if "image" in codec.card.grammars:
        sizes = tuple(codec.image_tokenizer.size(*grid) for grid in codec.card.sizes)
        return Fitting(codec.patch, sizes=sizes)
    fitting = Fitting(codec.patch, resolution, max_ratio)
    for bucket in fitting.buckets:
        codec.image_tokenizer.grid(*bucket)
    return fitting


def published(codec: Codec) -> dict[str, Any]:
    """How a model numbers and writes its codes, if it has its own way, as JSON has it; empty for one trained here."""
    if not codec.card.grammars and codec.card.preprocessing is None:
        return {}
    grammars = {name: asdict(grammar) for name, grammar in sorted(codec.card.grammars.items())}
    fields = {"vocabulary": codec.vocabulary.identity, "grammars": grammars, "max_side": codec.card.max_side}
    return json.loads(json.dumps(fields))


def write_tokens(
    source: Path,
    codec: Codec,
    fitting: Fitting,
    *,
    batch_size: int = 64,
    workers: int = 2,
    share: float = 1.0,
    device: torch.device | str = "cpu",
    engine: Engine = each_shard,
    console: Console | None = None,
) -> Path:
    """`make_tokens` with the tokenizers at hand. The folder of tokens stands beside `source`.

    share: of the concepts that are encoded, in every split. ValueError where none of the train split are among them.
    """
    documents = read_record(source, DOCUMENTS)
    text, image, written = codec.text_tokenizer, codec.image_tokenizer, published(codec)
    of_share = {} if share == 1 else {"share": share}
    parts = (*fitting.record.values(), *([written] if written else []), *of_share.values())
    tokenizer = identity(text.identity, image.identity, *parts)
    folder = source.with_name(f"{source.name}-{tokenizer[:12]}")
    made_from = {
        "format_version": FORMAT_VERSION,
        "dataset": {"name": documents["name"], "identity": documents["identity"]},
        "text_tokenizer": text.identity,
        "image_tokenizer": image.identity,
        **fitting.record,
        **written,
        **of_share,
    }
    if _finished(folder, made_from):
        return folder
    vocabulary, digit_ids = codec.vocabulary, codec.digit_ids
    encoder = DocumentEncoder(text, image, fitting, batch_size, workers, device)
    console = console or Console(stderr=True)
    with FolderLock(folder):
        if _finished(folder, made_from):  # by the run that held the lock
            return folder
        work = ShardWork(source, folder, identity(made_from), share)
        splits = _write(work, documents["splits"], encoder, engine, console)
        if TRAIN in splits and not splits[TRAIN]["documents"]:
            raise ValueError(f"tokens.share={share} leaves no document of the {TRAIN} split: raise it")
        atomic_write(folder / VOCABULARY, vocabulary.to_json() + "\n")
        contents = {split: [(s["file"], s["sha256"]) for s in entry["shards"]] for split, entry in splits.items()}
        record = {
            "format": TOKENS,
            "format_version": FORMAT_VERSION,
            "name": folder.name,
            "identity": identity(TOKENS, FORMAT_VERSION, vocabulary.identity, digit_ids, contents),
            "tokenizer": tokenizer,
            "vocabulary": vocabulary.identity,
            "digit_ids": digit_ids,
            "grammars": written.get("grammars", {}),
            "max_side": codec.card.max_side,
            "patch": image.patch,
            **{name: documents[name] for name in ("license", "attribution", "prompt_template", "styles")},
            "splits": splits,
            "made_from": made_from,
            "provenance": provenance(),
        }
        atomic_write_json(folder / DATASET, record)
        shutil.rmtree(folder / RECORDS, ignore_errors=True)
    for line in _summary(folder, splits):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return folder


def _finished(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the folder holds these tokens; ValueError when it holds those of another data set."""
    if not (folder / DATASET).exists():
        return False
    there = read_record(folder, TOKENS).get("made_from")
    if there == made_from:
        return True
    name = made_from["dataset"]["name"]
    raise ValueError(f"{folder} holds tokens of another making of {name!r} than is there now: remove the folder")


def _write(
    work: ShardWork,
    splits: Mapping[str, Mapping[str, Any]],
    encoder: DocumentEncoder,
    engine: Engine,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """What dataset.json says of each split, once its shards are written."""
    folder = work.folder
    remove_partials(folder)
    (folder / RECORDS).mkdir(exist_ok=True)
    remove_partials(folder / RECORDS)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("estimate"), TimeRemainingColumn(elapsed_when_finished=True))
    shards = [shard for entry in splits.values() for shard in entry["shards"]]
    with Progress(*columns, *times, console=console) as progress:
        task = progress.add_task("tokens", total=sum(entry["documents"] for entry in splits.values()))
        records = engine(work, shards, encoder, lambda count: progress.advance(task, count))
        of_file = {record["file"]: record for record in records}
    remove_partials(folder)  # of workers that died
    told = {split: _split([of_file[shard["file"]] for shard in entry["shards"]]) for split, entry in splits.items()}
    expected = {shard["file"] for entry in told.values() for shard in entry["shards"]}
    for stray in folder.glob("*.tar"):  # of an earlier making of the data set that was stopped
        if stray.name not in expected:
            stray.unlink()
    return told


def _split(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    codes, grids = Counter[str](), Counter[str]()
    for shard in shards:
        codes.update(shard["codes"])
        grids.update(shard["grids"])
    return {
        "documents": sum(shard["documents"] for shard in shards),
        "codes": dict(sorted(codes.items())),  # by modality, first wordings only
        "grids": dict(sorted(grids.items())),  # pictures by rows x columns of codes
        "shards": [
            {name: value for name, value in shard.items() if name not in ("codes", "grids")} for shard in shards
        ],
    }


def _summary(folder: Path, splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for split, entry in splits.items():
        codes = ", ".join(f"{count:,} {modality} codes" for modality, count in entry["codes"].items())
        yield f"{folder}: {split}: {entry['documents']:,} documents, {codes}"
