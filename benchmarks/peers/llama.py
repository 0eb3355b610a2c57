"""transformers' causal models with the shape of our decoder, trained by the usual loop or by its Trainer.

Dimensions: B documents padded to L tokens.
"""

import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import (
    Emu3ForCausalLM,
    Emu3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from omnigram.data.packing import NO_TARGET, WrittenDocument
from omnigram.model.configuration import OmnigramConfig
from omnigram.train.optimizer import build_optimizers

CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "emu3": (Emu3TextConfig, Emu3ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
# of each, the norm of queries and keys
HEAD_NORMS = {"llama": "none", "emu3": "none", "qwen3": "rms"}
_SAME = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
_SAME += ("num_key_value_heads", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "attention_bias")
_SAME += ("mlp_bias", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")


class Padded(NamedTuple):
    """The documents of a step as people batch them."""

    ids: Tensor  # [B, L]
    mask: Tensor | None  # [B, L] 1 for a token; None where there are no pads
    labels: Tensor  # [B, L] the ids, -100 on pads; the model shifts them

    @property
    def num_tokens(self) -> int:
        return self.ids.numel() if self.mask is None else int(self.mask.sum())


class Peer:
    """The usual loop around a causal model of transformers."""

    def __init__(self, model: PreTrainedModel, config: DictConfig) -> None:
        self.model, self.clip = model.train(), config.optimizer.gradient_clip
        self.optimizers = build_optimizers(model, config.optimizer, torch.device("cpu"))
        if config.trainer.compile:
            model.compile()

    def step(self, batch: Padded) -> float:
        loss = self.model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return batch.num_tokens


def padded(documents: Sequence[WrittenDocument], pad: int) -> Padded:
    """Each document in a row of its own, as long as the longest."""
    shape = (len(documents), max(map(len, documents)))
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.ids)
        mask[row, : len(document)] = 1
    return Padded(ids, None if mask.all() else mask, ids.masked_fill(mask == 0, NO_TARGET))


def peer_model(name: str, config: OmnigramConfig) -> PreTrainedModel:
    """A class of transformers with the shape of our decoder, one of `CLASSES`."""
    made, model = CLASSES[name]
    return model(made(**{key: getattr(config, key) for key in _SAME}, attention_dropout=0.0, use_cache=False))


def run_trainer(model: PreTrainedModel, config: DictConfig, batches: Sequence[Padded]) -> None:
    """A step of transformers' Trainer on each batch, with its own optimizer (AdamW)."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=1,
            learning_rate=config.optimizer.learning_rate,
            max_grad_norm=config.optimizer.gradient_clip,
            torch_compile=config.trainer.compile,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        Trainer(model, arguments, data_collator=_as_arguments, train_dataset=list(batches)).train()  # pyright: ignore


def _as_arguments(items: list[Padded]) -> dict[str, Tensor]:
    [batch] = items  # an item is a batch already
    named = {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": batch.labels}
    return {name: tensor for name, tensor in named.items() if tensor is not None}
