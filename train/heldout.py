"""While a decoder is trained: its bits on held-out splits, and pictures it draws from words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ..data.artefact import atomic_write
from ..data.evaluation_batches import EvaluationBatches
from ..data.kinds import WORDS_TO_PICTURE
from ..data.tokens import TokenDataset
from ..model.bundle import Omnigram
from ..model.decoder import OmnigramForCausalLM
from .captioned_pictures import captioned_picture_of
from .curves import log_picture
from .out_of_memory import memory_advice
from .pictures_page import contact_sheet
from .pretraining import Pretraining, bits_by_modality

SAMPLES = "samples"  # folder of the grids in a run


class HeldOut(Callback):
    """Now and then: bits of each modality on held-out splits, and a grid of pictures drawn from words.

    Of several ranks the first one does it, and the others wait for it at their next step; where the weights are dealt
    over the ranks (FSDP2) all of them measure the same batches, and pictures are left to the end of the run.

    bundle: puts a decoder together with the tokenizers of its tokens
    """

    SPLITS = ("val", "heldout_style")

    def __init__(
        self,
        tokens: TokenDataset,
        bundle: Callable[[OmnigramForCausalLM], Omnigram],
        folder: Path,
        config: DictConfig,
    ) -> None:
        self.tokens, self.bundle, self.folder, self.config = tokens, bundle, folder, config
        self.heldout = {split: tokens.of_split(split) for split in self.SPLITS if split in tokens.record["splits"]}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        step = pl_module.step
        if step % self.config.trainer.validate_every_n_steps:
            return
        model, dealt = pl_module.model, isinstance(pl_module.model, FSDPModule)
        if not (dealt or pl_module.world.is_first):
            return
        model.eval()
        # not compiled: every new shape would be compiled anew
        precision = trainer.precision_plugin.val_step_context()
        with torch.no_grad(), precision, torch.compiler.set_stance("force_eager"):
            for split, dataset in self.heldout.items():
                values = {f"{split}/bits_{name}": bits for name, bits in self._bits(pl_module, dataset).items()}
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=step)
            if not dealt:
                self._draw(trainer, model, step)
        model.train()

    def _bits(self, module: Pretraining, dataset: TokenDataset) -> dict[str, float]:
        batches = EvaluationBatches(
            dataset,
            dataset.grammar(),
            WORDS_TO_PICTURE,
            rows=16,
            limit=self.config.trainer.validation_documents,
            partitioned=self.config.loss.partitioned,
        )
        found: dict[str, list[Tensor]] = {}
        for batch in batches:
            moved = batch.to(module.device)
            for name, bits in bits_by_modality(moved, module.loss_parts(moved), module.vocabulary).items():
                found.setdefault(name, []).append(bits)
        return {name: float(torch.cat(bits).mean()) for name, bits in found.items()}

    def _draw(self, trainer: Trainer, model: OmnigramForCausalLM, step: int) -> None:
        number = min(self.config.trainer.sample_pictures, len(self.tokens))
        if not number:
            return
        made = self.bundle(model)
        spread = torch.linspace(0, len(self.tokens) - 1, number).long().tolist()
        intact = (self.tokens[index] for index in spread if self.tokens.is_intact(index))
        found = [captioned_picture_of(document, made.sampler) for document in intact]
        captions = [picture.wordings[0] for picture in found if picture is not None]
        if not captions:
            return
        with memory_advice(f"lower trainer.sample_pictures={number}"):
            page = contact_sheet(made.draw(captions, seed=self.config.seed), captions)
        (self.folder / SAMPLES).mkdir(exist_ok=True)
        atomic_write(self.folder / SAMPLES / f"step-{step:08d}.png", lambda file: page.save(file, format="PNG"))
        log_picture(trainer.loggers, "samples", page, step)
