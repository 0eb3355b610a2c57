"""Emu3's MoVQGAN: pictures and clips to codes and back, four frames to one.

Papers: https://arxiv.org/abs/2209.09002 (MoVQ), https://arxiv.org/abs/2409.18869 (Emu3, section 2.2). Parameter names
are those of transformers' Emu3VQVAE; `checkpoint_names.py` knows BAAI's.

Dimensions: B batch, T frames, H W pixels, t h w grid of codes (t = T / temporal factor), D codebook dimension.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from .codebook_tokenizer import CodebookTokenizer, codebook
from .movqgan_layers import CausalConv, DoubleFrames, HalveFrames, MoVQLevel, MoVQMiddle, SpatialNorm, TemporalBlock
from .pixel_tokenizer import check_values
from .quantizers.nearest import nearest
from .quantizers.quantizer import Quantized
from .vqgan import FIXED, check_levels, require
from .vqgan_layers import Downsample, Norm, Upsample, swish


@dataclass(frozen=True)
class MoVQGANConfig:
    """Shape of a MoVQGAN. The defaults are Emu3's.

    codebook_size: number of codes
    embed_dim: dimension of a code and of the latents
    temporal_downsample_factor: frames a code stands for, a power of two
    base_channels, channel_multiplier: width of each level, finest first; each after the first halves the sides
    num_res_blocks: residual blocks a level, and blocks over time; the decoder has one more a level
    attn_resolutions: levels with attention, by their index
    """

    codebook_size: int = 32768
    embed_dim: int = 4
    temporal_downsample_factor: int = 4
    base_channels: int = 256
    channel_multiplier: Sequence[int] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (3,)

    def __post_init__(self) -> None:
        for name in ("channel_multiplier", "attn_resolutions"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name) or ()))
        check_levels(self.base_channels, self.channel_multiplier, self.num_res_blocks)
        if self.temporal_downsample_factor < 1 or self.temporal_downsample_factor.bit_count() != 1:
            raise ValueError(f"temporal_downsample_factor {self.temporal_downsample_factor} must be 1, 2, 4, …")
        if min(self.embed_dim, self.codebook_size) < 1:
            raise ValueError(f"embed_dim {self.embed_dim} and codebook_size {self.codebook_size} must be 1 or more")

    @property
    def patch(self) -> int:
        """Pixels a side of one code."""
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.base_channels * multiplier for multiplier in self.channel_multiplier]

    @property
    def num_time_layers(self) -> int:
        """Layers that halve or double the frames."""
        return self.temporal_downsample_factor.bit_length() - 1

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Of the `vq_config` of a transformers Emu3. ValueError for what cannot be."""
        require(settings, FIXED | {"num_attention_heads": 1})
        names = [field.name for field in dataclasses.fields(cls)]
        config = cls(**{name: settings[name] for name in names if name in settings})
        require(settings, {"latent_channels": config.embed_dim, "hidden_size": config._attended_width()})
        return config

    def to_hf(self) -> dict[str, Any]:
        """The settings of an Emu3VQVAEConfig. ValueError for attention of several widths, which it cannot say."""
        ours = {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }
        widths = {"latent_channels": self.embed_dim, "hidden_size": self._attended_width(), "num_attention_heads": 1}
        return ours | widths | FIXED

    def _attended_width(self) -> int:
        """The one of the middle and of all attended levels."""
        widths = {self.widths[level] for level in self.attn_resolutions if level < len(self.widths)}
        if widths - {self.widths[-1]}:
            raise ValueError(
                f"attn_resolutions {list(self.attn_resolutions)}: transformers' Emu3VQVAE attends at levels of "
                f"{self.widths[-1]} channels only, as the last"
            )
        return self.widths[-1]


class Encoder(nn.Module):
    """Pixels -> latents [B, D, h, w] of each frame alone by `in_space`, then of T frames by `in_time`."""

    def __init__(self, config: MoVQGANConfig):
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        levels = nn.ModuleList(
            MoVQLevel(
                (widths[level - 1] if level else config.base_channels, width),
                config.num_res_blocks,
                attention=level in config.attn_resolutions,
                downsample=Downsample(width) if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down_block = nn.ModuleDict({"down": levels})
        self.middle_block = MoVQMiddle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.embed_dim, 3, padding=1)
        self.time_conv = nn.ModuleList(HalveFrames(config.embed_dim) for _ in range(config.num_time_layers))
        self.time_res_stack = nn.ModuleList(TemporalBlock(config.embed_dim) for _ in range(config.num_res_blocks))

    def in_space(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d h w"]:
        x = self.conv_in(pixels)
        for level in self.down_block["down"]:  # pyright: ignore[reportGeneralTypeIssues] - a ModuleList
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.middle_block(x))))

    def in_time(self, clip: Float[Tensor, "b d frames h w"]) -> Float[Tensor, "b d t h w"]:
        for layer in self.time_conv:
            clip = swish(layer(clip))
        for layer in self.time_res_stack:
            clip = layer(clip)
        return clip


class Decoder(nn.Module):
    """Latents and codes of t frames -> of T by `in_time`, then -> pixels of each frame alone by `in_space`."""

    def __init__(self, config: MoVQGANConfig):
        super().__init__()
        widths = config.widths
        levels = nn.ModuleList(
            MoVQLevel(
                (widths[min(level + 1, len(widths) - 1)], width),
                config.num_res_blocks + 1,
                attention=level in config.attn_resolutions,
                codebook_dim=config.embed_dim,
                upsample=Upsample(width) if level else None,
            )
            for level, width in enumerate(widths)
        )
        self.time_res_stack = nn.ModuleList(TemporalBlock(config.embed_dim) for _ in range(config.num_res_blocks))
        self.time_conv = nn.ModuleList(DoubleFrames(config.embed_dim) for _ in range(config.num_time_layers))
        self.conv_in = nn.Conv2d(config.embed_dim, widths[-1], 3, padding=1)
        self.middle_block = MoVQMiddle(widths[-1], config.embed_dim)
        self.up_block = nn.ModuleDict({"up": levels})
        self.norm_out = SpatialNorm(widths[0], config.embed_dim)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def in_time(
        self, latents: Float[Tensor, "b d t h w"], codes: Float[Tensor, "b d t h w"]
    ) -> tuple[Float[Tensor, "b d frames h w"], Float[Tensor, "b d frames h w"]]:
        """Both go the same way through time, frame by frame in memory as in the published model: bits depend on it."""
        clip = torch.cat((latents.transpose(1, 2), codes.transpose(1, 2))).transpose(1, 2)
        for layer in self.time_res_stack:
            clip = layer(clip)
        for layer in self.time_conv:
            clip = swish(layer(clip))
        latents, codes = clip.chunk(2)
        return latents, codes

    def in_space(
        self, latents: Float[Tensor, "b d h w"], codes: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, "b 3 height width"]:
        x = self.middle_block(self.conv_in(latents), codes)
        for level in reversed(self.up_block["up"]):  # pyright: ignore[reportArgumentType, reportCallIssue]
            x = level(x, codes)
        return self.conv_out(swish(self.norm_out(x, codes)))


class MoVQGAN(CodebookTokenizer):
    """Encoder, convolution over time, codebook, convolution over time, decoder. A picture is a still clip."""

    kind = "movqgan"
    config_class = MoVQGANConfig
    config: MoVQGANConfig

    def __init__(self, config: MoVQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv(config.embed_dim, config.embed_dim, (3, 1, 1))
        self.quantize = codebook(config.codebook_size, config.embed_dim)
        self.post_quant_conv = CausalConv(config.embed_dim, config.embed_dim, (3, 1, 1))
        self.decoder = Decoder(config)

    def forward(self, pixels: Float[Tensor, "b 3 height width"]) -> Quantized:
        self.check_pixels(pixels)
        # its frames are equal, and one goes through space for all; the last bit may be rounded otherwise than of a clip
        latents = self.encoder.in_space(pixels.to(self.quantize.embedding.weight.dtype).contiguous())
        clip = repeat(latents, "b d h w -> b d t h w", t=self.config.temporal_downsample_factor)
        return self.quantize(self._in_time(clip)[:, :, 0])

    def draw(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 height width"]:
        clip = codes[:, :, None]
        # of the frames of a code the first is drawn
        latents, codes = (x[:, :, 0] for x in self.decoder.in_time(self.post_quant_conv(clip), clip))
        return self.decoder.in_space(latents, codes)

    @torch.no_grad()
    def encode_clip(self, pixels: Float[Tensor, "b frames 3 height width"]) -> Int[Tensor, "b t h w"]:
        """Pixels -> ids of codes, in eval mode whatever the mode.

        Raises ValueError if a side is no multiple of `patch`, or T none of the temporal factor.
        """
        self.check_pixels(pixels, "b frames 3 height width")
        check_values(pixels)
        factor = self.config.temporal_downsample_factor
        if pixels.shape[1] % factor or not pixels.shape[1]:
            raise ValueError(f"a clip of {pixels.shape[1]} frames: their number must be a multiple of {factor}")
        with self._evaluating():
            return nearest(rearrange(self._vectors(pixels), "b d t h w -> b t h w d"), self.quantize.codebook)

    @torch.no_grad()
    def decode_clip(self, ids: Int[Tensor, "b t h w"]) -> Float[Tensor, "b frames 3 height width"]:
        """Ids of codes -> pixels, clamped to -1 .. 1. Raises ValueError for an id outside the codebook."""
        self.check_ids(ids, "b t h w")
        with self._evaluating():
            codes = self.quantize.lookup(ids)
            frames = (
                rearrange(x, "b d t h w -> (b t) d h w")
                for x in self.decoder.in_time(self.post_quant_conv(codes), codes)
            )
            return rearrange(self.decoder.in_space(*frames), "(b t) c h w -> b t c h w", b=len(ids)).clamp(-1, 1)

    def _vectors(self, clip: Float[Tensor, "b frames 3 height width"]) -> Float[Tensor, "b d t h w"]:
        """What is quantized."""
        frames = rearrange(clip.to(self.quantize.embedding.weight.dtype), "b t c h w -> (b t) c h w").contiguous()
        return self._in_time(rearrange(self.encoder.in_space(frames), "(b t) d h w -> b d t h w", b=len(clip)))

    def _in_time(self, latents: Float[Tensor, "b d frames h w"]) -> Float[Tensor, "b d t h w"]:
        return self.quant_conv(self.encoder.in_time(latents))
