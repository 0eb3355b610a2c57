"""A tiny export for the tests of what leaves Omnigram: 3 x 3 or 2 x 4 codes of 16, pictures of 8 pixels a code."""

from typing import Any

import numpy as np
import torch
from made_samplers import tiny_model, words
from PIL import Image

from omnigram.model.bundle import Omnigram
from omnigram.model.card import Card
from omnigram.model.codec import Codec
from omnigram.model.generation import Sampling
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.appended(words().size, codebooks={"image": 16})
CARD = Card(
    prompt_template="{caption}, {style}",
    styles=("openmoji", "twemoji"),
    sizes=((3, 3), (2, 4)),
    sampling={"text": Sampling(top_p=0.9), "image": Sampling(guidance=2.0)},
)


def tiny_image_tokenizer(seed: int = 0) -> ImageTokenizer:
    torch.manual_seed(seed)
    network = ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False)
    tokenizer = ImageTokenizer(network, MovingAverageConfig(16, 4, 0.9, 1.0, False, 0))
    tokenizer.train()
    tokenizer.quantize(torch.rand(8, 3, 32, 32) * 2 - 1)  # fills the codebook
    return tokenizer.eval()


def tiny_export(seed: int = 0, **options: Any) -> Omnigram:
    """In float32, with the special ids that `generate` asks for."""
    specials = {f"{name}_token_id": VOCABULARY.id(name) for name in ("pad", "bos", "eos")}
    model = tiny_model(VOCABULARY.size, seed, **{**specials, **options}).float()
    return Omnigram(model, Codec(VOCABULARY, words(), tiny_image_tokenizer(), CARD))


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))
