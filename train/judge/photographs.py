"""Photographs that come inside installed packages, cut into square tiles: a set of natural pictures without a download.

matplotlib is there anyway; scikit-image and scikit-learn are the extra `photographs`. Their files are read, and nothing
of them is imported.
"""

import importlib.util
import math
from pathlib import Path

from PIL import Image

from ...data.pictures import decode

PHOTOGRAPHS = "photographs"
# package: its folder, and the photographs in it; drawings, scans of text and near-duplicates are left out
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "skimage": (
        "data",
        (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"),
            *("gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg"),
        ),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "matplotlib": ("mpl-data/sample_data", ("grace_hopper.jpg",)),
}
TILES = 4  # along the shorter side of a photograph, where it is large enough


def photograph_tiles(side: int) -> list[Image.Image]:
    """Tiles of side x side pixels, of every photograph in turn; each photograph is first reduced, never enlarged.

    A photograph is reduced so that 4 tiles lie along its shorter side, or as many as it holds; the border that is left
    over is cut off evenly. FileNotFoundError if a package is not installed; ValueError if no photograph is so large.
    """
    tiles: list[Image.Image] = []
    for path in _paths():
        tiles += _tiles(decode(path.read_bytes()), side)
    if not tiles:
        raise ValueError(f"no photograph has a side of {side} pixels: lower evaluate.resolution=, or name a folder")
    return tiles


def _tiles(photograph: Image.Image, side: int) -> list[Image.Image]:
    short = min(photograph.size)
    along = min(TILES, short // side)
    if along == 0:
        return []
    scale = along * side / short
    width, height = (max(along * side, math.floor(length * scale)) for length in photograph.size)
    small = photograph.resize((width, height), Image.Resampling.LANCZOS)
    left, top = width % side // 2, height % side // 2
    return [
        small.crop((x, y, x + side, y + side))
        for y in range(top, height - side + 1, side)
        for x in range(left, width - side + 1, side)
    ]


def _paths() -> list[Path]:
    paths = []
    for package, (folder, names) in FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the package {package} is not installed: pip install 'omnigram[photographs]'")
        base = Path(next(iter(spec.submodule_search_locations))) / folder
        for name in names:
            if not (base / name).is_file():
                raise FileNotFoundError(f"{base / name} is missing: pip install 'omnigram[photographs]'")
            paths.append(base / name)
    return paths
