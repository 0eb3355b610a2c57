"""One process, two that share a batch (DDP) or weights as well (FSDP2), and a batch in parts: the same training."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from made_world import run_distributed
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset

from omnigram.data.packing import Collator, PackedBatch, WrittenDocument
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.loss import LossParts
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.checkpoints import Checkpoints, newest_checkpoint
from omnigram.train.compose import compose_config
from omnigram.train.curves import read_curves
from omnigram.train.machine import fit, make_trainer, prepare
from omnigram.train.parallel import whole_model
from omnigram.train.pretraining import Pretraining
from omnigram.train.runs import Run
from omnigram.train.steps import Steps
from omnigram.train.world import join_world

ROWS, LENGTH = 4, 48
VOCABULARY = Vocabulary.appended(40, codebooks={"image": 16})
# rows of very uneven documents: the first two hold a third of the targets of the last two
LENGTHS = ((5, 3), (9,), (20, 14, 14), (48,))


def batch(step: int) -> PackedBatch:
    """The rows of a step, of random ids; some targets weigh nothing."""
    random = np.random.default_rng(step)
    rows = [
        [
            WrittenDocument(random.integers(0, VOCABULARY.size, length), random.random(length) < 0.8, number)
            for number, length in enumerate(lengths)
        ]
        for lengths in LENGTHS
    ]
    weights = {"text": 1.0, "image": 0.5}
    return Collator(VOCABULARY, ROWS, LENGTH, weights, partitioned=True).collate(rows)


class Batches(IterableDataset[PackedBatch]):
    """This rank's rows of every step, from the step after the checkpoint on."""

    def __init__(self, module: Pretraining) -> None:
        self.module = module

    def __iter__(self) -> Iterator[PackedBatch]:
        states, world = self.module.resumed_states, self.module.world
        step = 0 if states is None else states[0]["step"]
        while True:
            step += 1
            yield replace(batch(step).parts(world.data_size)[world.data_rank], state={"step": step, "rank": world.rank})


class Sharded(Pretraining):
    """Under FSDP2 no rank ever holds the whole gradients of a layer from one part of a batch to the next."""

    def _backward(self, part: PackedBatch, weight: Tensor, last: bool) -> LossParts:
        found = super()._backward(part, weight, last)
        for module in self.model.modules():
            if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group):
                assert all(parameter.unsharded_accumulated_grad is None for parameter in group.fsdp_params)
        return found


class Gradients(Callback):
    """Keeps the gradients of the last step, whole."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        for name, parameter in pl_module.model.named_parameters():
            grad = parameter.grad
            assert grad is not None
            self.found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()


def configured(*changes: str) -> DictConfig:
    always = ("experiment=tiny", "trainer.log_every_n_steps=1", "logger=[csv]", "device=cpu", "threads=1")
    return compose_config(
        [*always, f"loader.rows={ROWS}", "optimizer.learning_rate=1e-2", "optimizer.eps=1e-5", *changes]
    )


def train(folder: str, steps: int, changes: list[str]) -> None:
    """Train to a step, from the newest checkpoint in the folder on; the first rank leaves what came of it."""
    config = configured(*changes)
    prepare(config)
    world = join_world(torch.device("cpu"), config.trainer.tensor_parallel)
    run = Run(Path(folder), "", {})
    torch.manual_seed(0)
    specials = {f"{name}_token_id": VOCABULARY.id(name) for name in ("pad", "bos", "eos")}
    model = OmnigramForCausalLM(instantiate(config.model, vocab_size=VOCABULARY.size, **specials))
    module, gradients = Sharded(model, VOCABULARY, config, world), Gradients()
    checkpoint = newest_checkpoint(run.checkpoints)
    saving = Checkpoints(run.checkpoints, steps, steps, checkpoint, world)
    trainer = make_trainer(config, run, [Steps(0), gradients, saving], 10**6, world)
    fit(trainer, module, DataLoader(Batches(module), batch_size=None))
    whole = whole_model(module.model, world)
    if whole is not None:
        torch.save({"gradients": gradients.found, "weights": whole.state_dict()}, run.folder / "left.pt")


def losses(folder: Path, curve: str = "train/loss") -> list[float]:
    return [value for _, name, value in read_curves(folder / "curves.csv") if name == curve]


def same(folder: Path, other: Path, weights: float) -> None:
    """The losses of five steps and the gradients of the last are the same to 1e-5, and the weights to `weights`."""
    assert len(losses(other)) == 5
    for curve in ("train/loss", "train/log_z"):
        assert losses(folder, curve) == pytest.approx(losses(other, curve), abs=1e-5)
    ours, theirs = (torch.load(path / "left.pt", weights_only=True) for path in (folder, other))
    for kind, near in (("gradients", 1e-5), ("weights", weights)):
        assert ours[kind].keys() == theirs[kind].keys()
        for name, tensor in ours[kind].items():
            assert (tensor - theirs[kind][name]).abs().max() < near, f"{kind} of {name}"


# Muon orthogonalises in bfloat16, where the last bit of a sum becomes a thousandth of an update: hence a smaller rate
ADAMW, MUON = "optimizer.muon_learning_rate=null", "optimizer.muon_learning_rate=3e-4"
WEIGHTS = {ADAMW: 1e-5, MUON: 1e-4}  # how near they come
LAYOUTS: dict[str, tuple[str, list[str]]] = {  # of two processes
    "ddp": (ADAMW, ["trainer.strategy=ddp"]),
    "ddp in parts": (ADAMW, ["trainer.strategy=ddp", "trainer.accumulation=2"]),
    "fsdp": (ADAMW, ["trainer.strategy=fsdp"]),
    "shared matrices": (ADAMW, ["trainer.strategy=fsdp", "trainer.tensor_parallel=2"]),
    "shared matrices of Muon": (MUON, ["trainer.strategy=fsdp", "trainer.tensor_parallel=2"]),
    "fsdp in parts": (
        MUON,
        ["trainer.strategy=fsdp", "trainer.accumulation=2", "trainer.activation_checkpointing=true"],
    ),
}


def train_each(works: list[tuple[Path, int, list[str]]]) -> None:
    """Several trainings, one after the other, in the same processes."""
    for folder, steps, changes in works:
        train(str(folder), steps, changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One process, the whole batch at once, five steps; by the optimizer."""
    folders = {optimizer: tmp_path_factory.mktemp("alone") for optimizer in (ADAMW, MUON)}
    for optimizer, folder in folders.items():
        train(str(folder), 5, [optimizer])
    return folders


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two processes: five steps in every layout, and three after which others go on."""
    folders = {
        name: tmp_path_factory.mktemp("shared")
        for name in (*LAYOUTS, "fsdp in bfloat16", "three by ddp", "three by fsdp")
    }
    works = [(folders[name], 5, [optimizer, *changes]) for name, (optimizer, changes) in LAYOUTS.items()]
    works.append((folders["fsdp in bfloat16"], 5, [ADAMW, "trainer.strategy=fsdp", "precision=bf16-mixed"]))
    for strategy in ("ddp", "fsdp"):
        works.append((folders[f"three by {strategy}"], 3, [MUON, f"trainer.strategy={strategy}"]))
    run_distributed(train_each, 2, works)
    return folders


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_together_train_as_one_alone(layout: str, alone: dict[str, Path], shared: dict[str, Path]) -> None:
    optimizer, _ = LAYOUTS[layout]
    same(shared[layout], alone[optimizer], WEIGHTS[optimizer])


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        (ADAMW, ["trainer.accumulation=2"]),
        (MUON, ["trainer.accumulation=4", "trainer.activation_checkpointing=true"]),
    ],
)
def test_a_batch_in_parts_is_the_batch(
    optimizer: str, changes: list[str], alone: dict[str, Path], tmp_path: Path
) -> None:
    train(str(tmp_path), 5, [optimizer, *changes])
    same(tmp_path, alone[optimizer], WEIGHTS[optimizer])


def test_in_bfloat16_shards_train_nearly_as_autocast_does(shared: dict[str, Path], tmp_path: Path) -> None:
    """Weights, gradients and optimizer states stay float32; what is computed is rounded in other places."""
    train(str(tmp_path), 5, [ADAMW, "precision=bf16-mixed"])
    assert losses(shared["fsdp in bfloat16"]) == pytest.approx(losses(tmp_path), rel=5e-3)
    ours, theirs = (torch.load(path / "left.pt", weights_only=True) for path in (shared["fsdp in bfloat16"], tmp_path))
    assert {tensor.dtype for kind in ours for tensor in ours[kind].values()} == {torch.float32}
    for name, gradient in ours["gradients"].items():
        assert torch.cosine_similarity(gradient.flatten(), theirs["gradients"][name].flatten(), dim=0) > 0.95, name


def test_a_checkpoint_goes_on_with_other_ranks(alone: dict[str, Path], shared: dict[str, Path], tmp_path: Path) -> None:
    train(str(tmp_path), 3, [MUON])
    before = {"fsdp to one": shared["three by fsdp"], "one to fsdp": tmp_path, "ddp to fsdp": shared["three by ddp"]}
    for name, folder in before.items():
        [checkpoint] = (folder / "checkpoints").iterdir()
        states = json.loads((checkpoint / "checkpoint.json").read_text())["data_states"]
        assert states == [{"step": 3, "rank": rank} for rank in range(1 if name.startswith("one") else 2)]
    train(str(before["fsdp to one"]), 5, [MUON])
    works = [(before[name], 5, [MUON, "trainer.strategy=fsdp"]) for name in ("one to fsdp", "ddp to fsdp")]
    run_distributed(train_each, 2, works)
    for folder in before.values():
        same(folder, alone[MUON], WEIGHTS[MUON])
