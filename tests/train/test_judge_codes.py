"""What codes cost, against a coder that counts as it goes; how steady they are, against pictures moved by hand."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_judged import Greys, patches, scenes, subject

from omnigram.data.fitting import Fitting
from omnigram.tokenizers.image import ImageTokenizer, to_pixels
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.train.judge.code_length import adaptive_bits, fixed_bits
from omnigram.train.judge.stability import Stability, rescaled, shifted
from omnigram.train.judge.subject import Subject
from omnigram.train.tokenizer_metrics import measure_reconstruction


def coded(codes: list[int], size: int) -> float:
    """Bits, one code after the other."""
    counts, bits = np.zeros(size), 0.0
    for seen, code in enumerate(codes):
        bits -= math.log2((counts[code] + 0.5) / (seen + size / 2))
        counts[code] += 1
    return bits


@given(st.integers(2, 9).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(0, size - 1)))))
def test_adaptive_bits_are_those_of_a_coder(drawn: tuple[int, list[int]]) -> None:
    size, codes = drawn
    counts = torch.bincount(torch.tensor(codes, dtype=torch.int64), minlength=size)
    assert adaptive_bits(counts) == pytest.approx(coded(codes, size), abs=1e-6)


def test_each_level_has_a_table_of_its_own() -> None:
    codes = [[0, 1, 1, 3], [2, 2, 2, 0]]
    counts = torch.cat([torch.bincount(torch.tensor(level), minlength=4) for level in codes])
    assert adaptive_bits(counts, levels=2) == pytest.approx(coded(codes[0], 4) + coded(codes[1], 4))
    assert fixed_bits(8, levels=2) == 2
    assert fixed_bits(1024) == 10


def test_even_use_costs_as_much_as_a_fixed_length_and_uneven_use_less() -> None:
    even = torch.full((16,), 10_000)
    assert adaptive_bits(even) / 160_000 == pytest.approx(4, abs=1e-3)
    uneven = torch.tensor([150_000, *[0] * 15])
    assert adaptive_bits(uneven) / 150_000 < 0.01


def numbers_of(judged: Subject, pictures: list[np.ndarray]) -> dict[str, float]:
    batch = torch.from_numpy(np.stack(pictures))
    stability, codes = Stability(judged), judged.encode(batch)
    stability.add(batch, codes, judged.decode(codes))
    return stability.numbers()


def test_without_loss_nothing_drifts() -> None:
    numbers = numbers_of(subject(), patches(6))
    assert [numbers[name] for name in ("drift", "drift_2", "drift_5")] == [0, 0, 0]
    # moved by a whole code: every code that is still there moves along, and the picture is still one of its own
    assert numbers["codes_kept_shift_4"] == 1
    assert numbers["psnr_shift_4"] == 60
    assert numbers["codes_kept_shift_1"] < 1
    assert numbers["psnr_shift_1"] < 60


def test_drift_compares_with_the_first_codes_after_each_round() -> None:
    class Swapped(Greys):
        def _pixels(self, ids: torch.Tensor) -> torch.Tensor:
            return super()._pixels(ids ^ 1)  # each code becomes its neighbour, and that becomes it again

    numbers = numbers_of(Subject(subject().folder, Swapped().eval(), subject().fitting), patches(3))
    assert (numbers["drift"], numbers["drift_2"], numbers["drift_5"]) == (1, 0, 1)


def test_drift_of_one_round_is_that_of_training() -> None:
    torch.manual_seed(0)
    network = ConvolutionalConfig(2, (8, 8), (1, 1), (1, 1), False)
    made = ImageTokenizer(network, MovingAverageConfig(16, 4, 0.9, 0.25, False, 0.0))
    batch = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    made.train().quantize(to_pixels(batch))  # fills the codebook
    numbers = numbers_of(Subject(subject().folder, made.eval(), subject().fitting), list(batch.numpy()))
    assert numbers["drift"] == pytest.approx(measure_reconstruction(made, [batch])["drift"])
    assert numbers["drift"] > 0


class InOneRow(Greys):
    """The same codes in one row, as learned queries have them: a code's place is none of the picture."""

    patch = 32  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 1, 64

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        return 32, 32

    def _ids(self, pixels: torch.Tensor) -> torch.Tensor:
        return super()._ids(pixels).flatten(1)[:, None]

    def _pixels(self, ids: torch.Tensor) -> torch.Tensor:
        return super()._pixels(ids.unflatten(2, (8, 8))[:, 0])


def test_codes_that_are_no_places_of_the_picture_are_compared_in_place() -> None:
    """There are more of them than pixels a side."""
    judged, pictures = Subject(Path("row"), InOneRow().eval(), Fitting(32, 32)), patches(5)
    numbers = numbers_of(judged, pictures)
    batch = torch.from_numpy(np.stack(pictures))
    same = judged.encode(batch) == judged.encode(shifted(batch, 4))
    assert numbers["codes_kept_shift_4"] == pytest.approx(float(same.float().mean()))
    assert numbers["psnr_shift_4"] == 60


def test_the_page_says_how_often_a_judgement_encodes_and_decodes() -> None:
    calls: Counter[str] = Counter()

    class Counting(Greys):
        def _ids(self, pixels: torch.Tensor) -> torch.Tensor:
            calls["encodes"] += 1
            return super()._ids(pixels)

        def _pixels(self, ids: torch.Tensor) -> torch.Tensor:
            calls["decodes"] += 1
            return super()._pixels(ids)

    numbers_of(Subject(Path("greys"), Counting().eval(), subject().fitting), patches(2))
    words = {10: "ten", 11: "eleven"}
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"encodes {words[calls['encodes']]} times and decodes {words[calls['decodes']]} times as many" in page


def test_moved_and_resized_pictures() -> None:
    picture = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
    moved = shifted(picture, 1)
    assert torch.equal(moved[:, 1:, 1:], picture[:, :-1, :-1])
    assert torch.equal(moved[:, 0, 1:], picture[:, 0, :-1])
    assert torch.equal(shifted(picture, 0), picture)
    [scene] = scenes(1, 40)
    scene = torch.from_numpy(scene)[None]
    assert torch.equal(rescaled(scene, 1.0), scene)
    smaller, larger = rescaled(scene, 0.9), rescaled(scene, 1.1)
    assert smaller.shape == larger.shape == scene.shape
    assert torch.equal(smaller[:, 0], smaller[:, 1])  # the edge, continued
    assert torch.equal(smaller[:, :, -1], smaller[:, :, -2])
    flat = torch.full((1, 20, 30, 3), 77, dtype=torch.uint8)
    for scale in (0.9, 1.1):
        assert torch.equal(rescaled(flat, scale), flat)
        centre = rescaled(scene, scale)[0, 20, 20].float()
        assert (centre - scene[0, 19:22, 19:22].float().mean((0, 1))).abs().max() < 12
