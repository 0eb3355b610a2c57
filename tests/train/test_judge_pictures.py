"""The pictures that are judged on: folders, data sets, photographs; what a tokenizer is given; faults in one line."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_evaluation import PATCH as WORLD_PATCH
from made_evaluation import world
from made_judged import PATCH, Greys, patches, picture_set, scenes, subject, write_pictures
from PIL import Image

from omnigram.data.fitting import Fitting
from omnigram.tokenizers.preprocessing import CHAMELEON, CHAMELEON_TRANSFORMERS, EMU3
from omnigram.train.judge import photographs
from omnigram.train.judge.picture_sets import read_pictures
from omnigram.train.judge.subject import Subject, _values


def test_a_folder_is_read_in_order_and_thinned_evenly(tmp_path: Path) -> None:
    made = patches(9)
    folder = write_pictures(tmp_path / "deep" / "folder", made)
    (folder / ".hidden").mkdir()
    Image.new("RGB", (32, 32)).save(folder / ".hidden" / "no.png")
    (folder / "notes.txt").write_text("no picture")
    every = read_pictures(str(tmp_path / "deep"), subject(), 100)
    assert every.name == "deep"
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(every.pictures, made, strict=True))
    assert every.notes == []
    some = read_pictures(str(tmp_path / "deep"), subject(), 3)
    assert all(np.array_equal(ours, made[at]) for ours, at in zip(some.pictures, (0, 4, 8), strict=True))
    assert some.record()["count"] == 3
    assert some.record()["identity"] != every.record()["identity"]
    again = read_pictures(str(tmp_path / "deep"), subject(), 3)
    assert again.record() == some.record()


def test_a_data_set_gives_its_held_out_split(tmp_path: Path) -> None:
    world(tmp_path / "made")
    judged = Subject(tmp_path, Greys(), Fitting(WORLD_PATCH, 2 * WORLD_PATCH))
    found = read_pictures(str(tmp_path / "made"), judged, 100)
    assert (found.name, len(found.pictures)) == ("made-test", 4)  # two concepts in two styles
    assert found.record()["split"] == "test"
    some = read_pictures(str(tmp_path / "made"), judged, 2)
    assert np.array_equal(some.pictures[1], found.pictures[3])


def test_pictures_of_several_sizes_are_batched_by_size() -> None:
    found = picture_set([*patches(3, 32), *patches(2, 16), *patches(2, 32, seed=1)])
    assert [tuple(batch.shape[:2]) for batch in found.batches(4)] == [(4, 32), (1, 32), (2, 16)]


def test_enlarged_pictures_are_told(tmp_path: Path) -> None:
    write_pictures(tmp_path / "small", [*patches(1, 16), *patches(1, 64)])
    [note] = read_pictures(str(tmp_path / "small"), subject(32), 9).notes
    assert note.startswith("1 of 2 pictures are smaller than the tokenizer's and were enlarged: lower evaluate.resol")


def empty(folder: Path) -> None:
    folder.mkdir()


def tiny(folder: Path) -> None:
    write_pictures(folder, [np.zeros((8, 8, 3), np.uint8)])


def broken(folder: Path) -> None:
    write_pictures(folder, patches(1))
    (folder / "111.png").write_bytes((folder / "000.png").read_bytes()[:70])


def nan(folder: Path) -> None:
    folder.mkdir()
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(folder / "a.tiff")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "evaluate.pictures=given is no folder: name one of pictures, a data set, or photographs"),
        (empty, "evaluate.pictures=given holds no pictures (.png, "),
        (tiny, "given/000.png: a picture of 8 x 8 pixels is smaller than one code of 16 pixels"),
        (broken, "given/111.png: picture cannot be decoded: "),
        (nan, "given/a.tiff: picture cannot be decoded: its pixels are floating-point numbers of unknown range"),
    ],
)
def test_what_cannot_be_judged_is_told(make, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Greys, "patch", 16)
    make(tmp_path / "given")
    with pytest.raises((ValueError, OSError)) as caught:
        read_pictures("given", Subject(tmp_path, Greys(), Fitting(16, 32)), 9)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made packages with photographs of 40 x 100 pixels."""
    for number, (package, (place, names)) in enumerate(photographs.FILES.items()):
        made = write_pictures(folder / package / place, [scenes(1, 100, number)[0][:40]])
        for name in names:
            with Image.open(made / "000.png") as picture:
                picture.save(made / name)
        (folder / package / "__init__.py").write_text("raise ImportError('is not to be imported')")
    real = importlib.util.find_spec
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])

    def found(name: str, package: str | None = None):
        if name not in photographs.FILES:
            return real(name, package)
        return importlib.util.spec_from_file_location(
            name, folder / name / "__init__.py", submodule_search_locations=[str(folder / name)]
        )

    monkeypatch.setattr(photographs.importlib.util, "find_spec", found)


def test_photographs_are_cut_into_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(tmp_path, monkeypatch)
    number = sum(len(names) for _, names in photographs.FILES.values())
    assert number == 15
    whole = photographs.photograph_tiles(16)  # two along the shorter side, reduced from 40 to 32 pixels: 2 x 5
    assert (len(whole), {tile.size for tile in whole}) == (10 * number, {(16, 16)})
    assert len(photographs.photograph_tiles(8)) == 4 * 10 * number
    with pytest.raises(ValueError, match=r"no photograph has a side of 48 pixels: lower evaluate\.resolution="):
        photographs.photograph_tiles(48)
    found = read_pictures("photographs", subject(16), 20)
    assert (found.name, len(found.pictures)) == ("photographs", 20)


def test_a_missing_package_of_photographs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "FILES", {"no_such_package": ("data", ("a.png",))})
    with pytest.raises(FileNotFoundError, match=r"no_such_package is not installed: pip install 'omnigram\[photogr"):
        photographs.photograph_tiles(64)


def test_the_packaged_photographs_are_there() -> None:
    for package in ("skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    tiles = photographs.photograph_tiles(64)
    assert len(tiles) > 200
    assert all(tile.size == (64, 64) and tile.mode == "RGB" for tile in tiles)
    assert len({tile.tobytes() for tile in tiles}) == len(tiles)


@pytest.mark.parametrize("published", [CHAMELEON, CHAMELEON_TRANSFORMERS, EMU3], ids=["meta", "transformers", "emu3"])
def test_a_published_preprocessing_is_split_into_size_and_values(published) -> None:
    if published.crop is not None:
        published = dataclasses.replace(published, side=32, crop=(32, 32))
    else:
        published = dataclasses.replace(published, min_pixels=1024, max_pixels=2048)
    photograph = Image.fromarray(scenes(1, 80)[0][:60])
    fitting = Fitting(PATCH, preprocessing=published)
    seen: list[torch.Tensor] = []

    class Seeing(Greys):
        def _ids(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels)
            return super()._ids(pixels)

    judged = Subject(Path("published"), Seeing().eval(), fitting, _values(published))
    shown = torch.from_numpy(np.array(fitting.shown(photograph)))[None]
    codes = judged.encode(shown)
    assert torch.equal(seen[0][0], published(photograph)), "as `omnigram tokens` gives it"
    drawn = judged.decode(codes)
    expected = published.invert(judged.tokenizer.decode(codes)[0])
    assert np.array_equal(drawn[0].numpy(), np.array(expected))
    assert judged.side in (32, 45)
