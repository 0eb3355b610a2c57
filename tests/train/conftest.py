"""Tests of training run on one thread; a folder to draw in, for those that ask."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_export import made_export
from PIL import Image


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exports `model`, `other` with other weights, and `foreign` of another image tokenizer."""
    folder = tmp_path_factory.mktemp("exports")
    made_export(folder / "model")
    made_export(folder / "other", seed=1)
    made_export(folder / "foreign", image_seed=1)
    return folder


@pytest.fixture
def there(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, but for links to the exports and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)
    for folder in exports.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)).save("shown.png")
