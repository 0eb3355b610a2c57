"""The table of benchmarks/parity.py is within its bounds, varies what it should, and shows the faults put into it."""

import importlib
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import DynamicCache

from omnigram.model.decoder import OmnigramForCausalLM

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = 28


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with its folder first on the path as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "parity", raising=False)
    return importlib.import_module("parity")


def test_every_configuration_is_within_the_bounds(parity: Any) -> None:
    for case in parity.draw(ROWS, seed=0):
        found = parity.compare(case)
        for name, value, bound in zip(found._fields, found, parity.BOUNDS, strict=True):
            assert value <= bound, f"{name} {value:.1e} of {case}"
    assert parity.BOUNDS == (1e-5, 1e-5, 1e-4, 1e-5)


def test_the_configurations_vary_what_they_should(parity: Any) -> None:
    cases = parity.draw(ROWS, seed=0)
    chameleon = [case for case in cases if case.family == "chameleon"]
    emu3 = [case for case in cases if case.family == "emu3"]
    assert len(chameleon) == len(emu3) == ROWS // 2
    assert {case.norm_order for case in chameleon} == {"pre", "swin"}
    for family in (chameleon, emu3):
        assert {case.layers for case in family} == {1, 2, 3, 4}
        assert {case.rope_type for case in family} == set(parity.ROPE)
        assert len({case.rope_theta for case in family}) >= 4
        assert len({case.heads * case.head_dim for case in family}) >= 6
        assert {len(case.pads) for case in family} == {1, 2, 3, 4}
        assert {case.tied for case in family} == {case.dropout > 0 for case in family} == {True, False}
        assert {case.attention for case in family} == {"sdpa", "eager"}
        assert {case.key_value_heads < case.heads for case in family} == {True, False}
        assert sum(any(case.pads) for case in family) >= 6
        assert all(case.length % 2 for case in family)
    assert {(case.attention_bias, case.mlp_bias) for case in chameleon} >= {(False, False), (True, True)}


EVERYWHERE = {"hidden", "logits", "gradients", "cached"}
OPTIONS: dict[str, dict[str, Any]] = {
    "epsilon": {"rms_norm_eps": 2e-5},
    "norm order": {"norm_order": "swin"},
    "rotary base": {"rope_parameters": {"rope_type": "default", "rope_theta": 101.0}},
}


def outside(parity: Any, case: Any) -> set[str]:
    """The columns of a row that are out of bounds."""
    found = parity.compare(case)
    return {name for name, value, bound in zip(found._fields, found, parity.BOUNDS, strict=True) if value > bound}


@pytest.fixture
def case(parity: Any) -> Any:
    """Of one layer, so that a fault does not grow."""
    drawn = parity.draw(ROWS, seed=0)[1]
    made = replace(drawn, layers=1, norm_order="pre", rope_type="default", rope_theta=100.0)
    assert outside(parity, made) == set()
    return made


@pytest.mark.parametrize("fault", OPTIONS)
def test_a_wrong_option_is_out_of_bounds(parity: Any, case: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    honest = parity.our_options
    monkeypatch.setattr(parity, "our_options", lambda case: honest(case) | OPTIONS[fault])
    assert outside(parity, case) == EVERYWHERE


def test_a_cache_that_forgets_is_out_of_bounds(parity: Any, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DynamicCache.update

    def forgetful(self: Any, key: Tensor, value: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        keys, values = honest(self, key, value, layer, *rest)
        keys[:, :, 1] = 0
        return keys, values

    monkeypatch.setattr(DynamicCache, "update", forgetful)
    assert "cached" in outside(parity, case)


def test_another_loss_shows_in_the_gradients_alone(parity: Any, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = OmnigramForCausalLM.training_loss
    monkeypatch.setattr(OmnigramForCausalLM, "training_loss", partialmethod(honest, z_loss=1e-3))
    assert outside(parity, case) == {"gradients"}


def test_the_script_prints_the_table_and_fails_with_it(
    parity: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parity.main(["--configurations", "2", "--seed", "4"])
    lines = capsys.readouterr().out.splitlines()
    rows = [parity.compare(case) for case in parity.draw(2, seed=4)]
    for line, row in zip(lines[1:3], rows, strict=True):
        assert line.split()[-4:] == [f"{value:.1e}" for value in row]
    assert lines[3].split() == ["worst", *(f"{max(pair):.1e}" for pair in zip(*rows, strict=True))]
    assert lines[-1] == "repeat   .venv/bin/python benchmarks/parity.py --configurations 2 --seed 4"
    monkeypatch.setattr(parity, "BOUNDS", parity.BOUNDS._replace(gradients=1e-9))
    with pytest.raises(SystemExit, match="out of bounds: gradients"):
        parity.main(["--configurations", "2", "--seed", "4"])
