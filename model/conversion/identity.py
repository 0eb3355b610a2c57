"""The identity of an image tokenizer whose weights are not in memory."""

import hashlib
import json

import torch

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from .stored import Checkpoint


def image_identity(tokenizer: PixelTokenizer, checkpoint: Checkpoint) -> str:
    """`PixelTokenizer.identity` of the tokenizer once these weights are loaded, of which one is in memory at a time."""
    floats = {stored.dtype for stored in checkpoint.values() if stored.dtype.is_floating_point}
    loaded = floats.pop() if len(floats) == 1 else torch.float32  # what loading turns them into
    config = {"kind": tokenizer.kind} | tokenizer.settings
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, stored in sorted(checkpoint.items()):
        content = stored.read()
        content = content.to(loaded) if content.is_floating_point() else content
        digest.update(name.encode() + content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
