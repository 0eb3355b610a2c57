"""Words from the shell: captions with examples and stop words, and what documents cost."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_export import made_export
from PIL import Image

from omnigram.data.document import Document, Segment
from omnigram.model.bundle import Omnigram
from omnigram.train.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export `model` and two pictures."""
    folder = tmp_path_factory.mktemp("words")
    made_export(folder / "model")
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def omnigram(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Omnigram:
    monkeypatch.chdir(folder)
    return Omnigram.from_pretrained("model")


def test_captions_are_a_line_each(omnigram: Omnigram, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [Image.open(name) for name in ("a.png", "b.png")]
    expected = [omnigram.caption(picture, max_tokens=8) for picture in pictures]
    assert main(["caption", "a.png", "b.png", "--max-tokens", "8", "--model", "model"]) == 0
    assert capsys.readouterr().out == "".join(
        f"{name}: {caption}\n" for name, caption in zip(("a.png", "b.png"), expected, strict=True)
    )
    examples = [("apple, round", pictures[1])]
    [stop] = expected[0][2]
    expected = omnigram.caption(pictures[0], max_tokens=8, examples=examples, stop=[stop])
    command = ["caption", "a.png", "--max-tokens", "8", "--example", "b.png", "apple, round", "--stop", stop]
    assert main([*command, "--model", "model"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_words_for_no_picture(omnigram: Omnigram, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [omnigram.caption(None, max_tokens=8, seed=seed) for seed in (5, 6, 7)]
    command = ["caption", "--unconditional", "-n", "3", "--seed", "5", "--max-tokens", "8"]
    assert main([*command, "--model", "model"]) == 0
    assert capsys.readouterr().out == "".join(f"{words}\n" for words in expected)


def test_what_is_a_file_is_not_scored_as_words(omnigram: Omnigram, capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.txt").write_text("red apple")
    assert main(["score", "words.txt", "--model", "model"]) == 2
    assert capsys.readouterr().err.startswith("omnigram: words.txt is a file, and no picture by its ending")
    assert main(["score", "plum", "--model", "."]) == 2
    assert capsys.readouterr().err == "omnigram: . is not an export of Omnigram: omnigram.json is missing\n"
    Path("export").symlink_to("model")
    assert main(["score", "plum", "--model", "."]) == 2
    assert capsys.readouterr().err.endswith("omnigram.json is missing; export is one\n")


def test_a_score_is_the_bits_of_each_segment(omnigram: Omnigram, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "red apple", "a.png", "b.png", "--json", "--model", "model"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = omnigram.score(["red apple", Image.open("a.png"), Image.open("b.png")])
    bits, chosen = found.nats / math.log(2), found.chosen
    words = len(omnigram.text_tokenizer.encode("red apple"))
    block = omnigram.sampler.grammar.blocks["image"].length(2, 2)
    bounds = np.cumsum([1, words, block, block, 1])
    assert [row["segment"] for row in told["segments"]] == ["red apple", "a.png", "b.png", "(end)"]
    for row, start, stop in zip(told["segments"], bounds, bounds[1:], strict=False):
        assert row["tokens"] == stop - start
        assert row["forced"] == (~chosen[start:stop]).sum()
        assert row["bits"] == pytest.approx(bits[start:stop].sum())
        assert row["bits_per_token"] == pytest.approx(bits[start:stop].sum() / chosen[start:stop].sum())
    assert told["total"]["bits"] == pytest.approx(found.total / math.log(2))
    assert told["total"]["tokens"] == len(found.ids) - 1
    assert main(["score", "red apple", "a.png", "b.png", "--model", "model"]) == 0
    table = capsys.readouterr().out
    assert all(f"{row['bits']:,.2f}" in table for row in [*told["segments"], told["total"]])


def test_a_document_as_the_data_format_has_it(omnigram: Omnigram, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (Path(name).read_bytes() for name in ("b.png", "a.png"))
    segments = (
        Segment("image", first, suffix=".png"),
        Segment("text", "plum", ("prune",)),
        Segment("image", second, suffix=".png"),
    )
    for name, content in Document("page", segments, "made", "CC0").to_sample().items():
        Path(f"page.{name}").write_bytes(content)
    Path("page.png").write_bytes(first)  # no part of it
    assert main(["score", "page.json", "--json", "--model", "model"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["segment"] for row in told["segments"]] == ["picture 0.png", "plum", "picture 2.png", "(end)"]
    expected = omnigram.score([Image.open("b.png"), "plum", Image.open("a.png")])
    assert told["total"]["bits"] == pytest.approx(expected.total / math.log(2))
    Path("page.2.png").unlink()
    assert main(["score", "page.json", "--model", "model"]) == 2
    assert capsys.readouterr().err == (
        "omnigram: page.json: segment 2 names page.2.png, which the sample does not hold\n"
    )
    Path("list.json").write_text("[]")
    assert main(["score", "list.json", "--model", "model"]) == 2
    assert capsys.readouterr().err.startswith("omnigram: list.json: ")
