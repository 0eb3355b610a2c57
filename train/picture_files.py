"""Pictures on disk: read of any kind, written whole with a record of how they were drawn.

The record is JSON: in a PNG the text chunk "omnigram", and for every kind a file beside the picture, `apple.json` of
`apple.png`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ..data.artefact import atomic_write, atomic_write_json, plain_errors
from ..data.pictures import decode

CHUNK = "omnigram"
FORMAT = "omnigram-drawing"


def read_picture(name: str) -> Image.Image:
    """The picture of a file, as RGB. ValueError or OSError if there is none, or it is a page of ours."""
    data = Path(name).read_bytes()
    try:
        picture = decode(data)
    except ValueError as fault:
        raise ValueError(f"{name}: {fault}") from None
    record = _parsed(_chunk(Path(name)))
    if record is not None and record.get("page"):
        raise ValueError(f"{name} is a page, not one picture: draw with --separate, which gives each a file of its own")
    return picture


def _chunk(file: Path) -> str:
    """The record within a PNG, as text; "" for other pictures. OSError, SyntaxError or ValueError for what is none."""
    with Image.open(file) as picture:
        return picture.text.get(CHUNK, "") if isinstance(picture, PngImageFile) else ""


def check_writable(files: Sequence[Path]) -> None:
    """OSError or ValueError now, before a model is loaded, for pictures that could not be written then."""
    known = Image.registered_extensions()
    for file in files:
        if file.is_dir():
            raise ValueError(f"--out {file} is a folder: name a file in it, as in {file / 'sample.png'}")
        if known.get(file.suffix.lower()) not in Image.SAVE:
            raise ValueError(
                f"--out {file}: pictures are not written as {file.suffix or 'files without ending'!r}, use .png"
            )
        beside = _beside(file)
        if beside.exists() and _parsed(beside) is None:
            raise ValueError(
                f"--out {file}: its record would overwrite {beside}, which is no record of a drawing: "
                "choose another name"
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


def save(picture: Image.Image, file: Path, record: Mapping[str, Any]) -> None:
    """Write a picture and its record, each whole or not at all, and print the picture's name."""
    kind = Image.registered_extensions()[file.suffix.lower()]
    whole = {"format": FORMAT, "format_version": 1, **record}
    chunks: dict[str, Any] = {}
    if kind == "PNG":
        chunks["pnginfo"] = PngInfo()
        chunks["pnginfo"].add_text(CHUNK, json.dumps(whole, ensure_ascii=False))
    atomic_write(file, lambda stream: picture.save(stream, format=kind, **chunks))
    atomic_write_json(_beside(file), whole)
    print(file, flush=True)


def read_record(file: Path) -> dict[str, Any]:
    """The record of a picture: of its chunk, else of the file beside it; or of that file itself.

    ValueError, in one line, if there is none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: No such file or directory")
    record = None
    if file.suffix.lower() == ".png":
        try:
            text = _chunk(file)
        except (OSError, SyntaxError, ValueError) as fault:
            raise ValueError(f"{file}: picture cannot be decoded: {str(fault).splitlines()[0]}") from None
        record = _parsed(text)
    beside = _beside(file)
    if record is None and beside.is_file():
        record = _parsed(beside)
    if record is None:
        raise ValueError(f"{file} has no record of how it was drawn, in itself or in {beside.name} beside it")
    if record.get("format_version") != 1:
        raise ValueError(f"{file}: format_version {record.get('format_version')}, this Omnigram reads 1")
    return record


def _beside(file: Path) -> Path:
    return file.with_suffix(".json")


def _parsed(source: Path | str) -> dict[str, Any] | None:
    """A record; None for anything else."""
    try:
        found = json.loads(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None
