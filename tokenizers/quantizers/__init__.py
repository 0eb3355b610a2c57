"""The quantizers of the field behind one interface: vectors to codes and back.

`kind` in the configuration names one of them; the files of conf/tokenizer/quantizer/ are their settings.
"""

from collections.abc import Mapping
from typing import Any

from ..kinds import of_kind
from .finite_scalar import FiniteScalarConfig
from .gradient import GradientConfig
from .gumbel import GumbelConfig
from .index_backpropagation import IndexBackpropagationConfig
from .lookup_free import LookupFreeConfig
from .moving_average import MovingAverageConfig
from .multi_codebook import MultiCodebookConfig
from .quantizer import QuantizerConfig
from .sim import SimConfig

KINDS: dict[str, type[QuantizerConfig]] = {
    config.kind: config
    for config in (
        MovingAverageConfig,
        GradientConfig,
        FiniteScalarConfig,
        LookupFreeConfig,
        IndexBackpropagationConfig,
        SimConfig,
        GumbelConfig,
        MultiCodebookConfig,
    )
}


def quantizer_config(settings: Mapping[str, Any]) -> QuantizerConfig:
    """The configuration that a `tokenizer.quantizer` part describes; ValueError as `of_kind`."""
    return of_kind(KINDS, settings, "tokenizer.quantizer")
