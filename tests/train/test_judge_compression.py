"""Codecs at the same bytes: the budget is kept and used, the layout comes back, what cannot be is told."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_judged import scenes

from omnigram.train.judge import compression
from omnigram.train.judge.compression import CODECS, compress, cut, lay_out
from omnigram.train.tokenizer_metrics import psnr


def batch(number: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.stack(scenes(number, side, seed)))


@pytest.mark.parametrize("codec", CODECS)
def test_the_budget_is_kept_and_used(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = compression._write
    monkeypatch.setattr(compression, "_write", lambda *given: written.append(len(file := write(*given))) or file)
    batches = [batch(5, seed=1), batch(3, seed=2)]
    large, small = (compress(batches, codec, 8 * bytes_a_picture) for bytes_a_picture in (300, 150))
    assert large is not None
    assert small is not None
    for made, budget in ((large, 8 * 300), (small, 8 * 150)):
        assert 0.6 * budget < made.num_bytes <= budget
        assert made.num_bytes in written  # of one file, for all pictures are in one mosaic
        assert [part.shape for part in made.batches] == [part.shape for part in batches]
    better, worse = (float(psnr(torch.cat(batches), torch.cat(made.batches)).mean()) for made in (large, small))
    assert better > worse > 20


def test_a_higher_quality_would_not_fit() -> None:
    batches = [batch(16)]
    made = compress(batches, "webp", 16 * 150)
    assert made is not None
    mosaic = compression._scaled(lay_out(batches[0]), made.scale)
    assert len(compression._write(mosaic, "webp", made.quality)) == made.num_bytes
    assert len(compression._write(mosaic, "webp", made.quality + 1)) > 16 * 150


def test_files_that_are_always_too_large_are_none() -> None:
    assert compress([batch(1, 16)], "avif", 80) is None


def test_bytes_are_counted_over_all_mosaics_and_sizes() -> None:
    batches = [batch(3), batch(70, 32), batch(2), batch(5, 32)]
    made = compress(batches, "jpeg", 80 * 150)
    assert made is not None
    assert made.num_bytes <= 80 * 150
    for ours, theirs in zip(batches, made.batches, strict=True):
        assert ours.shape == theirs.shape
        assert float(psnr(ours, theirs).min()) > 12  # each picture is in its own place


@settings(max_examples=25)
@given(st.integers(1, 64), st.sampled_from([(8, 8), (8, 16), (24, 8)]))
def test_a_mosaic_comes_apart_as_it_was_laid(number: int, size: tuple[int, int]) -> None:
    pictures = torch.randint(0, 256, (number, *size, 3), dtype=torch.uint8)
    mosaic = lay_out(pictures)
    assert torch.equal(cut(mosaic, pictures), pictures)
    assert mosaic.width * mosaic.height - number * size[0] * size[1] < mosaic.width * size[0]


def test_codecs_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"evaluate.baselines holds 'gif': there is avif, webp, jpeg"):
        compress([batch(1)], "gif", 1000)
    monkeypatch.setattr(compression.features, "check", lambda name: False)
    with pytest.raises(ValueError, match=r"this Pillow writes no avif: leave it out of evaluate.baselines="):
        compress([batch(1)], "avif", 1000)
