"""The VQGAN of Chameleon, encoder and decoder, which is also that of taming-transformers and of LlamaGen.

Papers: https://arxiv.org/abs/2012.09841 (VQGAN), https://arxiv.org/abs/2405.09818 (Chameleon),
https://arxiv.org/abs/2406.06525 (LlamaGen). Parameter names are taming's; `checkpoint_names.py` knows the others.

Dimensions: B batch, H W pixels, h w grid of codes, D codebook dimension, Z latent channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor, nn

from .codebook_tokenizer import CodebookTokenizer, codebook
from .quantizers.quantizer import Quantized
from .vqgan_layers import GROUPS, Attention, Downsample, Level, Middle, Norm, ResidualBlock, Upsample, swish

# ours -> taming's, of the settings of its `ddconfig`
TAMING = {
    "latent_channels": "z_channels",
    "resolution": "resolution",
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "dropout": "dropout",
    "attn_type": "attn_type",
}
# what published configurations say beside these, and what alone it can be
FIXED = {"in_channels": 3, "out_channels": 3, "double_latent": False}
FIXED_TAMING = {"in_channels": 3, "out_ch": 3, "double_z": False, "resamp_with_conv": True, "tanh_out": False}


@dataclass(frozen=True)
class VQGANConfig:
    """Shape of a VQGAN. The defaults are Chameleon's.

    taming's ImageNet f16 has resolution 256, attn_resolutions (16,) and 1,024 or 16,384 codes; LlamaGen's VQ-16 besides
    that embed_dim 8 and normalise_codes.

    embed_dim: dimension of a code
    codebook_size: number of codes
    latent_channels: between the networks and the 1 x 1 convolutions around the codebook
    resolution: pixels a side that `attn_resolutions` are counted from; pictures may have any multiples of `patch`
    base_channels, channel_multiplier: width of each level, finest first; each after the first halves the sides
    num_res_blocks: residual blocks a level; the decoder has one more
    attn_resolutions: levels with attention, by their sides at `resolution`; sides that no level has are allowed
    dropout: within residual blocks, while training
    attn_type: "vanilla", or None for no attention at all, between the levels neither
    normalise_codes: codes and vectors have length 1
    decoder: whether there is one; without, as in transformers' Chameleon, pictures are encoded only
    """

    embed_dim: int = 256
    codebook_size: int = 8192
    latent_channels: int = 256
    resolution: int = 512
    base_channels: int = 128
    channel_multiplier: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = ()
    dropout: float = 0.0
    attn_type: str | None = "vanilla"
    normalise_codes: bool = False
    decoder: bool = True

    def __post_init__(self) -> None:
        for name in ("channel_multiplier", "attn_resolutions"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name) or ()))
        if self.attn_type == "none":  # as taming says it
            object.__setattr__(self, "attn_type", None)
        for name in ("embed_dim", "codebook_size", "latent_channels", "resolution", "base_channels", "num_res_blocks"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be a whole number")
        check_levels(self.base_channels, self.channel_multiplier, self.num_res_blocks)
        if self.resolution % self.patch:
            raise ValueError(f"resolution {self.resolution} must be a multiple of the patch of {self.patch} pixels")
        if self.attn_type not in ("vanilla", None):
            raise ValueError(f'attn_type {self.attn_type!r} is not known: "vanilla", or null for none')
        if min(self.embed_dim, self.codebook_size, self.latent_channels) < 1:
            raise ValueError(
                f"embed_dim {self.embed_dim}, codebook_size {self.codebook_size} and latent_channels "
                f"{self.latent_channels} must be 1 or more"
            )

    @property
    def patch(self) -> int:
        """Pixels a side of one code."""
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.base_channels * multiplier for multiplier in self.channel_multiplier]

    def attention(self, level: int) -> type[Attention] | None:
        """Of a level, finest first."""
        return Attention if self.attn_type and self.resolution >> level in self.attn_resolutions else None

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Of the `vq_config` of a transformers Chameleon, which has no decoder. ValueError for what cannot be."""
        require(settings, FIXED)
        names = {name: name for name in TAMING} | {"embed_dim": "embed_dim", "codebook_size": "num_embeddings"}
        ours: dict[str, Any] = {name: settings[theirs] for name, theirs in names.items() if theirs in settings}
        return cls(**ours, decoder=False)

    def to_hf(self) -> dict[str, Any]:
        """The settings of a ChameleonVQVAEConfig. ValueError for a codebook on the unit sphere, which it cannot say."""
        if self.normalise_codes:
            raise ValueError("normalise_codes: transformers' ChameleonVQVAE has no codebook on the unit sphere")
        ours = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("decoder", "normalise_codes")
        }
        theirs = {"num_embeddings": ours.pop("codebook_size"), "attn_type": self.attn_type or "none"}
        return ours | theirs | {"in_channels": 3, "double_latent": False}

    @classmethod
    def from_taming(cls, params: Mapping[str, Any]) -> Self:
        """Of `model.params` in the YAML beside a taming checkpoint, such as Meta's vqgan.yaml, with its decoder.

        ValueError for what is missing, or is not known here.
        """
        try:
            network = {"dropout": 0.0, "attn_type": "vanilla"} | params["ddconfig"]
            ours = {"embed_dim": params["embed_dim"], "codebook_size": params["n_embed"]}
            ours |= {name: network[theirs] for name, theirs in TAMING.items()}
        except KeyError as missing:
            raise ValueError(f"not the model.params of a VQGAN of taming: {missing} is missing") from None
        require(params, {"remap": None})  # ids of another numbering
        require(network, FIXED_TAMING)
        if unknown := network.keys() - set(TAMING.values()) - FIXED_TAMING.keys():
            raise ValueError(f"ddconfig.{min(unknown)} is not known of a VQGAN")
        return cls(**ours)


def require(settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """ValueError if settings of a published configuration are not as they can only be."""
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} {settings[name]!r} of the image tokenizer is not supported: it must be {value!r}")


def check_levels(base_channels: int, multipliers: Sequence[int], num_res_blocks: int) -> None:
    """ValueError for levels that cannot be built."""
    if not multipliers or num_res_blocks < 1:
        raise ValueError(
            f"channel_multiplier {list(multipliers)} and num_res_blocks {num_res_blocks}: "
            "at least one level of at least one block"
        )
    if base_channels < 1 or any(base_channels * each % GROUPS or each < 1 for each in (1, *multipliers)):
        raise ValueError(
            f"base_channels {base_channels} times channel_multiplier {list(multipliers)} "
            f"must be multiples of the {GROUPS} groups of the norms"
        )


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] -> latents [B, Z, h, w]."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                (widths[level - 1] if level else config.base_channels, width),
                config.num_res_blocks,
                partial(ResidualBlock, dropout=config.dropout),
                config.attention(level),
                downsample=Downsample(width) if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], config.dropout, attention=config.attn_type is not None)
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [B, Z, h, w] -> pixels [B, 3, H, W], not clamped. `up` is numbered as the encoder's `down`."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.dropout, attention=config.attn_type is not None)
        self.up = nn.ModuleList(
            Level(
                (widths[min(level + 1, len(widths) - 1)], width),
                config.num_res_blocks + 1,
                partial(ResidualBlock, dropout=config.dropout),
                config.attention(level),
                upsample=Upsample(width) if level else None,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = Norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b 3 height width"]:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(swish(self.norm_out(x)))


class VQGAN(CodebookTokenizer):
    """Encoder, 1 x 1 convolution, codebook, 1 x 1 convolution, decoder."""

    kind = "vqgan"
    config_class = VQGANConfig
    config: VQGANConfig

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.quantize = codebook(config.codebook_size, config.embed_dim, config.normalise_codes)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = Decoder(config) if config.decoder else None

    @property
    def can_decode(self) -> bool:
        return self.config.decoder

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Quantized:
        self.check_pixels(pixels)
        return self.quantize(self.quant_conv(self.encoder(pixels.to(self.quant_conv.weight.dtype).contiguous())))

    def draw(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        if self.decoder is None:
            raise ValueError(
                "this VQGAN has no decoder, as transformers' Chameleon: import the vqgan.ckpt of the published model"
            )
        return self.decoder(self.post_quant_conv(codes))
