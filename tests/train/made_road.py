"""The road at its smallest: a folder of made pictures, and the steps as another process runs them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black", "orange", "purple")
SHAPES = ("circle", "square")


def draw_pictures(folder: Path) -> Path:
    """48 captioned pictures of 64 x 64 pixels: colours and shapes at four places."""
    folder.mkdir(parents=True)
    for colour in COLOURS:
        for shape in SHAPES:
            for place in range(4):
                picture = Image.new("RGB", (64, 64), "white")
                pen = ImageDraw.Draw(picture)
                x, y = 8 + 24 * (place % 2), 8 + 24 * (place // 2)
                (pen.ellipse if shape == "circle" else pen.rectangle)((x, y, x + 22, y + 22), fill=colour)
                picture.save(folder / f"{colour}-{shape}-{place}.png")
                (folder / f"{colour}-{shape}-{place}.txt").write_text(f"{colour} {shape} {place}")
    return folder


def overrides(pictures: Path) -> list[str]:
    """The tiny experiment on a folder of pictures."""
    source = ["data=folder", f"data.source.path={pictures}", "data.name=tiny"]
    return ["experiment=tiny", *source, "data.splits.val=0.2", "data.splits.test=0.2", "threads=1"]


def command(step: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "omnigram.train.cli", step, *arguments]


def run(
    step: str, arguments: list[str], folder: Path, memory: int = resource.RLIM_INFINITY
) -> subprocess.CompletedProcess[str]:
    """The step in a process of its own, in `folder`, with so many bytes of memory."""
    return subprocess.run(
        command(step, arguments),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
        timeout=300,
    )
