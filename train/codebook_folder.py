"""A folder with a codebook in it, read and written: a run of `omnigram tokenizer`, an image tokenizer, an export.

    run       text.model and image/; with config.yaml and metrics.json it can be measured by `omnigram evaluate`
    bare      config.json and model.safetensors, as `save_pretrained` writes it
    export    the whole of `model/bundle.py`: vocabulary and decoder follow a change of the codes

What is written also holds codebook.json: what was done, to which tokenizer, and what each of its codes became.
"""

import dataclasses
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..data.artefact import atomic_write_json, identity, provenance, publish_folder
from ..data.fitting import Fitting
from ..data.pictures import buckets_of
from ..model.bundle import Omnigram
from ..model.codec import CARD, IMAGE_MODEL, Codec
from ..model.renumbering import with_codes, with_ids
from ..tokenizers.codebook_surgery import Renumbering
from ..tokenizers.pixel_tokenizer import CONFIG, PixelTokenizer, load_image_tokenizer
from ..tokenizers.preprocessing import Preprocessing
from ..tokenizers.published_text import TEXT_MODEL, PublishedText
from .runs import METRICS, finished_run
from .runs import RECORD as RUN_RECORD

RECORD = "codebook.json"


@dataclass(frozen=True)
class Unsized(Fitting):
    """Of a folder that does not say how large its pictures are; codes of tokens are counted without it."""

    folder: Path = Path()

    @cached_property
    def buckets(self) -> list[tuple[int, int]]:
        raise ValueError(f"{self.folder} does not say how large its pictures are: set --resolution, in pixels")


class CodebookFolder(ABC):
    """One of the three kinds, with its image tokenizer."""

    tokenizer: PixelTokenizer

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def data(self) -> Path | None:
        """The data set that it was trained on, if it says so."""
        return None

    @abstractmethod
    def fitting(self, resolution: int | None) -> Fitting:
        """How pictures become its inputs; `resolution` in pixels goes before what the folder says.

        ValueError, of pictures with neither, and for a resolution that is not whole codes.
        """

    @abstractmethod
    def _save(self, tokenizer: PixelTokenizer, renumbering: Renumbering | None, out: Path) -> None: ...

    def check(self, resizes: bool) -> None:  # noqa: B027 - with most nothing goes
        """ValueError if what goes with the codes cannot follow; `resizes`: their number changes."""

    def save(
        self, tokenizer: PixelTokenizer, renumbering: Renumbering | None, out: Path, done: Mapping[str, Any]
    ) -> None:
        """Write a folder of the same kind with another tokenizer, whose codes are a `renumbering` of those here.

        None: codes have their numbers still. done: what was done, for the record.
        """
        became = range(tokenizer.codebook_size) if renumbering is None else renumbering.became.tolist()
        record = {
            **done,
            "from": str(self.folder),
            "identity_from": self.tokenizer.identity,
            "identity": tokenizer.identity,
            "codes_from": self.tokenizer.codebook_size,
            "codes": tokenizer.codebook_size,
            "became": list(became),
            "provenance": provenance(),
        }
        with publish_folder(out) as partial:
            self._save(tokenizer, renumbering, partial)
            atomic_write_json(partial / RECORD, record)


class Run(CodebookFolder):
    """Of `omnigram tokenizer`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer = load_image_tokenizer(folder / IMAGE_MODEL)
        path = folder / "config.yaml"
        self.config: Any = OmegaConf.load(path) if path.is_file() else None

    @property
    def data(self) -> Path | None:
        return Path(self.config.data.folder) if self.config is not None else None

    def fitting(self, resolution: int | None) -> Fitting:
        if self.config is None:
            return _squares(self, resolution)
        pictures = self.config.tokenizer.pictures
        return Fitting(self.tokenizer.patch, resolution or int(pictures.resolution), float(pictures.max_ratio))

    def _save(self, tokenizer: PixelTokenizer, renumbering: Renumbering | None, out: Path) -> None:
        tokenizer.save_pretrained(out / IMAGE_MODEL)
        shutil.copy2(self.folder / TEXT_MODEL, out / TEXT_MODEL)
        if self.config is None or not (self.folder / METRICS).is_file():
            return
        before = finished_run(self.folder)
        self.config.tokenizer.quantizer.codebook_size = tokenizer.codebook_size
        OmegaConf.save(self.config, out / "config.yaml")
        made_from = {"dataset": before.get("made_from", {}).get("dataset"), "image_tokenizer": tokenizer.identity}
        kept = {name: before[name] for name in ("text_vocabulary", "seed") if name in before}
        record = {"identity": identity(made_from), "made_from": made_from, "provenance": provenance()}
        atomic_write_json(out / RUN_RECORD, record)
        # `omnigram evaluate` adds the numbers
        atomic_write_json(out / METRICS, {**kept, "identity_of_image_tokenizer": tokenizer.identity, **record})


class Bare(CodebookFolder):
    """An image tokenizer alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer = load_image_tokenizer(folder)

    def fitting(self, resolution: int | None) -> Fitting:
        return _squares(self, resolution)

    def _save(self, tokenizer: PixelTokenizer, renumbering: Renumbering | None, out: Path) -> None:
        tokenizer.save_pretrained(out)


class Export(CodebookFolder):
    """Of `omnigram pretrain` or `import`; the decoder is read when it is written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.codec = Codec.load(folder)
        self.tokenizer = self.codec.image_tokenizer

    def fitting(self, resolution: int | None) -> Fitting:
        card = self.codec.card
        if card.preprocessing is not None:
            ready = card.preprocessing if resolution is None else self._square(card.preprocessing, resolution)
            return Fitting(self.tokenizer.patch, preprocessing=ready)
        if resolution is not None:
            return Fitting(self.tokenizer.patch, resolution)
        return Fitting(self.tokenizer.patch, sizes=tuple(self.tokenizer.size(*grid) for grid in card.sizes))

    def _square(self, published: Preprocessing, resolution: int) -> Preprocessing:
        """The same, but for the size: squares about the centre."""
        buckets_of(resolution, self.tokenizer.patch)  # says what is not whole codes
        size: dict[str, Any] = dict.fromkeys(("multiple", "min_pixels", "max_pixels"))
        size |= {"resize": "short_side", "side": resolution, "crop": (resolution, resolution)}
        return dataclasses.replace(published, **size)

    def check(self, resizes: bool) -> None:
        if resizes and isinstance(self.codec.text_tokenizer, PublishedText):
            raise ValueError(
                f"the text tokenizer of {self.folder} is a published one, which numbers the codes as well: "
                "codes can be renumbered, but not taken out"
            )
        if resizes:
            with_codes(self.codec.vocabulary, "image", [0, 1])

    def _save(self, tokenizer: PixelTokenizer, renumbering: Renumbering | None, out: Path) -> None:
        assert renumbering is not None
        model = Omnigram.from_pretrained(self.folder, dtype="auto").model
        vocabulary, were = with_codes(self.codec.vocabulary, "image", renumbering.kept.tolist())
        card = dataclasses.replace(self.codec.card, identities={})
        codec = Codec(vocabulary, self.codec.text_tokenizer, tokenizer, card, self.codec.source)
        Omnigram(with_ids(model, were), codec).save_pretrained(out)


def _squares(opened: CodebookFolder, resolution: int | None) -> Fitting:
    patch = opened.tokenizer.patch
    return Unsized(patch, folder=opened.folder) if resolution is None else Fitting(patch, resolution)


def open_codebook(folder: Path | str) -> CodebookFolder:
    """FileNotFoundError or ValueError for a folder that is none of the three, or has no image tokenizer."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: name a tokenizer run, an image tokenizer or an export")
    if (folder / CARD).is_file():
        kind: type[CodebookFolder] = Export
    elif (folder / IMAGE_MODEL).is_dir():
        kind = Run
        if not (folder / TEXT_MODEL).is_file():
            raise FileNotFoundError(f"{folder / TEXT_MODEL} is missing: finish the run of `omnigram tokenizer` first")
    elif (folder / CONFIG).is_file():
        kind = Bare
    else:
        within = folder / "export"
        hint = f"; {within} is an export" if (within / CARD).is_file() else ""
        raise ValueError(f"{folder} holds no image tokenizer: neither {CARD} nor {IMAGE_MODEL}/ nor {CONFIG}{hint}")
    return kind(folder)
