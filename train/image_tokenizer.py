"""Training of the image tokenizer: reconstruction, the quantizer's loss, and an adversary where it is configured.

VQGAN (https://arxiv.org/abs/2012.09841, section 3.1). Optimisation is manual. A step:

    1 terms          what is lowered, of one batch of pictures
    2 adversary      what its word weighs against the reconstruction
    3 gradients      of encoder, codebook and decoder; of the discriminator, on what has just been decoded
    4 update         of all or of nothing: weights, codes, averages, the adversary's memory

Dimensions: B batch, H W pixels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.picture_batches import PictureBatch
from ..tokenizers.image import ImageTokenizer, to_pixels
from ..tokenizers.quantizers.quantizer import Quantized
from .adversary import Adversary, AdversaryConfig, DiscriminatorLoss
from .optimizer import build_optimizers, learning_rates, named_rates, scale_learning_rates
from .perceptual import PerceptualDistance, perceptual_distance
from .schedule import warmup_cosine
from .steps import StepModule
from .world import World

Pixels = Float[Tensor, "b 3 height width"]


class Terms(NamedTuple):
    """What the tokenizer lowers in a step, but for the adversary's part."""

    decoded: Pixels
    quantized: Quantized
    reconstruction: Float[Tensor, ""]  # weighted: of pixels and of what is perceived
    loss: Float[Tensor, ""]  # the reconstruction and the quantizer's loss, weighted
    logged: dict[str, Tensor]  # each by itself, unweighted


class ImageTokenizerTraining(StepModule):
    """The tokenizer, its moving average for evaluation, and its losses.

    settings: the `tokenizer` part of the configuration; `loss`, `optimizer`, `discriminator` and `trainer` are read.
    """

    def __init__(self, tokenizer: ImageTokenizer, settings: DictConfig, world: World | None = None) -> None:
        super().__init__(settings.trainer.max_skipped_steps, world)
        self.automatic_optimization = False
        self.tokenizer = tokenizer
        for parameter in tokenizer.parameters():
            if parameter.ndim == 4:  # of convolutions over pictures, not over clips
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.averaged = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(settings.trainer.ema_decay))
        self.averaged.requires_grad_(False)
        self.perceptual = loss_distance(settings.loss)
        self.adversary = None
        if settings.discriminator is not None:
            self.adversary = Adversary(AdversaryConfig(**settings.discriminator))
        self.settings = settings
        self.tokenizer.quantizer.ranks = self.world

    @property
    def evaluated(self) -> ImageTokenizer:
        """The tokenizer with averaged weights; the codebook is an average already."""
        module = self.averaged.module
        assert isinstance(module, ImageTokenizer)
        return module

    @property
    def _statistics(self) -> list[Tensor]:
        """What the tokenizer's batch norms remember of batches, and change whenever they see one."""
        norms = (module for module in self.tokenizer.modules() if isinstance(module, _BatchNorm))
        return [buffer for norm in norms for buffer in norm.buffers()]

    def start_from(self, *batches: Tensor) -> None:
        """Begin at what `ImageTokenizer.start_from` finds in these pixels."""
        self.tokenizer.start_from(*batches)
        self.averaged.module.load_state_dict(self.tokenizer.state_dict())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = build_optimizers(self.tokenizer, self.settings.optimizer, self.device)
        if self.adversary is not None:
            settings = self.settings.optimizer.copy()
            settings.learning_rate = self.settings.discriminator.learning_rate
            settings.muon_learning_rate = None  # it has one optimizer, the last
            optimizers += build_optimizers(self.adversary.discriminator, settings, self.device)
        return optimizers

    def training_step(self, batch: PictureBatch, batch_idx: int) -> None:
        optimizers = self._scheduled()
        pixels = to_pixels(self._mirrored(batch.pictures))
        of_tokenizer = optimizers if self.adversary is None else optimizers[:-1]
        adversary = self.adversary if self.adversary is not None and self.adversary.takes_part else None
        before = [(buffer, buffer.clone()) for buffer in self._statistics]
        terms = self.terms(pixels)
        loss, judged, logged = terms.loss, None, dict(terms.logged)
        if adversary is not None:
            adversarial = adversary.adversarial(terms.decoded)
            weight = self._adversarial_weight(adversary, terms.reconstruction, adversarial)
            loss = loss + weight * adversarial
            logged |= {"adversarial": adversarial, "adversarial_weight": weight}
        length = self._gradients(self.tokenizer, loss)
        numbers = {"loss": loss, "gradient": length}
        if adversary is not None:
            judged = adversary.loss(pixels, terms.decoded)
            numbers["discriminator's loss"] = judged.loss
            numbers["discriminator's gradient"] = self._gradients(adversary.discriminator, judged.loss)
            logged |= {"discriminator": judged.hinge, "lecam": judged.lecam}
        if self.may_update(self._rates(adversary is not None), **numbers):
            self._update(of_tokenizer if adversary is None else optimizers, terms, judged)
        else:
            for buffer, value in before:
                buffer.copy_(value)
        self._tell(terms, loss, {"gradient_norm": length, **learning_rates(of_tokenizer), **logged})

    def terms(self, pixels: Pixels) -> Terms:
        """Pixels there and back, and how far that is from them."""
        weights = self.settings.loss
        quantized = self.tokenizer.quantize(pixels)
        decoded = self.tokenizer.decoder(quantized.codes)
        logged = {"l1": F.l1_loss(decoded, pixels), "l2": F.mse_loss(decoded, pixels)}
        reconstruction = weights.l1 * logged["l1"] + weights.l2 * logged["l2"]
        if self.perceptual is not None:
            logged[self.perceptual.name] = self.perceptual(decoded, pixels).mean()
            reconstruction = reconstruction + weights.perceptual * logged[self.perceptual.name]
        loss = reconstruction + weights.quantizer * quantized.loss
        logged |= {"quantizer": quantized.loss, **quantized.stats}
        return Terms(decoded, quantized, reconstruction, loss, logged)

    def _adversarial_weight(self, adversary: Adversary, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        layer = self.tokenizer.decoder.last_layer
        (pull,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
        (push,) = torch.autograd.grad(adversarial, layer, retain_graph=True)
        return adversary.weight(self.world.mean(pull), self.world.mean(push))

    def _gradients(self, module: nn.Module, loss: Tensor) -> Tensor:
        """Give the module its gradients, those of all ranks, clipped; their length before."""
        module.zero_grad()
        self.manual_backward(loss)
        self.world.average_gradients(module)
        return torch.nn.utils.clip_grad_norm_(module.parameters(), self.settings.optimizer.gradient_clip)

    def _update(self, optimizers: list[Any], terms: Terms, judged: DiscriminatorLoss | None) -> None:
        """All that a sound step changes."""
        for optimizer in optimizers:
            optimizer.step()
        self.tokenizer.quantizer.update_codebook()
        self.averaged.update_parameters(self.tokenizer)
        if self.adversary is None:
            return
        if judged is not None:
            self.adversary.follow_scores(self.world.mean(judged.scores))
        error = self.world.mean(terms.reconstruction.detach().float().clone())
        self.adversary.guard.see(error, self.step + 1)

    def _scheduled(self) -> list[Any]:
        """All optimizers, with everything set to what it is at this step."""
        optimizers = self.every_optimizer()
        warmup, last = self.settings.optimizer.warmup_steps, self.settings.trainer.max_steps
        scale_learning_rates(optimizers, warmup_cosine(self.step, warmup, last, self.settings.optimizer.final_ratio))
        self.tokenizer.quantizer.set_progress(self.step / last)
        return optimizers

    def _mirrored(self, pictures: UInt8[Tensor, "b height width 3"]) -> UInt8[Tensor, "b height width 3"]:
        """Half of them, by chance, if that is wanted."""
        if not self.settings.trainer.flip:
            return pictures
        mirrored = torch.rand(len(pictures), device=pictures.device) < 0.5
        return torch.where(mirrored[:, None, None, None], pictures.flip(2), pictures)

    def _rates(self, judged: bool) -> str:
        """What one would lower where numbers are not finite."""
        rates = named_rates(self.settings.optimizer, "tokenizer.optimizer")
        if not judged:
            return rates
        return f"{rates} and tokenizer.discriminator.learning_rate={self.settings.discriminator.learning_rate}"

    def _tell(self, terms: Terms, loss: Tensor, logged: dict[str, Any]) -> None:
        """Those who watch: callbacks at every step, curves and the terminal now and then."""
        usage = terms.quantized.stats["usage"]
        self.codes = terms.quantized.ids
        self.watched = {"loss": terms.loss.detach(), "gradient_norm": logged["gradient_norm"], "usage": usage}
        if self.adversary is not None:  # whose part in the loss joins at once, and is not watched
            logged["adversary_off"] = self.adversary.guard.switched_off
            self.watched["adversary"] = self.adversary.guard.switched_off
        if self.step % self.settings.trainer.log_every_n_steps == 0:
            self.shown |= {"loss": float(loss.detach()), "usage": float(usage)}
            self._log({"loss": loss, **logged})

    def _log(self, values: dict[str, Any]) -> None:
        numbers = torch.stack([torch.as_tensor(value).detach().float().to(self.device) for value in values.values()])
        means = self.world.mean(numbers).tolist()
        for logger in self.loggers:
            logger.log_metrics({f"train/{name}": mean for name, mean in zip(values, means, strict=True)}, self.step + 1)


def loss_distance(settings: DictConfig) -> PerceptualDistance | None:
    """What the `loss` part of the configuration perceives by; weights are read only where they count for something."""
    return perceptual_distance(settings.vgg16) if settings.perceptual > 0 else None
