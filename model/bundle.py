"""An export: one folder with everything that turns words into pictures and pictures into words.

    config.json, model.safetensors, generation_config.json    the decoder, as `AutoModelForCausalLM` loads it
    and the files of its `Codec`: vocabulary, tokenizers, and the card with all that it says of itself

Dimensions: H rows and W columns of codes; pictures are PIL images of patch * H by patch * W pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from ..tokenizers.pixel_tokenizer import PixelTokenizer
from ..tokenizers.published_text import PublishedText
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import Vocabulary
from .card import Card
from .codec import Codec, read_card
from .decoder import OmnigramForCausalLM
from .generation import tasks
from .generation.choice import Sampling
from .generation.events import Watch
from .generation.prompts import Block, Piece
from .generation.ranking import RANK_BY
from .generation.sampler import Sampler
from .generation.scoring import Score, score
from .generation.speculation import Speculation
from .stored_decoder import read_decoder

Example = tuple[str, Image.Image]  # words, and the picture that they name
Settings = Mapping[str, Sampling]


class Omnigram:
    """A decoder with the tokenizers it was trained on. `sampler` and `codec` are there for what is not offered here."""

    def __init__(self, model: OmnigramForCausalLM, codec: Codec):
        """ValueError if the model has another number of ids than the vocabulary."""
        self.model, self.codec = model, codec
        self.sampler = Sampler(model, codec.grammar, codec.text_tokenizer, codec.card.sampling)

    @property
    def card(self) -> Card:
        return self.codec.card

    @property
    def vocabulary(self) -> Vocabulary:
        return self.codec.vocabulary

    @property
    def text_tokenizer(self) -> TextTokenizer | PublishedText:
        return self.codec.text_tokenizer

    @property
    def image_tokenizer(self) -> PixelTokenizer:
        """What turns pictures into codes and back. ValueError if the export has none."""
        return self.codec.image_tokenizer

    @property
    def patch(self) -> int:
        """Pixels a side of one code."""
        return self.codec.patch

    def draw(
        self,
        words: str | Sequence[str] | None,
        style: str | None = None,
        n: int = 1,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        sampling: Settings | None = None,
        negative: str = "",
        examples: Sequence[Example] = (),
        best_of: int = 1,
        rank_by: str = RANK_BY,
        batch_size: int = 64,
        watch: Watch | None = None,
    ) -> list[Image.Image]:
        """n pictures of some words, or of each of several; `size` is (height, width) in pixels. None: of no words.

        Picture i has the seed `seed + i` and is the same in any batch. ValueError, in one line, for an unknown style,
        no words, too many words, or a size that is no multiple of `patch`.

        negative: words that guidance leads away from
        examples: captioned pictures that stand before the words, in context; their words are worded like `words`
        best_of: samples drawn for each picture, with seeds from `seed + i * best_of` on, of which the best is kept
        rank_by: "picture", the likeliest given the words, or "words", the one given which the words are likeliest
        watch: is told each event, see `generation.events`
        """
        texts: list[str | None] = [None]
        if words is not None:
            texts = [self.card.prompt(text, style) for text in ([words] if isinstance(words, str) else words)]
        elif style is not None:
            raise ValueError(f"style {style!r} belongs to words: say in words what to draw")
        self.codec.check_draws()
        drawn = tasks.draw(
            self.sampler,
            texts,
            n,
            size=self.codec.grid(size),
            seed=seed,
            sampling=sampling,
            negative=negative,
            examples=self._examples(examples, style),
            best=best_of,
            rank_by=rank_by,
            batch_size=batch_size,
            watch=watch,
        )
        return self.pictures(drawn)

    def caption(
        self,
        picture: Image.Image | None,
        *,
        max_tokens: int = 48,
        examples: Sequence[Example] = (),
        stop: Sequence[str] = (),
        seed: int = 0,
        sampling: Sampling | None = None,
        watch: Watch | None = None,
    ) -> str:
        """Words for a picture of any size, by default the likeliest; it is cropped to the nearest size trained on.

        None: words alone, by default as the export says, or by chance where that says temperature 0.
        examples: captioned pictures that stand before it, in context. stop: words end before the first of these.
        """
        [words] = tasks.caption(
            self.sampler,
            [None if picture is None else self.codes(picture)],
            max_tokens=max_tokens,
            seed=seed,
            sampling=sampling,
            examples=self._examples(examples, None),
            stop=stop,
            watch=watch,
        )
        return words

    def complete(
        self,
        picture: Image.Image,
        rows: int,
        words: str | None = None,
        style: str | None = None,
        n: int = 1,
        *,
        seed: int = 0,
        sampling: Settings | None = None,
        batch_size: int = 64,
        watch: Watch | None = None,
    ) -> list[Image.Image]:
        """n times the picture with only its first `rows` rows of codes kept and the rest drawn anew.

        Picture i has the seed `seed + i`. ValueError for rows that the picture does not have, and for a style without
        words.
        """
        kept, size, text = self.begun(picture, rows, words, style)
        drawn = tasks.complete(
            self.sampler,
            kept,
            n,
            size=size,
            words=text,
            seed=seed,
            sampling=sampling,
            batch_size=batch_size,
            watch=watch,
        )
        return self.pictures(drawn)

    def begun(
        self, picture: Image.Image, rows: int, words: str | None = None, style: str | None = None
    ) -> tuple[tasks.Codes, tuple[int, int], str | None]:
        """What `complete` goes on from: the codes kept [rows, W], the size (H, W) of the whole, and the words."""
        if style is not None and words is None:
            raise ValueError(f"style {style!r} belongs to words: say in words what the picture shows")
        self.codec.check_draws()
        codes = self.codes(picture)
        if len(codes) == 1:
            raise ValueError("this model's pictures are one row of codes: there are no rows to keep of one")
        if not 0 < rows < len(codes):
            raise ValueError(
                f"rows {rows} must be from 1 to {len(codes) - 1}: the picture has {len(codes)} rows of codes"
            )
        height, width = codes.shape
        return codes[:rows], (height, width), None if words is None else self.card.prompt(words, style)

    def joint(
        self,
        n: int = 1,
        *,
        size: tuple[int, int] | None = None,
        words_first: bool = True,
        seed: int = 0,
        sampling: Settings | None = None,
        max_tokens: int = 48,
        batch_size: int = 64,
        watch: Watch | None = None,
    ) -> list[tuple[str, Image.Image]]:
        """n pairs of words and a picture that nothing was said about, see `tasks.joint`; `size` as in `draw`.

        Pair i has the seed `seed + i`. max_tokens: of the words.
        """
        self.codec.check_draws()
        pairs = tasks.joint(
            self.sampler,
            n,
            size=self.codec.grid(size),
            words_first=words_first,
            max_tokens=max_tokens,
            seed=seed,
            sampling=sampling,
            batch_size=batch_size,
            watch=watch,
        )
        return [(words, self.codec.picture(codes)) for words, codes in pairs]

    def page(
        self,
        segments: Sequence[str | Image.Image],
        pictures: int = 2,
        *,
        size: tuple[int, int] | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        sampling: Settings | None = None,
        negative: str = "",
        stop: Sequence[str] = (),
        watch: Watch | None = None,
    ) -> list[str | Image.Image]:
        """Text and pictures continued by more text and `pictures` more pictures; the whole page comes back.

        stop: with `pictures=0`, the text ends before the first of these.
        """
        if pictures or not all(isinstance(part, str) for part in segments):
            self.codec.check_draws()
        [sample] = tasks.page(
            self.sampler,
            self._pieces(segments),
            blocks=pictures,
            size=self.codec.grid(size) if pictures else None,
            max_tokens=max_tokens,
            seed=seed,
            sampling=sampling,
            negative=negative,
            stop=stop,
            watch=watch,
        )
        return [
            part if isinstance(part, str) else self.pictures([np.asarray(part.codes)])[0] for part in sample.segments
        ]

    def score(self, segments: Sequence[str | Image.Image]) -> Score:
        """What each token of a document of texts and pictures costs; texts are taken as they are, not worded."""
        [found] = score(self.sampler, [self._pieces(segments)])
        return found

    def _pieces(self, segments: Sequence[str | Image.Image]) -> list[Piece]:
        return [part if isinstance(part, str) else Block(self.codes(part)) for part in segments]

    def _examples(self, examples: Sequence[Example], style: str | None) -> list[tasks.Example]:
        """Words as captions were worded, and codes."""
        return [(self.card.example(words, style), self.codes(picture)) for words, picture in examples]

    def codes(self, picture: Image.Image) -> tasks.Codes:
        """Codes [H, W] of a picture, made ready as `card.preprocessing` says; by default see `Codec.codes`."""
        return self.codec.codes(picture)

    def pictures(self, codes: Sequence[tasks.Codes]) -> list[Image.Image]:
        """The picture of each grid of codes [H, W]."""
        return [self.codec.picture(grid) for grid in codes]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the export; its card last, so that a folder without one is unfinished."""
        self.model.save_pretrained(folder)
        self.codec.save(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        compile: bool = False,
        speculation: Speculation | None = None,
        **options: Any,
    ) -> Self:
        """Read what `save_pretrained` wrote. `options` go to the decoder's `from_pretrained`, e.g. `dtype`.

        compile, speculation: see `Sampler`. FileNotFoundError or ValueError, in one line, for a folder that is no
        export, is damaged, or holds a vocabulary, a tokenizer and weights that do not belong together.
        """
        folder = Path(folder)
        read_card(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is not an export of Omnigram: config.json is missing")
        codec = Codec.load(folder, device)
        try:
            model = read_decoder(folder, codec.vocabulary, options)
            omnigram = cls(model.to(device), codec)  # pyright: ignore[reportArgumentType]
        except ValueError as fault:
            raise ValueError(f"{folder}: {fault}") from None
        omnigram.sampler.compile, omnigram.sampler.speculation = compile, speculation
        return omnigram
