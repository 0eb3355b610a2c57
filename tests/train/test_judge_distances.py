"""Fréchet and kernel distances, against torchmetrics, a root of a matrix that is taken, and sums over pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from omnigram.train.judge import kernel_distance as kernel_module
from omnigram.train.judge.frechet import frechet_distance
from omnigram.train.judge.kernel_distance import kernel_distance


def two_sets(n: int, m: int, f: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(f, f, generator=draw)
    first, second = (torch.randn(size, f, generator=draw) for size in (n, m))
    return first @ mix + 1, second @ mix * 0.7


@pytest.mark.parametrize(("n", "m", "f"), [(40, 50, 6), (5, 7, 12), (40, 5, 8)])
def test_frechet_is_that_of_torchmetrics_and_of_a_root(n: int, m: int, f: int) -> None:
    sets = [features.double() for features in two_sets(n, m, f)]
    means, covariances = [s.mean(0) for s in sets], [torch.cov(s.T) for s in sets]
    expected = float(_compute_fid(means[0], covariances[0], means[1], covariances[1]))
    assert frechet_distance(*two_sets(n, m, f)) == pytest.approx(expected, rel=1e-4)
    values, vectors = np.linalg.eigh(covariances[0].numpy())
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # symmetric, so (C1 C2)^1/2 has the trace of (R C2 R)^1/2
    inner = np.linalg.eigvalsh(root @ covariances[1].numpy() @ root)
    traces = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(inner.clip(0)).sum()
    assert frechet_distance(*two_sets(n, m, f)) == pytest.approx(
        float((means[0] - means[1]).square().sum()) + traces, rel=1e-6
    )


def test_frechet_is_that_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    sets = [features.double().numpy() for features in two_sets(60, 50, 8)]
    root = linalg.sqrtm(np.cov(sets[0].T) @ np.cov(sets[1].T)).real
    expected = np.square(sets[0].mean(0) - sets[1].mean(0)).sum()
    expected += np.trace(np.cov(sets[0].T) + np.cov(sets[1].T) - 2 * root)
    assert frechet_distance(*two_sets(60, 50, 8)) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 9), st.integers(0, 99))
def test_laws_of_frechet(n: int, m: int, f: int, seed: int) -> None:
    first, second = two_sets(n, m, f, seed)
    distance = frechet_distance(first, second)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-6, abs=1e-6)
    assert distance >= float((first.double().mean(0) - second.double().mean(0)).square().sum()) - 1e-6
    moved = frechet_distance(first, first + 2)
    assert moved == pytest.approx(4 * f, rel=1e-4)


@pytest.mark.parametrize("rows", [3, 512])
def test_kernel_distance_is_that_of_torchmetrics(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "ROWS", rows)
    first, second = (features.double() for features in two_sets(20, 20, 5))
    kernels = poly_kernel(first, first), poly_kernel(first, second), poly_kernel(second, second)
    assert kernel_distance(first, second).value == pytest.approx(float(maximum_mean_discrepancy(*kernels)), rel=1e-9)


def by_hand(first: np.ndarray, second: np.ndarray, paired: bool) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    within = [[kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j] for s in (first, second)]
    pairs = [(i, j) for i in range(len(first)) for j in range(len(second)) if not (paired and i == j)]
    across = [kernel(first[i], second[j]) for i, j in pairs]
    return float(np.mean(within[0]) + np.mean(within[1]) - 2 * np.mean(across))


@pytest.mark.parametrize(("n", "m", "paired"), [(6, 9, False), (7, 7, True)])
def test_kernel_distance_and_its_error_are_sums_over_pairs(n: int, m: int, paired: bool) -> None:
    first, second = (features.double().numpy() for features in two_sets(n, m, 4))
    found = kernel_distance(torch.from_numpy(first), torch.from_numpy(second), paired)
    assert found.value == pytest.approx(by_hand(first, second, paired), rel=1e-9)

    def without(index: int, of_first: bool, of_second: bool) -> float:
        left = np.delete(first, index, 0) if of_first else first
        return by_hand(left, np.delete(second, index, 0) if of_second else second, paired)

    if paired:
        groups = [[without(i, True, True) for i in range(n)]]
    else:
        groups = [[without(i, True, False) for i in range(n)], [without(i, False, True) for i in range(m)]]
    variance = sum((len(g) - 1) / len(g) * np.square(np.array(g) - np.mean(g)).sum() for g in groups)
    assert found.error == pytest.approx(np.sqrt(variance), rel=1e-7)


def test_pictures_made_of_themselves_are_no_distance_away() -> None:
    first, _ = two_sets(12, 12, 6)
    assert kernel_distance(first, first, paired=True) == pytest.approx((0, 0), abs=1e-9)
    assert kernel_distance(first, first).value < 0  # as it takes them for independent


def test_the_kernel_distance_is_unbiased_and_knows_its_error() -> None:
    made = [torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    draws = [kernel_distance(pair[0], pair[1]) for pair in made]
    values = np.array([draw.value for draw in draws])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert np.median([draw.error for draw in draws]) == pytest.approx(values.std(), rel=0.5)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: frechet_distance(torch.zeros(1, 2), torch.zeros(2, 2)), "1 picture has no covariance"),
        (lambda: kernel_distance(torch.zeros(2, 2), torch.zeros(4, 2)), "3 pictures or more, not 2"),
        (lambda: kernel_distance(torch.zeros(3, 2), torch.zeros(4, 2), paired=True), "3 and 4 pictures are no pairs"),
    ],
)
def test_too_few_pictures_are_told(measure, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure()
