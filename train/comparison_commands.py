"""`omnigram through-decoder` and `compare`: image tokenizers judged by decoders trained alike on their codes."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .step_commands import launched

EXPERIMENT = "through_decoder"
COMPARISONS = Path("runs/comparison")

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def add_comparison_commands(add: Add) -> None:
    """Add the commands to the command line."""
    judge = add(
        "through-decoder",
        "judge image tokenizers: pre-train the same small decoder on the codes of each, then compare",
        (
            "runs/tokenizer/latest",
            "runs/tokenizer/emoji-vqvae-1a2b3c4d runs/tokenizer/emoji-fsq-5e6f7a8b",
            "runs/tokenizer/latest trainer.max_steps=8000",
        ),
        run_through_decoder,
    )
    judge.add_argument(
        "tokenizers", nargs="+", metavar="RUN", help="runs of `tokenizer`; key=value beside them holds for all decoders"
    )
    side = add(
        "compare",
        "one table and one page of image tokenizers, of the decoders trained alike on their codes",
        ("runs/through_decoder/emoji-nano-1a2b3c4d runs/through_decoder/emoji-nano-5e6f7a8b",),
        run_compare,
    )
    side.add_argument("runs", nargs="+", metavar="RUN", help="finished runs of `through-decoder` or `pretrain`")
    side.add_argument("--out", type=Path, metavar="FOLDER", help=f"where both go (default {COMPARISONS}/<id>)")


def run_through_decoder(options: argparse.Namespace) -> int:
    """`omnigram through-decoder`."""
    from .compose import compose_each
    from .tokenizer import read_tokenizers
    from .world import is_first, leave_world

    overrides = [text for text in options.tokenizers if "=" in text]
    folders = list(dict.fromkeys(Path(text) for text in options.tokenizers if "=" not in text))
    if not folders:
        raise ValueError("no tokenizer to judge: name runs of `omnigram tokenizer`, such as runs/tokenizer/latest")
    for override in overrides:
        key = re.split("[=@:]", override.lstrip("+~"))[0]
        if key in ("experiment", "tokens.tokenizer") or re.split("[./]", key)[0] == "tokenizer":
            raise ValueError(
                f"{override} has no place here: tokenizers are named by their runs, and all is judged alike"
            )
    for folder in folders:
        read_tokenizers(folder)  # what cannot be read is said before the first is judged
    combinations = [
        compose_each([f"experiment={EXPERIMENT}", *overrides, f"tokens.tokenizer='{folder}'"], multirun=False)[0]
        for folder in folders
    ]
    if not combinations[0][1].launcher.get("wait", True):
        raise ValueError("tokenizers are compared at the end: leave out launcher.wait=, or run `omnigram pretrain`")
    runs = list(launched("pretrain", combinations))
    if is_first():
        _compare(runs, None)
    leave_world()
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """`omnigram compare`."""
    _compare([Path(run) for run in options.runs], options.out)
    return 0


def _compare(runs: Sequence[Path], out: Path | None) -> None:
    from rich.console import Console

    from ..data.artefact import identity
    from .comparison import compare

    folder = out or COMPARISONS / identity([run.resolve().name for run in runs])[:8]
    compare(runs, folder, Console(stderr=True))
    print(folder, flush=True)
