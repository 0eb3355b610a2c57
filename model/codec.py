"""An export without its decoder: words and pictures to the ids of documents and back.

    vocabulary.json, image/          the vocabulary and the image tokenizer, if there is one
    text.model, or tokenizer.json    the text tokenizer: ours, or that of an imported model
    omnigram.json                    the card: wording, sizes, sampling, identities
    source/                          small files of the model that was imported, as they came

Dimensions: H rows and W columns of codes; pictures are PIL images of patch * H by patch * W pixels.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..tokenizers.image import to_pixels, to_uint8
from ..tokenizers.modality import block_grammars, document_grammar
from ..tokenizers.pixel_tokenizer import PixelTokenizer, load_image_tokenizer
from ..tokenizers.published_text import TEXT_MODEL, TOKENIZER_JSON, PublishedText, load_text_tokenizer
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import TEXT, Vocabulary
from .card import Card
from .generation.prompts import Writer

UNDRAWN = (225, 225, 225)  # where a picture is still to come
CARD, VOCABULARY, IMAGE_MODEL, SOURCE = "omnigram.json", "vocabulary.json", "image", "source"


class Codec:
    """A vocabulary with its tokenizers and its card; `grammar` and `writer` come of them."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer | PublishedText,
        image_tokenizer: PixelTokenizer | None,
        card: Card | None = None,
        source: Path | None = None,
    ):
        """source: a folder of small files that `save` passes on.

        ValueError for parts that do not belong together, by their sizes or by the identities on the card.
        """
        card = card or Card()
        identities = {"vocabulary": vocabulary.identity, "text": text_tokenizer.identity}
        if image_tokenizer is not None:
            identities["image"] = image_tokenizer.identity
        for name, recorded in card.identities.items():
            if identities.get(name) != recorded:
                there = identities.get(name, "none")
                raise ValueError(f"the model was trained with {name} {recorded[:12]}, but here is {there[:12]}")
        _check_sizes(vocabulary, text_tokenizer, image_tokenizer)
        self.vocabulary, self.text_tokenizer, self._image_tokenizer = vocabulary, text_tokenizer, image_tokenizer
        self.digit_ids: dict[str, int] = {}  # of the digits, where a grammar writes sizes with them
        if any(block.size == "digits" for block in block_grammars(vocabulary, card.grammars).values()):
            self.digit_ids = {s: int(vocabulary.encode(TEXT, code)) for s, code in text_tokenizer.digit_ids.items()}
        self.grammar = document_grammar(vocabulary, self.digit_ids, card.grammars, card.max_side)
        if "image" in self.grammar.blocks:
            for height, width in card.sizes:
                self.grammar.blocks["image"].check_size(height, width)
        sampling = card.sampling_of((TEXT, *self.grammar.blocks))
        self.card = dataclasses.replace(card, identities=identities, sampling=sampling)
        self.writer = Writer(self.grammar, text_tokenizer)
        self.source = source

    @property
    def image_tokenizer(self) -> PixelTokenizer:
        """What turns pictures into codes and back. ValueError if the export has none."""
        if self._image_tokenizer is None:
            raise ValueError("this model has no image tokenizer, it only reads and writes words")
        return self._image_tokenizer

    @property
    def patch(self) -> int:
        """Sides of pictures are multiples of this many pixels."""
        return self.image_tokenizer.patch

    def check_draws(self) -> None:
        """ValueError if pictures can be read but not drawn."""
        if not self.image_tokenizer.can_decode:
            raise ValueError(
                "this model's image tokenizer has no decoder, so it cannot draw: "
                "import it again with --image-tokenizer vqgan.ckpt"
            )

    def grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels -> (H, W); None is the first size trained on. ValueError for a part of a code."""
        if size is None:
            return self.card.sizes[0]
        height, width = size
        if height % self.patch or width % self.patch or min(size) < self.patch:
            raise ValueError(
                f"a picture of {height} x {width} pixels: sides must be multiples of {self.patch}, and above 0"
            )
        return self.image_tokenizer.grid(height, width)

    def codes(self, picture: Image.Image) -> NDArray[np.int64]:
        """Codes [H, W] of a picture, made ready as `card.preprocessing` says.

        By default: over white, cropped and resized to the nearest size trained on.
        """
        device = next(self.image_tokenizer.parameters()).device
        return self.image_tokenizer.encode(self._pixels(picture)[None].to(device))[0].cpu().numpy()

    def picture(self, codes: ArrayLike) -> Image.Image:
        """The picture of a grid of codes [H, W]."""
        grid = torch.from_numpy(np.asarray(codes))[None].to(next(self.image_tokenizer.parameters()).device)
        pixels = self.image_tokenizer.decode(grid).float()
        if self.card.preprocessing is not None:
            return self.card.preprocessing.invert(pixels[0])
        return Image.fromarray(to_uint8(pixels)[0].cpu().numpy())

    def picture_begun(self, codes: ArrayLike, size: tuple[int, int]) -> Image.Image:
        """A picture of `size` (H, W) of which only the first rows of codes [h, W] are drawn: below them light grey.

        Rows are decoded without those that are still to come: those at the border may change a little with them.
        """
        grid, (height, width) = np.asarray(codes), size
        if grid.ndim != 2 or grid.shape[1] != width or len(grid) > height:
            raise ValueError(f"rows of codes {grid.shape} do not begin a picture of {height} x {width} codes")
        if len(grid) == height:
            return self.picture(grid)
        pixels = self.image_tokenizer.size(height, width)
        canvas = Image.new("RGB", (pixels[1], pixels[0]), UNDRAWN)
        if len(grid):
            canvas.paste(self.picture(grid))
        return canvas

    def save(self, folder: Path | str) -> None:
        """Write the files named above, the card last, so that a folder without one is unfinished."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VOCABULARY).write_text(self.vocabulary.to_json() + "\n")
        ours = isinstance(self.text_tokenizer, TextTokenizer)
        self.text_tokenizer.save(folder / (TEXT_MODEL if ours else TOKENIZER_JSON))
        if self._image_tokenizer is not None:
            self._image_tokenizer.save_pretrained(folder / IMAGE_MODEL)
        if self.source is not None and self.source.resolve() != (folder / SOURCE).resolve():
            shutil.copytree(self.source, folder / SOURCE, dirs_exist_ok=True)
        (folder / CARD).write_text(self.card.to_json())

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote; `device` is the image tokenizer's.

        FileNotFoundError or ValueError, in one line, for a folder that is no export, is damaged, or holds a vocabulary
        and tokenizers that do not belong together.
        """
        folder = Path(folder)
        card, vocabulary = read_card(folder)
        text_tokenizer = load_text_tokenizer(folder, reserved_ids(vocabulary))
        image_tokenizer = None
        if "image" in card.identities or (folder / IMAGE_MODEL).is_dir():
            image_tokenizer = load_image_tokenizer(folder / IMAGE_MODEL).to(device)
        source = folder / SOURCE if (folder / SOURCE).is_dir() else None
        try:
            return cls(vocabulary, text_tokenizer, image_tokenizer, card, source)
        except ValueError as fault:
            raise ValueError(f"{folder}: {fault}") from None

    def _pixels(self, picture: Image.Image) -> Float[Tensor, "3 h w"]:
        if self.card.preprocessing is not None:
            return self.card.preprocessing(picture)
        height, width = min(
            (self.image_tokenizer.size(*grid) for grid in self.card.sizes),
            key=lambda size: abs(np.log(size[0] / size[1] * picture.width / picture.height)),
        )
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
        return to_pixels(torch.from_numpy(np.array(fitted))[None])[0]


def read_card(folder: Path | str) -> tuple[Card, Vocabulary]:
    """What an export says of itself, and its vocabulary. FileNotFoundError or ValueError if it is no export."""
    folder = Path(folder)
    for name in (CARD, VOCABULARY):
        if not (folder / name).is_file():
            within = folder / "export"
            hint = f"; {within} is one" if (within / name).is_file() else ""
            lacking = f"{name} is missing" if folder.is_dir() else "there is no such folder"
            raise FileNotFoundError(f"{folder} is not an export of Omnigram: {lacking}{hint}")
    try:
        return Card.from_json((folder / CARD).read_text()), Vocabulary.from_json((folder / VOCABULARY).read_text())
    except ValueError as fault:
        raise ValueError(f"{folder}: {fault}") from None


def reserved_ids(vocabulary: Vocabulary) -> list[int]:
    """What a published text tokenizer must not write: ids of marks and codes, and those without a meaning."""
    text = vocabulary.range(TEXT)
    own = np.zeros(max(vocabulary.size, text.stop), dtype=bool)
    own[vocabulary.ids(TEXT)] = True
    return np.flatnonzero(~own).tolist()


def _check_sizes(vocabulary: Vocabulary, text: TextTokenizer | PublishedText, image: PixelTokenizer | None) -> None:
    """ValueError if tokenizers and vocabulary do not have the same number of codes."""
    if isinstance(text, PublishedText):  # it names the marks and codes as well, and may leave ids unused
        if text.size > vocabulary.size:
            raise ValueError(f"the text tokenizer has {text.size} tokens, the vocabulary {vocabulary.size} ids")
    elif text.size != vocabulary.range(TEXT).size:
        raise ValueError(f"the text tokenizer has {text.size} codes, the vocabulary {vocabulary.range(TEXT).size}")
    if image is not None and image.codebook_size != vocabulary.range("image").size:
        codes = vocabulary.range("image").size
        raise ValueError(f"the image tokenizer has {image.codebook_size} codes, the vocabulary {codes}")
