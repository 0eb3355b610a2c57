"""Alarms: silent on runs of the defaults as they were recorded, once an episode on what is planted in them.

recorded/: the default run's first thousand steps, each; seven hundred steps from its end on, at its last learning
rate; and whole default runs, a point in 50 steps and in 10.
"""

import csv
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from omnigram.tokenizers.quantizers import KINDS
from omnigram.train.alarms import Alarms, Fall, Growth, Rise, Rule, Spike, left_out, pretraining_rules, tokenizer_rules
from omnigram.train.incidents import Incidents, read_incidents
from omnigram.train.steps import StepModule

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> dict[str, list[float]]:
    with (RECORDED / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {column: [float(row[column]) for row in rows] for column in rows[0]}


def alarms(rule: Rule, values: list[float]) -> list[int]:
    """The places at which a rule gave alarm."""
    return [place for place, value in enumerate(values) if rule.see(value)]


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("pretraining_each_step", pretraining_rules()),
        ("pretraining_last_steps", pretraining_rules()),
        ("pretraining_whole_run", pretraining_rules()),
        ("tokenizer_whole_run", tokenizer_rules("ema")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_false_alarm_in_default_runs(name: str, rules: dict[str, Rule]) -> None:
    for column, values in recorded(name).items():
        assert len(values) > 200
        assert alarms(rules[column], values) == [], column


@pytest.mark.parametrize("start", [150, 600, 990])
@pytest.mark.parametrize("factor", [2.0, 1.8])
def test_a_loss_that_jumps_is_told_within_a_few_steps(start: int, factor: float) -> None:
    loss = recorded("pretraining_each_step")["loss"]
    planted = [value * factor if start <= place < start + 30 else value for place, value in enumerate(loss)]
    [told] = alarms(pretraining_rules()["loss"], planted)
    assert start + 2 <= told < start + 12  # when three of five are high; steps with easy documents may lie between


def test_a_gradient_out_of_all_proportion_is_told_at_once_and_once() -> None:
    gradient = recorded("pretraining_each_step")["gradient_norm"]
    for place in (300, 305, 311):
        gradient[place] = 60.0
    gradient[700] = 60.0
    assert alarms(pretraining_rules()["gradient_norm"], gradient) == [300, 700]


def test_two_bad_documents_are_no_spike() -> None:
    loss = recorded("pretraining_each_step")["loss"]
    loss[500] = loss[501] = 9.0
    assert alarms(pretraining_rules()["loss"], loss) == []


def test_a_loss_that_stays_high_is_told_once_and_becomes_usual() -> None:
    loss = recorded("pretraining_each_step")["loss"]
    higher = [value + (4 if place >= 300 else 0) for place, value in enumerate(loss)]
    higher[-10:] = [30.0] * 10  # from there it jumps again
    assert alarms(pretraining_rules()["loss"], higher) == [302, len(loss) - 8]


def test_numbers_that_are_not_finite_are_left_to_the_count_of_steps_left_out() -> None:
    rule = Spike("it", proportion=10)
    assert alarms(rule, [1.0, 1.1] * 60 + [float("nan"), float("inf")] * 5 + [1.0] * 50) == []


def test_outputs_that_grow_are_told_at_the_bar_and_at_its_doublings() -> None:
    rule = Growth("the norm", 40.0, "lower it")
    found = {place: told for place, value in enumerate([0.1 * n for n in range(1000)]) if (told := rule.see(value))}
    assert list(found) == [450, 850]  # where the median of the last hundred passes 40 and 80
    assert found[450] == "the norm has grown to 40, above 40: lower it"


def test_a_codebook_that_falls_out_of_use_is_told_once() -> None:
    usage = recorded("tokenizer_whole_run")["usage"]
    fallen = [value * (0.3 if place >= 300 else 1) for place, value in enumerate(usage)]
    [told] = alarms(tokenizer_rules("ema")["usage"], fallen)
    assert 340 <= told <= 360  # when half of the last hundred are fallen


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_fall_of_usage_advises_is_a_setting_of_that_quantizer(kind: str) -> None:
    rule = tokenizer_rules(kind)["usage"]
    [told] = [told for value in [0.8] * 100 + [0.1] * 100 if (told := rule.see(value))]
    named = re.findall(r"tokenizer\.quantizer\.(\w+)", told)
    assert named
    assert set(named) <= {field.name for field in fields(KINDS[kind])}


def test_counts_are_told_when_they_begin_and_when_they_have_doubled() -> None:
    assert alarms(Rise("{:,} are lost"), [0, 0, 1, 1, 2, 3, 4, 5, 9, 9]) == [2, 4, 6, 8]


def test_an_adversary_is_told_each_time_that_it_is_switched_off() -> None:
    rule = tokenizer_rules("ema")["adversary"]
    assert alarms(rule, [0, 0, 1, 1, 2, 2, 3, 3]) == [2, 4, 6]
    again = tokenizer_rules("ema")["adversary"]
    again.load(rule.state())
    assert alarms(again, [3, 4]) == [1]


@given(
    st.lists(st.sampled_from([1.0, 1.2, 0.9, 5.0, 40.0, float("nan")]), min_size=300, max_size=420),
    st.integers(0, 400),
    st.sampled_from(["spike", "growth", "fall", "rise"]),
)
def test_a_rule_that_is_loaded_goes_on_as_if_never_stopped(values: list[float], cut: int, kind: str) -> None:
    made = {
        "spike": lambda: Spike("it", proportion=10),
        "growth": lambda: Growth("it", 1.1, ""),
        "fall": lambda: Fall("it", ""),
        "rise": lambda: Rise("{}"),
    }[kind]
    whole, first, second = made(), made(), made()
    numbers = [0.0 if kind == "rise" and value != value else value for value in values]
    expected = [whole.see(value) for value in numbers]
    found = [first.see(value) for value in numbers[:cut]]
    second.load(first.state())
    assert [*found, *(second.see(value) for value in numbers[cut:])] == expected
    assert second.state() == whole.state()


def step(callback: Alarms, module: StepModule, **watched: float) -> None:
    module.steps_done += 1
    module.watched = {name: torch.tensor(value) for name, value in watched.items()}
    trainer = cast(Trainer, SimpleNamespace())
    callback.on_train_batch_end(trainer, module, None, None, 0)


def test_an_alarm_is_a_warning_and_an_incident_and_leaves_out_what_is_not_watched(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path, 0)
    incidents.setup(cast(Trainer, SimpleNamespace()), StepModule(), "fit")
    callback, module = Alarms(pretraining_rules(), incidents), StepModule(max_skipped=5)
    for _ in range(110):
        step(callback, module, loss=2.0, gradient_norm=1.0)
    with pytest.warns(UserWarning, match=r"step 111: the gradient's norm 50 is far above the 1 of the 100 steps"):
        step(callback, module, loss=2.0, gradient_norm=50.0)
    module.steps_skipped += 1  # which has warned already
    step(callback, module, loss=2.0, gradient_norm=1.0)
    module.data_state = {"seen": {"dropped": 1, "damaged": {"codes.npy cannot be read": 2}}}
    with pytest.warns(
        UserWarning, match=r"3 parts of the data are left out by now: 2 codes\.npy cannot be read, 1 longer than a row"
    ):
        step(callback, module, loss=2.0, gradient_norm=1.0)
    assert [(i.step, i.kind) for i in read_incidents(incidents.path)] == [
        (111, "gradient_norm"),
        (112, "skipped"),
        (113, "data"),
    ]


@pytest.mark.parametrize(
    ("state", "number"),
    [
        (None, 0),
        ({"next": 5}, 0),
        ({"seen": {"dropped": 2, "tokens": 7}}, 2),
        ([{"seen": {"dropped": 1}}, {"seen": {"damaged": {"a": 2, "b": 1}}}], 4),
        ({"streams": [{"seen": {"dropped": 1}}, {"seen": {"damaged": {"a": 2}}}]}, 3),
    ],
)
def test_what_a_loader_left_out_is_counted_in_any_state(state: Any, number: int) -> None:
    assert left_out(state) == number
