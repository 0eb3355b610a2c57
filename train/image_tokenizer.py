"""Training of the image tokenizer: reconstruction, commitment, and a discriminator where it is configured.

VQGAN (https://arxiv.org/abs/2012.09841, section 3.1) with pixel losses. Optimisation is manual: `generator_step`
trains encoder, codebook and decoder, `discriminator_step` the discriminator, each with its own optimizers.

Dimensions: B batch, H W pixels.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.picture_batches import PictureBatch
from ..tokenizers.image import ImageTokenizer, to_pixels
from .optimizer import build_optimizers, learning_rates, named_rates, scale_learning_rates
from .schedule import warmup_cosine
from .steps import StepModule
from .world import World


class ImageTokenizerTraining(StepModule):
    """The tokenizer, its moving average for evaluation, and its losses.

    settings: the `tokenizer` part of the configuration; `loss`, `optimizer`, `discriminator` and `trainer` are read.
    """

    def __init__(self, tokenizer: ImageTokenizer, settings: DictConfig, world: World | None = None) -> None:
        super().__init__(settings.trainer.max_skipped_steps, world)
        self.automatic_optimization = False
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.averaged = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(settings.trainer.ema_decay))
        self.averaged.requires_grad_(False)
        self.discriminator = None
        if settings.discriminator is not None:
            self.discriminator = PatchDiscriminator(settings.discriminator.channels, settings.discriminator.layers)
        self.settings = settings
        self.tokenizer.quantizer.ranks = self.world

    @property
    def evaluated(self) -> ImageTokenizer:
        """The tokenizer with averaged weights; the codebook is an average already."""
        module = self.averaged.module
        assert isinstance(module, ImageTokenizer)
        return module

    def start_from(self, pixels: Tensor) -> None:
        """Begin at what `ImageTokenizer.start_from` finds in these pixels."""
        self.tokenizer.start_from(pixels)
        self.averaged.module.load_state_dict(self.tokenizer.state_dict())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = build_optimizers(self.tokenizer, self.settings.optimizer, self.device)
        if self.discriminator is not None:
            settings = self.settings.optimizer.copy()
            settings.learning_rate = self.settings.discriminator.learning_rate
            settings.muon_learning_rate = None  # it has one optimizer, the last
            optimizers += build_optimizers(self.discriminator, settings, self.device)
        return optimizers

    def training_step(self, batch: PictureBatch, batch_idx: int) -> None:
        optimizers = self.every_optimizer()
        factor = warmup_cosine(
            self.step,
            self.settings.optimizer.warmup_steps,
            self.settings.trainer.max_steps,
            self.settings.optimizer.final_ratio,
        )
        scale_learning_rates(optimizers, factor)
        self.tokenizer.quantizer.at(self.step / self.settings.trainer.max_steps)
        pictures = batch.pictures
        if self.settings.trainer.flip:
            mirrored = torch.rand(len(pictures), device=pictures.device) < 0.5
            pictures = torch.where(mirrored[:, None, None, None], pictures.flip(2), pictures)
        pixels = to_pixels(pictures)
        if self.discriminator is None:
            self.generator_step(optimizers, pixels)
            return
        *of_generator, of_discriminator = optimizers
        decoded = self.generator_step(of_generator, pixels)
        if self.step >= self.settings.discriminator.start_step:
            self.discriminator_step(of_discriminator, pixels, decoded.detach())

    def generator_step(self, optimizers: list[Any], pixels: Tensor) -> Tensor:
        """One step of encoder, codebook and decoder; the decoded pixels."""
        weights = self.settings.loss
        quantized = self.tokenizer.quantize(pixels)
        decoded = self.tokenizer.decoder(quantized.codes)
        l1, l2 = F.l1_loss(decoded, pixels), F.mse_loss(decoded, pixels)
        loss = weights.l1 * l1 + weights.l2 * l2 + weights.quantizer * quantized.loss
        reconstruction = loss.detach()  # without the adversary, which joins it at once
        logged = {"l1": l1, "l2": l2, "quantizer": quantized.loss, **quantized.stats}
        if self.discriminator is not None and self.step >= self.settings.discriminator.start_step:
            with _frozen(self.discriminator):
                adversarial = -self.discriminator(decoded).mean()
            weight = self._adversarial_weight(loss, adversarial)
            loss = loss + weight * adversarial
            logged |= {"adversarial": adversarial, "adversarial_weight": weight}
        rates = named_rates(self.settings.optimizer, "tokenizer.optimizer")
        length, sound = self._update(optimizers, loss, self.tokenizer, rates)
        if sound:
            self.tokenizer.quantizer.follow()
            self.averaged.update_parameters(self.tokenizer)
        self.codes = quantized.ids
        self.watched = {"loss": reconstruction, "gradient_norm": length, "usage": quantized.stats["usage"]}
        if self.step % self.settings.trainer.log_every_n_steps == 0:
            self.shown |= {"loss": float(loss.detach()), "usage": float(quantized.stats["usage"])}
            self._log({"loss": loss, "gradient_norm": length, **learning_rates(optimizers), **logged})
        return decoded

    def discriminator_step(self, optimizer: Any, real: Tensor, decoded: Tensor) -> None:
        """One step of the discriminator with the hinge loss (https://arxiv.org/abs/1705.02894)."""
        assert self.discriminator is not None
        loss = F.relu(1 - self.discriminator(real)).mean() + F.relu(1 + self.discriminator(decoded)).mean()
        rate = f"tokenizer.discriminator.learning_rate={self.settings.discriminator.learning_rate}"
        self._update([optimizer], loss, self.discriminator, rate)
        if self.step % self.settings.trainer.log_every_n_steps == 0:
            self._log({"discriminator": loss})

    def _adversarial_weight(self, loss: Tensor, adversarial: Tensor) -> Tensor:
        """VQGAN, equation 7: the gradients at the decoder's last layer are made equally long, up to a factor."""
        layer = self.tokenizer.decoder.last_layer
        (pull,) = torch.autograd.grad(loss, layer, retain_graph=True)
        (push,) = torch.autograd.grad(adversarial, layer, retain_graph=True)
        pull, push = (self.world.mean(gradient) for gradient in (pull, push))
        ratio = (pull.norm() / (push.norm() + 1e-6)).clamp(max=1e4)
        return self.settings.discriminator.weight * ratio.detach()

    def _update(self, optimizers: list[Any], loss: Tensor, module: nn.Module, rates: str) -> tuple[Tensor, bool]:
        """Step, where all numbers are finite; the length of the gradient, and whether they are."""
        module.zero_grad()
        self.manual_backward(loss)
        self.world.average_gradients(module)
        length = torch.nn.utils.clip_grad_norm_(module.parameters(), self.settings.optimizer.gradient_clip)
        sound = self.may_update(rates, loss=loss, gradient=length)
        if sound:
            for optimizer in optimizers:
                optimizer.step()
        return length, sound

    def _log(self, values: dict[str, Any]) -> None:
        numbers = torch.stack([torch.as_tensor(value).detach().float().to(self.device) for value in values.values()])
        means = self.world.mean(numbers).tolist()
        for logger in self.loggers:
            logger.log_metrics({f"train/{name}": mean for name, mean in zip(values, means, strict=True)}, self.step + 1)


class PatchDiscriminator(nn.Sequential):
    """Pixels [B, 3, H, W] -> a score for each patch, higher is more real (pix2pix, https://arxiv.org/abs/1611.07004)."""

    def __init__(self, channels: int, layers: int) -> None:
        if channels % 4:
            raise ValueError(f"tokenizer.discriminator.channels={channels} must be a multiple of 4")  # 8 groups at 2 x
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers):
            before, after = channels * 2 ** (level - 1), channels * 2**level
            blocks += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Conv2d(channels * 2 ** (layers - 1), 1, 3, padding=1))


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Within it a module's parameters take no gradients."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
