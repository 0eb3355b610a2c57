"""Pre-training of the decoder: next-token prediction on packed documents.

The loss of a step is the sum of weighted losses over the sum of weights of the whole batch, over all parts of it and
all ranks, not a mean of means.

Dimensions: R rows, T length of a row.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ..data.packing import PackedBatch
from ..model.decoder import OmnigramForCausalLM
from ..model.loss import LossParts, Partition
from ..tokenizers.vocabulary import Vocabulary
from .machine import precision
from .optimizer import build_optimizers, learning_rates, named_rates, scale_learning_rates
from .parallel import clip_gradients, parallelise, without_reduction
from .schedule import warmup_cosine
from .steps import StepModule
from .world import World


def softmax_partitions(vocabulary: Vocabulary) -> list[Partition]:
    """(first id, number of ids) by partition of a `PackedBatch`: 0 text and specials, k the k-th code modality.

    Codes that are appended leave text and specials one contiguous range. ValueError for a vocabulary where they do
    not: set loss.partitioned=false.
    """
    codes = vocabulary.ranges[1:]
    first = min((r.start for r in codes), default=vocabulary.size)
    specials = max(vocabulary.specials.values(), default=0)
    if vocabulary.ranges[0].start != 0 or max(specials + 1, vocabulary.ranges[0].stop) > first:
        raise ValueError("codes lie among the text ids of this vocabulary: set loss.partitioned=false")
    return [(0, first), *((r.start, r.size) for r in codes)]


class Pretraining(StepModule):
    """The decoder with its loss and optimizer.

    config: `loss`, `optimizer` and `trainer` are read.
    """

    def __init__(
        self, model: OmnigramForCausalLM, vocabulary: Vocabulary, config: DictConfig, world: World | None = None
    ) -> None:
        super().__init__(config.trainer.max_skipped_steps, world)
        self.automatic_optimization = False
        self.model, self.vocabulary, self.config = model, vocabulary, config
        self.partitions = softmax_partitions(vocabulary) if config.loss.partitioned else None

    def configure_model(self) -> None:
        mixed = precision(self.config, self.device).startswith("bf16")
        parallelise(self.model, self.config.trainer, self.device_mesh, mixed)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return build_optimizers(self.model, self.config.optimizer, self.device)

    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        return batch.to(device)

    def loss_parts(self, batch: PackedBatch) -> LossParts:
        """Weighted loss of a batch, with the nats of every target."""
        return self.model.training_loss(
            batch.ids,
            batch.targets,
            batch.weights,
            document_ids=batch.document,
            position_ids=batch.position,
            partitions=self.partitions,
            target_partition=None if self.partitions is None else batch.partition,
            z_loss=self.config.loss.z_loss,
        )

    def training_step(self, batch: PackedBatch, batch_idx: int) -> None:
        settings, optimizers = self.config.optimizer, self.every_optimizer()
        factor = warmup_cosine(self.step, settings.warmup_steps, self.config.trainer.max_steps, settings.final_ratio)
        scale_learning_rates(optimizers, factor)
        weight = self.world.sum(batch.total_weight).clamp_min(1e-6)
        self.model.zero_grad()
        parts = batch.parts(self.config.trainer.accumulation)
        found = [self._backward(part, weight, last=part is parts[-1]) for part in parts]
        length = clip_gradients(self.model, settings.gradient_clip)
        total = sum_of(found)
        if self.may_update(named_rates(settings), loss=total.loss, gradient=length):
            for optimizer in optimizers:
                optimizer.step()
        # log Z stands for the norm of the outputs, which grows before a run diverges (Chameleon, section 2.2)
        weight = total.weight.clamp_min(1e-6)  # of this rank
        self.watched = {"loss": total.nats / weight, "gradient_norm": length, "log_z": (total.z / weight).sqrt()}
        if self.step % self.config.trainer.log_every_n_steps == 0:
            self._log(batch, total, learning_rates(optimizers))

    def _backward(self, part: PackedBatch, weight: Tensor, last: bool) -> LossParts:
        """Add the gradients of a part of the batch, whose targets weigh `weight` on all ranks together."""
        reduced = last or self.world.size == 1
        with nullcontext() if reduced else without_reduction(self.model, self.trainer.strategy):
            parts = self.loss_parts(part)
            # the gradients' mean over the parts of the batch is taken
            self.manual_backward(parts.loss * self.world.data_size / weight)
        return parts._replace(loss=parts.loss.detach())

    def _log(self, batch: PackedBatch, parts: LossParts, rates: dict[str, float]) -> None:
        """A point of the curves, of all ranks."""
        bits = bits_by_modality(batch, parts, self.vocabulary)
        sums = torch.zeros(len(self.vocabulary.modalities) + 2, 2, dtype=torch.float64)  # bits and targets of each
        for index, name in enumerate(self.vocabulary.modalities):
            if name in bits:
                sums[index] = torch.tensor([float(bits[name].double().sum()), bits[name].numel()])
        sums[-2:] = torch.tensor([[float(parts.nats), float(parts.weight)], [float(parts.z), float(parts.weight)]])
        *of_modalities, (nats, weight), (z, _) = self.world.sum(sums.to(self.device)).tolist()
        named = zip(self.vocabulary.modalities, of_modalities, strict=True)
        values: dict[str, Any] = {f"train/bits_{name}": bits / number for name, (bits, number) in named if number}
        values |= {f"train/{name}": float(value) for name, value in self.watched.items()}
        values["train/loss"] = nats / max(weight, 1e-6)
        values["train/log_z"] = math.sqrt(z / max(weight, 1e-6))
        values["train/steps_skipped"] = float(self.steps_skipped)
        values |= {f"train/{name}": rate for name, rate in rates.items()}
        self.shown["loss"] = values["train/loss"]
        for logger in self.loggers:
            logger.log_metrics(values, step=self.step + 1)


def sum_of(parts: Sequence[LossParts]) -> LossParts:
    """The sums over the parts of a batch, and the tokens of all of them."""
    if len(parts) == 1:
        return parts[0]
    loss, nats, weight, z, token_nats, token_log_z = zip(*parts, strict=True)
    sums = [torch.stack(column).sum() for column in (loss, nats, weight, z)]
    return LossParts(*sums, torch.cat(token_nats), torch.cat(token_log_z))  # pyright: ignore[reportCallIssue]


def bits_by_modality(batch: PackedBatch, parts: LossParts, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Bits of each target that has a weight, by the modalities that occur."""
    nats, weights = parts.token_nats, batch.weights.flatten()
    modality = batch.modality.flatten()
    bits: dict[str, Tensor] = {}
    for index, name in enumerate(vocabulary.modalities):
        chosen = (modality == index) & (weights > 0)
        if chosen.any():
            bits[name] = nats[chosen] / math.log(2)
    return bits
