"""Training the image tokenizer: our step, against a plain PyTorch loop around the same encoder and decoder.

Ours is a step of `omnigram tokenizer` with the default configuration: a codebook of moving averages that revives dead
codes, an average of all weights for evaluation, mirrored pictures, channels last in memory, Muon beside AdamW. The
peer is what one writes first: the same two networks with a plain VQ-VAE between them
(https://arxiv.org/abs/1711.00937, straight-through gradient, the codebook trained by its own), pixels in torch's
default layout, no averages, no mirroring.

Dimensions: B pictures of H x W pixels, h w grid of codes, D codebook dimension, K codebook size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from omegaconf import DictConfig
from timing.rounds import in_turns, parser, report
from torch import Tensor, nn

from omnigram.data.picture_batches import PictureBatch
from omnigram.tokenizers.image import ImageTokenizer, to_pixels
from omnigram.tokenizers.networks import network_config
from omnigram.tokenizers.quantizers import quantizer_config
from omnigram.train.compose import compose_config
from omnigram.train.image_tokenizer import ImageTokenizerTraining
from omnigram.train.machine import prepare


class Ours:
    """The steps of `omnigram tokenizer`, without the loop around them."""

    def __init__(self, settings: DictConfig, first: Tensor) -> None:
        tokenizer = ImageTokenizer(network_config(settings.network), quantizer_config(settings.quantizer))
        self.module = ImageTokenizerTraining(tokenizer, settings)
        Fabric(accelerator="cpu", devices=1).setup(self.module, *self.module.configure_optimizers())
        self.module.start_from(to_pixels(first))

    def step(self, pictures: Tensor) -> float:
        self.module.training_step(PictureBatch(pictures, {}), 0)
        self.module.steps_done += 1
        return len(pictures)


class PlainVQVAE(nn.Module):
    """Encoder, nearest code, decoder; the loss of the paper's equation 3."""

    def __init__(self, settings: DictConfig) -> None:
        super().__init__()
        network, quantizer = network_config(settings.network), settings.quantizer
        self.encoder = network.encoder(quantizer.codebook_dim)
        self.decoder = network.decoder(quantizer.codebook_dim)
        self.codebook = nn.Embedding(quantizer.codebook_size, quantizer.codebook_dim)
        self.commitment, self.weights = quantizer.commitment, settings.loss

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] pixels -> the loss."""
        vectors = self.encoder(pixels).permute(0, 2, 3, 1)  # [B, h, w, D]
        ids = torch.cdist(vectors.flatten(0, 2), self.codebook.weight).argmin(dim=1)
        codes = self.codebook(ids).unflatten(0, vectors.shape[:3])
        quantizer = F.mse_loss(codes, vectors.detach()) + self.commitment * F.mse_loss(vectors, codes.detach())
        decoded = self.decoder((vectors + (codes - vectors).detach()).permute(0, 3, 1, 2))
        pixel = self.weights.l1 * F.l1_loss(decoded, pixels) + self.weights.l2 * F.mse_loss(decoded, pixels)
        return pixel + self.weights.quantizer * quantizer


class Peer:
    """The usual loop around a module that gives its loss."""

    def __init__(self, settings: DictConfig) -> None:
        self.model, self.clip = PlainVQVAE(settings), settings.optimizer.gradient_clip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.optimizer.learning_rate, fused=True)

    def step(self, pictures: Tensor) -> float:
        pixels = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
        loss = self.model(pixels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return len(pictures)


def made_pictures(number: int, side: int) -> Tensor:
    """[B, H, W, 3] uint8: two coloured discs on white in each, as drawings are: flat areas and edges."""
    random = torch.Generator().manual_seed(0)
    place = torch.arange(side).float()
    pictures = torch.full((number, side, side, 3), 255, dtype=torch.uint8)
    for picture in pictures:
        for _ in range(2):
            x, y, radius = (torch.rand(3, generator=random) * torch.tensor([side, side, side / 2])).tolist()
            inside = (place - x).square() + (place[:, None] - y).square() < radius**2
            picture[inside] = torch.randint(256, (3,), generator=random, dtype=torch.uint8)
    return pictures


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser("tokenizer.py", __doc__, rounds=5, steps=10)
    args = made.parse_args(arguments)
    config = compose_config(["tokenizer=vqvae", f"threads={args.threads}", "device=cpu"])
    prepare(config)
    torch.manual_seed(config.seed)
    settings = config.tokenizer
    size = settings.trainer.batch_size
    pictures = made_pictures(max(settings.trainer.init_pictures, args.steps * size), settings.pictures.resolution)
    batches = pictures.split(size)
    ours, peer = Ours(settings, pictures[: settings.trainer.init_pictures]), Peer(settings)
    contestants = {"ours": lambda step: ours.step(batches[step]), "peer": lambda step: peer.step(batches[step])}
    rates = in_turns(contestants, args.rounds, args.steps)
    what = {
        "ours": f"{parameters(ours.module)}, codebook and weights averaged, dead codes revived",
        "peer": f"{parameters(peer.model)}, codebook among them",
    }
    height, width = pictures.shape[1:3]
    print(f"training tokenizer={settings.name}, {size} pictures of {height} x {width} a step")
    report(made.prog, args, rates, "pictures", what)


def parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} M trained parameters"


if __name__ == "__main__":
    main()
