"""Guessing codes ahead: plain sampling against Jacobi and draft-model speculation, on a trained export.

Each draws the words of training captions in turns, at several temperatures and with the export's own settings, one
picture at a time and several in a batch. A guess costs arithmetic and a confirmed one saves a forward, so whether it
pays depends on how sure the model is and on how much the machine does at the price of one row: on a CPU, where the
time of a forward grows with its rows, less than on a GPU. The table says it as it is:
a step     codes that a forward of the model writes in each document; plain sampling writes 1, but for the first
confirmed  share of the guesses that were right
ratio      pictures a second over those of plain sampling

Speculation does not change what is drawn: the script compares every picture with that of plain sampling, code for code,
and exits with 1 if they differ. Forwards of other shapes round differently, and a draw may hang on the last bit of a
logit: one picture in a hundred may do so, and is told.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from timing.rounds import command, digits, in_turns, parser, positive

from omnigram.data.shards import read_shard
from omnigram.model.bundle import Omnigram
from omnigram.model.generation import Draft, Jacobi, Prompt, Sampler, Sampling
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare

EXPORT = "runs/pretrain/latest/export"
DATA = "datasets/emoji"
WINDOWS, LENGTHS = (4, 8, 16), (2, 4, 8)
TIES = 0.01  # share of pictures that may differ by the rounding of forwards of another shape

Codes = NDArray[np.int64]


@dataclass
class Drawn:
    """What a method has done in the last round: codes [H, W] of each picture by step, and its counts."""

    pictures: dict[int, list[Codes]]
    forwards: int = 0
    choices: int = 0
    guessed: int = 0
    confirmed: int = 0


class Drawing:
    """Draws the captions of each step with one method."""

    def __init__(self, sampler: Sampler, captions: Sequence[Sequence[str]], size: tuple[int, int], setting: Sampling):
        self.sampler, self.captions, self.setting = sampler, captions, setting
        self.limits = {"sizes": {"image": size}, "text": False, "min_blocks": 1, "max_blocks": 1}
        self.drawn = Drawn({})

    def step(self, number: int) -> float:
        """-> pictures drawn."""
        if number == 0:
            self.drawn = Drawn({})
        words = self.captions[number]
        prompts = [Prompt((text,), self.limits, 1000 * number + row) for row, text in enumerate(words)]
        samples = self.sampler.sample(prompts, {"image": self.setting}, batch_size=len(words))
        self.drawn.pictures[number] = [sample.blocks("image")[-1] for sample in samples]
        for name in ("forwards", "choices", "guessed", "confirmed"):
            setattr(self.drawn, name, getattr(self.drawn, name) + getattr(self.sampler.statistics, name))
        return len(words)


def methods(omnigram: Omnigram, draft: Omnigram | None) -> dict[str, Sampler]:
    """Plain, Jacobi with each window, and the draft with each length. ValueError for one of another vocabulary."""
    guesses: dict[str, Jacobi | Draft | None] = {"plain": None}
    guesses |= {f"jacobi {window}": Jacobi(window) for window in WINDOWS}
    if draft is not None:
        guesses |= {f"draft {length}": Draft(draft.model, length) for length in LENGTHS}
    codec = omnigram.codec
    return {
        name: Sampler(omnigram.model, codec.grammar, codec.text_tokenizer, speculation=guess)
        for name, guess in guesses.items()
    }


def read_captions(folder: Path, number: int) -> list[str]:
    """Words of so many training documents, spread evenly over the first shard. ValueError if there are too few."""
    shards = sorted(folder.glob("train-*.tar"))
    if not shards:
        raise ValueError(f"{folder} holds no train-*.tar: name the data set that the model was trained on with --data")
    found = [
        segment.text
        for document in read_shard(shards[0])
        for segment in document.segments[:1]
        if segment.modality == "text"
    ]
    if len(found) < number:
        raise ValueError(f"{shards[0]} holds {len(found)} captions, {number} are needed: take fewer --steps")
    return [found[place] for place in np.linspace(0, len(found) - 1, number).astype(int)]


def differing(plain: Drawn, other: Drawn) -> int:
    """Number of pictures that are not the same, code for code."""
    assert plain.pictures.keys() == other.pictures.keys()
    pairs = [pair for step in plain.pictures for pair in zip(plain.pictures[step], other.pictures[step], strict=True)]
    return sum(not np.array_equal(*pair) for pair in pairs)


def compare(
    samplers: Mapping[str, Sampler],
    called: str,
    setting: Sampling,
    captions: Sequence[Sequence[str]],
    size: tuple[int, int],
    rounds: int,
) -> tuple[int, int]:
    """Prints a line for each method. -> how many pictures were compared, and how many were not the same."""
    drawings = {name: Drawing(sampler, captions, size, setting) for name, sampler in samplers.items()}
    steps: dict[str, Callable[[int], float]] = {name: drawing.step for name, drawing in drawings.items()}
    rates = in_turns(steps, rounds, len(captions))
    plain, batch = drawings["plain"].drawn, len(captions[0])
    compared = different = 0
    for name, drawing in drawings.items():
        drawn, rate = drawing.drawn, median(rates[name])
        others = differing(plain, drawn)
        compared, different = compared + batch * len(captions) * (name != "plain"), different + others
        share = f"{drawn.confirmed / drawn.guessed:.1%}" if drawn.guessed else ""
        ratio = "" if name == "plain" else digits(rate / median(rates["plain"]))
        print(
            f"{called:14} {batch:5}  {name:10} {drawn.choices / drawn.forwards / batch:6.2f} {share:>9} "
            f"{digits(rate):>10} {ratio:>7} {others:9}"
        )
    return compared, different


def main(arguments: Sequence[str] | None = None) -> None:
    made = options()
    args = made.parse_args(arguments)
    prepare(compose_config([f"threads={args.threads}", "device=cpu"]))
    if args.export == EXPORT and not Path(EXPORT).is_dir():
        print(f"{EXPORT} is not there: nothing to measure before `make pretrain`")
        return
    try:
        omnigram, draft = load(args.export), load(args.draft) if args.draft else None
        captions = read_captions(Path(args.data), args.steps * max(args.batches))
        samplers = methods(omnigram, draft)
    except (OSError, ValueError) as fault:
        sys.exit(str(fault))
    own = omnigram.card.sampling.get("image", Sampling())
    settings = {"temperature 0": Sampling(temperature=0), "temperature 1": Sampling(), "its own": own}
    size = omnigram.codec.grid(None)
    print(f"drawing  {size[0]} x {size[1]} codes with {args.export}" + (f", drafts by {args.draft}" if draft else ""))
    named = [f"{name} {value}" for name, value in vars(own).items() if value != getattr(Sampling(), name)]
    print(f"its own  {', '.join(named) or 'the defaults'}")
    print(
        f"{'':14} {'batch':>5}  {'':10} {'a step':>6} {'confirmed':>9} {'pictures/s':>10} {'ratio':>7} {'differing':>9}"
    )
    compared = different = 0
    for called, setting in settings.items():
        for batch in args.batches:
            parts = [captions[step * batch : (step + 1) * batch] for step in range(args.steps)]
            counts = compare(samplers, called, setting, parts, size, args.rounds)
            compared, different = compared + counts[0], different + counts[1]
    print(f"the same {compared - different} of {compared} pictures are those of plain sampling, code for code")
    print(f"repeat   {command(made.prog, args)}")
    if different > TIES * compared:
        sys.exit(f"{different} of {compared} pictures have other codes than plain sampling draws: it is not exact")


def load(path: str) -> Omnigram:
    """An export, or that of a run."""
    return Omnigram.from_pretrained(Path(path, "export") if Path(path, "export").is_dir() else path)


def options() -> argparse.ArgumentParser:
    made = parser("speculation.py", __doc__, rounds=3, steps=4)
    made.add_argument("--export", default=EXPORT, metavar="FOLDER", help="an export, or a run that has one")
    made.add_argument(
        "--draft", metavar="FOLDER", help="likewise: a smaller model of the same vocabulary, which drafts"
    )
    made.add_argument("--data", default=DATA, metavar="FOLDER", help="data set that the captions are taken from")
    made.add_argument("--batches", type=positive, nargs="+", default=[1, 8], metavar="N", help="pictures drawn at once")
    return made


if __name__ == "__main__":
    main()
