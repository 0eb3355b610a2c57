"""The adversary's losses against their definitions, element by element; its weight; what its guard decides."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnigram.train.adversary import Adversary, AdversaryConfig, hinge_loss, lecam_loss
from omnigram.train.adversary_guard import AVERAGED, AdversaryGuard
from omnigram.train.compose import DISCRIMINATOR, compose_config


def config(**changed: float | None) -> AdversaryConfig:
    made = compose_config(["tokenizer=movqgan"]).tokenizer.discriminator
    return AdversaryConfig(**{**made, "channels": 8, **changed})


def test_the_configuration_is_the_constructor() -> None:
    assert sorted(DISCRIMINATOR) == sorted(field.name for field in fields(AdversaryConfig))


scores = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6)


@given(scores, scores, st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_hinge_and_lecam_are_their_definitions(real: list[float], decoded: list[float], a: float, b: float) -> None:
    of_real, of_decoded = (torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (real, decoded))
    hinge = hinge_loss(of_real, of_decoded)
    expected = sum(max(0, 1 - s) for s in real) / len(real) + sum(max(0, 1 + s) for s in decoded) / len(decoded)
    assert float(hinge.detach()) == pytest.approx(expected, abs=1e-6)
    for found, values, sign in zip(
        torch.autograd.grad(hinge, [of_real, of_decoded]), (real, decoded), (-1, 1), strict=True
    ):
        assert found.tolist() == pytest.approx([sign * (1 + sign * s > 0) / len(values) for s in values])
    lecam = lecam_loss(of_real, of_decoded, torch.tensor([a, b], dtype=torch.float64))
    expected = sum(max(0, s - b) ** 2 for s in real) / len(real) + sum(max(0, a - s) ** 2 for s in decoded) / len(
        decoded
    )
    assert float(lecam.detach()) == pytest.approx(expected, abs=1e-6)
    pull = torch.autograd.grad(lecam, [of_real, of_decoded])
    assert pull[0].tolist() == pytest.approx([2 * max(0, s - b) / len(real) for s in real], abs=1e-6)
    assert pull[1].tolist() == pytest.approx([-2 * max(0, a - s) / len(decoded) for s in decoded], abs=1e-6)


def test_losses_go_where_they_belong() -> None:
    torch.manual_seed(0)
    made = Adversary(config(lecam=0.5))
    real, decoded = (torch.randn(2, 3, 16, 16, requires_grad=True) for _ in range(2))
    expected = -made.discriminator(decoded).mean()
    adversarial = made.adversarial(decoded)
    torch.testing.assert_close(adversarial, expected)
    (push,), (definition,) = (torch.autograd.grad(term, decoded, retain_graph=True) for term in (adversarial, expected))
    torch.testing.assert_close(push, definition)
    adversarial.backward()
    assert all(p.grad is None and p.requires_grad for p in made.discriminator.parameters())
    decoded.grad = None
    made.scores.copy_(torch.tensor([0.4, -0.2]))
    loss = made.loss(real, decoded)
    torch.testing.assert_close(loss.loss, loss.hinge + 0.5 * loss.lecam)
    assert loss.lecam > 0
    loss.loss.backward()
    assert real.grad is None
    assert decoded.grad is None
    assert all(p.grad is not None for p in made.discriminator.parameters())


def test_averages_of_scores_follow_by_a_hundredth() -> None:
    made = Adversary(config())
    for _ in range(3):
        made.follow_scores(torch.tensor([1.0, -2.0]))
    assert made.scores.tolist() == pytest.approx([1 - 0.99**3, -2 * (1 - 0.99**3)], rel=1e-4)
    assert "scores" in made.state_dict()


def test_the_weight_makes_gradients_equally_long_warms_up_is_capped_and_halved() -> None:
    made = Adversary(config(weight=0.5, max_weight=3.0, warmup_steps=4, start_step=0))
    pull, push = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([0.0, 2.0])
    full = 0.5 * 5 / 2
    found = []
    for step in range(7):
        made.guard.see(torch.tensor(1.0), step)
        found.append(float(made.weight(pull, push)))
    assert found == pytest.approx([full * part for part in (0.25, 0.5, 0.75, 1, 1, 1, 1)], rel=1e-4)
    assert not made.weight(pull, push).requires_grad
    assert float(made.weight(pull, push / 1000)) == 3.0  # and not 625
    assert float(made.weight(pull, push * 0)) == 3.0
    made.guard.switched_off += 2
    assert float(made.weight(pull, push)) == pytest.approx(full / 4, rel=1e-4)
    assert float(made.weight(pull, push / 1000)) == 0.75
    assert math.isnan(float(made.weight(pull * math.nan, push)))  # so that such a step is left out


def run(guard: AdversaryGuard, errors: list[float], before: int = 0) -> list[tuple[bool, int, float]]:
    """Whether the adversary takes part after each step, how often it was off, and its share."""
    seen = []
    for step, error in enumerate(errors, start=before + 1):
        guard.see(torch.tensor(error), step)
        seen.append((guard.takes_part, int(guard.switched_off), float(guard.share(5))))
    return seen


def test_it_begins_at_its_step_and_not_while_the_error_is_high() -> None:
    assert [part for part, *_ in run(AdversaryGuard(4, None, 2.0, 3), [9.0] * 6)] == [False] * 3 + [True] * 3
    errors = [8.0] * 10 + [1.0] * 60
    begun = [part for part, *_ in run(AdversaryGuard(4, 2.0, 2.0, 3), errors)]
    first = begun.index(True)
    average = 8.0
    for _ in range(first - 9):
        average += (1.0 - average) / AVERAGED
    assert average <= 2.0 < average + (average - 1.0) / (AVERAGED - 1)  # it is below there, and was not before
    assert all(begun[first:])


def test_the_first_step_is_never_the_adversary_s() -> None:
    for start in (0, 1):
        guard = AdversaryGuard(start, None, 2.0, 3)
        assert not guard.takes_part
        assert [part for part, *_ in run(guard, [1.0] * 2)] == [True, True]


def test_it_is_switched_off_where_the_error_stays_high_and_comes_back_with_half() -> None:
    calm, lost = [1.0] * 30, [10.0] * 30
    seen = run(AdversaryGuard(10, None, 2.0, 5), calm + lost + [0.9] * 200 + lost)
    assert all(part for part, *_ in seen[9:30])
    off = next(place for place, (part, *_) in enumerate(seen) if place > 9 and not part)
    # 1 + 9 (1 - .95^n) passes 2 at the third step; four more make five in a row
    assert off == 30 + 3 - 1 + 4
    again = next(place for place in range(off, len(seen)) if seen[place][0])
    assert again > 60, "not before what was lost is won back"
    assert [share for *_, share in seen[again : again + 6]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert seen[-1][:2] == (False, 2)


def test_short_peaks_and_slow_falls_leave_it_on_and_no_ratio_is_no_guard() -> None:
    peaks = [1.0 if step % 12 else 4.0 for step in range(300)]
    assert run(AdversaryGuard(20, None, 2.0, 5), peaks)[-1][:2] == (True, 0)
    assert run(AdversaryGuard(20, None, None, 5), [1.0] * 30 + [1e6] * 100)[-1][:2] == (True, 0)
    with pytest.raises(ValueError, match=r"guard_ratio=1\.0 must be above 1"):
        AdversaryGuard(1, None, 1.0, 5)


@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 6.0, 40.0]), min_size=20, max_size=150), st.integers(0, 150))
def test_a_guard_that_is_loaded_goes_on_as_if_never_stopped(errors: list[float], cut: int) -> None:
    whole, first, second = (AdversaryGuard(3, 5.0, 1.5, 2) for _ in range(3))
    expected = run(whole, errors)
    found = run(first, errors[:cut])
    second.load_state_dict(first.state_dict())
    assert found + run(second, errors[cut:], before=len(errors[:cut])) == expected
    counts = [off for _, off, _ in expected]
    assert counts == sorted(counts)
