"""Lumina-mGPT: Chameleon's architecture and ids, pictures of free sizes with a mark behind each row.

https://arxiv.org/abs/2408.02657. Its config.json calls itself a chameleon; how it writes pictures has to be said.
"""

from collections.abc import Mapping
from dataclasses import replace

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ...tokenizers.preprocessing import Preprocessing
from ...tokenizers.published import LUMINA_GRAMMAR, lumina_vocabulary
from ...tokenizers.vocabulary import Vocabulary
from ..card import Card
from ..configuration import OmnigramConfig
from ..generation.choice import Sampling
from .chameleon import Chameleon

SAMPLING = {"text": Sampling(top_k=10), "image": Sampling(top_k=2000, guidance=4.0)}
STEPS = 24  # of 32 pixels, a side of the square with the area of its pictures: 768 pixels
MAX_RATIO = 4


class Lumina(Chameleon):
    model_types = ()

    def vocabulary(self, theirs: OmnigramConfig, names: Mapping[str, int]) -> Vocabulary:
        return lumina_vocabulary(names, theirs.vocab_size)

    def own_pixels(self, image: PixelTokenizer) -> Preprocessing | None:
        return None

    def card(self, image: PixelTokenizer | None, preprocessing: Preprocessing | None) -> Card:
        """Pictures are fitted to the nearest of its sizes, over white; `preprocessing` is Chameleon's one size."""
        return replace(
            super().card(image, preprocessing),
            sizes=sizes(),
            grammars={"image": LUMINA_GRAMMAR},
            preprocessing=None,
            sampling=SAMPLING,
        )


def sizes() -> tuple[tuple[int, int], ...]:
    """Grids (H, W) in codes that it was trained on, the square first: for each width the tallest within the area."""
    unit = LUMINA_GRAMMAR.size_unit
    steps = ((STEPS**2 // width, width) for width in range(1, STEPS**2 + 1))
    grids = {(height, width) for height, width in steps if max(height, width) <= MAX_RATIO * min(height, width)}
    grids |= {(width, height) for height, width in grids}
    rising = sorted(grids, key=lambda grid: (abs(grid[0] - grid[1]), grid))
    return tuple((unit * height, unit * width) for height, width in rising)
