"""The captioned pictures of a token data set, as evaluation asks for them: words, codes and what they show.

Dimensions: H rows and W columns of codes, T ids of a text.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.document import TokenDocument
from ..data.kinds import captioned_picture
from ..data.tokens import TokenDataset
from ..model.generation import Sampler

IMAGE = "image"


@dataclass(frozen=True, eq=False)
class CaptionedPicture:
    """One document: text codes [T] of its first wording, codes [H, W], and all wordings as text.

    concept: what is shown; documents without this field are named by their words
    style: None for documents without this field
    """

    key: str
    words: NDArray[np.int64]
    codes: NDArray[np.int64]
    wordings: tuple[str, ...]
    concept: str
    style: str | None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.codes.shape
        return height, width


def captioned_pictures(dataset: TokenDataset, sampler: Sampler) -> list[CaptionedPicture]:
    """Those of a split whose document fits the context of the model, in order; other documents are passed over."""
    found = (captioned_picture_of(dataset[index], sampler) for index in dataset.intact())
    return [picture for picture in found if picture is not None]


def captioned_picture_of(document: TokenDocument, sampler: Sampler) -> CaptionedPicture | None:
    """The document as a captioned picture, if it is one and fits the context of the model."""
    pair = captioned_picture(document)
    if pair is None or pair[1].modality != IMAGE or not pair[0].codes.size:
        return None
    words, codes = (segment.codes.astype(np.int64) for segment in pair)
    if len(words) + sampler.grammar.blocks[IMAGE].length(*codes.shape) + 2 > sampler.context:  # bos and eos
        return None
    decode = sampler.writer.text_tokenizer.decode
    wordings = tuple(decode(wording.tolist()) for wording in (pair[0].codes, *pair[0].alternatives))
    concept = document.fields.get("concept", wordings[0])
    return CaptionedPicture(document.key, words, codes, wordings, concept, document.fields.get("style"))


def choose(pictures: Sequence[CaptionedPicture], number: int, seed: int) -> list[CaptionedPicture]:
    """At most `number` of them, drawn by seed, every style in turn: any first few are as mixed as all."""
    by_style: defaultdict[str, list[CaptionedPicture]] = defaultdict(list)
    random = np.random.default_rng(seed)
    for index in random.permutation(len(pictures)).tolist():
        by_style[pictures[index].style or ""].append(pictures[index])
    chosen: list[CaptionedPicture] = []
    waiting = [by_style[style] for style in sorted(by_style)]
    while waiting and len(chosen) < number:
        chosen += [group.pop() for group in waiting]
        waiting = [group for group in waiting if group]
    return chosen[:number]


def gallery_of(
    pictures: Sequence[CaptionedPicture], wanted: Collection[str], most: int, seed: int
) -> list[CaptionedPicture]:
    """All of them, or of more than `most` those of the concepts wanted and others drawn by seed."""
    if len(pictures) <= most:
        return list(pictures)
    order = np.random.default_rng(seed).permutation(len(pictures))
    first = sorted(order.tolist(), key=lambda index: pictures[index].concept not in wanted)
    return [pictures[index] for index in sorted(first[:most])]


def derangement(groups: Sequence[Hashable], seed: int) -> list[int]:
    """For each item another one, of the same group where that can be: one cycle through all, group after group.

    ValueError for fewer than two items.
    """
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} items cannot all change places: at least two are needed")
    drawn = np.random.default_rng(seed).permutation(len(groups)).tolist()
    rank = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    cycle = sorted(drawn, key=lambda index: rank[groups[index]])
    other = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    return [other[index] for index in range(len(groups))]
