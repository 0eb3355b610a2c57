"""An interruption of drawing keeps what is finished, in whichever stage it comes, and says what is not."""

import itertools
import os
import pkgutil
from typing import Any

import pytest
from made_drawings import drawn, pixels, record
from PIL import Image

from omnigram.model.generation import Event
from omnigram.train.cli import main
from omnigram.train.drawing_progress import DrawingProgress

pytestmark = pytest.mark.usefixtures("there")


class Interrupted(DrawingProgress):
    """Ctrl-C as soon as so many pictures are finished."""

    after = 0

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if self.finished == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "after", "count", "files"),
    [
        ("sample apple pear -n 2 --batch-size 1", 3, "3 of 4", {"sample.png"}),
        ("sample apple -n 3 --batch-size 1 --separate", 2, "2 of 3", {"sample-1.png", "sample-2.png"}),
        ("sample apple -n 3 --best-of 2 --batch-size 1", 3, "1 of 3", {"sample.png"}),
        ("complete shown.png --rows 1 -n 2 --batch-size 1", 1, "1 of 2", {"complete.png"}),
        ("joint -n 2 --max-tokens 4 --batch-size 1", 1, "1 of 2", {"joint.png"}),
        ("sample apple -n 3", 0, "0 of 3", set()),
    ],
)
def test_an_interruption_keeps_what_is_finished(
    arguments: str,
    after: int,
    count: str,
    files: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(os.listdir())
    with monkeypatch.context() as patch:
        patch.setattr("omnigram.train.drawing.DrawingProgress", Interrupted)
        patch.setattr(Interrupted, "after", after)
        assert main([*arguments.split(), "--model", "model"]) == 130
    shown = capsys.readouterr()
    assert shown.err == f"omnigram: interrupted; {count} pictures were finished and saved\n"
    assert set(shown.out.split()) == files
    assert set(os.listdir()) - before == {name for file in files for name in (file, file.replace(".png", ".json"))}
    for file in files:
        drawn(f"again {file} --out again.png")
        assert pixels("again.png") == pixels(file)


@pytest.mark.parametrize(
    ("stage", "call", "arguments"),
    [
        ("omnigram.train.drawing.best_of", 3, "--batch-size 1"),
        ("omnigram.train.drawing.best_of", 2, "--batch-size 5"),
        ("omnigram.model.codec.Codec.picture", 3, "--batch-size 4"),
        ("omnigram.model.codec.Codec.picture", 3, "--batch-size 4 --separate"),
    ],
)
def test_an_interruption_after_drawing_keeps_what_is_ranked_and_decoded(
    stage: str,
    call: int,
    arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the third picture; ranking takes one, or two, at a call."""
    whole = "sample apple pear -n 2 --best-of 2 --seed 5"
    drawn(f"{whole} --separate --out whole.png")
    module, _, name = stage.rpartition(".")
    calls, plain = itertools.count(1), getattr(pkgutil.resolve_name(module), name)

    def interrupted(*given: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return plain(*given)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(stage, interrupted)
        assert main([*f"{whole} {arguments} --out part.png".split(), "--model", "model"]) == 130
    shown = capsys.readouterr()
    finished = "2 of 4 pictures were finished and saved, 2 more were drawn but not ranked or decoded yet"
    assert shown.err == f"omnigram: interrupted; {finished}\n"
    files = shown.out.split()
    assert files == (["part-1.png", "part-2.png"] if "--separate" in arguments else ["part.png"])
    pictures = [one for file in files for one in record(file)["pictures"]]
    assert pictures == [record(f"whole-{number}.png")["pictures"][0] for number in (1, 2)]
    drawn("again part.png --out again.png" if files == ["part.png"] else "again part-2.png --out again.png")
    assert pixels("again.png") == pixels(files[-1])


def test_large_weights_are_hashed_once_before_drawing_and_a_line_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn("sample apple --out a.png")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("omnigram.train.drawing_files.LARGE", 0)
    told = "omnigram {}: hashing 0.0 GB of weights for the record\n"
    drawn("again a.png")
    assert capsys.readouterr().err == told.format("again")
    monkeypatch.setattr("omnigram.train.drawing.DrawingProgress", Interrupted)  # as soon as the first token is there
    assert main(["sample", "apple", "--model", "model"]) == 130
    assert capsys.readouterr().err.startswith(f"{told.format('sample')}omnigram: interrupted; 0 of 1 pictures")


def test_nothing_half_written_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir())

    def save(self: Image.Image, stream: Any, **options: Any) -> None:
        stream.write(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    assert main(["sample", "apple", "--model", "model"]) == 130
    assert capsys.readouterr().err == "omnigram: interrupted\n"
    assert sorted(os.listdir()) == before
