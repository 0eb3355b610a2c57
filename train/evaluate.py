"""`make evaluate`: what a finished run, an export or an image tokenizer is worth, from what it left on disk.

| evaluate.run         | evaluate.pictures | measured                                          |
| -------------------- | ----------------- | ------------------------------------------------- |
| a pre-training run   | null              | its decoder, on its own held-out documents        |
| a tokenizer run      | null              | its image tokenizer, on its own held-out pictures |
| any run              | given             | its image tokenizer, on these                     |
| an export, an import | given             | the same                                          |
| an image tokenizer   | given             | the same; evaluate.resolution says the size       |

On its own data a run's metrics.json is brought up to date; an image tokenizer leaves
evaluation-<pictures>.json and .png.
"""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..data.artefact import atomic_write_json
from ..data.record import DATASET, DOCUMENTS, read_record
from ..model.codec import CARD
from .judge.judgement import Judgement, JudgeSettings, judge
from .judge.picture_sets import PictureSet, heldout_pictures, read_pictures
from .judge.subject import Subject, is_tokenizer_folder, of_export, of_folder
from .judge.tokenizer_run import evaluate_tokenizer
from .machine import prepare
from .out_of_memory import memory_advice
from .pretrain import EXPORT, measure
from .report import write_report
from .runs import METRICS, finished_run
from .tokenizer import IMAGE_MODEL


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Measure what `config.evaluate.run` names; the numbers, which are also written as the table above says.

    Errors: ValueError if the folder is none of these, or the data it is to be measured on is gone or another.
    """
    run, named = Path(config.evaluate.run), config.evaluate.pictures
    if (run / CARD).is_file() or is_tokenizer_folder(run):
        if named is None:
            raise ValueError(f"{run} has no data of its own: set evaluate.pictures= to a folder, or to photographs")
        return _judge(config, _subject(run, config), run).numbers
    before = finished_run(run)
    made = _configuration(run / "config.yaml")
    for name in ("device", "threads", "evaluation", "evaluate"):  # of this machine and measurement, not of the training
        made[name] = config[name]
    holds = next((part for part in (EXPORT, IMAGE_MODEL) if (run / part).exists()), None)
    if holds is None:
        raise ValueError(f"{run} holds neither {EXPORT}/ nor {IMAGE_MODEL}/: name the folder of a finished run")
    if named is not None:
        subject = _subject(run / EXPORT, made) if holds == EXPORT else _trained(run, made)
        return _judge(config, subject, run).numbers
    if holds == EXPORT:
        measured = measure(run, _tokens(run, made, before), made)
        table = {name: value for name, value in measured.items() if isinstance(value, int | float)}
        Console().print_json(json.dumps(table))
    else:
        documents, subject = _documents(run, made, before), _trained(run, made)
        judged = _judge(config, subject, run, documents)
        measured = {**judged.numbers, **evaluate_tokenizer(run, documents, made)}
        measured["pictures_judged"] = len(judged.pictures.pictures)  # `pictures` are all of the split
    atomic_write_json(run / METRICS, {**before, **measured})
    write_report(run)
    return measured


def _judge(config: DictConfig, subject: Subject, folder: Path, documents: Path | None = None) -> Judgement:
    """Judge on the pictures that are named, or on held-out ones of `documents`; record and page go to `folder`."""
    settings, size = config.evaluate, int(config.evaluation.batch_size)
    chosen = JudgeSettings(tuple(settings.baselines), size, bool(config.evaluation.features))
    console = Console(stderr=True)
    with memory_advice(f"lower evaluation.batch_size={size}, or evaluate.max_pictures={settings.max_pictures}"):
        pictures = _pictures(config, subject, documents)
        judgement = judge(subject, pictures, chosen, console)
    asked = {"evaluate": OmegaConf.to_container(settings, resolve=True), "seed": config.seed}
    asked["evaluation"] = {"batch_size": size, "features": chosen.features}
    path = judgement.save(folder, {"config": asked, "seed": config.seed})
    judgement.print(Console())
    console.print(f"see {path} and {path.with_suffix('.png')}", highlight=False, soft_wrap=True)
    return judgement


def _pictures(config: DictConfig, subject: Subject, documents: Path | None) -> PictureSet:
    most = int(config.evaluate.max_pictures)
    if documents is not None:
        return heldout_pictures(documents, subject, most)
    return read_pictures(str(config.evaluate.pictures), subject, most)


def _subject(folder: Path, config: DictConfig) -> Subject:
    """The image tokenizer of an export, or the one that is a folder's only content."""
    device, resolution = prepare(config), config.evaluate.resolution
    if is_tokenizer_folder(folder):
        return of_folder(folder, resolution, device=device)
    return of_export(folder, resolution, device)


def _trained(run: Path, made: DictConfig) -> Subject:
    """The image tokenizer of a tokenizer run, with pictures as it was trained on unless a size is named."""
    sizes = made.tokenizer.pictures
    resolution = made.evaluate.resolution or int(sizes.resolution)
    device: torch.device = prepare(made)
    return of_folder(run / IMAGE_MODEL, resolution, float(sizes.max_ratio), device)


def _configuration(path: Path) -> DictConfig:
    try:
        made = OmegaConf.load(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: without it the run cannot be measured again") from None
    except Exception as fault:  # the parser of YAML raises its own kinds
        raise ValueError(f"{path} cannot be read: {str(fault).splitlines()[0]}") from None
    if not isinstance(made, DictConfig):
        raise ValueError(f"{path} is no configuration")
    return made


def _documents(run: Path, made: DictConfig, before: dict[str, Any]) -> Path:
    """The data set that a tokenizer was trained on, if it is there still."""
    folder = Path(made.data.folder)
    if read_record(folder, DOCUMENTS)["identity"] != before.get("made_from", {}).get("dataset"):
        raise ValueError(f"{folder} is not the data set that {run} was made from: make that one again")
    return folder


def _tokens(run: Path, made: DictConfig, before: dict[str, Any]) -> Path:
    """The token data set that a run was trained on, found by its identity beside its documents."""
    wanted, root = before.get("made_from", {}).get("tokens"), Path(made.data.folder)
    for record in sorted(root.parent.glob(f"{root.name}-*/{DATASET}")):
        if json.loads(record.read_text(encoding="utf-8")).get("identity") == wanted:
            return record.parent
    raise ValueError(f"the tokens of {run} are not in {root.parent}: make them again with `omnigram tokens`")
