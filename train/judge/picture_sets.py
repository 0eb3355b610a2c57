"""The pictures that are judged on: the held-out split of a data set, a folder, or the packaged photographs.

Of more than `most` pictures those are taken that lie evenly over the whole, so the same command takes the same ones.
Dimensions: H W pixels.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ...data.document import IMAGE_SUFFIXES
from ...data.pictures import decode
from ...data.record import DATASET, DOCUMENTS, read_record
from ...data.shards import read_shard
from .photographs import PHOTOGRAPHS, photograph_tiles
from .subject import Subject, stacked

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass
class PictureSet:
    """Pictures ready for a tokenizer, where they are from, and lines that a user should read."""

    name: str
    source: dict[str, Any]
    pictures: list[Picture]
    notes: list[str] = field(default_factory=list)

    def batches(self, size: int) -> list[UInt8[Tensor, "b height width 3"]]:
        """All of them in order, but grouped by size."""
        return list(grouped(self.pictures, size))

    def record(self) -> dict[str, Any]:
        """What a judgement says of them; `identity` is a SHA-256 over their pixels."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
        return {"name": self.name, "count": len(self.pictures), "identity": digest.hexdigest(), **self.source}


def grouped(pictures: Sequence[Picture], size: int) -> Iterator[UInt8[Tensor, "b height width 3"]]:
    """Batches of at most `size` pictures of one size, each size in order."""
    groups: defaultdict[tuple[int, ...], list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.shape].append(picture)
    for group in groups.values():
        for at in range(0, len(group), size):
            yield stacked(group[at : at + size])


def read_pictures(named: str, subject: Subject, most: int) -> PictureSet:
    """What `evaluate.pictures` names. ValueError or FileNotFoundError, in one line, for what holds no pictures."""
    if named == PHOTOGRAPHS:
        tiles = photograph_tiles(subject.side)
        chosen = [tiles[index] for index in spread(len(tiles), most)]
        return PictureSet(PHOTOGRAPHS, {"side": subject.side}, [subject.fitting.shown(tile) for tile in chosen])
    folder = Path(named)
    if (folder / DATASET).is_file():
        return heldout_pictures(folder, subject, most)
    return _folder_pictures(folder, subject, most)


def heldout_pictures(folder: Path, subject: Subject, most: int) -> PictureSet:
    """Those of the test split of a data set; of val, or train, where it has none."""
    record = read_record(folder, DOCUMENTS)
    split = next(name for name in ("test", "val", "train") if name in record["splits"])
    shards = record["splits"][split]["shards"]
    wanted = spread(sum(int(shard["pictures"]) for shard in shards), most)
    chosen, seen = set(wanted), 0
    pictures = []
    small = _Small(subject)
    for shard in shards:
        end = seen + int(shard["pictures"])
        if not chosen.isdisjoint(range(seen, end)):
            for number, (key, data) in enumerate(_pictures_of(folder / shard["file"]), start=seen):
                if number in chosen:
                    pictures.append(small.ready(f"{folder / shard['file']}, sample {key}", lambda data=data: data))
        seen = end
    if not pictures:
        raise ValueError(f"{folder} has no pictures in its split {split!r}: name another folder in evaluate.pictures=")
    source = {"dataset": record["identity"], "split": split}
    return PictureSet(f"{record['name']}-{split}", source, pictures, small.notes())


def _pictures_of(shard: Path) -> Iterator[tuple[str, bytes]]:
    for document in read_shard(shard):
        for segment in document.segments:
            if segment.modality == "image":
                yield document.key, segment.data


def _folder_pictures(folder: Path, subject: Subject, most: int) -> PictureSet:
    """Those of a folder and its sub-folders, hidden ones left out."""
    if not folder.is_dir():
        raise ValueError(f"evaluate.pictures={folder} is no folder: name one of pictures, a data set, or {PHOTOGRAPHS}")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(f"evaluate.pictures={folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    small = _Small(subject)
    pictures = [small.ready(str(files[index]), files[index].read_bytes) for index in spread(len(files), most)]
    return PictureSet(folder.resolve().name, {"folder": str(folder)}, pictures, small.notes())


class _Small:
    """Makes pictures ready, and counts those that had to be enlarged for it."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.seen, self.enlarged = subject, 0, 0

    def ready(self, place: str, read: Callable[[], bytes]) -> Picture:
        """ValueError names the place of a picture that cannot be judged."""
        try:
            picture = decode(read())
            patch = self.subject.tokenizer.patch
            if min(picture.size) < patch:
                size = f"{picture.width} x {picture.height}"
                raise ValueError(f"a picture of {size} pixels is smaller than one code of {patch} pixels")
            shown = self.subject.fitting.shown(picture)
        except ValueError as fault:
            raise ValueError(f"{place}: {fault}") from None
        self.seen += 1
        self.enlarged += _is_enlarged(picture, shown)
        return shown

    def notes(self) -> list[str]:
        if not self.enlarged:
            return []
        return [
            f"{self.enlarged} of {self.seen} pictures are smaller than the tokenizer's and were enlarged: lower "
            "evaluate.resolution= to judge them as they are"
        ]


def _is_enlarged(picture: Image.Image, shown: Picture) -> bool:
    return picture.height < shown.shape[0] or picture.width < shown.shape[1]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of so many numbers, evenly over all of them."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()
