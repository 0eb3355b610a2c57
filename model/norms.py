"""Root-mean-square norm, and the norm of each head's query and key.

RMSNorm: https://arxiv.org/abs/1910.07467. Query-key norm: https://arxiv.org/abs/2302.05442, as Chameleon uses it
(https://arxiv.org/abs/2405.09818). Dimensions: B batch, T tokens, H heads, K width of a head, D width of the model.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .configuration import OmnigramConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; statistics in float32 whatever the input, as in Llama.

    `shape` is the weight's: (D,), or (H, K) for one weight a head. The mean runs over its last dimension.
    """

    def __init__(self, shape: int | tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class HeadLayerNorm(nn.Module):
    """LayerNorm with bias over the width of a head; `shape` is (K,) or (H, K) as in `RMSNorm`."""

    def __init__(self, shape: int | tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b t h k"]) -> Float[Tensor, "b t h k"]:
        return F.layer_norm(x, (x.shape[-1],), eps=self.eps) * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def build_head_norm(config: OmnigramConfig, num_heads: int) -> nn.Module:
    """The norm of [B, T, H, K] queries or keys that `config.qk_norm` asks for; the identity for "none"."""
    assert config.head_dim is not None
    if config.qk_norm == "none":
        return nn.Identity()
    shape = (num_heads, config.head_dim) if config.qk_norm_per_head else (config.head_dim,)
    return (HeadLayerNorm if config.qk_norm == "layer" else RMSNorm)(shape, config.rms_norm_eps)
