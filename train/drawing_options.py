"""Options of the commands that ask an export: which model, how codes and words are drawn, how fast; what they mean.

Nothing heavy is imported before a command runs.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..model.bundle import Omnigram
    from ..model.generation.choice import Sampling
    from ..model.generation.speculation import Speculation

EXPORT = "runs/pretrain/latest/export"
BATCH_SIZE = 16  # so that of a long job some pictures are finished early

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def size(text: str) -> tuple[int, int]:
    """HxW in pixels."""
    found = re.fullmatch(r"(\d+)[x*](\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write height x width in pixels, as in 64x64")
    return int(found[1]), int(found[2])


def schedule(text: str) -> tuple[tuple[float, float], ...]:
    """PLACE:SHARE,… of guidance."""
    try:
        points = [[float(number) for number in point.split(":")] for point in text.split(",")]
        return tuple((place, share) for place, share in points)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no schedule: write place:share, both from 0 to 1, as in 0:0,0.5:1"
        ) from None


# field of Sampling: kind, how its value is shown or which values there are, what it says
SETTINGS: dict[str, tuple[Callable[[str], object], str | tuple[str, ...], str]] = {
    "temperature": (float, "T", "above 0 draws by chance, 0 takes the likeliest each time"),
    "top_k": (int, "K", "only among the K likeliest, 0 for all"),
    "top_p": (float, "P", "only among the likeliest that together have probability P, 1 for all"),
    "min_p": (float, "P", "only among those at least P times as likely as the likeliest, 0 for all"),
    "repetition_penalty": (float, "R", "above 1 avoids codes or words that are there already, 1 for none"),
    "guidance": (float, "S", "how much the words count, 1 for no guidance"),
    "picture_guidance": (float, "S", "how much the examples' pictures count apart from words: a third branch"),
    "guidance_space": (str, ("logits", "log_softmax"), "space in which guidance is computed"),
    "guidance_schedule": (
        schedule,
        "SCHEDULE",
        "share of guidance by place in the picture: 0:0,0.5:1 is none at its top, all from the middle on",
    ),
}
CHOICE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
GUIDANCE = ("guidance", "guidance_space", "guidance_schedule")
NARROWING = ("top_k", "top_p", "min_p")  # no effect at temperature 0


def add_sampling(command: argparse.ArgumentParser, title: str, names: Sequence[str], before: str = "") -> None:
    """An option for each setting; `before` stands before its name."""
    group = command.add_argument_group(title)
    for name in names:
        kind, shown, says = SETTINGS[name]
        metavar, choices = (shown, None) if isinstance(shown, str) else (None, shown)
        group.add_argument(
            flag(name, before), dest=f"{before}{name}", type=kind, metavar=metavar, choices=choices, help=says
        )


def add_examples(command: argparse._ActionsContainer) -> None:
    """The captioned pictures that stand before what is asked."""
    command.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("PICTURE", "WORDS"),
        help="a captioned picture to look at first; repeatable",
    )


def add_model(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model")
    group.add_argument("--model", default=EXPORT, metavar="FOLDER", help=f"an export (default {EXPORT})")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")


def add_speed(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("speed")
    group.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"drawn at once (default {BATCH_SIZE})"
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the steps: takes half a minute to a minute first, so for many pictures",
    )
    group.add_argument(
        "--speculation",
        choices=("jacobi", "draft"),
        help="guess codes ahead, by the model itself or by a smaller one; what is drawn stays the same",
    )
    group.add_argument("--window", type=int, metavar="N", help="codes that jacobi guesses ahead (default 8)")
    group.add_argument("--draft", metavar="EXPORT", help="the smaller model, of the same tokenizers")
    group.add_argument("--draft-length", type=int, metavar="N", help="codes that it writes ahead (default 4)")


def flag(name: str, before: str = "") -> str:
    """The option of a name."""
    return f"-{name}" if len(name) == 1 else f"--{before}{name}".replace("_", "-")


def given(options: argparse.Namespace, names: Sequence[str], before: str = "") -> dict[str, object]:
    """Those of the names that the command line gives, with their values."""
    found = {name: getattr(options, f"{before}{name}", None) for name in names}
    return {name: value for name, value in found.items() if value is not None and value != []}


def refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """ValueError if one of the names is given."""
    for name in given(options, names):
        raise ValueError(f"{flag(name)} {why}")


def check_counts(options: argparse.Namespace) -> None:
    """ValueError for numbers of pictures, seeds and batches that cannot be."""
    for name, count in given(options, ("n", "best_of", "batch_size", "rows")).items():
        if isinstance(count, int) and count < 1:
            raise ValueError(f"{flag(name)} {count} must be 1 or more")
    if not 0 <= getattr(options, "seed", 0) < 2**63:
        raise ValueError(f"--seed {options.seed} must be 0 or more, and less than 2^63")


def check_speculation(options: argparse.Namespace) -> None:
    """ValueError for options of a way to guess ahead that was not chosen."""
    if options.speculation != "jacobi":
        refuse(options, ("window",), "has no effect without --speculation jacobi: add it")
    if options.speculation != "draft":
        refuse(options, ("draft", "draft_length"), "has no effect without --speculation draft: add it")
    elif options.draft is None:
        raise ValueError("--speculation draft needs a smaller model: name its export with --draft")


def settle(own: "Sampling", options: argparse.Namespace, before: str = "") -> "Sampling":
    """Settings with those that the command line gives. ValueError for impossible ones, and for those without effect."""
    named = given(options, tuple(SETTINGS), before)
    if named.get("guidance") == 1 and "picture_guidance" not in named:  # what belongs to the model's guidance goes too
        own = dataclasses.replace(
            own, guidance=1.0, picture_guidance=None, guidance_space="logits", guidance_schedule=()
        )
    settled = dataclasses.replace(own, **named)  # pyright: ignore[reportArgumentType] - argparse made them
    for name in NARROWING:
        if settled.is_greedy and name in named:
            raise ValueError(
                f"{flag(name, before)} {named[name]} has no effect at temperature 0, which takes the likeliest: "
                f"set {flag('temperature', before)}"
            )
    return settled


def load(options: argparse.Namespace) -> "Omnigram":
    """The export that the command line names, on its device, with its way to guess ahead."""
    folder = Path(options.model)
    if options.model == EXPORT and not folder.exists():
        raise FileNotFoundError(
            f"{EXPORT} is not there: run `omnigram pretrain` here first, or name an export with --model"
        )
    from omegaconf import OmegaConf

    from ..model.bundle import Omnigram
    from .machine import check_compiler, prepare

    device = prepare(OmegaConf.create({"device": options.device, "threads": None}))
    compiles = getattr(options, "compile", False)
    if compiles:
        try:
            check_compiler(device)
        except ValueError:
            raise ValueError("--compile needs a C++ compiler: install g++, or leave it out") from None
    omnigram = Omnigram.from_pretrained(folder, device=device, compile=compiles)
    if getattr(options, "speculation", None):
        omnigram.sampler.speculation = _speculation(options, omnigram, device)
    return omnigram


def _speculation(options: argparse.Namespace, omnigram: "Omnigram", device: "torch.device") -> "Speculation":
    """How codes are guessed ahead. ValueError for a draft model of other tokenizers."""
    from ..model.codec import read_card
    from ..model.generation.speculation import Draft, Jacobi
    from ..model.stored_decoder import read_decoder

    if options.speculation == "jacobi":
        return Jacobi() if options.window is None else Jacobi(options.window)
    folder = Path(options.draft)
    card, vocabulary = read_card(folder)
    for name, ours in omnigram.card.identities.items():
        theirs = card.identities.get(name, "none")
        if theirs != ours:
            raise ValueError(
                f"--draft {folder} has {name} {theirs[:12]}, --model {options.model} has {ours[:12]}: "
                "a draft model has the same vocabulary and tokenizers"
            )
    model = read_decoder(folder, vocabulary, {}).to(device)  # pyright: ignore[reportArgumentType]
    return Draft(model) if options.draft_length is None else Draft(model, options.draft_length)
