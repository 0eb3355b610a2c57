"""`make tokenizer`: shards -> a run folder with the text tokenizer, the image tokenizer and what they are worth.

1. the run of this configuration on this data set; a finished one is returned at once
2. text.model: SentencePiece on the texts of the train split
3. image/: trained from the last checkpoint on, then the averaged weights
4. metrics.json with held-out numbers, reconstructions.png
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch.utils.data import DataLoader

from ..data.artefact import atomic_write, publish_folder
from ..data.picture_batches import Pictures, PictureStream, dealt
from ..data.pictures import buckets_of
from ..data.shards import read_shard
from ..model.codec import CARD, IMAGE_MODEL, Codec
from ..tokenizers.image import ImageTokenizer, to_pixels
from ..tokenizers.networks import network_config
from ..tokenizers.published_text import TEXT_MODEL
from ..tokenizers.quantizers import quantizer_config
from ..tokenizers.quantizers.nearest import check_beginning
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import Vocabulary
from . import discriminator
from .alarms import Alarms, tokenizer_rules
from .batch_counts import PictureCounts
from .checkpoints import Checkpoints, load_callbacks, load_model, load_step, newest_checkpoint
from .curves import log_picture
from .image_tokenizer import ImageTokenizerTraining, loss_distance
from .incidents import Incidents
from .judge.pages import GRID, reconstruction_page
from .judge.picture_sets import grouped, spread
from .judge.tokenizer_run import evaluate_tokenizer
from .machine import fit, make_trainer, prepare
from .out_of_memory import memory_advice
from .progress import TrainingProgress
from .report import REPORT, Reports, write_report
from .runs import Run, open_run, write_config
from .shards import make_shards
from .steps import Steps
from .telemetry import Telemetry
from .tokenizer_metrics import check_side, measure_reconstruction
from .world import World, join_world

# settings of the trainer that change how a run is watched, not what it makes
WATCHING = (
    "log_every_n_steps",
    "validate_every_n_steps",
    "validation_pictures",
    "checkpoint_every_n_steps",
    "evaluation_batch_size",
    "max_skipped_steps",
)
LOGGED = ("psnr", "ssim", "drift", "codebook_usage", "codebook_perplexity")  # of held-out pictures, now and then


def make_tokenizer(config: DictConfig) -> Path:
    """Train the tokenizers that `config.tokenizer` describes on `config.data`, unless that is done; the run folder.

    Started by torchrun or srun, each process trains on its part of a batch; the first alone makes, writes and measures.
    """
    return train_tokenizers(config, join_world(prepare(config)))


def tokenizer_run(config: DictConfig, world: World | None = None) -> Path:
    """The folder whose tokenizers make the tokens: the one named, or the run of `config.tokenizer`, made if lacking."""
    return named_tokenizers(config) or train_tokenizers(config, world or World())


def train_tokenizers(config: DictConfig, world: World) -> Path:
    """As `make_tokenizer`, by the processes of a world."""
    settings = config.tokenizer
    network = network_config(settings.network)
    sizes = (int(settings.pictures.resolution), network.patch, float(settings.pictures.max_ratio))
    prepare(config)
    buckets = buckets_of(*sizes)  # what cannot work is said before the data are made
    for bucket in buckets:
        network.grid(*bucket)
    quantizer = quantizer_config(settings.quantizer)
    _check_sides(settings, *min(buckets, key=min))
    if settings.trainer.batch_size % world.size:
        raise ValueError(
            f"tokenizer.trainer.batch_size={settings.trainer.batch_size} cannot be dealt to {world.size} processes: "
            "set a multiple"
        )
    folder = world.lead(lambda: make_shards(config))
    pictures = Pictures(folder, "train", *sizes)
    most = max(math.prod(network.grid(*bucket)) for bucket in buckets)
    check_beginning(min(int(settings.trainer.init_pictures), len(pictures)) * most, quantizer.least_vectors)
    with ExitStack() as stack:
        opened = open_run(settings.runs, f"{config.data.name}-{settings.name}", _made_from(config, pictures))
        run = world.lead(lambda: stack.enter_context(opened))
        if world.lead(lambda: run.finished):
            return run.folder
        if world.is_first:
            write_config(run, OmegaConf.to_yaml(config, resolve=True))
        console = Console(stderr=True)
        text_size = world.lead(lambda: _text_tokenizer(run, folder, pictures.record, settings, console).size)
        # read once, in order: one shard at a time is enough
        validation = Pictures(folder, "val", *sizes, hold=1) if "val" in pictures.record["splits"] else None
        module, telemetry = _train(run, config, pictures, validation, world)
        numbers = {"text_vocabulary": text_size, "train_seconds": round(float(module.seconds), 1)}
        numbers |= {**telemetry.metrics(), "steps_skipped": int(module.steps_skipped), "seed": config.seed}
        if module.adversary is not None:
            numbers["adversary_switched_off"] = int(module.adversary.guard.switched_off)
        world.lead(lambda: _finish(run, folder, config, module.evaluated.eval(), numbers))
    return run.folder


def _check_sides(settings: DictConfig, height: int, width: int) -> None:
    """ValueError for smallest pictures of these pixels that a measure or a loss does not take."""
    check_side(height, width)
    distance = loss_distance(settings.loss)
    if distance is not None:
        distance.check_side(height, width)
    if settings.discriminator is not None:
        discriminator.check_side(settings.discriminator.layers, height, width)


def _finish(run: Run, folder: Path, config: DictConfig, tokenizer: ImageTokenizer, numbers: dict[str, Any]) -> None:
    """The last step of a run: the tokenizer on disk, its numbers and the report."""
    if not (run.folder / IMAGE_MODEL).exists():
        with publish_folder(run.folder / IMAGE_MODEL) as partial:
            tokenizer.save_pretrained(partial)
    metrics = {**evaluate_tokenizer(run.folder, folder, config), **numbers}
    write_report(run.folder, run.described(metrics))
    run.finish(metrics)
    Console(stderr=True).print(
        f"{run.folder}: psnr {metrics['psnr']:.2f} dB, ssim {metrics['ssim']:.3f}, "
        f"codebook usage {metrics['codebook_usage']:.1%}, see {run.folder / GRID} and {run.folder / REPORT}",
        highlight=False,
        soft_wrap=True,
    )


def named_tokenizers(config: DictConfig) -> Path | None:
    """What `tokens.tokenizer` names, else the export that is trained on (model=export)."""
    named = config.tokens.tokenizer or config.model.get("path")
    return Path(named) if named else None


def read_tokenizers(folder: Path, device: torch.device | str = "cpu") -> Codec:
    """Those of a run of `omnigram tokenizer`, numbered one after the other, or of an export, which may be an import.

    FileNotFoundError or ValueError, in one line, for a folder that is neither or is damaged.
    """
    if (folder / CARD).is_file():
        return Codec.load(folder, device)
    for part in (TEXT_MODEL, IMAGE_MODEL):
        if not (folder / part).exists():
            raise FileNotFoundError(
                f"{folder / part} is missing: name a finished run of `omnigram tokenizer`, or an export, "
                "and not an image tokenizer alone"
            )
    text = TextTokenizer.load(folder / TEXT_MODEL)
    image = ImageTokenizer.from_pretrained(folder / IMAGE_MODEL).to(device)
    return Codec(Vocabulary.appended(text.size, codebooks={"image": image.codebook_size}), text, image)


def _made_from(config: DictConfig, pictures: Pictures) -> dict[str, Any]:
    settings = OmegaConf.to_container(config.tokenizer, resolve=True)
    assert isinstance(settings, dict)
    del settings["runs"]
    settings["trainer"] = {name: value for name, value in settings["trainer"].items() if name not in WATCHING}
    return {"dataset": pictures.record["identity"], "tokenizer": settings, "seed": config.seed}


def _text_tokenizer(
    run: Run, folder: Path, record: dict[str, Any], settings: DictConfig, console: Console
) -> TextTokenizer:
    path = run.folder / TEXT_MODEL
    if not path.exists():
        with console.status("text tokenizer"):
            shards = [folder / shard["file"] for shard in record["splits"]["train"]["shards"]]
            text = TextTokenizer.train(_texts(shards), settings.text.vocab_size, settings.text.character_coverage)
        atomic_write(path, text.model)
    return TextTokenizer.load(path)


def _texts(shards: list[Path]) -> Iterator[str]:
    """Every text of the shards, with its other wordings."""
    for shard in shards:
        for document in read_shard(shard):
            for segment in document.segments:
                if segment.modality == "text":
                    yield segment.text
                    yield from segment.alternatives


def _train(
    run: Run, config: DictConfig, pictures: Pictures, validation: Pictures | None, world: World
) -> tuple[ImageTokenizerTraining, Telemetry]:
    """Train to the last step, from the newest checkpoint."""
    settings = config.tokenizer
    steps = settings.trainer.max_steps
    torch.manual_seed(config.seed)
    tokenizer = ImageTokenizer(network_config(settings.network), quantizer_config(settings.quantizer))
    module = ImageTokenizerTraining(tokenizer, settings, world)
    telemetry = Telemetry(PictureCounts(tokenizer.codebook_size), settings.trainer.log_every_n_steps, world)
    checkpoint = world.lead(lambda: newest_checkpoint(run.checkpoints))
    if checkpoint is not None and load_step(checkpoint) >= steps:
        load_model(checkpoint, module)
        load_callbacks(checkpoint, [telemetry])
        return module, telemetry

    def left() -> dict[str, Any] | None:
        return None if module.resumed_states is None else dealt(module.resumed_states, world.size)[world.rank]

    size = settings.trainer.batch_size // world.size
    stream = PictureStream(pictures, size, config.seed, left, world.rank, world.size)
    incidents = Incidents(run.folder, load_step(checkpoint))
    callbacks: list[Callback] = [
        Steps(config.seed, world.rank),
        telemetry,
        incidents,
        Alarms(tokenizer_rules(settings.quantizer.kind), incidents),
        Start(pictures, settings.trainer.init_pictures),
        *([TrainingProgress("image tokenizer", steps)] if world.is_first else []),
    ]
    if validation is not None:
        callbacks.append(Reconstructions(validation, settings.trainer))
    callbacks.append(Reports(run.folder, settings.trainer.validate_every_n_steps))
    callbacks.append(Checkpoints(run.checkpoints, settings.trainer.checkpoint_every_n_steps, steps, checkpoint, world))
    trainer = make_trainer(config, run, callbacks, load_step(checkpoint), world, reduced_by_module=True)
    with memory_advice(f"lower tokenizer.trainer.batch_size={settings.trainer.batch_size}"):
        fit(trainer, module, DataLoader(telemetry.timed(stream), batch_size=None))
    return module, telemetry


class Start(Callback):
    """Before the first step: principal components and k-means of the patches of many pictures, of all sizes."""

    def __init__(self, pictures: Pictures, number: int) -> None:
        self.pictures, self.number = pictures, number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageTokenizerTraining)
        if pl_module.step:
            return
        places = torch.linspace(0, len(self.pictures) - 1, min(self.number, len(self.pictures))).long().tolist()
        batches = grouped([self.pictures[index] for index in places], len(places))
        pl_module.start_from(*(to_pixels(pictures).to(pl_module.device) for pictures in batches))
        pl_module.world.copy_from_first(pl_module)


class Reconstructions(Callback):
    """Now and then: held-out PSNR and usage, and a grid of pictures above their reconstructions.

    Of at most `validation_pictures`, spread over the split: they are read the first time, and kept.
    """

    def __init__(self, pictures: Pictures, settings: DictConfig) -> None:
        self.pictures, self.settings = pictures, settings

    @cached_property
    def chosen(self) -> list[UInt8[np.ndarray, "height width 3"]]:
        return [self.pictures[index] for index in spread(len(self.pictures), self.settings.validation_pictures)]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageTokenizerTraining)
        step = pl_module.step
        if step % self.settings.validate_every_n_steps or not pl_module.world.is_first:
            return
        tokenizer = pl_module.evaluated.eval()
        batches = grouped(self.chosen, self.settings.evaluation_batch_size)
        measured = measure_reconstruction(tokenizer, batches, pl_module.device)
        page = reconstruction_page(tokenizer, self.chosen, pl_module.device)
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": measured[name] for name in LOGGED}, step=step)
        log_picture(trainer.loggers, "val/reconstructions", page, step)
