"""`omnigram sample`, `caption` and `complete`: what an export is asked for from the shell."""

import argparse
import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from ..model.bundle import Omnigram
    from ..model.generation.choice import Sampling

EXPORT = "runs/pretrain/latest/export"
DRAWING = ("temperature", "top_k", "top_p", "guidance")

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def add_picture_commands(add: Add) -> None:
    """Add the commands to the command line."""
    sample = add(
        "sample",
        "draw pictures of words",
        (
            '"green apple" --style openmoji -n 8 --temperature 0.3 --out apple.png',
            "rocket dog -n 4 --temperature 0.3 --seed 7",
            "cat --separate --out cats/cat.png",
        ),
        draw,
    )
    sample.add_argument("words", nargs="+", metavar="WORDS", help="what to draw; several prompts, several pictures")
    sample.add_argument("-n", type=int, default=1, metavar="COUNT", help="pictures of each prompt (default 1)")
    sample.add_argument("--size", type=_size, metavar="HxW", help="in pixels (default: what the model was trained on)")
    sample.add_argument("--separate", action="store_true", help="a file for each picture: OUT-1.png, OUT-2.png, …")
    _draws(sample, "sample.png")

    caption = add("caption", "name what a picture shows", ("apple.png", "pictures/*.png"), describe)
    caption.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files of any size")
    _loads(caption)

    complete = add(
        "complete",
        "keep the top of a picture and draw the rest anew",
        ('apple.png --rows 4 --words "green apple" --out whole.png',),
        finish,
    )
    complete.add_argument("picture", metavar="PICTURE", help="a picture file of any size")
    complete.add_argument(
        "--rows", type=int, required=True, help="rows of codes that are kept; 8 pixels each with the default tokenizer"
    )
    complete.add_argument("--words", help="what the picture shows (default: nothing said)")
    _draws(complete, "complete.png")


def _loads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default=EXPORT, metavar="FOLDER", help=f"an export (default {EXPORT})")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")


def _draws(command: argparse.ArgumentParser, out: str) -> None:
    command.add_argument("--style", help="one that the model knows (default: its first)")
    command.add_argument("--out", default=out, metavar="FILE", help=f"the picture that is written (default {out})")
    command.add_argument("--seed", type=int, default=0, help="the same seed draws the same pictures (default 0)")
    command.add_argument("--temperature", type=float, help="0: the likeliest code each time (default: the model's)")
    command.add_argument("--top-k", type=int, help="draw of the likeliest K codes, 0 for all")
    command.add_argument("--top-p", type=float, help="draw of the likeliest codes that together have probability P")
    command.add_argument("--guidance", type=float, help="how much the words count, 1 for no guidance")
    _loads(command)


def draw(options: argparse.Namespace) -> int:
    """`omnigram sample`."""
    for words in options.words:
        if not words.strip():
            raise ValueError("the prompt is empty: say in words what to draw")
    if options.n < 1:
        raise ValueError(f"-n {options.n} must be 1 or more")
    _check_seed(options.seed)
    out = Path(options.out)
    captions = [words for words in options.words for _ in range(options.n)]
    files = [out]
    if options.separate:
        files = [out.with_stem(f"{out.stem}-{number}") for number in range(1, len(captions) + 1)]
    _check_writable(files)
    omnigram = _load(options)
    sampling = _sampling(omnigram, options)
    if options.n > 1 and (sampling or omnigram.sampler.sampling)["image"].is_greedy:
        warnings.warn(
            "temperature 0 takes the likeliest code each time: all pictures of a prompt will be the same; "
            "set --temperature, as in --temperature 0.3",
            stacklevel=2,
        )
    pictures = omnigram.draw(
        options.words,
        options.style,
        options.n,
        size=options.size,
        seed=options.seed,
        sampling=sampling,
    )
    if not options.separate:
        from .pictures_page import contact_sheet

        columns = options.n if len(options.words) > 1 < options.n else None  # a row for each prompt
        pictures = [contact_sheet(pictures, captions if len(options.words) > 1 else None, columns)]
    for picture, file in zip(pictures, files, strict=True):
        _save(picture, file)
    return 0


def describe(options: argparse.Namespace) -> int:
    """`omnigram caption`: a line for each picture."""
    pictures = [_read(name) for name in options.pictures]
    omnigram = _load(options)
    for name, picture in zip(options.pictures, pictures, strict=True):
        caption = omnigram.caption(picture)
        print(f"{name}: {caption}" if len(pictures) > 1 else caption, flush=True)
    return 0


def finish(options: argparse.Namespace) -> int:
    """`omnigram complete`."""
    _check_seed(options.seed)
    picture, out = _read(options.picture), Path(options.out)
    _check_writable([out])
    omnigram = _load(options)
    drawn = omnigram.complete(
        picture,
        options.rows,
        options.words,
        options.style,
        seed=options.seed,
        sampling=_sampling(omnigram, options),
    )
    _save(drawn, out)
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[x*](\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write height x width in pixels, as in 64x64")
    return int(found[1]), int(found[2])


def _read(name: str) -> "Image.Image":
    from ..data.pictures import decode

    data = Path(name).read_bytes()
    try:
        return decode(data)
    except ValueError as fault:
        raise ValueError(f"{name}: {fault}") from None


def _load(options: argparse.Namespace) -> "Omnigram":
    folder = Path(options.model)
    if options.model == EXPORT and not folder.exists():
        raise FileNotFoundError(
            f"{EXPORT} is not there: run `omnigram pretrain` here first, or name an export with --model"
        )
    from omegaconf import OmegaConf

    from ..model.bundle import Omnigram
    from .machine import prepare

    device = prepare(OmegaConf.create({"device": options.device, "threads": None}))
    return Omnigram.from_pretrained(folder, device=device)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"--seed {seed} must be 0 or more")


def _sampling(omnigram: "Omnigram", options: argparse.Namespace) -> "dict[str, Sampling] | None":
    """The model's own settings of pictures with those that the command line names."""
    named = {name: getattr(options, name) for name in DRAWING if getattr(options, name) is not None}
    return {"image": dataclasses.replace(omnigram.sampler.sampling["image"], **named)} if named else None


def _check_writable(files: Sequence[Path]) -> None:
    """OSError or ValueError now, before a model is loaded, for pictures that could not be written then."""
    from PIL import Image

    from ..data.artefact import plain_errors

    known = Image.registered_extensions()
    for file in files:
        if file.is_dir():
            raise ValueError(f"--out {file} is a folder: name a file in it, as in {file / 'sample.png'}")
        if known.get(file.suffix.lower()) not in Image.SAVE:
            raise ValueError(
                f"--out {file}: pictures are not written as {file.suffix or 'files without ending'!r}, use .png"
            )
        try:
            with plain_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                probe = file.with_name(f".{file.name}.probe")
                probe.touch()
                probe.unlink()
        except OSError as fault:
            reason = fault.strerror or str(fault).partition(": ")[2]
            if isinstance(fault, FileExistsError | NotADirectoryError):
                reason = f"{next(part for part in file.parents if part.exists() and not part.is_dir())} is no folder"
            raise type(fault)(f"--out {file} cannot be written: {reason}") from None


def _save(picture: "Image.Image", file: Path) -> None:
    from PIL import Image

    from ..data.artefact import atomic_write

    kind = Image.registered_extensions()[file.suffix.lower()]
    atomic_write(file, lambda stream: picture.save(stream, format=kind))
    print(file, flush=True)
