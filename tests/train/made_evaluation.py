"""A made world to evaluate in: pictures that are their codes, in two styles, and a sampler that knows every answer."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from omnigram.data.artefact import atomic_write_json, file_sha256, identity
from omnigram.data.document import Document, Segment
from omnigram.data.fitting import Fitting
from omnigram.data.record import DOCUMENTS
from omnigram.data.shards import shard_name, write_shard
from omnigram.model.bundle import Omnigram
from omnigram.model.card import Card
from omnigram.model.codec import Codec
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Block, Prompt, Sample, Sampler, Sampling, Watch
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.captioned_pictures import CaptionedPicture
from omnigram.train.tokens import write_tokens

STYLES, CODES, PATCH = ("flat", "round"), 16, 8
NAMES = ("red apple", "green pear", "blue plum", "yellow lemon", "red plum", "green apple", "blue pear", "big lemon")
CARD = Card("{caption}, {style}", STYLES, ((2, 2),))
QUIET = Console(file=io.StringIO())


class Palette(nn.Module):
    """An image tokenizer without loss: each code is a patch of one grey."""

    codebook_size, patch, identity = CODES, PATCH, "ab" * 32

    def __init__(self) -> None:
        super().__init__()
        self.greys = nn.Parameter(torch.linspace(-1, 1, CODES), requires_grad=False)

    def encode(self, pixels: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(pixels, PATCH).mean(1)
        return (means[..., None] - self.greys).abs().argmin(-1)

    def decode(self, ids: Tensor) -> Tensor:
        greys = self.greys[ids].repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        return greys[:, None].expand(-1, 3, -1, -1)


def palette() -> ImageTokenizer:
    return cast(ImageTokenizer, Palette())


@cache
def words() -> TextTokenizer:
    return TextTokenizer.train(["red apple, green pear, blue plum, yellow lemon"] * 3, 290)


def codes_of(name: str, style: str) -> np.ndarray:
    """The codes [2, 2] of a concept: no two alike, and the style is the lesser difference."""
    number = NAMES.index(name)
    return np.array([[2 * number, 15 - number], [number * 5 % 16, STYLES.index(style)]])


def known(name: str, style: str) -> CaptionedPicture:
    text = f"{name}, {style}"
    codes = np.array(words().encode(text), dtype=np.int64)
    return CaptionedPicture(f"{style}-{name}", codes, codes_of(name, style), (text,), name, style)


def document(name: str, style: str) -> Document:
    pixels = Palette().decode(torch.from_numpy(codes_of(name, style))[None])[0]
    noise = np.random.default_rng(NAMES.index(name)).integers(-3, 4, (2 * PATCH, 2 * PATCH, 1))  # lost in encoding
    picture = ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5 + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    key = f"{style}-{name.replace(' ', '-')}"
    segments = (Segment("text", f"{name}, {style}"), Segment("image", file.getvalue(), suffix=".png"))
    return Document(key, segments, "made", "CC0", {"concept": name, "style": style})


def world(folder: Path) -> Path:
    """Six concepts in both styles, of which two give up one: the folder of tokens, beside the one of documents."""
    heldout = [(NAMES[4], STYLES[0]), (NAMES[5], STYLES[1])]
    both = [(name, style) for name in NAMES[:6] for style in STYLES]
    splits = {
        "train": [pair for pair in both if pair not in heldout],
        "test": [(name, style) for name in NAMES[6:] for style in STYLES],
        "heldout_style": heldout,
    }
    record: dict[str, Any] = {"format": DOCUMENTS, "name": folder.name, "license": "CC0", "attribution": "nobody"}
    record |= {"prompt_template": CARD.prompt_template, "styles": list(STYLES), "splits": {}}
    for split, pairs in splits.items():
        path = write_shard(folder / shard_name(split, 0), [document(*pair) for pair in pairs])
        shard = {"file": path.name, "documents": len(pairs), "pictures": len(pairs), "sha256": file_sha256(path)}
        record["splits"][split] = {"documents": len(pairs), "shards": [shard]}
    record["identity"] = identity(record["splits"])
    atomic_write_json(folder / "dataset.json", record)
    vocabulary = Vocabulary.appended(words().size, codebooks={"image": CODES})
    codec = Codec(vocabulary, words(), palette())
    return write_tokens(folder, codec, Fitting(PATCH, 2 * PATCH), batch_size=4, workers=1, console=QUIET)


def tiny(seed: int = 0) -> Omnigram:
    """A random decoder in float64, far from uniform."""
    vocabulary = Vocabulary.appended(words().size, codebooks={"image": CODES})
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(seed)
    config = OmnigramConfig(vocab_size=vocabulary.size, num_key_value_heads=2, max_position_embeddings=96, **shape)
    model = OmnigramForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Omnigram(model.double().eval(), Codec(vocabulary, words(), palette(), CARD))


class Oracle(Sampler):
    """Draws and captions without fault; `wrong` are captions that it draws as the picture of another one."""

    wrong: Mapping[str, str] = {}

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Mapping[str, Sampling] | None = None,
        batch_size: int = 64,
        watch: Watch | None = None,
    ) -> list[Sample]:
        answers = {f"{name}, {style}": codes_of(name, style) for name in NAMES for style in STYLES}
        samples = []
        for prompt in prompts:
            given = prompt.segments[0]
            if isinstance(given, str):
                answer = Block(answers[self.wrong.get(given, given)])
            else:
                answer = next(text for text, codes in answers.items() if np.array_equal(codes, given.codes))
            samples.append(Sample((given, answer), np.empty(0, np.int64), 0))
        return samples


def oracle(wrong: Mapping[str, str] | None = None) -> Omnigram:
    bundle = tiny()
    bundle.sampler.__class__ = Oracle
    cast(Oracle, bundle.sampler).wrong = wrong or {}
    return bundle
