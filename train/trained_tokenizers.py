"""The tokenizers that make tokens: those of a tokenizer run, or those of an export with all that it says of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..data.encoding import PictureTokenizer
from ..model.codec import CARD, IMAGE_MODEL, read_card, reserved_ids
from ..tokenizers.grammar import BlockGrammar
from ..tokenizers.image import ImageTokenizer
from ..tokenizers.pixel_tokenizer import load_image_tokenizer
from ..tokenizers.preprocessing import Preprocessing
from ..tokenizers.published_text import TEXT_MODEL, PublishedText, load_text_tokenizer
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainedTokenizers:
    """Text and image tokenizer, and how their codes are numbered and written.

    numbering: the vocabulary of an export; None appends the codes to the text
    grammars: how the blocks of each modality are written; those not named as their registered `Modality` says
    preprocessing: how a picture becomes pixels; None: fitted to a bucket of the data
    """

    text: TextTokenizer | PublishedText
    image: PictureTokenizer
    numbering: Vocabulary | None = None
    grammars: Mapping[str, BlockGrammar] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self.numbering or Vocabulary.appended(self.text.size, codebooks={"image": self.image.codebook_size})

    @property
    def digit_ids(self) -> dict[str, int]:
        """Ids of the digits, where a grammar writes sizes with them."""
        image = self.grammars.get("image")
        return self.text.digit_ids if image is None or image.size == "digits" else {}

    @property
    def published(self) -> dict[str, Any]:
        """What tokens are made from beyond the two tokenizers, JSON-able; empty for those trained here."""
        if self.numbering is None or (self.preprocessing is None and not self.grammars):
            return {}
        return {
            "vocabulary": self.vocabulary.identity,
            "grammars": {name: asdict(grammar) for name, grammar in sorted(self.grammars.items())},
            "preprocessing": None if self.preprocessing is None else asdict(self.preprocessing),
        }


def read_tokenizers(folder: Path, device: torch.device | str = "cpu") -> TrainedTokenizers:
    """Those of a run of `omnigram tokenizer`, or of an export, which may be an imported model.

    FileNotFoundError or ValueError, in one line, for a folder that is neither or is damaged.
    """
    if (folder / CARD).is_file():
        card, vocabulary = read_card(folder)
        text = load_text_tokenizer(folder, reserved_ids(vocabulary))
        image = load_image_tokenizer(folder / IMAGE_MODEL).float().to(device)
        return TrainedTokenizers(text, image, vocabulary, card.grammars, card.preprocessing)
    for part in (TEXT_MODEL, IMAGE_MODEL):
        if not (folder / part).exists():
            raise FileNotFoundError(f"{folder / part} is missing: train the tokenizers first, or set tokens.tokenizer=")
    image = ImageTokenizer.from_pretrained(folder / IMAGE_MODEL).to(device)
    return TrainedTokenizers(TextTokenizer.load(folder / TEXT_MODEL), image)
