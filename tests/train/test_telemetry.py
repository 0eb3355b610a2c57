"""Telemetry: counts against plain loops, time divided by a clock that the test turns, the same over stops and ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.multiprocessing.spawn import spawn

from omnigram.data.packing import Collator, PackedBatch, WrittenDocument
from omnigram.data.picture_batches import PictureBatch
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.size import flops_per_token, step_flops
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train import machine_rate, telemetry
from omnigram.train.batch_counts import PictureCounts, TokenCounts
from omnigram.train.steps import StepModule
from omnigram.train.telemetry import Telemetry
from omnigram.train.world import World

VOCABULARY = Vocabulary.appended(20, codebooks={"image": 16, "audio": 8})
PARTITIONS = [(0, 28), (28, 16), (44, 8)]
DECODER = OmnigramConfig(
    vocab_size=VOCABULARY.size,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def batch_of(seed: int, partitioned: bool = True) -> PackedBatch:
    """Two rows of 24 places with random documents."""
    random = np.random.default_rng(seed)

    def document(length: int) -> WrittenDocument:
        ids = np.concatenate([random.integers(0, 28, length // 2), random.integers(28, 52, length - length // 2)])
        return WrittenDocument(ids.astype(np.int64), random.random(length) < 0.8, 0)

    rows = [[document(int(n)) for n in random.integers(3, 9, 3)] for _ in range(2)]
    return Collator(VOCABULARY, 2, 24, {"audio": 0.0}, partitioned).collate(rows)


@pytest.mark.parametrize("partitioned", [True, False])
def test_what_batches_held_is_what_a_loop_counts(partitioned: bool) -> None:
    counts = TokenCounts(VOCABULARY, DECODER, PARTITIONS if partitioned else None)
    sums = torch.zeros(counts.size, dtype=torch.int64)
    tokens = {"text": 0, "image": 0, "audio": 0}
    used: dict[int, int] = {}
    pairs = logits = places = 0
    for seed in range(3):
        batch = batch_of(seed, partitioned)
        counts.add(sums, batch, StepModule())
        places += batch.ids.numel()
        for row in range(2):
            for place in range(24):
                if batch.document[row, place] < 0:
                    continue
                number = int(batch.ids[row, place])
                name = VOCABULARY.modalities[int(VOCABULARY.modality_of([number])[0])]
                tokens[name] += 1
                used[number] = used.get(number, 0) + 1
                pairs += int((batch.document[row, : place + 1] == batch.document[row, place]).sum())
                if batch.weights[row, place] > 0:
                    logits += PARTITIONS[int(batch.partition[row, place])][1] if partitioned else VOCABULARY.size
    total = sum(tokens.values())
    assert counts.rates(sums) == {
        "tokens_per_second": total,
        **{f"tokens_per_second_{name}": number for name, number in tokens.items()},
    }
    needs = step_flops(DECODER)
    expected = needs.token * total + needs.pair * pairs + needs.logit * logits
    assert counts.flops(sums) == pytest.approx(expected, rel=1e-12)
    shares = counts.shares(sums)
    assert shares["train/pad_share"] == pytest.approx(1 - total / places)
    codes = np.array([used.get(number, 0) for number in range(28, 44)])
    assert shares["codes/used_image"] == pytest.approx((codes > 0).mean())
    share = codes[codes > 0] / codes.sum()
    assert shares["codes/perplexity_image"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_needed_flops_of_whole_documents_with_all_logits_are_flops_per_token() -> None:
    tokens, length = 7 * 12, 12
    needed = step_flops(DECODER).needed(tokens, 7 * length * (length + 1) / 2, tokens * DECODER.vocab_size)
    assert needed == pytest.approx(tokens * flops_per_token(DECODER, (length + 1) / 2), rel=1e-12)


def test_codes_of_pictures_are_counted() -> None:
    counts, module = PictureCounts(8), StepModule()
    sums = torch.zeros(counts.size, dtype=torch.int64)
    module.codes = torch.tensor([[[0, 1], [1, 1]], [[1, 1], [1, 1]]])
    counts.add(sums, PictureBatch(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), {}), module)
    assert sums.tolist() == [1, 7, 0, 0, 0, 0, 0, 0, 2]
    assert counts.rates(sums) == {"pictures_per_second": 2}
    assert counts.shares(sums)["codes/used_image"] == 0.25
    assert counts.flops(sums) is None


def test_the_rate_of_a_product_leaves_the_draws_of_training_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert machine_rate.product_rate(torch.device("cpu"), torch.float32, side=64, seconds=0.01) > 1e6
    assert torch.equal(torch.get_rng_state(), before)
    assert machine_rate.dtype_of("bf16-mixed") == torch.bfloat16
    assert machine_rate.dtype_of("32-true") == torch.float32
    assert machine_rate.peak_memory(torch.device("cpu")) > 50e6  # torch alone takes that


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Curves:
    """A logger that keeps what it is given, by step."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.points[step] = dict(values)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(telemetry, "time", made)
    monkeypatch.setattr(telemetry, "product_rate", lambda device, dtype: 1e6)
    monkeypatch.setattr(telemetry, "peak_memory", lambda device: 3 * 2**30)
    return made


def train(
    watched: Telemetry, module: StepModule, clock: Clock, curves: Curves, steps: int, world: int = 1, rank: int = 0
) -> None:
    """Steps of 2 s; batches that are waited for .5 s; then half a second of checkpoints and the like."""
    logged = [curves] if rank == 0 else []
    trainer: Any = SimpleNamespace(precision="32-true", loggers=logged)

    def slowly(first: int) -> Any:
        for number in range(first, 1000):
            clock.now += 0.5
            yield batch_of(number * world + rank)

    batches = iter(watched.timed(slowly(module.step)))
    watched.on_train_start(cast(Trainer, trainer), module)
    for _ in range(steps):
        batch = next(batches)
        watched.on_train_batch_start(trainer, module, batch, 0)
        clock.now += 2.0 if module.step else 50.0  # the first one compiles
        module.steps_done += 1
        watched.on_train_batch_end(trainer, module, None, batch, 0)
        clock.now += 0.5


def made(every: int = 4, world: World | None = None) -> tuple[Telemetry, StepModule, Curves]:
    return Telemetry(TokenCounts(VOCABULARY, DECODER, PARTITIONS), every, world), StepModule(), Curves()


def test_time_is_divided_and_the_first_step_does_not_count(clock: Clock) -> None:
    watched, module, curves = made()
    train(watched, module, clock, curves, steps=9)
    assert sorted(curves.points) == [1, 5, 9]  # where the curves of the loss have their points
    assert "speed/mfu" not in curves.points[1]
    last = curves.points[9]
    assert last["speed/step_seconds"] == pytest.approx(2)
    assert last["speed/data_wait"] == pytest.approx(0.5 / 3)
    assert last["speed/elsewhere"] == pytest.approx(0.5 / 3)
    assert last["speed/peak_memory_gib"] == 3
    tokens = sum(batch_of(number).num_tokens for number in range(5, 9))
    assert last["speed/tokens_per_second"] == pytest.approx(tokens / (4 * 2.5))
    sums = torch.zeros(watched.counts.size, dtype=torch.int64)
    for number in range(5, 9):
        watched.counts.add(sums, batch_of(number), module)
    flops = watched.counts.flops(sums)
    assert flops is not None
    assert last["speed/mfu"] == pytest.approx(flops / (1e6 * 4 * 2.5))
    assert module.shown["MFU"] == last["speed/mfu"]
    assert watched.metrics()["data_wait"] == pytest.approx(0.5 / 3, abs=1e-3)


def counted(curves: Curves) -> dict[int, dict[str, float]]:
    """What no clock decides."""
    return {
        step: {name: value for name, value in values.items() if not name.startswith("speed/")}
        for step, values in curves.points.items()
    }


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_a_stop_between_two_points_loses_no_count(stop: int, clock: Clock) -> None:
    whole, module, expected = made()
    train(whole, module, clock, expected, steps=13)
    first, module, found = made()
    train(first, module, clock, found, steps=stop)
    state = first.state_dict()
    again, _, _ = made()
    again.load_state_dict(state)
    train(again, module, clock, found, steps=13 - stop)
    assert counted(found) == counted(expected)


def two_ranks(rank: int, folder: str) -> None:
    """Both see every other batch; after 6 steps all is built anew from the first one's state."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    clock = Clock()
    telemetry.time = clock  # pyright: ignore[reportAttributeAccessIssue]
    telemetry.product_rate = lambda device, dtype: 1e6
    watched, module, curves = made(world=World(rank, 2))
    train(watched, module, clock, curves, 6, world=2, rank=rank)
    states: list[Any] = [watched.state_dict()]
    torch.distributed.broadcast_object_list(states)
    watched, _, _ = made(world=World(rank, 2))
    watched.load_state_dict(states[0])
    train(watched, module, clock, curves, 7, world=2, rank=rank)
    if rank == 0:
        torch.save(curves.points, f"{folder}/points")
    torch.distributed.destroy_process_group()


def test_two_ranks_tell_what_both_did(tmp_path: Path, clock: Clock) -> None:
    spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    points = torch.load(tmp_path / "points")
    assert sorted(points) == [1, 5, 9, 13]
    for step in (5, 9, 13):  # the stop was at 6
        batches = [batch_of(number) for number in range(2 * (step - 4), 2 * step)]
        tokens = sum(batch.num_tokens for batch in batches)
        places = sum(batch.ids.numel() for batch in batches)
        assert points[step]["train/pad_share"] == pytest.approx(1 - tokens / places)
        assert points[step]["speed/step_seconds"] == pytest.approx(2)
    tokens = sum(batch_of(number).num_tokens for number in range(18, 26))
    assert points[13]["speed/tokens_per_second"] == pytest.approx(tokens / (4 * 2.5))
