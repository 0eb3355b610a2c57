"""The steps of the road, `omnigram data` to `evaluate`, for every combination of overrides; and `omnigram sweep`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

SWEEP = "model=nano,micro,small"  # where no model is named
SWEEPS = Path("runs/sweep")
MEASURING = ("evaluate.", "device=", "threads=", "evaluation.", "launcher")  # what `evaluate` takes

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]

# command: module, function, what it does, examples
STEPS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "data": (
        "shards",
        "make_shards",
        "pictures and words -> shards of documents",
        (
            "",
            "data.source.languages=[en,de,ja] data.name=emoji3",
            "data=folder data.source.path=/my/pictures data.name=mine",
        ),
    ),
    "tokenizer": (
        "tokenizer",
        "make_tokenizer",
        "shards -> a text tokenizer and an image tokenizer",
        ("", "tokenizer=movqgan", "tokenizer.trainer.max_steps=200 -m tokenizer.quantizer.codebook_size=512,1024"),
    ),
    "tokens": (
        "tokens",
        "make_tokens",
        "shards and tokenizers -> shards of tokens",
        ("", "data=folder data.source.path=/my/pictures data.name=mine", "tokens.engine=ray"),
    ),
    "pretrain": (
        "pretrain",
        "pretrain",
        "tokens -> a trained decoder, with its export and a page of samples",
        (
            "",
            "model=micro trainer.max_steps=200",
            "experiment=tiny",
            "-m model=nano,micro seed=0,1",
            "-m model=nano,micro launcher=slurm launcher.gpus_per_node=1",
        ),
    ),
    "evaluate": (
        "evaluate",
        "evaluate",
        "measure a finished run, or any image tokenizer, on held-out pictures",
        (
            "",
            "evaluate.run=runs/tokenizer/latest",
            "evaluate.run=runs/imported/chameleon evaluate.pictures=photographs",
            "evaluation.queries=1000",
        ),
    ),
}


def add_step_commands(add: Add) -> None:
    """Add the commands to the command line."""
    for name, (_, _, summary, examples) in STEPS.items():
        step = add(name, summary, examples, run_step)
        _take_overrides(step)
        step.add_argument("-m", "--multirun", action="store_true", help="run every combination of key=a,b values")
    sweep = add("sweep", "pre-train each of several configurations, then compare them", ("", SWEEP), run_sweep)
    _take_overrides(sweep)


def _take_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="group=option or key=value, as --show-config lists them"
    )
    command.add_argument("--show-config", action="store_true", help="print the configuration as YAML, do nothing")


def run_step(options: argparse.Namespace) -> int:
    """One of the five steps, for every combination of the overrides."""
    from .compose import compose_each

    combinations = compose_each(options.overrides, options.multirun)
    if options.show_config:
        return _show(config for _, config in combinations)
    if options.command == "evaluate":
        for override in options.overrides:
            if not override.lstrip("+").startswith(MEASURING):
                raise ValueError(
                    f"{override} has no effect on a run that is finished: `evaluate` takes {', '.join(MEASURING)}…"
                )
    for made in launched(options.command, combinations):
        from .world import is_first  # late, for a launcher alone needs no torch

        if is_first():
            print(made, flush=True)
    if "torch" in sys.modules:
        from .world import leave_world

        leave_world()
    return 0


def launched(step: str, combinations: "Sequence[tuple[list[str], DictConfig]]") -> "Iterator[Path]":
    """The folders that the combinations of a step make, each run as `launcher` says."""
    from .compose import build
    from .launching import Launcher, jobs_of

    jobs = jobs_of(step, combinations)
    return build(jobs[0].config, "launcher", Launcher).launch(jobs)


def run_sweep(options: argparse.Namespace) -> int:
    """Pre-train every combination, then one table and one plot of them."""
    from .compose import compose_each

    named = any(override.split("=")[0] == "model" for override in options.overrides)
    combinations = compose_each([*([] if named else [SWEEP]), *options.overrides], multirun=True)
    first, *others = (config for _, config in combinations)
    for part in ("data", "tokenizer", "tokens") if first.tokens.tokenizer else ("data", "tokenizer", "tokens", "seed"):
        if any(config[part] != first[part] for config in others):
            raise ValueError(
                f"a sweep compares decoders on the same tokens, but {part} differs: "
                "run these by `omnigram pretrain -m`, or name one run of tokenizers in tokens.tokenizer="
            )
    if options.show_config:
        return _show(config for _, config in combinations)
    if not first.launcher.get("wait", True):
        raise ValueError(
            "a sweep compares its runs at the end: leave out launcher.wait=, or run `omnigram pretrain -m`"
        )
    from ..data.artefact import identity
    from .runs import point_latest
    from .sweep import summarise_sweep
    from .world import is_first

    runs = list(launched("pretrain", combinations))
    if not is_first():
        return 0
    folder = summarise_sweep(runs, SWEEPS / identity([run.name for run in runs])[:8])
    point_latest(folder)
    print(folder, flush=True)
    return 0


def _show(configs: "Iterable[DictConfig]") -> int:
    from omegaconf import OmegaConf

    print("---\n".join(OmegaConf.to_yaml(config) for config in configs), end="")
    return 0
