"""The whole evaluation: perfect on a sampler that knows, complete on a random model, plain about what is missing."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_evaluation import NAMES, PATCH, STYLES, Palette, codes_of, oracle, tiny, world
from PIL import Image
from rich.console import Console

from omnigram.train import picture_features, pretrain_metrics
from omnigram.train.pretrain_metrics import EvaluationSettings, evaluate_pretraining
from omnigram.train.retrieval import pixels_16

PROMISED = {  # the contract of metrics.json, and what makes it readable
    *("bits_per_picture", "bits_per_picture_shuffled_captions", "bits_per_picture_train", "bits_per_character"),
    *("bits_per_picture_train_shuffled_captions", "bits_first_code", "bits_first_code_train", "codes_per_picture"),
    *("own_caption_wins", "own_caption_wins_train"),
    *("retrieval_top1_train", "retrieval_top5_train", "retrieval_ceiling", "retrieval_chance"),
    *("retrieval_top1_heldout_style", "retrieval_top5_heldout_style", "retrieval_queries", "retrieval_gallery"),
    *("caption_exact_train", "caption_exact_heldout_style", "caption_f1_train", "caption_f1_heldout_style"),
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("world") / "made")


@pytest.fixture
def pixels_as_features(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pixels:
        __call__ = pooled = staticmethod(pixels_16)

    monkeypatch.setattr(pretrain_metrics, "PictureFeatures", lambda device: Pixels())


@pytest.mark.usefixtures("pixels_as_features")
def test_a_model_that_knows_everything(tokens: Path) -> None:
    told = io.StringIO()
    numbers = evaluate_pretraining(oracle(), tokens, console=Console(file=told))
    for name in ("retrieval_top1_train", "retrieval_top5_train", "retrieval_ceiling", "caption_exact_train"):
        assert numbers[name] == 1, name
    for name in ("caption_f1_train", "caption_exact_heldout_style", "caption_f1_heldout_style"):
        assert numbers[name] == 1, name
    # ten pictures to find: four concepts in both styles, two in one
    assert numbers["retrieval_chance"] == pytest.approx((8 * 2 / 10 + 2 * 1 / 10) / 10)
    assert (numbers["retrieval_gallery"], numbers["retrieval_queries"]) == (10, 10)
    # asked in one style, found in the other one: the only picture of its concept there is
    assert numbers["retrieval_top1_heldout_style"] == numbers["retrieval_ceiling_heldout_style"] == 1
    assert numbers["retrieval_chance_heldout_style"] == pytest.approx(1 / 10)
    assert numbers["bits_per_picture_split"] == "heldout_style"
    assert told.getvalue() == ""


@pytest.mark.usefixtures("pixels_as_features")
def test_a_model_that_takes_one_thing_for_another(tokens: Path) -> None:
    wrong = {f"{NAMES[0]}, {style}": f"{NAMES[1]}, {style}" for style in STYLES}
    numbers = evaluate_pretraining(oracle(wrong), tokens)
    assert numbers["retrieval_top1_train"] == pytest.approx(8 / 10)
    assert numbers["retrieval_top1_heldout_style"] == 1


@pytest.mark.usefixtures("pixels_as_features")
def test_every_promised_number_of_a_random_model(tokens: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(queries=6, page=4, batch_size=3)
    numbers = evaluate_pretraining(tiny(), tokens, settings, out=tmp_path)
    assert numbers.keys() >= PROMISED
    assert all(isinstance(numbers[name], int | float) for name in PROMISED)
    assert numbers["retrieval_queries"] == 6
    assert numbers["codes_per_picture"] == 4
    assert 0 < numbers["bits_first_code_train"] < numbers["bits_per_picture_train"]
    assert 0 <= numbers["retrieval_top1_train"] <= numbers["retrieval_top5_train"] <= 1
    assert json.loads(json.dumps(numbers)) == numbers
    again = evaluate_pretraining(tiny(), tokens, settings)
    del numbers["evaluation_seconds"], again["evaluation_seconds"]
    assert numbers == again


def test_the_pages_show_samples_and_true_pictures(tokens: Path, tmp_path: Path) -> None:
    evaluate_pretraining(oracle(), tokens, EvaluationSettings(features=False, page=4), out=tmp_path)
    with Image.open(tmp_path / "samples.png") as samples, Image.open(tmp_path / "samples_heldout.png") as heldout:
        assert samples.width == heldout.width > 4 * 100  # four pictures each: two pairs in the second
        shown = np.array(heldout.convert("L")).astype(int)
    patches = Palette().decode(torch.from_numpy(codes_of(NAMES[4], STYLES[0]))[None])[0, 0, ::PATCH, ::PATCH]
    for grey in (patches.flatten() + 1) * 127.5:  # 64 x 64 pixels each, in the sample at least
        assert (abs(shown - float(grey)) < 2).sum() >= 64 * 64


def test_what_is_missing_is_none_and_said(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Path(shutil.copytree(tokens, tmp_path / tokens.name))  # without the pictures
    monkeypatch.setattr(picture_features, "MODEL", "no_such_model")
    told = io.StringIO()
    numbers = evaluate_pretraining(oracle(), alone, out=tmp_path / "out", console=Console(file=told, width=80))
    assert numbers["retrieval_top1_train"] == 1
    assert numbers["retrieval_ceiling"] is None
    assert numbers["retrieval_top1_heldout_style"] is None
    lines = told.getvalue().splitlines()
    assert len(lines) == 2
    assert "no_such_model is not installed" in lines[0]
    assert "dataset.json is missing" in lines[1]
    assert (tmp_path / "out" / "samples_heldout.png").exists()


def test_tokens_without_held_out_splits(tokens: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tokens, tmp_path / "bare"))
    record = json.loads((bare / "dataset.json").read_text())
    record["splits"] = {"train": record["splits"]["train"]}
    (bare / "dataset.json").write_text(json.dumps(record))
    numbers = evaluate_pretraining(oracle(), bare, out=tmp_path / "out", console=Console(file=io.StringIO()))
    assert (
        numbers["bits_per_picture"] is numbers["bits_per_picture_split"] is numbers["caption_f1_heldout_style"] is None
    )
    assert numbers["retrieval_top1_train"] == 1
    assert not (tmp_path / "out" / "samples_heldout.png").exists()


def test_tokens_of_another_vocabulary_are_refused(tokens: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tokens, tmp_path / "other"))
    record = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**record, "vocabulary": "0" * 64}))
    with pytest.raises(ValueError, match="not written with the vocabulary of the model"):
        evaluate_pretraining(tiny(), other)
    with pytest.raises(ValueError, match=r"evaluation\.page=0"):
        EvaluationSettings(page=0)
