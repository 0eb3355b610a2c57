"""`omnigram plan`: what it prints, what it refuses, and laws of the layout that it chooses."""

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from omnigram.train.accelerators import ACCELERATORS
from omnigram.train.cli import main
from omnigram.train.compose import compose_config
from omnigram.train.plan_command import read_settings
from omnigram.train.planning import GIB, Plan, PlanSettings, make_plan

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")


@cache
def config(*overrides: str) -> DictConfig:
    return compose_config(overrides)


def planned(*overrides: str, **settings: Any) -> Plan:
    return make_plan(config(*overrides), PlanSettings(**settings))


def chosen_index(plan: Plan) -> int:
    """Place of the chosen layout among those tried; beyond the last where nothing fits."""
    return len(plan.one_row) if plan.chosen is None else list(plan.one_row).index(plan.chosen)


@given(
    gpus=st.sampled_from([1, 2, 4, 8, 16, 64]),
    context=st.integers(64, 2048),
    memory=st.floats(0.02, 1),
    more=st.floats(1, 10),
)
def test_more_memory_never_needs_more_sharding(gpus: int, context: int, memory: float, more: float) -> None:
    small, large = (planned("model=micro", gpus=gpus, context=context, memory=m) for m in (memory, memory * more))
    assert chosen_index(large) <= chosen_index(small)
    if small.chosen == large.chosen and small.step and large.step:
        assert large.step.accumulation <= small.step.accumulation


@given(context=st.integers(64, 2048), gpus=st.sampled_from([2, 4, 8, 16, 32]), times=st.sampled_from([2, 4, 16]))
def test_more_gpus_never_take_more_memory_each(context: int, gpus: int, times: int) -> None:
    few, many = (planned("model=micro", gpus=n, gpus_per_node=4, context=context) for n in (gpus, gpus * times))

    def by_kind(plan: Plan) -> dict[tuple[str, int, bool], float]:
        kinds = {}
        for at, memory in plan.one_row.items():
            shards, division = "none", at.division
            if division.shards > 1:
                shards = "node" if "node" in at.name else "all"
            kinds[shards, division.tensor_parallel, division.checkpointing] = memory.total
        return kinds

    before, after = by_kind(few), by_kind(many)
    shared = before.keys() & after.keys()
    assert ("all", 1, True) in shared
    assert all(after[kind] <= before[kind] for kind in shared)


@given(
    gpus=st.sampled_from([1, 2, 8, 24, 256]),
    context=st.integers(64, 2048),
    memory=st.floats(1, 80),
    batch_tokens=st.floats(1e3, 1e7),
)
def test_a_step_fits_and_is_about_the_batch_asked_for(
    gpus: int, context: int, memory: float, batch_tokens: float
) -> None:
    plan = planned("model=micro", gpus=gpus, context=context, memory=memory, batch_tokens=batch_tokens)
    assert plan.chosen is not None
    assert plan.step is not None
    assert plan.step.memory.total <= plan.settings.budget <= memory * GIB
    once = context * plan.chosen.replicas(gpus)
    assert plan.step.batch_tokens == once * plan.step.rows * plan.step.accumulation
    assert plan.step.batch_tokens >= batch_tokens - once
    assert plan.step.batch_tokens <= batch_tokens + once * max(1, plan.step.accumulation)


@pytest.mark.parametrize(
    ("model", "settings", "name"),
    [
        ("micro", {"gpus": 1}, "one GPU"),
        ("micro", {"gpus": 64}, "DDP"),
        ("7b", {"gpus": 64, "context": 4096}, "FSDP 64"),
        ("emu3_8b", {"gpus": 256, "context": 8192}, "FSDP 256"),
        ("emu3_8b", {"gpus": 8, "context": 8192}, "FSDP 8, checkpointing"),
        ("chameleon_34b", {"gpus": 8, "context": 4096, "accelerator": "a100_40gb"}, None),
    ],
)
def test_the_smallest_layout_that_fits(model: str, settings: dict[str, Any], name: str | None) -> None:
    plan = planned(f"model={model}", **settings)
    assert (plan.chosen.name if plan.chosen else None) == name


def test_tensor_parallelism_is_what_is_tried_last() -> None:
    """Where checkpointed blocks no longer fit whole; eight key and value heads allow up to eight."""
    plan = planned("model=chameleon_34b", gpus=512, context=4096, memory=15)
    assert [at.division.tensor_parallel for at in plan.one_row] == [1, 1, 1, 2, 4, 8]
    sizes = [memory.total for at, memory in plan.one_row.items() if at.division.checkpointing]
    assert sizes == sorted(sizes, reverse=True)
    assert plan.chosen is not None
    assert plan.chosen.division.tensor_parallel == 2
    assert plan.chosen.replicas(512) * plan.chosen.division.tensor_parallel == 512


def test_days_by_hand() -> None:
    """A decoder without attended pairs to speak of: six operations for each weight of a product."""
    plan = planned("model=7b", "model.vocab_size=32000", gpus=64, context=2, mfu=0.5, peak=1e15, memory=80, tokens=1e12)
    weights = 2_147_483_648 + 4_328_521_728 + 32_000 * 4096
    assert plan.flops_per_token == pytest.approx(6 * weights, rel=1e-3)
    per_second = 64 * 1e15 * 0.5 / (6 * weights)
    assert plan.tokens_per_day == pytest.approx(per_second * 86_400, rel=1e-3)
    assert plan.days == pytest.approx(1e12 / per_second / 86_400, rel=1e-3)
    assert plan.as_dict()["gpu_hours"] == pytest.approx(plan.days * 24 * 64)


def test_json_holds_what_the_tables_tell(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "model=emu3_8b", "gpus=256", "context=8192"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert told["parameters"]["total"] == 8_492_011_520
    assert "8,492,011,520" in printed
    assert told["suggested"]["layout"] == "FSDP 256"
    assert f"{told['suggested']['batch_tokens']:,}" in printed
    assert f"{told['days']:,.2f}" in printed
    assert f"{told['suggested']['memory']['activations'] / GIB:,.1f}" in printed
    kept, again = (
        next(at["memory"] for at in told["layouts"] if at["layout"] == name)
        for name in ("FSDP 256", "FSDP 256, checkpointing")
    )
    assert again["activations"] < kept["activations"] / 10
    assert told["loss_head_whole_logits"] > told["suggested"]["memory"]["loss_head"]


def test_where_nothing_fits_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model=chameleon_34b", "gpus=8", "context=4096", "memory=40"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nothing fits: ")]
    assert len(lines) == 1
    assert lines[0].endswith("raise gpus or memory")
    assert main(["plan", "model=emu3_8b", "gpus=256", "context=8192", "memory=8", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["suggested"] is None
    assert not any(at["fits"] for at in told["layouts"])
    assert told["advice"][0].startswith("nothing fits: ")
    assert "lower context" in told["advice"][0]


def test_settings_of_pretraining_count(capsys: pytest.CaptureFixture[str]) -> None:
    adamw = planned("model=3b", "optimizer.muon_learning_rate=null", context=4096)
    muon = planned("model=3b", context=4096)
    [first, *_], [second, *_] = adamw.one_row.values(), muon.one_row.values()
    assert first.optimizer - second.optimizer == 4 * muon.parameters.matrices
    wide = planned("model=3b", "precision=32-true", context=4096)
    assert next(iter(wide.one_row.values())).activations > first.activations
    assert any("peak=" in line for line in wide.advice)
    assert not any("flash" in line for line in planned("model.attn_implementation=flash_attention_2").advice)
    assert planned("model=micro", "tokenizer.quantizer.codebook_size=2048").vocab_size == 4096
    assert planned("model=micro", "loader.length=700").settings.context == 700
    separate = planned("model=nano", "model.modality_key_value=true")
    assert separate.parameters.active < separate.parameters.total
    assert any("lower gpus" in line for line in planned("model=nano", gpus=64, batch_tokens=1000).advice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpus=0"], "gpus=0 must be 1 or more"),
        (["gpus=2.5"], "gpus=2.5 is no whole number"),
        (["gpus=many"], "gpus=many is no number"),
        (["gpus=12"], "gpus=12 leaves a node incomplete: give a multiple of 8"),
        (["gpus_per_node=0"], "gpus_per_node=0 must be 1 or more"),
        (["gpu=8"], "unknown key 'gpu': did you mean gpus?"),
        (["context=1"], "context=1 must be 2 or more"),
        (["model=emu3_8b", "context=16384"], "context=16384 is more than model.max_position_embeddings=9216"),
        (["mfu=2"], "mfu=2 must be above 0 and at most 1"),
        (["mfu=0"], "mfu=0 must be above 0 and at most 1"),
        (["mfu=nan"], "mfu=nan must be above 0 and at most 1"),
        (["margin=1"], "margin=1 must be at least 0 and less than 1"),
        (["tokens=0"], "tokens=0 must be above 0"),
        (["tokens=inf"], "tokens=inf must be above 0"),
        (["batch_tokens=-1"], "batch_tokens=-1 must be above 0"),
        (["memory=0"], "memory=0 must be above 0"),
        (["peak=0"], "peak=0 must be above 0"),
        (["accelerator=h10"], "accelerator=h10 is unknown: did you mean h100?"),
        (["accelerator=abacus"], "accelerator=abacus is unknown: There is a100"),
        (["precision=fp8"], "precision='fp8' is unknown"),
        (["model=emu"], "unknown model 'emu'"),
        (["trainer.max_stps=3"], "did you mean trainer.max_steps?"),
        (["model.num_attention_heads=3"], "does not divide num_attention_heads 3"),
        (["--jsn"], "unknown option '--jsn' of plan: did you mean --json?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_a_plan_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)
    assert main(["plan", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("omnigram: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_peak_and_memory_stand_for_an_accelerator() -> None:
    other = PlanSettings(accelerator="tpu", peak=1e15, memory=95)
    assert (other.peak, other.memory) == (1e15, 95)
    a100 = PlanSettings(accelerator="a100", memory=40)
    assert (a100.peak, a100.memory) == (ACCELERATORS["a100"].peak, 40)


def test_help_of_plan_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    examples = re.findall(r"^  omnigram (plan .*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) > 2
    for example in examples:
        settings, overrides = read_settings([word for word in shlex.split(example)[1:] if word != "--json"])
        assert settings.gpus > 0
        assert compose_config(overrides).model_name


def test_the_page_runs_and_tells_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line]
    assert len(commands) > 2
    for program, *arguments in commands:
        assert program == "omnigram"
        assert main(arguments) == 0
    for name, (peak, memory) in ACCELERATORS.items():
        assert f"| {name} | {peak / 1e12:g} | {memory:g} |" in PAGE
    words = set(PlanSettings.__dataclass_fields__)
    assert words == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
