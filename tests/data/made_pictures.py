"""Small pictures and folders of them for the tests of data/."""

import io
import tarfile
from typing import Literal

from omegaconf import OmegaConf
from PIL import Image


def picture(colour: str | tuple[int, int, int] = "red", kind="PNG", size=(16, 16)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def fill_folder(folder, count, start=0):
    """`count` captioned pictures, each of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (folder / f"{i:03d}.png").write_bytes(picture((i, 255 - i, 100)))
        (folder / f"{i:03d}.txt").write_text(f"picture number {i}\n")
    return folder


def tar_of(path, members, mode: Literal["w", "w:gz"] = "w"):
    """A tar of (name, bytes) pairs."""
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def data_config(path, folder, **changes):
    """The configuration of `make data` for a folder of pictures."""
    source = {"_target_": "omnigram.data.sources.folder.FolderSource", "path": str(path)}
    splits = {"_target_": "omnigram.data.splits.Splits", "val": 0.2, "test": 0.2}
    data = {"name": "made", "folder": str(folder), "samples_per_shard": 10, "source": source, "splits": splits}
    config = OmegaConf.create({"data": data})
    config.merge_with({"data": changes})
    return config
