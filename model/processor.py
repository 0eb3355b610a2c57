"""An export's tokenizers behind the interface of transformers: text and pictures to ids and back.

    processor = AutoProcessor.from_pretrained(export)
    inputs = processor(text="a red apple, twemoji", draw=(64, 64), return_tensors="pt")
    only = processor.prefix_allowed_tokens_fn(inputs, text=False, max_blocks=0)
    ids = model.generate(**inputs, prefix_allowed_tokens_fn=only, max_new_tokens=80)
    *_, picture = processor.post_process(ids)[0]

Dimensions: B rows, T tokens of the longest; H rows and W columns of codes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from ..tokenizers.automaton import GrammarError
from ..tokenizers.vocabulary import TEXT
from .card import Card
from .codec import Codec
from .configuration import OmnigramConfig
from .generation.constraint import PrefixConstraint
from .generation.prompts import Block, Piece

Part = str | Image.Image | NDArray[np.int64]


class OmnigramProcessor(ProcessorMixin):
    """Writes and reads the documents of an export; `codec` has its vocabulary, tokenizers and grammar."""

    image_token = "<image>"

    def __init__(self, codec: Codec):
        self.codec, self._grammar, self._vocabulary = codec, codec.grammar, codec.vocabulary
        self.bos_token_id, self.eos_token_id = self._grammar.bos, self._grammar.eos
        self.pad_token_id = self._vocabulary.specials.get("pad", self.eos_token_id)

    @property
    def card(self) -> Card:
        """How prompts are worded, and what sizes there are."""
        return self.codec.card

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] (transformers' takes any modality and option)
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        draw: bool | tuple[int, int] = False,
        close: bool = False,
        padding: bool = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Documents, or beginnings of them, as `input_ids` and `attention_mask` [B, T], padded on the left.

        text: of each document, with "<image>" where a picture goes; None: each picture is a document of its own.
            Captions were worded as `card.prompt` words them; that is not done here.
        images: for the places in all texts in their order, or a list for each text.
        draw: go on to a picture of this (height, width) in pixels, True: of the first size that the model was trained
            on. The ids then end where its first code goes.
        close: end with eos, to train on. Labels are the ids, -100 where the mask is 0.
        padding: without it rows have their own lengths, which only lists can have.
        return_tensors: "pt" or "np"; None gives lists.

        ValueError, in one line, for what cannot be written, and for more or fewer pictures than places.
        """
        if draw and close:
            raise ValueError("draw=True begins what close=True ends: leave one of them out")
        end: tuple[Piece, ...] = (Block((), size=self.codec.grid(None if draw is True else draw)),) if draw else ()
        rows = [self.codec.writer.write((*pieces, *end), close).tolist() for pieces in self._documents(text, images)]
        longest = max(map(len, rows)) if padding else 0
        missing = [max(longest - len(row), 0) for row in rows]
        data = {
            "input_ids": [[self.pad_token_id] * pads + row for pads, row in zip(missing, rows, strict=True)],
            "attention_mask": [[0] * pads + [1] * len(row) for pads, row in zip(missing, rows, strict=True)],
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def prefix_allowed_tokens_fn(self, inputs: Mapping[str, Any], **limits: Any) -> PrefixConstraint:
        """For `generate(**inputs, prefix_allowed_tokens_fn=…)`: only what the grammar permits after these inputs.

        limits: arguments of `DocumentGrammar.automaton`. `text=False, max_blocks=0` finishes the picture that `draw`
            began, `max_blocks=0, min_text=1` writes words. With `max_tokens`, which should be the `max_new_tokens` of
            `generate`, there is always room left to close blocks and document.
        """
        rows, mask = np.asarray(inputs["input_ids"]), np.asarray(inputs["attention_mask"], dtype=bool)
        prompts = {tuple(row.tolist()): row[kept].tolist() for row, kept in zip(rows, mask, strict=True)}
        return PrefixConstraint(self._grammar.automaton(**limits), self.pad_token_id, prompts)

    def decode(self, token_ids: ArrayLike | torch.Tensor, skip_special_tokens: bool = False) -> str:
        """The text of any ids [T], with "<image>" for each whole picture; the parts of a broken one are left out.

        Special ids are shown by name, such as "<eos>".
        """
        ids = _array(token_ids)
        names = {} if skip_special_tokens else {id_: f"<{name}>" for name, id_ in self._vocabulary.specials.items()}
        breaks = np.append(np.flatnonzero(~self._vocabulary.contains(TEXT, ids)), len(ids))
        parts, at = [], 0
        while at < len(ids):
            stop = int(breaks[np.searchsorted(breaks, at)])
            if stop > at:
                parts.append(self.codec.text_tokenizer.decode(self._vocabulary.decode(TEXT, ids[at:stop]).tolist()))
                at = stop
                continue
            modality, length = self._grammar.begun_by(int(ids[at])), 0
            if modality is not None:
                try:
                    length = len(self._grammar.blocks[modality].match(ids[at:])[1].template)
                except GrammarError:
                    length = 0
            parts.append(f"<{modality}>" if length else names.get(int(ids[at]), ""))
            at += length or 1
        return "".join(parts)

    def batch_decode(
        self, sequences: Sequence[ArrayLike] | torch.Tensor, skip_special_tokens: bool = False
    ) -> list[str]:
        """`decode` of each row."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def post_process(self, sequences: Sequence[ArrayLike] | torch.Tensor) -> list[list[Part]]:
        """Rows of ids, prompts included -> the text and the pictures of each; codes of what is neither.

        A row may end without eos, where `generate` stopped. ValueError, naming row and token, for one that is no
        document or ends within a picture.
        """
        return [self._read(number, _array(ids)) for number, ids in enumerate(sequences)]

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] (transformers' can upload as well)
        self, save_directory: Path | str, **hub: Any
    ) -> None:
        """Write the export's files but the model's own: together the folder is an export.

        `hub`, what `push_to_hub` passes on, has no effect.
        """
        self.codec.save(save_directory)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] (transformers' names the hub's options)
        cls, pretrained_model_name_or_path: Path | str, **hub: Any
    ) -> Self:
        """Read the tokenizers of an export's folder, with the errors of `Codec.load`.

        `hub`, what the Auto classes pass on for downloads, has no effect.
        """
        return cls(Codec.load(pretrained_model_name_or_path))

    @property
    def tokenizer(self) -> Self:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where `Trainer` looks for the special ids."""
        return self

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        """The card, for `repr`."""
        return {"processor_class": type(self).__name__, **json.loads(self.card.to_json())}

    def _documents(self, text: str | Sequence[str] | None, images: Any) -> list[list[Piece]]:
        """The pieces of each document: its texts, and codes for its pictures."""
        pictures: list[Any] = [images] if isinstance(images, Image.Image) else list(images or ())
        if text is None:
            text = [self.image_token] * len(pictures)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("neither text nor images: give at least one of them")
        between = [line.split(self.image_token) for line in texts]
        places = [len(parts) - 1 for parts in between]
        if pictures and not isinstance(pictures[0], Image.Image):
            given = [len(each) for each in pictures]
            pictures = [picture for each in pictures for picture in each]
        elif len(pictures) == sum(places):
            given = places
        else:
            given = [len(pictures)]
        if given != places:
            raise ValueError(
                f"{given} pictures for texts with {places} places: write {self.image_token} for each picture"
            )
        blocks = iter([Block(self.codec.codes(picture)) for picture in pictures])
        return [[first, *(piece for rest in others for piece in (next(blocks), rest))] for first, *others in between]

    def _read(self, number: int, ids: NDArray[np.int64]) -> list[Part]:
        given = np.flatnonzero(ids != self.pad_token_id)
        start, stop = (int(given[0]), int(given[-1]) + 1) if len(given) else (0, 0)
        ends = np.flatnonzero(ids[start:stop] == self.eos_token_id)
        document = ids[start : start + int(ends[0])] if len(ends) else ids[start:stop]
        try:
            segments = self.codec.writer.read(np.append(document, self.eos_token_id))
        except GrammarError as fault:
            raise ValueError(f"row {number}, behind {start} pads: {fault}") from None
        return [
            segment
            if isinstance(segment, str)
            else self.codec.picture(segment.codes)
            if segment.modality == "image"
            else np.asarray(segment.codes)
            for segment in segments
        ]


def _array(ids: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    return np.asarray(ids.cpu() if isinstance(ids, torch.Tensor) else ids, dtype=np.int64)


AutoProcessor.register(OmnigramConfig, OmnigramProcessor, exist_ok=True)
