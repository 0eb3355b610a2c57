"""Whose fault a lack of memory is, and which setting the advice names, by what holds most."""

import re

import numpy as np
import pytest
import torch

from omnigram.train import out_of_memory, shards
from omnigram.train.cli import main
from omnigram.train.compose import compose_config
from omnigram.train.out_of_memory import (
    GIB,
    NotEnoughMemoryError,
    is_out_of_memory,
    memory_advice,
    total_memory,
    training_advice,
)
from omnigram.train.planning import decoder_config
from omnigram.train.world import World

CPU = torch.device("cpu")


def failure(act: object) -> BaseException:
    assert callable(act)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        act()
    return caught.value


def test_what_allocators_raise_is_known_and_other_faults_are_not() -> None:
    far_too_much = 2**46  # bytes: within the address space of no machine
    assert is_out_of_memory(failure(lambda: torch.empty(far_too_much, dtype=torch.uint8)))
    assert is_out_of_memory(failure(lambda: np.ones(far_too_much, dtype=np.uint8)))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(failure(lambda: torch.ones(2, 3) @ torch.ones(2, 3)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_advice("lower it"):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(NotEnoughMemoryError, match=r"^out of memory: lower it$"), memory_advice("lower it"):
        torch.empty(far_too_much, dtype=torch.uint8)


LONG = ["model=small", "loader.length=2048"]


@pytest.mark.parametrize(
    ("room", "overrides", "ending"),
    [
        (8, [*LONG, "loader.rows=64"], r": set trainer\.accumulation=(\d+), with which this run goes on"),
        (8, [*LONG, "loader.rows=64", "trainer.accumulation=2"], r": set trainer\.accumulation=(\d+), with .*"),
        (0.7, [*LONG, "loader.rows=1"], r": set trainer\.activation_checkpointing=true, with which this run goes on"),
        (
            0.45,
            [*LONG, "loader.rows=2"],
            r": set trainer\.accumulation=(\d+) and trainer\.activation_checkpointing=true, with .*",
        ),
        (0.1, ["model=small"], r": choose a smaller model=, or deal it to several GPUs \(trainer\.strategy=fsdp\)"),
        (0.28, [*LONG, "loader.length=2040"], r": lower loader\.length, or choose a smaller model="),
        (500, [*LONG, "loader.rows=4"], r"; others may hold the rest: free it, or raise trainer\.accumulation to 2"),
        (500, [*LONG, "loader.rows=1"], r"; others may hold the rest: free it, or lower loader\.length"),
    ],
)
def test_the_setting_that_is_named_is_what_holds_most(
    room: float, overrides: list[str], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "total_memory", lambda device: room * GIB)

    def advice(*more: str) -> str:
        config = compose_config([*overrides, "device=cpu", *more])
        return training_advice(config, decoder_config(config), CPU, World())

    told = advice()
    start = rf"(?:\d+ rows at once|one row) of loader\.length=\d+: about [\d.]+ GiB of the {room:,.1f} there are "
    shares = r"\(activations and loss \d+%, weights, gradients and optimizer \d+%\)"
    match = re.fullmatch(start + shares + ending, told)
    assert match, told
    if match.groups() and "checkpointing" not in told:  # what is named fits, and half of it does not
        advised = int(match[1])
        assert "others may hold the rest" in advice(f"trainer.accumulation={advised}")
        assert f"set trainer.accumulation={advised}, " in advice(f"trainer.accumulation={advised // 2}")


def test_the_advice_knows_how_many_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "total_memory", lambda device: 8 * GIB)
    asked = ["model=small", "loader.length=2048", "loader.rows=64", "device=cpu"]
    config = compose_config(asked)
    alone, of_64 = (training_advice(config, decoder_config(config), CPU, World(0, size)) for size in (1, 64))
    assert alone.startswith("64 rows at once of")
    assert of_64.startswith("one row of")
    assert "others may hold the rest" in of_64


def test_there_is_as_much_as_the_machine_has() -> None:
    assert 0.2 * GIB < total_memory(CPU) < 2**50


def test_a_command_that_knows_no_better_says_what_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)

    def full(config: object) -> None:
        raise MemoryError

    monkeypatch.setattr(shards, "make_shards", full)
    assert main(["data"]) == 2
    assert capsys.readouterr().err == "omnigram: out of memory\n"
    monkeypatch.setenv("OMNIGRAM_DEBUG", "1")
    with pytest.raises(MemoryError):
        main(["data"])
