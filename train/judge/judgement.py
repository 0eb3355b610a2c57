"""The judgement of an image tokenizer on held-out pictures: numbers, baselines, a table, a page and a record on disk.

1. the pictures as the tokenizer makes them ready, and their reconstructions
2. how near those are (fidelity.py), what the codes cost (code_length.py), how steady they are (stability.py)
3. the same nearness of JPEG, WebP and AVIF in at most as many bytes (compression.py)
4. evaluation-<pictures>.json and .png in the tokenizer's folder
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from ...data.artefact import atomic_write, atomic_write_json, plain_errors, provenance
from ..tokenizer_metrics import codebook_numbers
from .code_length import adaptive_bits, fixed_bits
from .compression import CODECS, Batch, check_codec, compress
from .fidelity import Fidelity, perceptual_distance, picture_features
from .pages import comparison_page
from .picture_sets import PictureSet
from .stability import Stability
from .subject import Subject

FORMAT = "omnigram-evaluation"
OURS = "ours"
HEADLINES = ("psnr", "ssim", "perceptual_hed", "rfid_efficientnet", "kid_efficientnet", "bytes_per_picture")


@dataclass(frozen=True)
class JudgeSettings:
    """How much is measured.

    baselines: image codecs to compare with, of avif, webp and jpeg
    batch_size: pictures encoded and decoded at once
    features: whether to compare features of EfficientNet-lite0, which takes the longest on a CPU
    """

    baselines: tuple[str, ...] = tuple(CODECS)
    batch_size: int = 64
    features: bool = True

    def __post_init__(self) -> None:
        for codec in self.baselines:
            check_codec(codec)


@dataclass(frozen=True)
class Judgement:
    """numbers: of the tokenizer; baselines: of each codec, None where its smallest files take too many bytes."""

    subject: Subject
    pictures: PictureSet
    numbers: dict[str, float | None]
    baselines: dict[str, dict[str, float | None] | None]
    page: Image.Image

    def save(self, folder: Path, made_by: Mapping[str, Any]) -> Path:
        """Write the record and the page; the path of the record. `made_by`: settings and seed, for the record.

        A record of other pictures of the same name stays, and the new one has their identity in its name.
        """
        path, identity = folder / f"evaluation-{self.pictures.name}.json", self.pictures.record()["identity"]
        if path.is_file() and json.loads(path.read_text())["pictures"]["identity"] != identity:
            path = folder / f"evaluation-{self.pictures.name}-{identity[:8]}.json"
        with plain_errors(folder):
            atomic_write(path.with_suffix(".png"), lambda file: self.page.save(file, format="PNG"))
            atomic_write_json(path, {**self.record(), **made_by, "provenance": provenance()})
        return path

    def record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "numbers": self.numbers,
            "baselines": self.baselines,
            "tokenizer": self.subject.record(),
            "pictures": self.pictures.record(),
        }

    def print(self, console: Console) -> None:
        """A row for each number, a column for the tokenizer and for each codec."""
        columns: dict[str, Mapping[str, float | None]] = {OURS: self.numbers}
        columns |= {codec: numbers or {} for codec, numbers in self.baselines.items()}
        table = Table(title=f"{self.subject.folder} on {len(self.pictures.pictures)} pictures of {self.pictures.name}")
        table.add_column("")
        for name in columns:
            table.add_column(name, justify="right")
        for row in dict.fromkeys(row for numbers in columns.values() for row in numbers):
            table.add_row(row, *(_shown(numbers[row]) if row in numbers else "" for numbers in columns.values()))
        console.print(table)
        for codec in (codec for codec, numbers in self.baselines.items() if numbers is None):
            console.print(f"{codec}: its smallest files take more bytes than the codes", highlight=False)


def judge(subject: Subject, pictures: PictureSet, settings: JudgeSettings, console: Console | None = None) -> Judgement:
    """Measure a tokenizer on pictures. ValueError if it decodes to what is not finite."""
    console = console or Console(stderr=True)
    for note in pictures.notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    device = next(subject.tokenizer.parameters()).device
    originals = pictures.batches(settings.batch_size)
    with console.status("codes and reconstructions"):
        reconstructions, counts, numbers = _reconstruct(subject, originals)
    features = picture_features(device, console) if settings.features else None
    with console.status("features"):
        fidelity = Fidelity(originals, features, perceptual_distance(device, console), device)
        measured = fidelity.measure(reconstructions)
    pixels = sum(batch[..., 0].numel() for batch in originals)
    bits = int(counts.sum()) * fixed_bits(subject.tokenizer.codebook_size, subject.levels)
    entropy = adaptive_bits(counts, subject.levels)
    measured |= _cost(bits / 8, pixels, len(pictures.pictures)) | {"bits_per_pixel_entropy_coded": entropy / pixels}
    measured |= {**codebook_numbers(counts), **numbers}
    baselines: dict[str, dict[str, float | None] | None] = {}
    shown: dict[str, Sequence[Batch]] = {OURS: reconstructions}
    for codec in settings.baselines:
        with console.status(f"the same bytes as {codec}"):
            made = compress(originals, codec, int(bits // 8))
            baselines[codec] = None
            if made is not None:
                shown[codec] = made.batches
                cost = _cost(made.num_bytes, pixels, len(pictures.pictures))
                settled: dict[str, float | None] = {"quality": made.quality, "scale": made.scale}
                baselines[codec] = {**fidelity.measure(made.batches), **cost, **settled}
    page = comparison_page(originals, shown, _lines({OURS: measured, **baselines}))
    return Judgement(subject, pictures, measured, baselines, page)


@torch.no_grad()
def _reconstruct(subject: Subject, originals: Sequence[Batch]) -> tuple[list[Batch], torch.Tensor, dict[str, float]]:
    """Reconstructions, how often each code came, and how steady the codes are."""
    counts = torch.zeros(subject.tokenizer.codebook_size, dtype=torch.int64)
    stability = Stability(subject)
    reconstructions = []
    for batch in originals:
        codes = subject.encode(batch)
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        reconstruction = subject.decode(codes)
        if reconstruction.shape != batch.shape:
            raise ValueError(
                f"pictures of {list(batch.shape[1:3])} pixels come back as {list(reconstruction.shape[1:3])}: "
                f"set evaluate.resolution= to a multiple of {subject.tokenizer.patch}"
            )
        reconstructions.append(reconstruction)
        stability.add(batch, codes, reconstruction)
    return reconstructions, counts, stability.numbers()


def _cost(num_bytes: float, pixels: int, count: int) -> dict[str, float | None]:
    return {"bytes_per_picture": num_bytes / count, "bits_per_pixel": 8 * num_bytes / pixels}


def _lines(rows: Mapping[str, Mapping[str, float | None] | None]) -> list[str]:
    """Above the page: what is most looked at."""
    lines = []
    for name, numbers in rows.items():
        if numbers is None:
            lines.append(f"{name}: its smallest files take more bytes than the codes")
        else:
            lines.append(f"{name}: " + ", ".join(f"{row} {_shown(numbers[row])}" for row in HEADLINES))
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
