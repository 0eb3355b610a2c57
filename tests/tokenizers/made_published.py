"""Pictures, weights and comparisons for the tests of published image tokenizers."""

import io
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig


def random_pictures(count: int, height: int, width: int) -> Tensor:
    """Noise [B, 3, H, W], -1 .. 1."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def real_pictures(count: int, height: int, width: int) -> Tensor:
    """Drawings [B, 3, H, W], -1 .. 1, over white, of the installed package: every twentieth emoji."""
    from omnigram.data.sources.emoji import EmojiSource

    drawings = []
    for sample in islice(EmojiSource(styles=("twemoji",)).samples(), 0, 20 * count, 20):
        content = sample.load().segments[1].content
        assert isinstance(content, bytes)
        drawing = Image.open(io.BytesIO(content)).convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        flat = Image.alpha_composite(white, drawing).convert("RGB").resize((width, height))
        drawings.append(torch.from_numpy(np.array(flat)))
    assert len(drawings) == count
    return torch.stack(drawings).movedim(-1, 1).contiguous() / 127.5 - 1


@torch.no_grad()
def shake(module: nn.Module) -> None:
    """Give norms, biases and running statistics values that matter, which start at 0 and 1."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


@torch.no_grad()
def scatter(embedding: nn.Embedding, vectors: Tensor) -> None:
    """A codebook among the vectors [N, D] that it is to quantize, so that many codes are used and many are close."""
    chosen = vectors[torch.randint(len(vectors), (embedding.num_embeddings,))]
    embedding.weight.copy_(chosen + 0.1 * vectors.std(0) * torch.randn_like(chosen))


def count_ties(ours: Tensor, theirs: Tensor, vectors: Tensor, codebook: Tensor) -> int:
    """Assert equal ids of vectors [N, D], or tell the candidates' distances; the number of ties in float32."""
    ours, theirs = ours.flatten(), theirs.flatten()
    assert len(ours) == len(theirs) == len(vectors)
    rows = (ours != theirs).nonzero().flatten()
    exact = torch.cdist(vectors[rows].double(), codebook.double())
    told = [(float(of[ours[row]]), float(of[theirs[row]])) for row, of in zip(rows[:5], exact, strict=False)]
    assert not len(rows), f"{len(rows)} of {len(ours)} ids differ; distances of the candidates: {told}"
    distances = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * vectors @ codebook.T
    least = distances.topk(2, largest=False).values
    ties = int((least[:, 0] == least[:, 1]).sum())
    print(f"{len(ours)} ids, none differs, {ties} ties")  # pytest -rP shows it
    return ties


TINY_VQGAN: dict[str, Any] = {
    "embed_dim": 8,
    "codebook_size": 256,
    "latent_channels": 16,
    "resolution": 16,
    "base_channels": 32,
    "channel_multiplier": (1, 2, 2),
    "num_res_blocks": 1,
}


def tiny_vqgan(**changes: Any) -> VQGAN:
    torch.manual_seed(0)
    tokenizer = VQGAN(VQGANConfig(**TINY_VQGAN | changes)).eval()
    shake(tokenizer)
    pixels = random_pictures(16, 16, 16)
    with torch.no_grad():
        vectors = tokenizer.quant_conv(tokenizer.encoder(pixels)).movedim(1, -1).flatten(0, 2)
        vectors = F.normalize(vectors, dim=1) if tokenizer.config.normalise_codes else vectors
    scatter(tokenizer.quantize.embedding, vectors)
    return tokenizer
