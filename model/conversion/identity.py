"""The identity of an image tokenizer whose weights are not in memory."""

import torch
from torch import Tensor

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from .stored import Checkpoint, Stored


def image_identity(tokenizer: PixelTokenizer, checkpoint: Checkpoint) -> str:
    """`PixelTokenizer.identity` of the tokenizer once these weights are loaded, of which one is in memory at a time."""
    floats = {stored.dtype for stored in checkpoint.values() if stored.dtype.is_floating_point}
    loaded = floats.pop() if len(floats) == 1 else torch.float32  # what loading turns them into

    def content(stored: Stored) -> Tensor:
        return stored.read().to(loaded) if stored.dtype.is_floating_point else stored.read()

    return tokenizer.identity_with((name, content(stored)) for name, stored in sorted(checkpoint.items()))
