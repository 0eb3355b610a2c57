"""Encoders and decoders between pixels and vectors of codes.

`kind` in the configuration names one of them; the files of conf/tokenizer/network/ are their settings.
"""

from collections.abc import Mapping
from typing import Any

from ..kinds import of_kind
from .convolutional import ConvolutionalConfig
from .dvae import DVAEConfig
from .movqgan import MoVQGANNetworkConfig
from .network import NetworkConfig
from .queries import QueriesConfig
from .vit import ViTConfig
from .vqgan import VQGANNetworkConfig

KINDS: dict[str, type[NetworkConfig]] = {
    config.kind: config
    for config in (
        ConvolutionalConfig,
        VQGANNetworkConfig,
        MoVQGANNetworkConfig,
        DVAEConfig,
        ViTConfig,
        QueriesConfig,
    )
}


def network_config(settings: Mapping[str, Any]) -> NetworkConfig:
    """The configuration that a `tokenizer.network` part describes; ValueError as `of_kind`."""
    return of_kind(KINDS, settings, "tokenizer.network")
