"""`make pretrain`: tokens -> a run folder with a trained decoder, its export, its numbers and pictures it drew.

1. the tokens of this configuration, made if they are lacking, with tokenizers and shards
2. the run of this configuration on these tokens; a finished one is returned at once
3. training from the last checkpoint on
4. export/, a folder that `from_pretrained` loads
5. metrics.json with held-out numbers, samples.png
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from ..data.artefact import file_sha256, publish_folder
from ..data.loader import Loader
from ..data.mixture import Mixture, read_entries
from ..data.packing import PackedBatch
from ..data.remote import Network
from ..data.shard_cache import ShardCache
from ..data.stream import LoaderConfig
from ..data.stream_state import Seen
from ..data.tokens import TokenDataset
from ..model.bundle import Omnigram
from ..model.codec import CARD, Codec, read_card
from ..model.configuration import OmnigramConfig
from ..model.decoder import OmnigramForCausalLM
from ..model.generation.choice import Sampling
from ..model.size import flops_per_token
from ..model.stored_decoder import read_decoder
from .alarms import Alarms, pretraining_rules
from .batch_counts import TokenCounts
from .checkpoints import Checkpoints, load_callbacks, load_model, load_step, newest_checkpoint
from .compose import build
from .heldout import HeldOut
from .incidents import Incidents
from .limits import check_rows
from .machine import check_compiler, fit, make_trainer, prepare
from .out_of_memory import memory_advice, training_advice
from .parallel import strategy, whole_model
from .pretrain_metrics import EvaluationSettings, evaluate_pretraining
from .pretraining import Pretraining, softmax_partitions
from .progress import TrainingProgress
from .report import REPORT, Reports, write_report
from .runs import Run, open_run, write_config
from .steps import Steps
from .telemetry import Telemetry
from .tokenizer import named_tokenizers, read_tokenizers, tokenizer_run
from .tokens import make_tokens
from .world import World, join_world

EXPORT = "export"
# settings of the trainer that change how a run is watched or laid out, not what it makes
WATCHING = (
    "log_every_n_steps",
    "validate_every_n_steps",
    "validation_documents",
    "sample_pictures",
    "checkpoint_every_n_steps",
    "checkpoints_kept",
    "checkpoint_kept_every_n_steps",
    "max_skipped_steps",
    "strategy",
    "tensor_parallel",
    "accumulation",
    "activation_checkpointing",
)
READING = ("workers", "prefetch", "max_damaged")  # settings of the loader that change how documents are read, not which


def pretrain(config: DictConfig) -> Path:
    """Pre-train the decoder that `config.model` describes on `config.data`, unless that is done; the run folder.

    Started by torchrun or srun, each process trains its part; the first alone makes, writes and measures.
    """
    device = prepare(config)
    _decoder_config(config, **_filled_in(config, 2, [[1, 1]]))  # what cannot work is said before tokens are made
    EvaluationSettings(**config.evaluation)
    _sampling(config)
    read_entries(_mixed(config))
    if config.trainer.compile:
        check_compiler(device)
    _check_tokenizers(config)
    world = join_world(device, config.trainer.tensor_parallel)
    strategy(config.trainer, world)  # says what it does not know, also of a run that is finished
    check_rows(config, world.size)
    tokenizers = tokenizer_run(config, world)
    folder = world.lead(lambda: make_tokens(config))
    tokens = TokenDataset(folder, "train", **_elsewhere(config))
    mixture = Mixture.opened(_mixed(config), tokens)
    decoder = model_config(config, tokens, mixture)
    made_from = _made_from(config, tokens, mixture)
    model_name = _chosen_model(config)
    with ExitStack() as stack:
        opened = open_run(config.pretrain.runs, f"{config.data.name}-{model_name}", made_from)
        run = world.lead(lambda: stack.enter_context(opened))
        if world.lead(lambda: run.finished):
            return run.folder
        codec = read_tokenizers(tokenizers, device)
        if world.is_first:
            write_config(run, OmegaConf.to_yaml(config, resolve=True))
        with memory_advice(lambda: training_advice(config, decoder, device, world)):
            module, telemetry = _train(run, config, decoder, tokens, mixture, codec, world)
            numbers = _training_numbers(module, mixture, telemetry, world)
            whole = whole_model(module.model, world)
        del module  # with what only training needs
        named = {**numbers, "model": model_name, "seed": config.seed}

        def finish() -> None:
            assert whole is not None
            if not (run.folder / EXPORT).exists():
                with publish_folder(run.folder / EXPORT) as partial:
                    bundle(whole, tokens, codec, config).save_pretrained(partial)
            _measure(run, folder, config, named)

        world.lead(finish)  # the others wait: a scheduler may take the end of one for the end of all
    return run.folder


def _measure(run: Run, folder: Path, config: DictConfig, numbers: dict[str, Any]) -> None:
    """The last step of a run: held-out numbers, pages and the report."""
    numbers = {**measure(run.folder, folder, config), **numbers}
    write_report(run.folder, run.described(numbers))
    run.finish(numbers)
    shown = f"{run.folder / 'samples.png'} and {run.folder / REPORT}"
    Console(stderr=True).print(f"{run.folder}: see {shown}", highlight=False, soft_wrap=True)


def _elsewhere(config: DictConfig) -> dict[str, Any]:
    """How data sets at an address are read."""
    cache, network = config.elsewhere.cache, Network(**config.elsewhere.network)
    kept = ShardCache(cache.folder, int(cache.gigabytes * 1e9)) if cache.gigabytes else None
    return {"cache": kept, "network": network}


def _training_numbers(module: Pretraining, mixture: Mixture, telemetry: Telemetry, world: World) -> dict[str, Any]:
    """What the training cost, from its start, the stops left out, on all ranks together."""
    states = world.gather(module.data_state) if module.data_state is not None else module.resumed_states
    assert states is not None
    seconds, seen = float(module.seconds), Seen.of(states)
    flops = flops_per_token(module.model.config, context=seen.pairs / seen.tokens)
    return {
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "train_documents": seen.documents,
        "train_documents_split": seen.split,
        "train_segments_dropped": seen.dropped,
        "train_documents_damaged": seen.damaged,
        "train_epochs": {name: round(epochs, 3) for name, epochs in mixture.epochs(seen.sources).items()},
        "train_fill": round(seen.fill, 5),
        "train_tokens": seen.tokens,
        "train_flops": flops * seen.tokens,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(seen.tokens / seconds, 1),
        "steps_skipped": int(module.steps_skipped),
        "pad_share": round(1 - seen.fill, 5),
        **telemetry.metrics(),
    }


def measure(run: Path, tokens: Path, config: DictConfig) -> dict[str, Any]:
    """The numbers of an export on the held-out splits of its tokens, and the pages of samples beside it."""
    model = Omnigram.from_pretrained(run / EXPORT, device=prepare(config))
    with memory_advice(f"lower evaluation.batch_size={config.evaluation.batch_size}"):
        return evaluate_pretraining(model, tokens, EvaluationSettings(**config.evaluation), out=run)


def start_of(config: DictConfig) -> Path | None:
    """The export whose weights training begins with (model=export); None for a decoder from scratch."""
    return Path(config.model.path) if "path" in config.model else None


def _chosen_model(config: DictConfig) -> str:
    """The name that `model=` was given; a model without one is named after its width and depth."""
    return str(config.get("model_name") or f"d{config.model.hidden_size}x{config.model.num_hidden_layers}")


def _mixed(config: DictConfig) -> dict[str, Any]:
    entries = OmegaConf.to_container(config.mixture, resolve=True)
    assert isinstance(entries, dict)
    return {str(name): entry for name, entry in entries.items()}


def _made_from(config: DictConfig, tokens: TokenDataset, mixture: Mixture) -> dict[str, Any]:
    parts: dict[str, Any] = {
        name: OmegaConf.to_container(config[name], resolve=True) for name in ("model", "loader", "loss", "optimizer")
    }
    if start := start_of(config):
        weights = sorted(start.glob("*.safetensors"))
        parts["model"] = {name: value for name, value in parts["model"].items() if name != "path"}  # it may move
        parts["model"]["start"] = [(path.name, file_sha256(path)) for path in weights]
    for name in READING:
        parts["loader"].pop(name)
    if config.mixture:
        parts["mixture"] = mixture.identity
    trainer = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(trainer, dict)
    kept = {name: value for name, value in trainer.items() if name not in WATCHING}
    sampling = OmegaConf.to_container(config.sampling, resolve=True)
    return {**parts, "trainer": kept, "sampling": sampling, "tokens": tokens.identity, "seed": config.seed}


def model_config(config: DictConfig, tokens: TokenDataset, mixture: Mixture | None = None) -> OmnigramConfig:
    """The decoder's configuration, its vocabulary filled in from the tokens.

    ValueError if a published model fixes another vocabulary, or a picture or a document does not fit.
    """
    vocabulary = tokens.vocabulary
    start = start_of(config)
    if start is not None and read_card(start)[1] != vocabulary:
        raise ValueError(f"{start} has another vocabulary than the tokens: leave tokens.tokenizer out")
    if (
        start is None
        and not OmegaConf.is_missing(config.model, "vocab_size")
        and config.model.vocab_size != vocabulary.size
    ):
        raise ValueError(
            f"this model has {config.model.vocab_size} ids, the tokens {vocabulary.size}: "
            f"set model.vocab_size={vocabulary.size}"
        )
    settings = _filled_in(config, vocabulary.size, [[codes.start, codes.size] for codes in vocabulary.ranges[1:]])
    for name in () if start else ("pad", "bos", "eos"):
        key, number = f"{name}_token_id", vocabulary.id(name)
        if config.model.get(key) not in (None, number):
            raise ValueError(f"model.{key}={config.model[key]}, in the tokens {name} is {number}: set null")
        settings[key] = number
    grammar = tokens.grammar()
    records = [source.dataset.record for source in (mixture or Mixture.of(tokens)).sources]
    for size in {size: True for record in records for size in record["splits"]["train"].get("grids") or {}}:
        height, width = map(int, size.split("x"))
        needed = grammar.blocks["image"].length(height, width) + 2  # bos and eos
        if needed > config.loader.length:
            raise ValueError(
                f"loader.length={config.loader.length} holds no picture of {height} x {width} codes: "
                f"set {needed} or more, and leave room for words"
            )
    return _decoder_config(config, **settings)


def _filled_in(config: DictConfig, vocab_size: int, modality_ranges: list[list[int]]) -> dict[str, Any]:
    """What the vocabulary decides of a decoder from scratch."""
    if start_of(config):
        return {}
    own_layers = config.model.get("modality_norms") or config.model.get("modality_key_value")
    ranges = {"modality_ranges": modality_ranges} if own_layers and config.model.modality_ranges is None else {}
    return {"vocab_size": vocab_size, **ranges}


def _decoder_config(config: DictConfig, **ids: Any) -> OmnigramConfig:
    """The decoder's configuration with these ids. ValueError for options that do not go together."""
    made = build(config, "model", OmnigramConfig, **ids)
    if config.loader.length > made.max_position_embeddings:
        raise ValueError(
            f"loader.length={config.loader.length} is more than model.max_position_embeddings="
            f"{made.max_position_embeddings}: lower the one or raise the other"
        )
    return made


def bundle(model: OmnigramForCausalLM, tokens: TokenDataset, codec: Codec, config: DictConfig) -> Omnigram:
    """The decoder with the tokenizers of its tokens: what is exported."""
    record = tokens.record
    sizes = record["splits"]["train"].get("grids") or {}
    shapes = tuple(tuple(int(side) for side in name.split("x")) for name in sorted(sizes, key=lambda n: -sizes[n]))
    card = dataclasses.replace(
        codec.card,
        prompt_template=record["prompt_template"],
        styles=tuple(record["styles"]),
        sizes=shapes,
        sampling=_sampling(config),
    )
    image = codec.image_tokenizer.to(model.device)
    return Omnigram(model, Codec(codec.vocabulary, codec.text_tokenizer, image, card, codec.source))


def _check_tokenizers(config: DictConfig) -> None:
    """ValueError for tokenizers of an export with which this configuration cannot end well."""
    folder = named_tokenizers(config)
    if folder is None or not (folder / CARD).is_file():
        return
    codec = read_tokenizers(folder)
    codec.check_draws()
    if config.loss.partitioned:
        softmax_partitions(codec.vocabulary)


def _sampling(config: DictConfig) -> dict[str, Sampling]:
    """Settings by modality. ValueError for impossible ones."""
    return {str(name): Sampling(**settings) for name, settings in config.sampling.items()}


class _Batches(IterableDataset[PackedBatch]):
    """This rank's part of each batch, from where the module's checkpoint ended."""

    def __init__(self, mixture: Mixture, config: DictConfig, module: Pretraining) -> None:
        self.mixture, self.config, self.module = mixture, config, module

    def __iter__(self) -> Iterator[PackedBatch]:
        settings: Any = OmegaConf.to_container(self.config.loader, resolve=True)
        loss, world, states = self.config.loss, self.module.world, self.module.resumed_states
        settings["rows"] //= world.data_size
        options = LoaderConfig(
            **settings, seed=self.config.seed, loss_weights=dict(loss.weights), partitioned=loss.partitioned
        )
        # within the generator: an error while Lightning sets itself up would be hidden by one of its own
        yield from Loader(self.mixture, self.mixture.grammar(), options, world.data_rank, world.data_size, states)


def _train(
    run: Run,
    config: DictConfig,
    decoder: OmnigramConfig,
    tokens: TokenDataset,
    mixture: Mixture,
    codec: Codec,
    world: World,
) -> tuple[Pretraining, Telemetry]:
    """Train to the last step, from the newest checkpoint on."""
    torch.manual_seed(config.seed)
    start = start_of(config)
    try:
        if start is None:
            model = OmnigramForCausalLM(decoder)
        else:
            model = read_decoder(start, tokens.vocabulary, {"config": decoder, "dtype": torch.float32})
    except ImportError:
        raise ValueError(
            f"model.attn_implementation={config.model.attn_implementation} needs a package that is not installed: "
            "pip install 'omnigram[flash]', or set model.attn_implementation=sdpa"
        ) from None
    module = Pretraining(model, tokens.vocabulary, config, world)
    settings = config.trainer
    telemetry = Telemetry(TokenCounts(tokens.vocabulary, decoder, module.partitions), settings.log_every_n_steps, world)
    checkpoint, steps = world.lead(lambda: newest_checkpoint(run.checkpoints)), settings.max_steps
    if checkpoint is not None and load_step(checkpoint) >= steps:
        load_model(checkpoint, module)
        load_callbacks(checkpoint, [telemetry])
        return module, telemetry
    incidents = Incidents(run.folder, load_step(checkpoint))
    kept = (settings.checkpoints_kept, settings.checkpoint_kept_every_n_steps)
    callbacks: list[Callback] = [
        Steps(config.seed, world.data_rank),
        telemetry,
        incidents,
        Alarms(pretraining_rules(), incidents),
        *([TrainingProgress("pre-training", steps)] if world.is_first else []),
        HeldOut(tokens, lambda model: bundle(model, tokens, codec, config), run.folder, config),
        Reports(run.folder, settings.validate_every_n_steps),
        Checkpoints(run.checkpoints, settings.checkpoint_every_n_steps, steps, checkpoint, world, *kept),
    ]
    trainer = make_trainer(config, run, callbacks, load_step(checkpoint), world)
    batches = DataLoader(telemetry.timed(_Batches(mixture, config, module)), batch_size=None)
    fit(trainer, module, batches)
    return module, telemetry
