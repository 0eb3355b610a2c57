"""`omnigram sample`, `complete`, `joint` and `again`: pictures from the shell."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .drawing_files import add_files, draw_and_save, files_of, identities
from .drawing_options import (
    CHOICE,
    GUIDANCE,
    Add,
    add_examples,
    add_sampling,
    check_counts,
    check_speculation,
    flag,
    load,
    refuse,
    settle,
    size,
)

if TYPE_CHECKING:
    from ..model.generation.choice import Sampling

CODES = "how pictures are drawn, code by code (what is not given is as the export says)"


def add_picture_commands(add: Add) -> None:
    """Add the commands to the command line."""
    sample = add(
        "sample",
        "draw pictures of words",
        (
            '"green apple" --style openmoji -n 8 --temperature 0.3 --out apple.png',
            "rocket dog -n 4 --temperature 0.3 --seed 7",
            "cat --separate --out cats/cat.png",
            "cat --best-of 8 --temperature 1",
            "cat --best-of 8 --temperature 1 --rank-by words",
            'cat --example apple.png "green apple" --example dog.png dog',
            "--unconditional -n 16",
        ),
        sample_pictures,
    )
    sample.usage = "%(prog)s WORDS … [options]"
    sample.add_argument("words", nargs="*", metavar="WORDS", help="what to draw; several prompts, several pictures")
    what = sample.add_argument_group("what is drawn")
    what.add_argument(
        "--unconditional",
        action="store_true",
        help="pictures of no words, in place of WORDS; at temperature 1 where the export says 0",
    )
    what.add_argument("-n", type=int, default=1, metavar="COUNT", help="pictures of each prompt (default 1)")
    what.add_argument("--size", type=size, metavar="HxW", help="in pixels (default: what the model was trained on)")
    what.add_argument("--style", help="one that the model knows (default: its first)")
    what.add_argument("--negative", metavar="WORDS", help="what guidance, above 1, leads away from")
    add_examples(what)
    what.add_argument("--best-of", type=int, metavar="K", help="of K samples keep the best one")
    what.add_argument(
        "--rank-by",
        choices=("picture", "words"),
        help="the best is the picture likeliest given the words (default), or that given which the words are likeliest",
    )
    what.add_argument("--seed", type=int, default=0, help="the same seed draws the same pictures (default 0)")
    add_sampling(sample, CODES, (*CHOICE, "guidance", "picture_guidance", "guidance_space", "guidance_schedule"))
    add_files(sample, "sample.png")

    complete = add(
        "complete",
        "keep the top of a picture and draw the rest anew",
        (
            'apple.png --rows 4 --words "green apple" --out whole.png',
            "apple.png --rows 4 -n 8 --temperature 0.5",
        ),
        complete_picture,
    )
    complete.usage = "%(prog)s PICTURE --rows ROWS [options]"
    complete.add_argument("picture", metavar="PICTURE", help="a picture file of any size")
    what = complete.add_argument_group("what is drawn")
    what.add_argument(
        "--rows", type=int, required=True, help="rows of codes that are kept; 8 pixels each with the default tokenizer"
    )
    what.add_argument("-n", type=int, default=1, metavar="COUNT", help="pictures (default 1)")
    what.add_argument("--words", help="what the picture shows (default: nothing said)")
    what.add_argument("--style", help="one that the model knows (default: its first)")
    what.add_argument("--seed", type=int, default=0, help="the same seed draws the same pictures (default 0)")
    add_sampling(complete, CODES, (*CHOICE, *GUIDANCE))
    add_files(complete, "complete.png")

    joint = add(
        "joint",
        "think of words and draw a picture of them, with nothing said",
        ("-n 16 --out pairs.png", "-n 16 --picture-first", "--words-temperature 0.8 --temperature 0.5"),
        draw_pairs,
    )
    joint.usage = "%(prog)s [options]"
    what = joint.add_argument_group("what is drawn")
    what.add_argument("-n", type=int, default=8, metavar="COUNT", help="pairs (default 8)")
    what.add_argument("--size", type=size, metavar="HxW", help="in pixels (default: what the model was trained on)")
    what.add_argument("--picture-first", action="store_true", help="the picture, then words for it")
    what.add_argument("--max-tokens", type=int, default=48, metavar="N", help="most tokens of the words (default 48)")
    what.add_argument("--seed", type=int, default=0, help="the same seed draws the same pairs (default 0)")
    chance = "what is not given is as the export says, temperature 0 as 1"
    add_sampling(joint, f"how pictures are drawn, code by code ({chance})", (*CHOICE, *GUIDANCE))
    add_sampling(joint, f"how words are drawn ({chance})", CHOICE, "words_")
    add_files(joint, "joint.png")

    again = add(
        "again",
        "draw a picture again by the record that it carries",
        ("apple.png", "apple.json --model runs/pretrain/latest/export --out same.png"),
        draw_again,
    )
    again.usage = "%(prog)s FILE [options]"
    again.add_argument("file", metavar="FILE", help="a picture that was drawn here, or the .json beside it")
    add_files(again, None)


def sample_pictures(options: argparse.Namespace) -> int:
    """`omnigram sample`."""
    _check_sample(options)
    files = files_of(options, options.n * max(1, len(options.words)))
    examples = _examples(options.example)
    omnigram = load(options)
    omnigram.codec.check_draws()
    from ..model.generation import tasks
    from .drawing import SAMPLE, Asked, Drawing

    words: list[str | None] = [omnigram.card.prompt(text, options.style) for text in options.words]
    own = omnigram.sampler.sampling
    sampling = settle({**own, **({} if words else tasks.unprompted(omnigram.sampler, None, "image"))}["image"], options)
    if options.negative and not sampling.is_guided:
        raise ValueError("--negative has no effect without guidance: set --guidance above 1")
    best_of = options.best_of or 1
    if best_of > 1 and sampling.is_greedy:
        raise ValueError(f"--best-of {best_of}: at temperature 0 all samples are the same, set --temperature")
    if best_of == 1:
        _warn_of_likeliest(options.n, sampling)
    seeds = range(options.seed, options.seed + options.n * best_of, best_of)
    drawing = Drawing(
        SAMPLE,
        tuple(Asked(text, seed) for text in words or [None] for seed in seeds),
        omnigram.codec.grid(options.size),
        {"image": sampling},
        negative=options.negative or "",
        examples=tuple((omnigram.card.example(text, options.style), omnigram.codes(shown)) for text, shown in examples),
        best_of=best_of,
        **({"rank_by": options.rank_by} if options.rank_by else {}),
        columns=options.n if len(words) > 1 < options.n else None,  # a row for each prompt
    )
    return draw_and_save(omnigram, drawing, options, files)


def _check_sample(options: argparse.Namespace) -> None:
    """ValueError for what contradicts itself, before anything is read."""
    if options.unconditional:
        if options.words:
            raise ValueError("WORDS and --unconditional contradict each other: leave one of them out")
        names = ("style", "negative", "example", "best_of", *GUIDANCE, "picture_guidance")
        refuse(options, names, "has no effect with --unconditional, which says nothing: leave one of them out")
    elif not options.words:
        raise ValueError("nothing to draw: give WORDS, or --unconditional")
    for words in options.words:
        if not words.strip():
            raise ValueError("the prompt is empty: say in words what to draw")
    if not options.example:
        refuse(options, ("picture_guidance",), "has no effect without --example, whose pictures it weighs: add some")
    if options.best_of in (None, 1):
        refuse(options, ("rank_by",), "has no effect without --best-of 2 or more: add it")
    _check(options)


def complete_picture(options: argparse.Namespace) -> int:
    """`omnigram complete`."""
    _check(options)
    if options.words is None:
        refuse(options, ("style", *GUIDANCE), "has no effect without --words: say what the picture shows")
    from .picture_files import read_picture

    picture, files = read_picture(options.picture), files_of(options, options.n)
    omnigram = load(options)
    from .drawing import COMPLETE, Asked, Drawing

    kept, grid, words = omnigram.begun(picture, options.rows, options.words, options.style)
    sampling = settle(omnigram.sampler.sampling["image"], options)
    _warn_of_likeliest(options.n, sampling)
    asked = tuple(Asked(words, options.seed + number) for number in range(options.n))
    return draw_and_save(omnigram, Drawing(COMPLETE, asked, grid, {"image": sampling}, kept=kept), options, files)


def draw_pairs(options: argparse.Namespace) -> int:
    """`omnigram joint`."""
    _check(options)
    if options.picture_first:
        refuse(options, GUIDANCE, "has no effect with --picture-first, before which no words stand: leave one out")
    files = files_of(options, options.n)
    omnigram = load(options)
    omnigram.codec.check_draws()
    from ..model.generation import tasks
    from .drawing import JOINT, Asked, Drawing

    first = "image" if options.picture_first else "text"
    own = {**omnigram.sampler.sampling, **tasks.unprompted(omnigram.sampler, None, "image", "text")}
    sampling = {"image": settle(own["image"], options), "text": settle(own["text"], options, "words_")}
    _warn_of_likeliest(options.n, sampling[first], flag("temperature", "" if options.picture_first else "words_"))
    drawing = Drawing(
        JOINT,
        tuple(Asked(None, options.seed + number) for number in range(options.n)),
        omnigram.codec.grid(options.size),
        sampling,
        words_first=not options.picture_first,
        max_tokens=options.max_tokens,
    )
    return draw_and_save(omnigram, drawing, options, files)


def draw_again(options: argparse.Namespace) -> int:
    """`omnigram again`."""
    _check(options)
    from .picture_files import read_record

    file = Path(options.file)
    record = read_record(file)
    from .drawing import Drawing

    try:
        drawing = Drawing.from_record(record)
    except ValueError as fault:
        raise ValueError(f"{file}: {fault}") from None
    if options.out is None:
        options.out = str(file.with_name(f"{file.stem}-again{'.png' if file.suffix == '.json' else file.suffix}"))
    alone = bool(record.get("separate")) and len(drawing.asked) == 1
    files = files_of(options, len(drawing.asked))
    options.separate |= alone  # a picture and no page, whose file needs no number
    omnigram = load(options)
    known = identities(omnigram, options)
    for name, now in known.items():
        then = record.get("identities", {}).get(name, "none")
        if then != now:
            raise ValueError(
                f"{file} was drawn by {record.get('model')} with {name} {then[:12]}, --model {options.model} has "
                f"{now[:12]}: name the model that drew it"
            )
    return draw_and_save(omnigram, drawing, options, files, known)


def _check(options: argparse.Namespace) -> None:
    check_counts(options)
    check_speculation(options)


def _examples(named: Sequence[Sequence[str]]) -> list[tuple[str, Any]]:
    """(words, picture) of --example PICTURE WORDS."""
    from .picture_files import read_picture

    return [(words, read_picture(name)) for name, words in named]


def _warn_of_likeliest(n: int, sampling: "Sampling", option: str = "--temperature") -> None:
    if n > 1 and sampling.is_greedy:
        warnings.warn(
            "temperature 0 takes the likeliest code each time: all pictures of a prompt will be the same; "
            f"set {option}, as in {option} 0.3",
            stacklevel=3,
        )
