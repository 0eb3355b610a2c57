"""Does a picture show its words? The cosine of both among sentences, as CLIP scores do, by a map that is fitted here.

CLIPScore: https://arxiv.org/abs/2104.08718. No CLIP is at hand offline: ridge regression takes features of pictures to
the embeddings of their captions, fitted on training pictures of other concepts than those that are scored. It is much
weaker than CLIP: the scores of true pictures and of shuffled captions, which stand beside, say what it can tell.

Dimensions: N pictures, F features, E components of a sentence's embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ..captioned_pictures import CaptionedPicture
from ..retrieval import Codes, Describe, describe_codes

PENALTIES = tuple(10.0**power for power in range(-4, 5))  # of the ridge, times the mean square of the features
LEAST = 8  # pictures to fit the map on

Embed = Callable[[Sequence[str]], Float[Tensor, "n e"]]


class CaptionScore:
    """A linear map from features of pictures to embeddings of words, both centred."""

    def __init__(self, weight: Float[Tensor, "f e"], features: Float[Tensor, " f"], words: Float[Tensor, " e"]) -> None:
        """features, words: the means that are taken off."""
        self.weight, self._features, self._words = weight, features, words

    @classmethod
    def fit(cls, features: Float[Tensor, "n f"], words: Float[Tensor, "n e"]) -> Self:
        """Ridge regression; the penalty is that of the least error with each picture left out in turn.

        ValueError for fewer than 8 pictures.
        """
        if len(features) < LEAST:
            raise ValueError(f"{len(features)} pictures are too few to fit a caption score on, which needs {LEAST}")
        features, words = features.double(), words.double()
        means = features.mean(0), words.mean(0)
        left, values, right = torch.linalg.svd(features - means[0], full_matrices=False)
        target = left.T @ (words - means[1])
        scale = values.square().sum() / features.shape[1]
        best, least = values.square(), float("inf")
        for penalty in PENALTIES:
            shrink = values.square() / (values.square() + penalty * scale)
            residual = words - means[1] - left @ (shrink[:, None] * target)
            leverage = (left.square() * shrink).sum(1) + 1 / len(features)
            error = float((residual / (1 - leverage).clamp_min(1e-6)[:, None]).square().mean())
            if error < least:
                best, least = values / (values.square() + penalty * scale), error
        return cls(right.T @ (best[:, None] * target), *means)

    def __call__(self, features: Float[Tensor, "n f"], words: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """The cosine of each picture with its words, -1 .. 1."""
        seen = (features.double() - self._features) @ self.weight
        return F.cosine_similarity(seen, words.double() - self._words)


def caption_scores(
    embed: Embed | None,
    describe: Describe | None,
    tokenizer: PixelTokenizer,
    known: Sequence[CaptionedPicture],
    asked: Mapping[str, Sequence[CaptionedPicture]],
    drawn: Mapping[str, Sequence[Codes]],
    batch_size: int,
) -> dict[str, float | None]:
    """For each name of `asked`, means over its pictures; None where something is missing, or too few pictures are left.

    caption_score_NAME: of what was drawn, with the words it was drawn of
    caption_score_NAME_true: of the pictures that these words belong to
    caption_score_NAME_shuffled: of what was drawn, with the words of the next picture
    """
    endings = ("", "_true", "_shuffled")
    numbers: dict[str, float | None] = dict.fromkeys(f"caption_score_{name}{end}" for name in asked for end in endings)
    concepts = {picture.concept for pictures in asked.values() for picture in pictures}
    others = [picture for picture in known if picture.concept not in concepts]
    if embed is None or describe is None or len(others) < LEAST:
        return numbers

    def features(codes: Sequence[Codes]) -> Float[Tensor, "n f"]:
        return describe_codes(tokenizer, codes, {"features": describe}, batch_size)["features"]

    def words(pictures: Sequence[CaptionedPicture]) -> Float[Tensor, "n e"]:
        return embed([picture.wordings[0] for picture in pictures])

    score = CaptionScore.fit(features([picture.codes for picture in others]), words(others))
    for name, pictures in asked.items():
        if len(pictures) > 1:
            said, ours = words(pictures), features(drawn[name])
            means = score(ours, said), score(features([p.codes for p in pictures]), said), score(ours, said.roll(1, 0))
            numbers |= {f"caption_score_{name}{end}": float(m.mean()) for end, m in zip(endings, means, strict=True)}
    return numbers
