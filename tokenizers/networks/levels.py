"""What networks of convolutions at every resolution share: levels, each of half the sides of the one before it."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass

from ..vqgan import check_levels
from .network import NetworkConfig


@dataclass(frozen=True)
class LevelsConfig(NetworkConfig, ABC):
    """
    base_channels, channel_multiplier: width of each level, finest first; each after the first halves the sides, so that
        three levels are f4, four f8, five f16. Widths are multiples of 32
    num_res_blocks: residual blocks a level; the decoder has one more
    attention_levels: levels with attention behind each block, by their index from 0
    """

    base_channels: int
    channel_multiplier: Sequence[int]
    num_res_blocks: int
    attention_levels: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("channel_multiplier", "attention_levels"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        check_levels(self.base_channels, self.channel_multiplier, self.num_res_blocks)
        levels = len(self.channel_multiplier)
        for level in self.attention_levels:
            if not 0 <= level < levels:
                raise ValueError(
                    f"tokenizer.network.attention_levels={list(self.attention_levels)} must be indices of "
                    f"the {levels} levels of tokenizer.network.channel_multiplier: 0 .. {levels - 1}"
                )

    @property
    def patch(self) -> int:
        return 2 ** (len(self.channel_multiplier) - 1)
