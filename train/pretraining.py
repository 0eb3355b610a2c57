"""Pre-training of the decoder: next-token prediction on packed documents.

The loss of a step is the sum of weighted losses over the sum of weights of the whole batch, not a mean of means.

Dimensions: R rows, T length of a row.
"""

import math
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ..data.packing import PackedBatch
from ..model.decoder import OmnigramForCausalLM
from ..model.loss import LossParts, Partition
from ..tokenizers.vocabulary import Vocabulary
from .checkpointing import StepModule
from .optimizer import build_optimizers, learning_rates, named_rates, scale_learning_rates
from .schedule import warmup_cosine


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

    def __init__(self, model: OmnigramForCausalLM, vocabulary: Vocabulary, config: DictConfig) -> None:
        super().__init__(config.trainer.max_skipped_steps)
        self.automatic_optimization = False
        self.model, self.vocabulary, self.config = model, vocabulary, config
        self.partitions = softmax_partitions(vocabulary) if config.loss.partitioned else None

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
        parts = self.loss_parts(batch)
        self.model.zero_grad()
        self.manual_backward(parts.loss / parts.weight.clamp_min(1e-6))
        length = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        if self.may_update(named_rates(settings), loss=parts.loss, gradient=length):
            for optimizer in optimizers:
                optimizer.step()
        # log Z stands for the norm of the outputs, which grows before a run diverges (Chameleon, section 2.2)
        log_z = (parts.z / parts.weight.clamp_min(1e-6)).sqrt()
        self.watched = {"loss": parts.nats / parts.weight.clamp_min(1e-6), "gradient_norm": length, "log_z": log_z}
        if self.step % self.config.trainer.log_every_n_steps == 0:
            self._log(batch, parts, learning_rates(optimizers))

    def _log(self, batch: PackedBatch, parts: LossParts, rates: dict[str, float]) -> None:
        bits = bits_by_modality(batch, parts, self.vocabulary)
        values: dict[str, Any] = {f"train/bits_{name}": float(values.mean()) for name, values in bits.items()}
        values |= {f"train/{name}": float(value) for name, value in self.watched.items()}
        values["train/steps_skipped"] = float(self.steps_skipped)
        values |= {f"train/{name}": rate for name, rate in rates.items()}
        self.shown["loss"] = values["train/loss"]
        for logger in self.loggers:
            logger.log_metrics(values, step=self.step + 1)


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
