"""An export: one folder with everything that turns words into pictures and pictures into words.

    config.json, model.safetensors, generation_config.json    the decoder, as `AutoModelForCausalLM` loads it
    vocabulary.json, text.model, image/                       the vocabulary and the tokenizers
    omnigram.json                                             the card: wording, sizes, sampling, identities

Dimensions: H rows and W columns of codes; pictures are PIL images of patch * H by patch * W pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from ..tokenizers.image import to_pixels, to_uint8
from ..tokenizers.modality import document_grammar
from ..tokenizers.pixel_tokenizer import PixelTokenizer, load_image_tokenizer
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import TEXT, Vocabulary
from .card import Card
from .configuration import OmnigramConfig
from .decoder import OmnigramForCausalLM
from .generation import tasks
from .generation.choice import Sampling
from .generation.prompts import Block, Piece
from .generation.sampler import Sampler

CARD, VOCABULARY, TEXT_MODEL, IMAGE_MODEL = "omnigram.json", "vocabulary.json", "text.model", "image"

Settings = Mapping[str, Sampling]


class Omnigram:
    """A decoder with the tokenizers it was trained on. `sampler` and `card` are there for what is not offered here."""

    def __init__(
        self,
        model: OmnigramForCausalLM,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        image_tokenizer: PixelTokenizer | None,
        card: Card | None = None,
    ):
        card = card or Card()
        identities = {"vocabulary": vocabulary.identity, "text": text_tokenizer.identity}
        if image_tokenizer is not None:
            identities["image"] = image_tokenizer.identity
        for name, recorded in card.identities.items():
            if identities.get(name) != recorded:
                there = identities.get(name, "none")
                raise ValueError(f"the model was trained with {name} {recorded[:12]}, but here is {there[:12]}")
        sizes = {} if image_tokenizer is None else {"image": image_tokenizer.codebook_size}
        for name, size in {TEXT: text_tokenizer.size, **sizes}.items():
            if size != vocabulary.range(name).size:
                raise ValueError(f"the {name} tokenizer has {size} codes, the vocabulary {vocabulary.range(name).size}")
        self.card = dataclasses.replace(card, identities=identities)
        self.model, self.vocabulary = model, vocabulary
        self.text_tokenizer, self._image_tokenizer = text_tokenizer, image_tokenizer
        digit_ids = {symbol: int(vocabulary.encode(TEXT, code)) for symbol, code in text_tokenizer.digit_ids.items()}
        grammar = document_grammar(vocabulary, digit_ids, card.grammars, card.max_side)
        if "image" in grammar.blocks:
            for height, width in card.sizes:
                grammar.blocks["image"].check_size(height, width)
        self.sampler = Sampler(model, grammar, text_tokenizer, card.sampling)

    @property
    def image_tokenizer(self) -> PixelTokenizer:
        """What turns pictures into codes and back. ValueError if the export has none."""
        if self._image_tokenizer is None:
            raise ValueError("this model has no image tokenizer, it only reads and writes words")
        return self._image_tokenizer

    @property
    def patch(self) -> int:
        """Pixels a side of one code."""
        return self.image_tokenizer.patch

    def draw(
        self,
        words: str | Sequence[str],
        style: str | None = None,
        n: int = 1,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        sampling: Settings | None = None,
        batch_size: int = 64,
    ) -> list[Image.Image]:
        """n pictures of some words, or of each of several; `size` is (height, width) in pixels.

        Picture i has the seed `seed + i` and is the same in any batch. ValueError, in one line, for an unknown style,
        no words, too many words, or a size that is no multiple of `patch`.
        """
        grid = self._grid(size)
        texts = [self.card.prompt(text, style) for text in ([words] if isinstance(words, str) else words)]
        codes = tasks.draw(self.sampler, texts, n, size=grid, seed=seed, sampling=sampling, batch_size=batch_size)
        return self.pictures(codes)

    def caption(self, picture: Image.Image, *, max_tokens: int = 48) -> str:
        """The likeliest words for a picture of any size; it is cropped to the nearest size trained on."""
        return tasks.caption(self.sampler, [self.codes(picture)], max_tokens=max_tokens)[0]

    def complete(
        self,
        picture: Image.Image,
        rows: int,
        words: str | None = None,
        style: str | None = None,
        *,
        seed: int = 0,
        sampling: Settings | None = None,
    ) -> Image.Image:
        """The picture with only its first `rows` rows of codes kept and the rest drawn anew.

        ValueError for rows that the picture does not have, and for a style without words.
        """
        if style is not None and words is None:
            raise ValueError(f"style {style!r} belongs to words: say in words what the picture shows")
        codes = self.codes(picture)
        if not 0 < rows < len(codes):
            raise ValueError(
                f"rows {rows} must be from 1 to {len(codes) - 1}: the picture has {len(codes)} rows of codes"
            )
        text = None if words is None else self.card.prompt(words, style)
        height, width = codes.shape
        drawn = tasks.complete(
            self.sampler, codes[:rows], size=(height, width), words=text, seed=seed, sampling=sampling
        )
        return self.pictures(drawn)[0]

    def page(
        self,
        segments: Sequence[str | Image.Image],
        pictures: int = 2,
        *,
        size: tuple[int, int] | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        sampling: Settings | None = None,
    ) -> list[str | Image.Image]:
        """Text and pictures continued by more text and `pictures` more pictures; the whole page comes back."""
        begun: list[Piece] = [part if isinstance(part, str) else Block(self.codes(part)) for part in segments]
        [sample] = tasks.page(
            self.sampler,
            begun,
            blocks=pictures,
            size=self._grid(size),
            max_tokens=max_tokens,
            seed=seed,
            sampling=sampling,
        )
        return [
            part if isinstance(part, str) else self.pictures([np.asarray(part.codes)])[0] for part in sample.segments
        ]

    def codes(self, picture: Image.Image) -> tasks.Codes:
        """Codes [H, W] of a picture, made ready as `card.preprocessing` says.

        By default: over white, cropped and resized to the nearest size trained on.
        """
        pixels = self._pixels(picture)[None].to(self._device, next(self.image_tokenizer.parameters()).dtype)
        return self.image_tokenizer.encode(pixels)[0].cpu().numpy()

    def _pixels(self, picture: Image.Image) -> Float[Tensor, "3 h w"]:
        if self.card.preprocessing is not None:
            return self.card.preprocessing(picture)
        height, width = min(
            self.card.sizes, key=lambda size: abs(np.log(size[0] / size[1] * picture.width / picture.height))
        )
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        fitted = ImageOps.fit(
            picture.convert("RGB"), (width * self.patch, height * self.patch), Image.Resampling.LANCZOS
        )
        return to_pixels(torch.from_numpy(np.array(fitted))[None])[0]

    def pictures(self, codes: Sequence[tasks.Codes]) -> list[Image.Image]:
        """The picture of each grid of codes [H, W]."""
        drawn: list[Image.Image] = []
        for grid in codes:
            pixels = self.image_tokenizer.decode(torch.from_numpy(grid)[None].to(self._device)).float()
            if self.card.preprocessing is not None:
                drawn.append(self.card.preprocessing.invert(pixels[0]))
            else:
                drawn.append(Image.fromarray(to_uint8(pixels)[0].cpu().numpy()))
        return drawn

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the export; its card last, so that a folder without one is unfinished."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        (folder / VOCABULARY).write_text(self.vocabulary.to_json() + "\n")
        self.text_tokenizer.save(folder / TEXT_MODEL)
        if self._image_tokenizer is not None:
            self._image_tokenizer.save_pretrained(folder / IMAGE_MODEL)
        (folder / CARD).write_text(self.card.to_json())

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: torch.device | str = "cpu", **options: Any) -> Self:
        """Read what `save_pretrained` wrote. `options` go to the decoder's `from_pretrained`, e.g. `dtype`.

        FileNotFoundError or ValueError, in one line, for a folder that is no export, is damaged, or holds a
        vocabulary, a tokenizer and weights that do not belong together.
        """
        folder = Path(folder)
        for name in (CARD, "config.json", VOCABULARY, TEXT_MODEL):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is not an export of Omnigram: {name} is missing")
        try:
            card = Card.from_json((folder / CARD).read_text())
            vocabulary = Vocabulary.from_json((folder / VOCABULARY).read_text())
        except ValueError as fault:
            raise ValueError(f"{folder}: {fault}") from None
        text_tokenizer = TextTokenizer.load(folder / TEXT_MODEL)
        image_tokenizer = None
        if "image" in card.identities or (folder / IMAGE_MODEL).is_dir():
            image_tokenizer = load_image_tokenizer(folder / IMAGE_MODEL).to(device)
        try:
            model = _decoder(folder, vocabulary, options)
            return cls(model.to(device), vocabulary, text_tokenizer, image_tokenizer, card)  # pyright: ignore[reportArgumentType]
        except ValueError as fault:
            raise ValueError(f"{folder}: {fault}") from None

    @property
    def _device(self) -> torch.device:
        return self.model.device

    def _grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Pixels -> codes."""
        if size is None:
            return self.card.sizes[0]
        height, width = size
        if height % self.patch or width % self.patch or min(size) < self.patch:
            raise ValueError(f"a picture of {height} x {width} pixels: sides must be multiples of {self.patch}")
        return height // self.patch, width // self.patch


def _decoder(folder: Path, vocabulary: Vocabulary, options: Mapping[str, Any]) -> OmnigramForCausalLM:
    """The decoder of an export. ValueError unless the file holds exactly its weights."""
    size = OmnigramConfig.from_pretrained(folder).vocab_size
    if size != vocabulary.size:
        raise ValueError(f"the model has {size} ids, {VOCABULARY} {vocabulary.size}: they do not belong together")
    try:
        wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True, **options}  # which are told below
        read: Any = OmnigramForCausalLM.from_pretrained(folder, **wanted)
    except (SafetensorError, OSError, RuntimeError) as fault:
        raise ValueError(f"the weights cannot be read: {str(fault).splitlines()[0]}") from None
    model, loaded = read
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            raise ValueError(f"the weights do not fit config.json: {problem} {sorted(loaded[problem])[0]}")
    return model.eval()
