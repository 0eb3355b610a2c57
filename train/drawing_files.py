"""Drawing into files: one page, or a file for each picture, each with the record by which it can be drawn again."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .drawing_options import add_model, add_speed

if TYPE_CHECKING:
    from ..model.bundle import Omnigram
    from .drawing import Drawing

LARGE = 10**9  # bytes of weights that take seconds to hash


def add_files(command: argparse.ArgumentParser, out: str | None) -> None:
    """The options of every command that draws, beside its own; `out` is the file that is written by default."""
    add_speed(command)
    add_model(command)
    files = command.add_argument_group("files")
    default = out or "FILE-again.png"
    files.add_argument("--out", default=out, metavar="FILE", help=f"the picture that is written (default {default})")
    files.add_argument("--separate", action="store_true", help="a file for each picture: OUT-1.png, OUT-2.png, …")


def files_of(options: argparse.Namespace, count: int) -> list[Path]:
    """The one page, or a file for each picture. OSError or ValueError if they cannot be written."""
    from .picture_files import check_writable

    out = Path(options.out)
    files = [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)] if options.separate else [out]
    check_writable(files)
    return files


def draw_and_save(
    omnigram: "Omnigram",
    drawing: "Drawing",
    options: argparse.Namespace,
    files: Sequence[Path],
    known: Mapping[str, str] | None = None,
) -> int:
    """Draw, and write what was finished. KeyboardInterrupt, which says so, if that is not all.

    known: the `identities`, where they were asked for before
    """
    from .drawing import JOINT, carry_out
    from .picture_files import save
    from .pictures_page import contact_sheet

    shared = _shared_record(omnigram, options, known or identities(omnigram, options))  # may take long: before drawing
    drawn, whole, waiting = carry_out(omnigram, drawing, options.batch_size)
    if options.separate:
        for one in drawn:
            save(one.picture, files[one.number], drawing.to_record([one]) | shared)
    elif len(drawn) == 1 and drawing.command != JOINT:  # a picture that one can go on with
        save(drawn[0].picture, files[0], drawing.to_record(drawn) | shared)
    elif drawn:
        captions = None
        if drawing.command == JOINT or len({one.words for one in drawn}) > 1:
            captions = [one.words or "" for one in drawn]
        sheet = contact_sheet([one.picture for one in drawn], captions, drawing.columns if whole else None)
        save(sheet, files[0], drawing.to_record(drawn) | shared | {"page": True})
    if not whole:
        left = f", {waiting} more were drawn but not ranked or decoded yet" if waiting else ""
        raise KeyboardInterrupt(f"{len(drawn)} of {len(drawing.asked)} pictures were finished and saved{left}")
    return 0


def _shared_record(omnigram: "Omnigram", options: argparse.Namespace, known: Mapping[str, str]) -> dict[str, Any]:
    """What a record says of the model and the machine, whatever was drawn."""
    from ..data.artefact import provenance

    return {
        "arguments": options.arguments,
        "style": getattr(options, "style", None),
        "separate": options.separate,
        "patch": omnigram.patch,
        "model": options.model,
        "identities": dict(known),
        "device": omnigram.model.device.type,
        "compile": options.compile,
        **provenance(),
    }


def identities(omnigram: "Omnigram", options: argparse.Namespace) -> dict[str, str]:
    """Of the vocabulary, the tokenizers and the weights; these are hashed, which a line tells if it takes long."""
    from ..data.artefact import file_sha256, identity

    weights = sorted(Path(options.model).glob("*.safetensors"))
    if (size := sum(file.stat().st_size for file in weights)) > LARGE:
        print(f"omnigram {options.command}: hashing {size / 1e9:.1f} GB of weights for the record", file=sys.stderr)
    return {**omnigram.card.identities, "weights": identity([file_sha256(file) for file in weights])}
