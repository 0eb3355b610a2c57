"""What happens while documents are being written, for whoever wants to watch.

Dimensions: h rows of codes written so far of a block of H x W.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .prompts import Sample


@dataclass(frozen=True, eq=False)
class Tokens:
    """Ids that a step added to a document, those that the grammar forced included.

    prompt: number of the prompt in the call; text: what of them is text, which may end within a character
    """

    prompt: int
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, eq=False)
class BlockRows:
    """A block has another whole row of codes: `codes` [h, W] of `size` (H, W); whole when h is H.

    Blocks of one axis or three, and those whose size is open until they end, are told once, when they are whole.
    number: of the block in its document, counted from 0, those of the prompt included
    """

    prompt: int
    number: int
    modality: str
    codes: NDArray[np.int64]
    size: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        return self.codes.shape == self.size


@dataclass(frozen=True, eq=False)
class Finished:
    """A document is finished."""

    prompt: int
    sample: Sample


Event = Tokens | BlockRows | Finished
Watch = Callable[[Event], None]
