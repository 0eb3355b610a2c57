"""`make evaluate`: the numbers of a finished run again, from what it left on disk."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..data.artefact import atomic_write_json
from ..data.record import DATASET, DOCUMENTS, read_record
from .pretrain import EXPORT, measure
from .report import write_report
from .runs import METRICS, finished_run
from .tokenizer import IMAGE_MODEL, evaluate_tokenizer


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Measure `config.evaluate.run` again on the data it was made from; its metrics.json is brought up to date.

    Errors: ValueError if the folder is no finished run, or the data it was made from is gone or another.
    """
    run = Path(config.evaluate.run)
    before = finished_run(run)
    made = _configuration(run / "config.yaml")
    for name in ("device", "threads", "evaluation"):  # of this machine and this measurement, not of the training
        made[name] = config[name]
    if (run / EXPORT).exists():
        measured = measure(run, _tokens(run, made, before), made)
    elif (run / IMAGE_MODEL).exists():
        measured = evaluate_tokenizer(run, _documents(run, made, before), made)
    else:
        raise ValueError(f"{run} holds neither {EXPORT}/ nor {IMAGE_MODEL}/: name the folder of a finished run")
    atomic_write_json(run / METRICS, {**before, **measured})
    write_report(run)
    table = {name: value for name, value in measured.items() if isinstance(value, int | float)}
    Console().print_json(json.dumps(table))
    return measured


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
