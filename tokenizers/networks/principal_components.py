"""Linear maps between a patch of pixels and its vector, which run beside a network, and what they begin at.

A network that starts at zero beside them lets training start from the best linear reconstruction of patches: their
principal components.

Dimensions: B batch, D dimension of a code, H W pixels, h w grid of codes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def linear_encoder(patch: int, dim: int) -> nn.Sequential:
    """Pixels [B, 3, H, W] -> vectors [B, D, h, w], patch by patch."""
    return nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, dim, 1))


def linear_decoder(patch: int, dim: int) -> nn.Sequential:
    """Vectors [B, D, h, w] -> pixels [B, 3, H, W], patch by patch."""
    return nn.Sequential(nn.Conv2d(dim, 3 * patch**2, 1), nn.PixelShuffle(patch))


@torch.no_grad()
def principal_components(
    encoder: nn.Sequential,
    decoder: nn.Sequential,
    pixels: Float[Tensor, "b 3 height width"],
    whitened: bool = False,
) -> None:
    """Let a `linear_encoder` project patches onto their leading principal components, and a `linear_decoder` back.

    The decoded pixels are then the best linear reconstruction of `pixels` from D numbers a patch; the vectors have zero
    mean and unit variance over all components, or in each one.
    ValueError for fewer patches than components.
    """
    to_vectors, to_pixels = encoder[1], decoder[0]
    assert isinstance(to_vectors, nn.Conv2d)
    assert isinstance(to_pixels, nn.Conv2d)
    assert to_vectors.bias is not None
    assert to_pixels.bias is not None
    patches = encoder[0](pixels).movedim(1, -1).flatten(0, 2)
    size = to_vectors.out_channels
    if len(patches) < size or patches.shape[1] < size:
        raise ValueError(
            f"{len(patches)} patches of {patches.shape[1]} numbers have no {size} principal components: "
            "lower tokenizer.quantizer.codebook_dim (fsq: give fewer scalar_levels, lfq: lower codebook_size), "
            "or give more pictures"
        )
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -size:].flip(1).T  # largest first
    projected = (patches - mean) @ basis.T
    scale = (projected.std(0) if whitened else projected.std().expand(size)).clamp_min(1e-6)
    to_vectors.weight.copy_((basis / scale[:, None])[:, :, None, None])
    to_vectors.bias.copy_(-(basis @ mean) / scale)
    to_pixels.weight.copy_((basis.T * scale)[:, :, None, None])
    to_pixels.bias.copy_(mean)
