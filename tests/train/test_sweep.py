"""The table and the plot of a sweep say what the runs say; runs that cannot be compared are refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from omnigram.train.sweep import summarise_sweep

NANO = {"model": "nano", "parameters": 1_234_567, "bits_per_picture": 402.25, "train_tokens": 90_000}
NANO |= {"train_flops": 1.5e13, "tokens_per_second": 9000.5, "train_seconds": 10.0, "psnr": 22.0}
SMALL = {**NANO, "model": "small", "parameters": 17_000_000, "bits_per_picture": 300.5, "train_flops": 2.5e14}


def run(folder: Path, metrics: dict) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_the_table_has_a_row_a_run_by_size(tmp_path: Path) -> None:
    runs = [run(tmp_path / "b", SMALL), run(tmp_path / "a", NANO)]
    printed = io.StringIO()
    out = summarise_sweep([*runs, runs[0]], tmp_path / "sweep" / "three", Console(file=printed, width=200))
    assert out == tmp_path / "sweep" / "three"
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["nano", "small"]
    for row, metrics in zip(rows, (NANO, SMALL), strict=True):
        for name in ("parameters", "bits_per_picture", "train_tokens", "train_flops", "train_seconds"):
            assert float(row[name]) == metrics[name]
    lines = (out / "table.md").read_text().splitlines()
    assert len(lines) == 4
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["nano", "1,234,567", "90,000", "1.50e+13", "402.2", "9,000.5", "10.0"]
    assert "1,234,567" in printed.getvalue()


def test_the_plot_is_a_picture_of_two_panels(tmp_path: Path) -> None:
    out = summarise_sweep(
        [run(tmp_path / "a", NANO), run(tmp_path / "b", SMALL)], tmp_path / "out", Console(file=io.StringIO())
    )
    plot = Image.open(out / "sweep.png").convert("L")
    assert plot.width > 2 * plot.height > 800
    ink = [plot.crop((side * plot.width // 2, 0, (side + 1) * plot.width // 2, plot.height)) for side in (0, 1)]
    assert all(np.asarray(half).min() < 100 for half in ink)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finished run"):
        summarise_sweep([], tmp_path / "out")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="no finished run"):
        summarise_sweep([tmp_path / "unfinished"], tmp_path / "out")
    bare = run(tmp_path / "bare", {**NANO, "train_flops": None})
    with pytest.raises(ValueError, match="no number 'train_flops'"):
        summarise_sweep([bare], tmp_path / "out")
    unmeasured = run(tmp_path / "unmeasured", {**NANO, "bits_per_picture": None})
    with pytest.raises(ValueError, match=r"unmeasured has no held-out bits a picture.* no split test or val"):
        summarise_sweep([unmeasured], tmp_path / "out")
    pair = [run(tmp_path / name, {**NANO, "made_from": {"tokens": name}}) for name in ("one", "two")]
    with pytest.raises(ValueError, match=r"/two learnt other tokens than .*/one: their bits cannot be compared"):
        summarise_sweep(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()
