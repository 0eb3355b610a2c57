"""A network that scores patches of a picture by how real they look (pix2pix, https://arxiv.org/abs/1611.07004)."""

from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 8  # of its norms


def check_side(layers: int, height: int, width: int) -> None:
    """ValueError for pictures that so many levels would halve to nothing."""
    if min(height, width) < 2**layers:
        raise ValueError(
            f"pictures of {height} x {width} pixels are too small for a discriminator that halves them "
            f"{layers} times: lower tokenizer.discriminator.layers"
        )


class PatchDiscriminator(nn.Sequential):
    """Pixels [B, 3, H, W] -> scores [B, 1, h, w], one for each patch, higher is more real.

    channels: width of the first level, a multiple of 4; doubles with each level. layers: levels, each halving the grid.
    """

    def __init__(self, channels: int, layers: int) -> None:
        if channels * 2 % GROUPS:
            raise ValueError(f"tokenizer.discriminator.channels={channels} must be a multiple of {GROUPS // 2}")
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers):
            before, after = channels * 2 ** (level - 1), channels * 2**level
            norm = nn.GroupNorm(GROUPS, after)
            blocks += [nn.Conv2d(before, after, 4, stride=2, padding=1), norm, nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Conv2d(channels * 2 ** (layers - 1), 1, 3, padding=1))
        self.layers = layers

    def forward(self, input: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 h w"]:
        """ValueError for pictures that would be halved to nothing."""
        check_side(self.layers, *input.shape[-2:])
        return super().forward(input)
