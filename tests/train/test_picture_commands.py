"""Pictures from the shell: each tells how it was drawn and is drawn again so; a mistake is one line."""

import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from made_drawings import drawn, pixels, record
from PIL import Image
from rich.console import Console

from omnigram.model.bundle import Omnigram
from omnigram.model.generation import BlockRows, Finished, Sample, Sampling, Tokens
from omnigram.model.generation.guidance import SPACES
from omnigram.model.generation.ranking import RANKINGS
from omnigram.train.cli import main, make_parser
from omnigram.train.drawing_options import SETTINGS
from omnigram.train.drawing_progress import DrawingProgress

pytestmark = pytest.mark.usefixtures("there")


def model() -> Omnigram:
    return Omnigram.from_pretrained("model")


def test_a_page_tells_how_it_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "sample apple pear --style round -n 3 --seed 7 --top-k 5 --guidance-schedule 0:0,0.5:1 --size 16x24"
    drawn(f"{arguments} --out deep/page.png")
    assert capsys.readouterr().out == "deep/page.png\n"
    assert sorted(os.listdir("deep")) == ["page.json", "page.png"]
    told = record("deep/page.png")
    assert told["command"] == "sample"
    assert told["arguments"] == [*arguments.split()[1:], "--out", "deep/page.png", "--model", "model"]
    words = ["apple, round"] * 3 + ["pear, round"] * 3
    assert told["pictures"] == [{"words": text, "seed": seed} for text, seed in zip(words, [7, 8, 9] * 2, strict=True)]
    assert (told["grid"], told["patch"], told["style"]) == ([2, 3], 8, "round")
    own = model().card
    settings = Sampling(**told["sampling"]["image"])
    assert settings == Sampling(top_k=5, top_p=0.95, guidance=3.0, guidance_schedule=((0, 0), (0.5, 1)))
    assert own.identities.items() < told["identities"].items()
    assert {"weights", "revision", "versions", "created"} <= {*told, *told["identities"]}


def test_separate_files_are_the_pictures_of_the_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    drawn("sample apple pear -n 2 --separate --out it.webp")
    assert capsys.readouterr().out.split() == [f"it-{number}.webp" for number in range(1, 5)]
    with Image.open("it-4.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (16, 16))
    drawn("sample apple pear -n 2 --separate --seed 4 --out it.png")
    for number, picture in enumerate(model().draw(["apple", "pear"], n=2, seed=4), 1):
        assert pixels(f"it-{number}.png") == np.array(picture).tolist()
        assert [one["seed"] for one in record(f"it-{number}.png")["pictures"]] == [4 + (number - 1) % 2]


DRAWN = [
    "sample apple pear -n 3 --temperature 0.9",
    "sample apple -n 2 --min-p 0.1 --repetition-penalty 1.2 --guidance 2 --guidance-space log_softmax --negative pear",
    "sample apple --example shown.png plum --example shown.png pear --picture-guidance 2",
    "sample apple pear -n 2 --best-of 4 --seed 3 --separate",
    "sample --unconditional -n 2 --separate",
    "complete shown.png --rows 1 --words apple -n 3",
    "joint -n 3 --max-tokens 6",
    "joint -n 2 --max-tokens 6 --picture-first --words-temperature 0.5 --separate",
]


@pytest.mark.parametrize("arguments", DRAWN)
def test_a_picture_is_drawn_again_from_its_record(arguments: str) -> None:
    """In another batch, with guesses ahead, and from either of its two records."""
    drawn(f"{arguments} --out first.png")
    file = sorted(Path().glob("first*.png"))[-1]
    assert (len(record(file)["pictures"]) == 1) == ("--separate" in arguments or "--example" in arguments)
    os.rename("shown.png", "gone.png")  # nothing but the record is needed
    drawn(f"again {file} --batch-size 1 --speculation jacobi --window 2 --out second.png")
    assert pixels("second.png") == pixels(file)
    assert record("second.png")["pictures"] == record(file)["pictures"]
    drawn(f"again {file.with_suffix('.json')}")
    assert pixels(file.with_stem(f"{file.stem}-again")) == pixels(file)


def test_best_of_keeps_the_seed_that_the_bundle_keeps() -> None:
    drawn("sample apple pear --best-of 5 -n 2 --separate --out best.png")
    seeds = [record(f"best-{number}.png")["pictures"][0]["seed"] for number in range(1, 5)]
    assert [0 <= seed < 5 for seed in seeds] == [True, False, True, False]
    assert len({seed % 5 for seed in seeds}) > 1
    for number, picture in enumerate(model().draw(["apple", "pear"], n=2, best_of=5), 1):
        assert pixels(f"best-{number}.png") == np.array(picture).tolist()


def test_best_of_by_its_words_is_that_of_the_bundle() -> None:
    drawn("sample apple --best-of 9 --rank-by words --separate --out words.png")
    picture = {by: model().draw("apple", best_of=9, rank_by=by)[0] for by in ("picture", "words")}
    assert pixels("words-1.png") == np.array(picture["words"]).tolist() != np.array(picture["picture"]).tolist()
    assert record("words-1.png")["rank_by"] == "words"


def test_pairs_are_those_of_the_bundle() -> None:
    drawn("joint -n 3 --max-tokens 6 --separate --seed 2")
    for number, (words, picture) in enumerate(model().joint(3, max_tokens=6, seed=2), 1):
        assert pixels(f"joint-{number}.png") == np.array(picture).tolist()
        assert record(f"joint-{number}.png")["pictures"] == [{"words": words.strip(), "seed": 1 + number}]


def test_guesses_of_a_smaller_model_change_nothing() -> None:
    drawn("sample apple -n 3 --out plain.png")
    drawn("sample apple -n 3 --out drafted.png --speculation draft --draft other --draft-length 2")
    assert pixels("plain.png") == pixels("drafted.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sample apple --style flt", "unknown style 'flt', did you mean flat?"),
        ("sample apple --top-p 2", "top_p 2.0 must be above 0 and at most 1"),
        ("sample apple --top-k -1", "top_k -1 must be a whole number, 0 for all ids"),
        ("sample apple --temperature -1", "temperature -1.0 must be 0 (the likeliest id), or a number from 1e-06 up"),
        ("sample apple --temperature 0 --top-p 0.5", "--top-p 0.5 has no effect at temperature 0"),
        ("sample apple --guidance 1 --guidance-schedule 0:1", "guidance_schedule has no effect without guidance"),
        ("sample apple --guidance-space probability", "--guidance-space: invalid choice: 'probability' (choose from "),
        ("sample apple --guidance 1 --negative pear", "--negative has no effect without guidance: set --guidance"),
        ("sample apple --best-of 2 --temperature 0", "--best-of 2: at temperature 0 all samples are the same"),
        (
            "sample apple --size 80x80",
            "a document of 121 tokens, and the context of the model is 96: choose a",
        ),
        ("sample apple --size 20x20", "20 x 20 pixels: sides must be multiples of 8"),
        ("joint --size 80x80", "10 x 10 codes makes a document of 121 tokens"),
        ("joint --max-tokens 0", "max_tokens 0 of the words must be 1 or more"),
        ("joint --words-temperature 0 --words-top-k 2", "--words-top-k 2 has no effect at temperature 0"),
        ("complete shown.png --rows 2", "rows 2 must be from 1 to 1"),
        ("caption shown.png --top-k 3", "--top-k 3 has no effect at temperature 0"),
        ("sample apple --speculation jacobi --window 0", "window 0 must be 1 code or more"),
        ("sample apple --speculation draft --draft other --draft-length 0", "length 0 must be 1 code or more"),
        ("sample apple --speculation draft --draft foreign", "--draft foreign has image "),
        ("sample apple --speculation draft --draft nowhere", "nowhere is not an export of Omnigram"),
        ("sample apple --example none.png pear", "none.png: No such file or directory"),
        ("again shown.png", "shown.png has no record of how it was drawn, in itself or in shown.json beside it"),
        ("again none.png", "none.png: No such file or directory"),
        ("again words.txt", "words.txt has no record of how it was drawn"),
        ("again broken.json", "broken.json: the record does not tell how it was drawn: "),
        ("again empty.json", "empty.json: the record does not tell how it was drawn: no pictures"),
        ("again later.json", "later.json: format_version 9, this Omnigram reads 1"),
        ("sample apple --out taken.png", "its record would overwrite taken.json, which is no record of a drawing"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.txt").write_text("no picture")
    Path("taken.json").write_text("{}")
    Path("broken.json").write_text('{"format": "omnigram-drawing", "format_version": 1, "command": "sample"}')
    empty = {"format": "omnigram-drawing", "format_version": 1, "command": "sample", "grid": [2, 2], "pictures": []}
    Path("empty.json").write_text(json.dumps(empty))
    Path("later.json").write_text('{"format": "omnigram-drawing", "format_version": 9}')
    before = sorted(os.listdir())
    assert main([*arguments.split(), "--model", "model"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("omnigram: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert sorted(os.listdir()) == before


def test_guidance_is_computed_in_the_spaces_that_there_are() -> None:
    assert SETTINGS["guidance_space"][1] == SPACES


def test_one_picture_is_a_file_to_go_on_with_and_a_page_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    drawn("sample apple --out one.png")
    assert np.shape(pixels("one.png")) == (16, 16, 3)
    drawn("complete one.png --rows 1 --out whole.png")
    drawn("caption one.png --max-tokens 4")
    drawn("sample apple -n 2 --out two.png")
    drawn("joint --out pair.png --max-tokens 4")  # with its words
    for page in ("two.png", "pair.png"):
        capsys.readouterr()
        assert main(["complete", page, "--rows", "1", "--model", "model"]) == 2
        assert capsys.readouterr().err.startswith(f"omnigram: {page} is a page, not one picture: draw with --separate")


def test_the_best_is_ranked_in_the_ways_that_there_are() -> None:
    _, commands = make_parser()
    [option] = [action for action in commands["sample"]._actions if action.dest == "rank_by"]
    assert tuple(option.choices or ()) == RANKINGS


def test_top_k_0_is_all_and_the_model_that_drew_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    drawn("sample apple --top-k 0 --out a.png")
    drawn("sample apple --out b.png")
    assert pixels("a.png") == pixels("b.png")
    assert main(["again", "a.png", "--model", "other"]) == 2
    assert "a.png was drawn by model with weights " in capsys.readouterr().err
    assert not Path("a-again.png").exists()


def test_the_likeliest_of_several_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(UserWarning, match="all pictures of a prompt will be the same; set --temperature"):
        drawn("sample apple -n 2 --temperature 0")
    drawn("sample apple -n 1 --temperature 0")
    assert not recwarn.list


def test_progress_is_a_line_now_and_then_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_progress(monkeypatch)
    assert capsys.readouterr().err.splitlines() == [
        "omnigram sample: 1 of 2 pictures, 40 tokens/s, 0 min 20 s left",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=120)
    monkeypatch.setattr("omnigram.train.drawing_progress.Console", lambda stderr: terminal)
    made_progress(monkeypatch)
    assert "omnigram sample" in shown.getvalue()
    assert "1 of 2 pictures, 40 tokens/s" in shown.getvalue()


def made_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of two is drawn, of 1,000 ids each; ten seconds go by whenever the clock is looked at."""
    clock = itertools.count(step=10)
    monkeypatch.setattr("omnigram.train.drawing_progress.monotonic", lambda: float(next(clock)))
    with DrawingProgress("omnigram sample", 2, 1000) as progress:
        for written in (600, 600):
            progress(Tokens(0, (1,) * written, ""))
            progress(BlockRows(0, 0, "image", np.zeros((1, 2), dtype=np.int64), (2, 2)))
        progress(Finished(0, Sample((), np.zeros(0, dtype=np.int64), 0)))
