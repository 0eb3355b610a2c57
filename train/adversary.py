"""The adversary of the image tokenizer: a discriminator, its losses, and what its word weighs.

VQGAN (https://arxiv.org/abs/2012.09841, section 3.1), hinge loss (https://arxiv.org/abs/1705.02894) and LeCam's
regularisation (https://arxiv.org/abs/2104.03310). Unlike its equation, and like its authors' code, LeCam's here pulls
only at scores that lie on the far side of the other kind's average.

Dimensions: B batch, H W pixels, h w patches.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .adversary_guard import AdversaryGuard
from .discriminator import PatchDiscriminator

LECAM_DECAY = 0.99  # of the averages of scores, as the authors have it
Pixels = Float[Tensor, "b 3 height width"]
Scores = Float[Tensor, "b 1 h w"]


@dataclass(frozen=True)
class AdversaryConfig:
    """The part `tokenizer.discriminator` of the configuration, where each is explained."""

    channels: int
    layers: int
    learning_rate: float
    lecam: float
    weight: float
    max_weight: float
    start_step: int
    warmup_steps: int
    start_below: float | None
    guard_ratio: float | None
    guard_steps: int


class DiscriminatorLoss(NamedTuple):
    """Of one batch."""

    loss: Float[Tensor, ""]  # hinge, and LeCam's term as it is weighted
    hinge: Float[Tensor, ""]
    lecam: Float[Tensor, ""]  # unweighted
    scores: Float[Tensor, "2"]  # means, of real and of decoded pixels


class Adversary(nn.Module):
    """The discriminator, and buffers from which a resumed run goes on as an undisturbed one."""

    scores: Float[Tensor, "2"]  # LeCam's averages, of real and of decoded pixels

    def __init__(self, config: AdversaryConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.channels, config.layers)
        self.guard = AdversaryGuard(config.start_step, config.start_below, config.guard_ratio, config.guard_steps)
        self.register_buffer("scores", torch.zeros(2))

    @property
    def takes_part(self) -> bool:
        """Whether it does, in the step that comes."""
        return self.guard.takes_part

    def adversarial(self, decoded: Pixels) -> Float[Tensor, ""]:
        """What the tokenizer lowers: the mean score, negated. The discriminator takes no gradients of it."""
        with _frozen(self.discriminator):
            return -self.discriminator(decoded).mean()

    def weight(self, pull: Tensor, push: Tensor) -> Float[Tensor, ""]:
        """Of the adversarial loss, from gradients at the decoder's last layer (VQGAN, equation 7).

        pull: of the reconstruction. push: of the adversarial loss, which is made as long as `pull`, times `weight`.
        """
        alike = self.config.weight * pull.norm() / (push.norm() + 1e-6)
        return (alike.clamp(max=self.config.max_weight) * self.guard.share(self.config.warmup_steps)).detach()

    def loss(self, real: Pixels, decoded: Pixels) -> DiscriminatorLoss:
        """What the discriminator lowers; no gradients go to the pixels."""
        of_real, of_decoded = self.discriminator(real.detach()), self.discriminator(decoded.detach())
        hinge, lecam = hinge_loss(of_real, of_decoded), lecam_loss(of_real, of_decoded, self.scores)
        loss = hinge + self.config.lecam * lecam
        return DiscriminatorLoss(loss, hinge, lecam, torch.stack([of_real.mean(), of_decoded.mean()]).detach())

    def follow_scores(self, scores: Float[Tensor, "2"]) -> None:
        """Let LeCam's averages follow the means over all ranks, once the step is found sound."""
        self.scores.lerp_(scores.to(self.scores.dtype), 1 - LECAM_DECAY)


def hinge_loss(of_real: Scores, of_decoded: Scores) -> Float[Tensor, ""]:
    """Scores of real pixels should be 1 or more, those of decoded ones -1 or less."""
    return F.relu(1 - of_real).mean() + F.relu(1 + of_decoded).mean()


def lecam_loss(of_real: Scores, of_decoded: Scores, averages: Float[Tensor, "2"]) -> Float[Tensor, ""]:
    """Scores of one kind should not be far beyond what those of the other kind are on average.

    averages: of the scores of real and of decoded pixels in the steps before.
    """
    real, decoded = averages
    return F.relu(of_real - decoded).square().mean() + F.relu(real - of_decoded).square().mean()


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Within it a module's parameters take no gradients."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
