"""A tiny export on disk for the commands that ask one: pictures of 2 x 2 codes of 16, each of 8 pixels."""

from pathlib import Path

import torch
from made_evaluation import CARD, CODES, tiny, words

from omnigram.model.bundle import Omnigram
from omnigram.model.codec import Codec
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.vocabulary import Vocabulary


def made_export(folder: Path, seed: int = 0, image_seed: int = 0) -> Omnigram:
    """A random decoder, written to `folder` as well; another `image_seed` is another image tokenizer."""
    torch.manual_seed(image_seed)
    network = ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False)
    image = ImageTokenizer(network, MovingAverageConfig(CODES, 4, 0.9, 1.0, False, 0))
    image.train()
    image.quantize(torch.rand(8, 3, 32, 32) * 2 - 1)  # fills the codebook
    vocabulary = Vocabulary.appended(words().size, codebooks={"image": CODES})
    omnigram = Omnigram(tiny(seed).model.float(), Codec(vocabulary, words(), image.eval(), CARD))
    omnigram.save_pretrained(folder)
    return omnigram
