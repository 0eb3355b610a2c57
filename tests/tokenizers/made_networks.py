"""A small network of every kind, the quantizers around it, and image tokenizers of both."""

from functools import cache

import torch
from made_published import random_pictures
from torch import nn

from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.networks.dvae import DVAEConfig
from omnigram.tokenizers.networks.movqgan import MoVQGANNetworkConfig
from omnigram.tokenizers.networks.network import NetworkConfig
from omnigram.tokenizers.networks.queries import QueriesConfig
from omnigram.tokenizers.networks.vit import ViTConfig
from omnigram.tokenizers.networks.vqgan import VQGANNetworkConfig
from omnigram.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig

EMA = MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.0)
QUANTIZERS: dict[str, QuantizerConfig] = {
    "ema": EMA,
    "gradient": GradientConfig(16, 4, 0.25, False),
    "fsq": FiniteScalarConfig((4, 3, 5)),
    "lfq": LookupFreeConfig(16, 0.25, 0.1, 1.0, 1.0),
    "gumbel": GumbelConfig(16, 4, 5e-4, 1.0, 0.1, True),
    "residual": MultiCodebookConfig(2, True, 16, 4, 0.9, 0.25, False, 0.0),
}
FLAT: dict[str, NetworkConfig] = {  # of any size, all f4
    "convolutional": ConvolutionalConfig(2, (8, 32), (1, 1), (1, 1), False, encoder_attention=1, decoder_attention=1),
    "convolutional, spatial norm": ConvolutionalConfig(4, (32,), (1,), (1,), True, decoder_attention=1),
    "vqgan": VQGANNetworkConfig(32, (1, 2, 2), 1, (2,), latent_channels=8),
    "movqgan": MoVQGANNetworkConfig(32, (1, 2, 2), 1, (2,), temporal_downsample_factor=4),
    "dvae": DVAEConfig(32, (1, 1, 2), 1, 16),
    "vit": ViTConfig(4, 32, 2, 1, 1),
}
ORDERED = QueriesConfig(16, 4, 6, 32, 2, 2, 2, causal=True, tail_dropout=0.5)
SMALL: dict[str, NetworkConfig] = {
    **FLAT,
    "queries": QueriesConfig(16, 4, 6, 32, 2, 1, 1, causal=False, tail_dropout=0.0),
    "queries, ordered": ORDERED,
}


@torch.no_grad()
def awaken(module: nn.Module) -> None:
    """Give weights that start at zero values that matter."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)


def made(network: NetworkConfig, quantizer: QuantizerConfig = EMA) -> ImageTokenizer:
    """In eval mode."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(network, quantizer).eval()
    awaken(tokenizer)
    tokenizer.start_from(random_pictures(8, 16, 16))
    return tokenizer


@cache
def shared(network: NetworkConfig) -> ImageTokenizer:
    """The same, for tests that leave it as it is."""
    return made(network)
