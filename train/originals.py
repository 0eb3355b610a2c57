"""The pictures that token documents were made from, where their data set is still there."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..data.fitting import Fitting
from ..data.pictures import decode
from ..data.record import DOCUMENTS, read_record
from ..data.shards import read_shard
from ..data.tokens import TokenDataset


def original_pictures(dataset: TokenDataset, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Key -> uint8 picture [H, W, 3] of some documents of the split, fitted as for the image tokenizer.

    FileNotFoundError or ValueError if the data set is not beside the tokens, or is another one by now.
    """
    folder, made_from = source_folder(dataset), dataset.record["made_from"]
    record = read_record(folder, DOCUMENTS)
    if record["identity"] != made_from["dataset"]["identity"]:
        raise ValueError(f"{folder} is not the data set that {dataset.folder} was made from: make the tokens again")
    fitting = Fitting.of(made_from, int(dataset.record["patch"]))
    found: dict[str, np.ndarray] = {}
    for shard in record["splits"][dataset.split]["shards"]:
        for document in read_shard(folder / shard["file"]):
            if document.key in keys:
                data = next(segment.data for segment in document.segments if segment.modality == "image")
                found[document.key] = fitting.shown(decode(data))
    return found


def source_folder(dataset: TokenDataset) -> Path:
    """Where the data set stands from which `make tokens` wrote these tokens beside it; ValueError for an address."""
    if isinstance(dataset.folder, str):
        raise ValueError(f"{dataset.folder} is an address: the data set it was made from is not beside it")
    name = dataset.folder.resolve().name
    return dataset.folder.with_name(name.removesuffix(f"-{dataset.record['tokenizer'][:12]}"))
