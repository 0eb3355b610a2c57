"""A small quantizer of every kind."""

import torch

from omnigram.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.index_backpropagation import IndexBackpropagationConfig
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.quantizer import Quantizer, QuantizerConfig
from omnigram.tokenizers.quantizers.sim import SimConfig

EMA = MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.0)
SMALL: dict[str, QuantizerConfig] = {
    "ema": EMA,
    "cosine": MovingAverageConfig(16, 4, 0.9, 0.25, True, 0.0),
    "ecvq": MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.0, rate=0.2),
    "gradient": GradientConfig(16, 4, 0.25, False),
    "gradient, cosine": GradientConfig(16, 4, 0.25, True),
    "fsq": FiniteScalarConfig((4, 3, 5)),
    "lfq": LookupFreeConfig(16, 0.25, 0.1, 1.0, 1.0),
    "ibq": IndexBackpropagationConfig(16, 4, 0.25, 0.05, 1.0),
    "simvq": SimConfig(16, 4, 0.25),
    "gumbel": GumbelConfig(16, 4, 5e-4, 1.0, 0.1, True),
    "gumbel, soft": GumbelConfig(16, 4, 5e-4, 1.0, 0.1, False),
    "residual": MultiCodebookConfig(2, True, 16, 4, 0.9, 0.25, False, 0.0),
    "product": MultiCodebookConfig(2, False, 16, 4, 0.9, 0.25, False, 0.0),
}


def made(config: QuantizerConfig) -> Quantizer:
    torch.manual_seed(0)
    quantizer = config.build()
    quantizer.start_from(torch.randn(200, config.dim))
    return quantizer
