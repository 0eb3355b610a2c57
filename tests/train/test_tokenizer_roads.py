"""The whole road behind tokenizers of other shapes: one row of codes, several codes a place, sides of many sizes."""

import json
from pathlib import Path

import pytest
from made_road import draw_pictures, overrides
from PIL import Image

from omnigram.model.bundle import Omnigram
from omnigram.train.cli import main
from omnigram.train.compose import compose_config
from omnigram.train.pretrain import pretrain

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about how they are written

SMALL = ["hidden_size=32", "num_attention_heads=2", "encoder_layers=1", "decoder_layers=1"]
SHORT = ["tokenizer.trainer.max_steps=2", "trainer.max_steps=2", "tokenizer.quantizer.codebook_size=32"]
SHORT += ["evaluation.queries=1", "evaluation.heldout_queries=1", "evaluation.gallery=2", "evaluation.page=1"]
TRANSFORMER = [f"tokenizer.network.{setting}" for setting in SMALL]
QUERIES = ["tokenizer/network=causal_queries", "tokenizer.network.num_queries=6", *TRANSFORMER]


def road(folder: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Omnigram, set[str]]:
    """The export at its end, and the grids of its pictures, a quarter of which are twice as wide as high."""
    pictures = draw_pictures(folder / "pictures")
    for path in sorted(pictures.glob("*-0.png")):
        Image.open(path).resize((64, 32)).save(path)
    monkeypatch.chdir(folder)
    run = pretrain(compose_config([*overrides(pictures), *SHORT, *settings]))
    [record] = (folder / "datasets").glob("tiny-*/dataset.json")
    splits = json.loads(record.read_text())["splits"].values()
    return Omnigram.from_pretrained(run / "export"), {grid for split in splits for grid in split["grids"]}


def test_one_row_of_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    omnigram, grids = road(tmp_path, QUERIES, monkeypatch)
    assert grids == {"1x6"}
    [drawn] = omnigram.draw("red circle")
    assert drawn.size == (64, 64)
    assert omnigram.codes(Image.new("RGB", (40, 90))).shape == (1, 6)
    with pytest.raises(ValueError, match=r"^this model's pictures are one row of codes"):
        omnigram.complete(drawn, rows=1)
    with pytest.raises(ValueError, match=r"^a picture of 128 x 64 pixels: this image tokenizer takes 64 x 64 alone$"):
        omnigram.draw("red circle", size=(128, 64))
    for step, settings, message in (
        ("tokenizer", ["tokenizer.network.resolution=128"], "pictures of 64 pixels are not cut into codes of 128"),
        (
            "tokenizer",
            ["tokenizer.network.resolution=32"],
            "of 64 x 64 pixels: this image tokenizer takes 32 x 32 alone",
        ),
        ("tokens", ["tokens.resolution=128"], "of 128 x 128 pixels: this image tokenizer takes 64 x 64 alone"),
    ):
        capsys.readouterr()
        assert main([step, *overrides(tmp_path / "pictures"), *SHORT, *QUERIES, *settings]) != 0
        told = capsys.readouterr().err.strip().splitlines()
        assert message in told[-1]
        assert "Traceback" not in "".join(told)


def test_two_codes_a_place_of_pictures_of_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = ["tokenizer/network=vit", *TRANSFORMER, "tokenizer/quantizer=residual", "tokenizer.pictures.max_ratio=2"]
    omnigram, grids = road(tmp_path, settings, monkeypatch)
    assert grids == {"8x16", "6x20"}, "two codes for each of 8 x 8 and 6 x 10 places"
    [drawn] = omnigram.draw("red circle", size=(48, 80))
    assert drawn.size == (80, 48)
    for width, height in ((64, 64), (80, 48), (200, 125), (60, 70)):  # the nearest in shape, in pixels, not in codes
        rows, columns = omnigram.codes(Image.new("RGB", (width, height))).shape
        assert (rows, columns) == ((6, 20) if width > 1.3 * height else (8, 16))
    [whole] = omnigram.complete(drawn, rows=2)
    assert whole.size == (80, 48)
    assert omnigram.draw("red circle", size=(24, 56))[0].size == (56, 24), "a size never trained on"
