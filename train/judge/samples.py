"""Do samples look like pictures that were never trained on? Their kernel distance to held-out pictures.

Samples and pictures both come out of the image tokenizer, or its blur would decide.
"""

from collections.abc import Sequence

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ..retrieval import Codes, Describe, describe_codes
from .kernel_distance import kernel_distance

LEAST = 3  # pictures of each set
NAMES = ("kid_efficientnet_samples", "kid_efficientnet_train")


def sample_distances(
    tokenizer: PixelTokenizer,
    features: Describe | None,
    drawn: Sequence[Codes],
    known: Sequence[Codes],
    heldout: Sequence[Codes],
    batch_size: int,
) -> dict[str, float | int | None]:
    """`kid_efficientnet_samples` of what was drawn to held-out pictures; `…_train` of training pictures to the same.

    The second is what a model reaches that draws its training pictures; both with their `…_error`. None without
    features, or with fewer than 3 pictures of a kind.
    """
    numbers: dict[str, float | int | None] = dict.fromkeys(name for each in NAMES for name in (each, f"{each}_error"))
    numbers["kid_efficientnet_pictures"] = len(heldout)
    if features is None or min(len(drawn), len(known), len(heldout)) < LEAST:
        return numbers
    described = [
        describe_codes(tokenizer, codes, {"features": features}, batch_size)["features"]
        for codes in (heldout, drawn, known)
    ]
    for name, ours in zip(NAMES, described[1:], strict=True):
        found = kernel_distance(ours, described[0])
        numbers |= {name: found.value, f"{name}_error": found.error}
    return numbers
