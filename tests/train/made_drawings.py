"""Pictures drawn by the commands, and what their files hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from omnigram.train.cli import main


def pixels(file: str | Path) -> list[Any]:
    with Image.open(file) as picture:
        return np.array(picture.convert("RGB")).tolist()


def record(file: str | Path) -> dict[str, Any]:
    with Image.open(file) as picture:
        assert isinstance(picture, PngImageFile)
        inside = json.loads(picture.text["omnigram"])
    assert inside == json.loads(Path(file).with_suffix(".json").read_text())
    return inside


def drawn(arguments: str) -> None:
    assert main([*arguments.split(), "--model", "model"]) == 0
