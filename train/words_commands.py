"""`omnigram caption` and `score`: words for pictures, and what documents cost."""

import argparse
import json
import math
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .drawing_options import (
    BATCH_SIZE,
    CHOICE,
    Add,
    add_examples,
    add_model,
    add_sampling,
    check_counts,
    load,
    refuse,
    settle,
)

if TYPE_CHECKING:
    from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # endings that are no words


def add_words_commands(add: Add) -> None:
    """Add the commands to the command line."""
    caption = add(
        "caption",
        "name what a picture shows",
        (
            "apple.png",
            "pictures/*.png",
            "cat.png --example apple.png apple --example dog.png dog",
            "cat.png --stop ,",
            "--unconditional -n 8",
        ),
        describe,
    )
    caption.usage = "%(prog)s PICTURE … [options]"
    caption.add_argument("pictures", nargs="*", metavar="PICTURE", help="picture files of any size")
    what = caption.add_argument_group("what is written")
    what.add_argument("--unconditional", action="store_true", help="words alone, in place of PICTURE")
    what.add_argument("-n", type=int, metavar="COUNT", help="how many texts (default 1)")
    add_examples(what)
    what.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="words end before the first of it; repeatable"
    )
    what.add_argument("--max-tokens", type=int, default=48, metavar="N", help="most tokens (default 48)")
    what.add_argument("--seed", type=int, default=0, help="the same seed writes the same words (default 0)")
    likeliest = "the likeliest each time, and with --unconditional as the export says"
    add_sampling(caption, f"how words are drawn (what is not given: {likeliest})", CHOICE)
    add_model(caption)

    score = add(
        "score",
        "tell how likely a document is, in bits",
        ('"green apple" apple.png', 'apple.png "green apple"', "document.json --json"),
        tell_bits,
    )
    score.usage = "%(prog)s SEGMENT … [options]"
    score.add_argument(
        "segments",
        nargs="+",
        metavar="SEGMENT",
        help="words, or a picture file; or one .json document as docs/data-format.md has them, its pictures beside it",
    )
    score.add_argument("--json", action="store_true", help="print JSON in place of a table")
    add_model(score)


def describe(options: argparse.Namespace) -> int:
    """`omnigram caption`: a line for each picture."""
    from .picture_files import read_picture

    check_counts(options)
    if options.max_tokens < 2:
        raise ValueError(f"--max-tokens {options.max_tokens} must be 2 or more: a word and the end")
    if options.unconditional:
        if options.pictures:
            raise ValueError("PICTURE and --unconditional contradict each other: leave one of them out")
        refuse(options, ("example",), "shows how pictures are named, and --unconditional names none: leave one out")
    elif not options.pictures:
        raise ValueError("nothing to name: give PICTURE, or --unconditional")
    else:
        refuse(options, ("n",), "has no effect without --unconditional: a picture gets one caption")
    pictures = [read_picture(name) for name in options.pictures] or [None] * (options.n or 1)
    examples = [(words, read_picture(name)) for name, words in options.example]
    omnigram = load(options)
    from ..model.generation import tasks

    own = {**omnigram.sampler.sampling, **tasks.unprompted(omnigram.sampler, None, "text")}["text"]
    sampling = settle(own if options.unconditional else tasks.GREEDY, options)
    shown = [(omnigram.card.example(words, None), omnigram.codes(picture)) for words, picture in examples]
    named = len(options.pictures) > 1
    for start in range(0, len(pictures), BATCH_SIZE):
        part = pictures[start : start + BATCH_SIZE]
        captions = tasks.caption(
            omnigram.sampler,
            [None if picture is None else omnigram.codes(picture) for picture in part],
            max_tokens=options.max_tokens,
            seed=options.seed + start,
            sampling=sampling,
            examples=shown,
            stop=options.stop,
        )
        for number, caption in enumerate(captions, start):
            print(f"{options.pictures[number]}: {caption}" if named else caption, flush=True)
    return 0


def tell_bits(options: argparse.Namespace) -> int:
    """`omnigram score`: a row for each segment, one for the end of the document, and the sum."""
    names, segments = _segments(options.segments)
    omnigram = load(options)
    from ..model.generation import Block, score

    pieces = [part if isinstance(part, str) else Block(omnigram.codes(part)) for part in segments]
    [scored] = score(omnigram.sampler, [pieces])
    lengths = [len(omnigram.sampler.writer.write([piece])) - 1 for piece in pieces]  # without bos
    rows = _rows(names, lengths, scored.nats / math.log(2), scored.chosen)
    if options.json:
        print(json.dumps({"segments": rows[:-1], "total": rows[-1]}, ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("segment", caption="bits/token: of the tokens that the grammar does not force")
    for column in ("tokens", "forced", "bits", "bits/token"):
        table.add_column(column, justify="right")
    for row in rows:
        if row is rows[-1]:
            table.add_section()
        each = "" if row["bits_per_token"] is None else f"{row['bits_per_token']:.3f}"
        table.add_row(row["segment"], f"{row['tokens']:,}", f"{row['forced']:,}", f"{row['bits']:,.2f}", each)
    Console().print(table)
    return 0


def _rows(names: Sequence[str], lengths: Sequence[int], bits: Any, chosen: Any) -> list[dict[str, Any]]:
    """Tokens and bits of each segment, of the end, and of all; bos, which is given, left out."""
    rows, start = [], 1
    for name, length in [*zip(names, lengths, strict=True), ("(end)", 1)]:
        rows.append(_row(name, bits[start : start + length], chosen[start : start + length]))
        start += length
    return [*rows, _row("total", bits[1:], chosen[1:])]


def _row(name: str, bits: Any, chosen: Any) -> dict[str, Any]:
    free, total = int(chosen.sum()), float(bits.sum())
    return {
        "segment": name,
        "tokens": len(bits),
        "forced": len(bits) - free,
        "bits": total,
        "bits_per_token": total / free if free else None,
    }


def _segments(named: Sequence[str]) -> "tuple[list[str], list[str | Image.Image]]":
    """What each segment is called, and what it is. ValueError or OSError for files that are not as they should be."""
    from .picture_files import read_picture

    documents = [name for name in named if name.endswith(".json")]
    if documents and len(named) > 1:
        raise ValueError(f"{documents[0]} is a whole document: score it alone")
    if documents:
        return _document(Path(documents[0]))
    for words in named:
        if not words.strip():
            raise ValueError("a segment is empty: give words, or the name of a picture file")
    pictures = [Path(name).suffix.lower() in PICTURES for name in named]
    for name, is_picture in zip(named, pictures, strict=True):
        if not is_picture and Path(name).is_file():
            raise ValueError(f"{name} is a file, and no picture by its ending: give the words themselves, or a picture")
    return list(named), [
        read_picture(name) if is_picture else name for name, is_picture in zip(named, pictures, strict=True)
    ]


def _document(file: Path) -> "tuple[list[str], list[str | Image.Image]]":
    """The segments of `<key>.json`, whose pictures are `<key>.<name>` beside it."""
    from ..data.document import Document
    from ..data.pictures import decode

    content = file.read_bytes()
    members = {"json": content}
    for path in sorted(file.parent.glob(f"{escape(file.stem)}.*")):
        name = path.name[len(file.stem) + 1 :]
        if path != file and f'"{name}"'.encode() in content:  # others are no part of it
            members[name] = path.read_bytes()
    try:
        document = Document.from_sample(file.stem, members)
        names, segments = [], []
        for number, segment in enumerate(document.segments):
            if segment.modality not in ("text", "image"):
                raise ValueError(f"segment {number} is {segment.modality}, only text and pictures are scored")
            is_text = segment.modality == "text"
            names.append(segment.text if is_text else f"picture {number}{segment.suffix}")
            segments.append(segment.text if is_text else decode(segment.data))
    except ValueError as fault:
        raise ValueError(f"{file}: {fault}") from None
    return names, segments
