"""What a pre-trained decoder is worth: bits, retrieval of what it draws, captions of what it sees, pages to look at.

    1 train split      its captions are drawn and its pictures captioned: what has been learnt by heart
    2 heldout_style    concepts asked for in a style they were never seen in: what has been understood
    3 test, else val   captions alone, of concepts never seen

A number whose split or optional package is missing is None, and a line says so.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from ..data.artefact import atomic_write
from ..data.splits import HELDOUT_STYLE, TEST, TRAIN, VAL
from ..data.tokens import TokenDataset
from ..model.bundle import Omnigram
from .captioned_pictures import IMAGE, CaptionedPicture, captioned_pictures, choose, gallery_of
from .captioning import measure_captioning
from .judge.caption_score import caption_scores
from .judge.samples import sample_distances
from .judge.sentences import SentenceEmbeddings
from .likelihood import bits_of_codes, bits_of_pictures, bits_per_character, shuffled_captions
from .originals import original_pictures
from .picture_features import PictureFeatures
from .pictures_page import contact_sheet
from .retrieval import Codes, Describe, Gallery, decoded, describe_codes, draw_each, pixels_16

SAMPLES, SAMPLES_HELDOUT = "samples.png", "samples_heldout.png"
_PIXELS, _FEATURES = "pixels", "features"


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is measured.

    queries: captions of the train split that are drawn, and pictures of it that are captioned
    heldout_queries: at most so many documents of each held-out split
    gallery: at most so many training pictures are searched, those of the concepts asked for among them
    page: samples on a page
    batch_size: pictures drawn, scored or decoded at once
    features: whether to compare across styles by EfficientNet-lite0, which takes the longest on a CPU
    caption_score: whether to score pictures with their words, by embeddings of an optional package
    seed: of the choice of queries, of the samples and of the shuffled captions
    """

    queries: int = 256
    heldout_queries: int = 512
    gallery: int = 10_000
    page: int = 64
    batch_size: int = 64
    features: bool = True
    caption_score: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("queries", "heldout_queries", "gallery", "page", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name}={getattr(self, name)} must be 1 or more")


def evaluate_pretraining(
    model: Omnigram,
    tokens: Path | str,
    settings: EvaluationSettings | None = None,
    *,
    out: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Flat numbers of a model on the splits of the token data set in `tokens`; with `out` also the pages, as PNG.

    ValueError if the tokens are not of this model's vocabulary, or hold no captioned picture to train on.
    """
    return _Evaluation(model, Path(tokens), settings or EvaluationSettings(), out, console).run()


class _Evaluation:
    def __init__(
        self, model: Omnigram, tokens: Path, settings: EvaluationSettings, out: Path | None, console: Console | None
    ) -> None:
        self.model, self.settings, self.out = model, settings, out
        self.console = console or Console(stderr=True)
        self.train = TokenDataset(tokens, TRAIN)
        if self.train.record["vocabulary"] != model.vocabulary.identity:
            raise ValueError(f"{tokens} was not written with the vocabulary of the model: name the tokens it learnt")
        self.known = captioned_pictures(self.train, model.sampler)
        if not self.known:
            raise ValueError(f"{tokens} has no captioned pictures that fit the context of {model.sampler.context}")
        self.queries = choose(self.known, settings.queries, settings.seed)
        self.heldout = {split: self._split(split) for split in (HELDOUT_STYLE, TEST, VAL)}
        self.numbers: dict[str, Any] = {}
        self.drawn: dict[str, list[Codes]] = {}
        self._said: set[str] = set()

    def run(self) -> dict[str, Any]:
        started = time.perf_counter()
        for name, part in (
            ("bits", self.measure_bits),
            ("captions", self.measure_captions),
            ("samples", self.measure_samples),
            ("features of samples", self.measure_features),
        ):
            with self.console.status(f"evaluation: {name}"):
                part()
        self.numbers |= {"evaluation_seed": self.settings.seed}
        self.numbers |= {"evaluation_seconds": round(time.perf_counter() - started, 1)}
        return self.numbers

    def measure_bits(self) -> None:
        """Of pictures after their own words and after others', and of words alone."""
        sampler, seed, size = self.model.sampler, self.settings.seed, self.settings.batch_size
        split = next((name for name in (HELDOUT_STYLE, TEST, VAL) if len(self.heldout[name]) > 1), None)
        pictures = self.heldout[split] if split else []
        own = bits_of_codes(sampler, pictures, batch_size=size)
        others = bits_of_pictures(sampler, pictures, shuffled_captions(pictures, seed), size) if pictures else None
        known, others_known = bits_of_codes(sampler, self.queries, batch_size=size), None
        if len(self.queries) > 1:
            others_known = bits_of_pictures(sampler, self.queries, shuffled_captions(self.queries, seed), size)
        texts = self.heldout[TEST] or self.heldout[VAL] or pictures
        self.numbers |= {
            "bits_per_picture": _mean([bits.sum() for bits in own]),
            "bits_per_picture_shuffled_captions": _mean(others),
            "bits_per_picture_split": split,
            "bits_per_picture_pictures": len(pictures),
            "bits_per_picture_train": _mean([bits.sum() for bits in known]),
            "bits_per_picture_train_shuffled_captions": _mean(others_known),
            "bits_first_code": _mean([bits[0] for bits in own]),  # where a picture begins, and errors with it
            "bits_first_code_train": _mean([bits[0] for bits in known]),
            "codes_per_picture": _mean([len(bits) for bits in known]),
            "own_caption_wins": _wins(own, others),
            "own_caption_wins_train": _wins(known, others_known),
            "bits_per_character": bits_per_character(sampler, texts, size) if texts else None,
        }

    def measure_captions(self) -> None:
        for name, pictures in ((TRAIN, self.queries), (HELDOUT_STYLE, self.heldout[HELDOUT_STYLE])):
            measured = None
            if pictures:
                measured = measure_captioning(self.model.sampler, pictures, self.model.card, self.settings.batch_size)
            self.numbers |= {
                f"caption_exact_{name}": measured and measured.exact,
                f"caption_f1_{name}": measured and measured.f1,
                f"caption_{name}_pictures": len(pictures),
            }

    def measure_samples(self) -> None:
        """Draw every query once; look for what was drawn among the reconstructions of the training pictures."""
        self.drawn = {TRAIN: self._draw(self.queries), HELDOUT_STYLE: self._draw(self.heldout[HELDOUT_STYLE])}
        pairs, settings = self.heldout[HELDOUT_STYLE], self.settings
        drawn, drawn_pairs = self.drawn[TRAIN], self.drawn[HELDOUT_STYLE]
        describe: dict[str, Describe] = {_PIXELS: pixels_16}
        features = self._features() if pairs else None
        if features is not None:
            describe[_FEATURES] = features
        wanted = {picture.concept for picture in (*self.queries, *pairs)}
        shown = gallery_of(self.known, wanted, settings.gallery, settings.seed)
        described = self._describe([picture.codes for picture in shown], describe)
        galleries = {name: Gallery(found, [p.concept for p in shown]) for name, found in described.items()}

        asked = [picture.concept for picture in self.queries]
        train = galleries[_PIXELS].retrieve(self._describe(drawn, {_PIXELS: pixels_16})[_PIXELS], asked)
        self.numbers |= {
            "retrieval_top1_train": train.top1,
            "retrieval_top5_train": train.top5,
            "retrieval_ceiling": self._ceiling(galleries[_PIXELS]),
            "retrieval_chance": train.chance,
            "retrieval_queries": len(asked),
            "retrieval_gallery": len(shown),
        }
        heldout = ceiling = None
        if features is not None:
            asked = [picture.concept for picture in pairs]
            across = {_FEATURES: describe[_FEATURES]}
            heldout = galleries[_FEATURES].retrieve(self._describe(drawn_pairs, across)[_FEATURES], asked)
            truth = self._describe([picture.codes for picture in pairs], across)[_FEATURES]
            ceiling = galleries[_FEATURES].retrieve(truth, asked)
        self.numbers |= {
            "retrieval_top1_heldout_style": heldout and heldout.top1,
            "retrieval_top5_heldout_style": heldout and heldout.top5,
            "retrieval_ceiling_heldout_style": ceiling and ceiling.top1,  # the true pictures, in the unseen style
            "retrieval_chance_heldout_style": heldout and heldout.chance,
            "retrieval_queries_heldout_style": len(pairs),
        }
        # as metrics.json has it: pairs are lists
        sampling = json.loads(json.dumps(asdict(self.model.sampler.sampling[IMAGE])))
        self.numbers |= {f"sampling_{name}": value for name, value in sampling.items()}
        if self.out is not None:
            self._pages(self.out, drawn, drawn_pairs)

    def measure_features(self) -> None:
        """Of what was drawn: how far it is from held-out pictures, and whether it shows its words."""
        features, size = self._features(), self.settings.batch_size
        pooled = features and features.pooled
        heldout = next((self.heldout[split] for split in (TEST, VAL, HELDOUT_STYLE) if self.heldout[split]), [])
        known, unknown = ([picture.codes for picture in pictures] for pictures in (self.queries, heldout))
        self.numbers |= sample_distances(self.model.image_tokenizer, pooled, self.drawn[TRAIN], known, unknown, size)
        asked = {TRAIN: self.queries, HELDOUT_STYLE: self.heldout[HELDOUT_STYLE]}
        score = self._sentences() if pooled else None
        self.numbers |= caption_scores(score, pooled, self.model.image_tokenizer, self.known, asked, self.drawn, size)

    def _pages(self, out: Path, drawn: Sequence[Codes], drawn_pairs: Sequence[Codes]) -> None:
        """Samples of train captions; and held-out pairs, each sample beside the true picture."""
        pairs, page = self.heldout[HELDOUT_STYLE][: max(1, self.settings.page // 2)], self.settings.page
        captions = [picture.wordings[0] for picture in self.queries[:page]]
        _save(contact_sheet(self._images(drawn[:page]), captions, columns=8), out / SAMPLES)
        if pairs:
            true = self._originals(self.train.of_split(HELDOUT_STYLE), pairs)
            if true is None:  # their data set is gone: as the tokens know them
                true = self._images([picture.codes for picture in pairs])
            shown = zip(self._images(drawn_pairs[: len(pairs)]), true, strict=True)
            words = [text for picture in pairs for text in (picture.wordings[0], "(the true picture)")]
            sheet = contact_sheet([image for pair in shown for image in pair], words, columns=8)
            _save(sheet, out / SAMPLES_HELDOUT)

    def _ceiling(self, gallery: Gallery) -> float | None:
        """How often the nearest reconstruction of an original training picture is of its own concept."""
        originals = self._originals(self.train, self.queries)
        if originals is None:
            return None
        rows = [pixels_16(torch.from_numpy(np.array(picture))[None]) for picture in originals]
        return gallery.retrieve(torch.cat(rows), [picture.concept for picture in self.queries]).top1

    def _originals(self, dataset: TokenDataset, pictures: Sequence[CaptionedPicture]) -> list[Image.Image] | None:
        try:
            found = original_pictures(dataset, {picture.key for picture in pictures})
        except (OSError, ValueError) as fault:
            self._say(f"evaluation without original pictures: {fault}")
            return None
        return [Image.fromarray(found[picture.key]) for picture in pictures]

    def _features(self) -> PictureFeatures | None:
        if not self.settings.features:
            return None
        try:
            return PictureFeatures(next(self.model.image_tokenizer.parameters()).device)
        except ModuleNotFoundError as fault:
            self._say(f"evaluation without retrieval across styles: {fault}")
            return None

    def _sentences(self) -> SentenceEmbeddings | None:
        if not self.settings.caption_score:
            return None
        try:
            return SentenceEmbeddings(next(self.model.image_tokenizer.parameters()).device)
        except ModuleNotFoundError as fault:
            self._say(f"evaluation without caption scores: {fault}")
            return None

    def _split(self, split: str) -> list[CaptionedPicture]:
        if split not in self.train.record["splits"]:
            return []
        pictures = captioned_pictures(self.train.of_split(split), self.model.sampler)
        return choose(pictures, self.settings.heldout_queries, self.settings.seed)

    def _draw(self, pictures: Sequence[CaptionedPicture]) -> list[Codes]:
        return draw_each(self.model.sampler, pictures, self.settings.seed, batch_size=self.settings.batch_size)

    def _describe(self, codes: Sequence[Codes], describe: dict[str, Describe]) -> dict[str, torch.Tensor]:
        return describe_codes(self.model.image_tokenizer, codes, describe, self.settings.batch_size)

    def _images(self, codes: Sequence[Codes]) -> list[Image.Image]:
        images: dict[int, Image.Image] = {}
        for numbers, pictures in decoded(self.model.image_tokenizer, codes, self.settings.batch_size):
            images |= zip(numbers, map(Image.fromarray, pictures.cpu().numpy()), strict=True)
        return [images[number] for number in range(len(codes))]

    def _say(self, line: str) -> None:
        if line in self._said:
            return
        self._said.add(line)
        self.console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _save(sheet: Image.Image, path: Path) -> None:
    atomic_write(path, lambda file: sheet.save(file, format="PNG"))


def _wins(own: Sequence[np.ndarray], others: np.ndarray | None) -> float | None:
    """The share of pictures that cost less after their own words than after others'; by chance one half."""
    return (
        None
        if others is None
        else float(np.mean([bits.sum() < other for bits, other in zip(own, others, strict=True)]))
    )


def _mean(values: Sequence[float] | np.ndarray | None) -> float | None:
    return None if values is None or not len(values) else float(np.mean(values))
