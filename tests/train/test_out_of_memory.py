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


@pytest.mark.parametrize(
    ("room", "overrides", "ending"),
    [
        (8, ["model=small", "loader.rows=64", "loader.length=2048"], r": lower loader\.rows to (\d+) or less"),
        (0.1, ["model=small", "loader.rows=64"], r": choose a smaller model="),
        (
            0.55,
            ["model=small", "loader.rows=1", "loader.length=2048"],
            r": lower loader\.length, or choose a smaller model=",
        ),
        (
            0.55,
            ["model=small", "loader.rows=2", "loader.length=2048"],
            r": lower loader\.rows to 1 and loader\.length, or .*",
        ),
        (500, ["model=small", "loader.rows=4"], r"; others may hold the rest: free it, or lower loader\.rows"),
        (500, ["model=small", "loader.rows=1"], r"; others may hold the rest: free it, or lower loader\.length"),
    ],
)
def test_the_setting_that_is_named_is_what_holds_most(
    room: float, overrides: list[str], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "total_memory", lambda device: room * GIB)
    config = compose_config([*overrides, "device=cpu"])
    told = training_advice(config, decoder_config(config), CPU)
    start = (
        rf"loader\.rows=\d+ of loader\.length=\d+ need about [\d.]+ GiB of the {room:,.1f} there are \(activations and "
    )
    pattern = start + rf"loss \d+%, weights, gradients and optimizer \d+%\){ending}"
    match = re.fullmatch(pattern, told)
    assert match, told
    if match.groups():  # what is named fits, and two rows more do not
        advised = int(match[1])
        assert 1 <= advised < 64
        again = compose_config([*overrides, "device=cpu", f"loader.rows={advised + 1}"])
        assert f"lower loader.rows to {advised} or less" in training_advice(again, decoder_config(again), CPU)
        fitting = compose_config([*overrides, "device=cpu", f"loader.rows={advised}"])
        assert "others may hold the rest" in training_advice(fitting, decoder_config(fitting), CPU)


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
