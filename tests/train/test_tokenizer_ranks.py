"""Two processes that train an image tokenizer do what one would do with both of their batches."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from made_road import draw_pictures, overrides, run
from made_world import run_distributed
from torch import Tensor, nn

from omnigram.tokenizers.quantizers.gradient import GradientConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.index_backpropagation import IndexBackpropagationConfig
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig, places
from omnigram.train.curves import read_curves
from omnigram.train.world import join_world

STEPS, BATCH = 6, 8
CONFIGS: dict[str, QuantizerConfig] = {
    "ema with revival": MovingAverageConfig(32, 4, 0.5, 0.25, False, 0.22),
    "more dead codes than vectors": MovingAverageConfig(128, 4, 0.5, 0.25, False, 1.0),
    "cosine with revival": MovingAverageConfig(32, 4, 0.5, 0.25, True, 0.22),
    "ecvq with revival": MovingAverageConfig(32, 4, 0.5, 0.25, False, 0.22, rate=0.2),
    "gradient": GradientConfig(32, 4, 0.25, False),
    "residual": MultiCodebookConfig(2, True, 32, 4, 0.5, 0.25, False, 0.22),
    "lfq": LookupFreeConfig(32, 0.25, 0.5, 1.0, 1.0),
    "ibq": IndexBackpropagationConfig(32, 4, 0.25, 0.5, 1.0),
    "gumbel": GumbelConfig(32, 4, 0.1, 1.0, 0.1, True),  # its divergence: draws are each rank's own
}


def batch(step: int, dim: int) -> Tensor:
    """Places that lie elsewhere at each step, so that codes die."""
    return torch.randn(BATCH, dim, 3, 3, generator=torch.Generator().manual_seed(step)) + 0.5 * step


def quantize(folder: str) -> None:
    """Some steps of every quantizer behind a map that is trained with it; the first rank keeps what came of them."""
    world = join_world(torch.device("cpu"))
    left: dict[str, dict[str, Tensor]] = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Conv2d(config.dim, config.dim, 1), quantizer := config.build()])
        with torch.no_grad():
            quantizer.start_from(places(torch.cat([batch(step, config.dim) for step in (0, 1)])))
        quantizer.ranks = world
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        told = []
        for step in range(STEPS):
            part = batch(step, config.dim).chunk(world.size)[world.rank]
            quantized = quantizer(model[0](part))
            loss = quantized.loss if "gumbel" in name else quantized.loss + F.mse_loss(quantized.codes, part)
            optimizer.zero_grad()
            loss.backward()
            world.average_gradients(model)
            optimizer.step()
            quantizer.update_codebook()
            told += [world.mean(value.detach().clone()) for value in (loss, *quantized.stats.values())]
        gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        left[name] = {"told": torch.stack([value.float() for value in told]), **gradients, **model.state_dict()}
    if world.is_first:
        torch.save(left, Path(folder) / f"of-{world.size}.pt")


def test_codebooks_revival_and_entropies_are_those_of_one_process(tmp_path: Path) -> None:
    for size in (1, 2):
        run_distributed(quantize, size, str(tmp_path))
    one, two = (torch.load(tmp_path / f"of-{size}.pt", weights_only=True) for size in (1, 2))
    for name in CONFIGS:
        assert one[name].keys() == two[name].keys()
        for part, tensor in one[name].items():
            assert torch.allclose(tensor, two[name][part], rtol=1e-5, atol=1e-5), f"{part} of {name}"
    revived = one["ema with revival"]["1.codebook"]
    assert (torch.cdist(revived, places(batch(STEPS - 1, 4))).min(1).values < 5).all()


SETTINGS = [
    "tokenizer=movqgan",
    "tokenizer.discriminator.start_step=3",
    "tokenizer.quantizer.dead_code_threshold=0",  # revived codes come from another order of the same pictures
    "tokenizer.trainer.flip=false",  # and mirrors from each rank's draws
    "tokenizer.trainer.log_every_n_steps=1",
    "tokenizer.optimizer.muon_learning_rate=null",  # which rounds to bfloat16
]


def tokenizer_by(processes: int, arguments: list[str], folder: Path) -> str:
    """`omnigram tokenizer` started by torchrun; what it told."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*torchrun, "-m", "omnigram.train.cli", "tokenizer", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("runs/tokenizer/") == 1
    return done.stderr


def curves(folder: Path) -> dict[tuple[int, str], float]:
    found = read_curves(folder / "runs/tokenizer/latest/curves.csv")
    return {(step, name): value for step, name, value in found if name.startswith(("train/", "val/", "codes/"))}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_make_the_tokenizer_of_one(tmp_path: Path) -> None:
    arguments = [*overrides(draw_pictures(tmp_path / "pictures")), *SETTINGS]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    done = run("tokenizer", arguments, one)
    assert done.returncode == 0, done.stderr
    shutil.copytree(one / "datasets", two / "datasets", symlinks=True)
    tokenizer_by(2, arguments, two)
    ours, theirs = curves(one), curves(two)
    assert ours.keys() == theirs.keys()
    assert (8, "train/adversarial_weight") in ours
    for key, value in ours.items():
        near = 0.05 if key[1].startswith("val/") else 1e-3 * max(1.0, abs(value))
        assert theirs[key] == pytest.approx(value, abs=near), key
