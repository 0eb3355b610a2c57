"""Training the image tokenizer: our step, against a plain PyTorch loop around the same encoder and decoder.

Ours is a step of `omnigram tokenizer` with the default configuration: a codebook of moving averages that revives dead
codes, an average of all weights for evaluation, mirrored pictures, channels last in memory, Muon beside AdamW. The
peer is what one writes first: the same two networks around vector-quantize-pytorch's VectorQuantize with the same
settings but for the rate, as it chooses the nearest code whatever its length, AdamW, pixels in torch's default
layout, no averages of weights, no mirroring. Then how far a process of each grows while it trains.

Dimensions: B pictures of H x W pixels, h w grid of codes, D codebook dimension, K codebook size.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from omegaconf import DictConfig
from timing.memory import growths, in_own_process
from timing.rounds import in_turns, parser, report
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

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
        self.model = self.module = ImageTokenizerTraining(tokenizer, settings)
        Fabric(accelerator="cpu", devices=1).setup(self.module, *self.module.configure_optimizers())
        self.module.start_from(to_pixels(first))

    def step(self, pictures: Tensor) -> float:
        self.module.training_step(PictureBatch(pictures, {}), 0)
        self.module.steps_done += 1
        return len(pictures)


class PlainVQVAE(nn.Module):
    """Encoder, vector-quantize-pytorch's codebook, decoder."""

    def __init__(self, settings: DictConfig) -> None:
        super().__init__()
        network, quantizer = network_config(settings.network), settings.quantizer
        places = settings.trainer.batch_size * (settings.pictures.resolution // network.patch) ** 2
        self.encoder = network.encoder(quantizer.codebook_dim)
        self.decoder = network.decoder(quantizer.codebook_dim)
        self.quantizer = VectorQuantize(
            quantizer.codebook_dim,
            quantizer.codebook_size,
            decay=quantizer.decay,
            commitment_weight=quantizer.commitment,
            use_cosine_sim=quantizer.cosine,
            threshold_ema_dead_code=quantizer.dead_code_threshold * places / quantizer.codebook_size,  # a count
            kmeans_init=True,
            accept_image_fmap=True,
            rotation_trick=False,
        )
        self.weights = settings.loss

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] pixels -> the loss."""
        codes, _, commitment = self.quantizer(self.encoder(pixels))
        decoded = self.decoder(codes)
        pixel = self.weights.l1 * F.l1_loss(decoded, pixels) + self.weights.l2 * F.mse_loss(decoded, pixels)
        return pixel + self.weights.quantizer * commitment.sum()


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


def settings_and_pictures(args: argparse.Namespace) -> tuple[DictConfig, Tensor]:
    """The tokenizer's part of the configuration, and pictures to begin at and for the steps."""
    config = compose_config(["tokenizer=vqvae", f"threads={args.threads}", "device=cpu"])
    prepare(config)
    torch.manual_seed(config.seed)
    settings = config.tokenizer
    number = max(settings.trainer.init_pictures, args.steps * settings.trainer.batch_size)
    return settings, made_pictures(number, settings.pictures.resolution)


def made(who: str, settings: DictConfig, pictures: Tensor) -> Ours | Peer:
    return Ours(settings, pictures[: settings.trainer.init_pictures]) if who == "ours" else Peer(settings)


def memory_of(who: str, args: argparse.Namespace) -> float:
    """MiB that a process grows by at its peak, from no model to some steps of one."""
    settings, pictures = settings_and_pictures(args)

    def train() -> None:
        contestant = made(who, settings, pictures)
        for batch in pictures.split(settings.trainer.batch_size)[: args.steps]:
            contestant.step(batch)

    [peak] = growths([train])
    return peak or float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("tokenizer.py", __doc__, rounds=5, steps=10)
    args = options.parse_args(arguments)
    settings, pictures = settings_and_pictures(args)
    batches = pictures.split(settings.trainer.batch_size)
    contestants = {who: made(who, settings, pictures) for who in ("ours", "peer")}
    steps = {who: lambda step, one=contestant: one.step(batches[step]) for who, contestant in contestants.items()}
    rates = in_turns(steps, args.rounds, args.steps)
    ours, peer = (parameters(contestant.model) for contestant in contestants.values())
    what = {
        "ours": f"{ours}, codebook and weights averaged, dead codes revived",
        "peer": f"{peer}, vector-quantize-pytorch, dead codes revived",
    }
    height, width = pictures.shape[1:3]
    print(f"training tokenizer={settings.name}, {len(batches[0])} pictures of {height} x {width} a step")
    report(options.prog, args, rates, "pictures", what)
    for who in contestants:
        print(f"memory   {in_own_process(memory_of, who, args):,.0f} MiB at its peak: {who}")


def parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} M trained parameters"


if __name__ == "__main__":
    main()
