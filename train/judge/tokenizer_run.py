"""What a run of `omnigram tokenizer` ends with: quick numbers of its image tokenizer, and a page of reconstructions."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from ...data.artefact import atomic_write
from ...data.picture_batches import Pictures
from ...model.codec import IMAGE_MODEL
from ...tokenizers.image import ImageTokenizer
from ..machine import prepare
from ..out_of_memory import memory_advice
from ..picture_progress import counted
from ..tokenizer_metrics import measure_codebook, measure_reconstruction
from .pages import GRID, reconstruction_page


def evaluate_tokenizer(run: Path, dataset: Path, config: DictConfig) -> dict[str, Any]:
    """The numbers of a trained tokenizer on held-out concepts (test), and a page of their reconstructions.

    Codes are counted over the held-out and the training pictures together.
    """
    settings = config.tokenizer
    device = prepare(config)
    tokenizer = ImageTokenizer.from_pretrained(run / IMAGE_MODEL).to(device)
    sizes = (int(settings.pictures.resolution), tokenizer.patch, float(settings.pictures.max_ratio))
    train = Pictures(dataset, "train", *sizes)
    name = next((split for split in ("test", "val") if split in train.record["splits"]), "train")
    heldout = train if name == "train" else Pictures(dataset, name, *sizes)
    size, console = settings.trainer.evaluation_batch_size, Console(stderr=True)
    with memory_advice(f"lower tokenizer.trainer.evaluation_batch_size={size}"):
        shown = counted(heldout.batches(size), "reconstructions", len(heldout), console)
        measured = measure_reconstruction(tokenizer, shown, device)
    both = [train] if heldout is train else [heldout, train]
    batches = (batch for pictures in both for batch in pictures.batches(size))
    total = sum(len(pictures) for pictures in both)
    measured |= measure_codebook(tokenizer, counted(batches, "codes in use", total, console), device)
    page = reconstruction_page(tokenizer, heldout, device)
    atomic_write(run / GRID, lambda file: page.save(file, format="PNG"))
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    return {**measured, "split": name, "parameters": parameters, "identity_of_image_tokenizer": tokenizer.identity}
