"""Two token shards with their checksums, what can still be read of them, and where a member of a tar lies."""

import hashlib
import json
import tarfile
from pathlib import Path

from made_tokens import captioned, token_folder

from omnigram.data.record import DATASET
from omnigram.data.remote import Network
from omnigram.data.shards import DamagedSample
from omnigram.data.tokens import TokenDataset

QUICK = Network(attempts=3, timeout=1.0, pause=0.01)
DOCUMENTS = 6  # of a shard; there are two
KEYS = [f"doc{number:04d}" for number in range(2 * DOCUMENTS)]


def checked_folder(folder: Path) -> Path:
    """A token data set of two shards, with their checksums."""
    shards = [[captioned(6 * s + n, f"family {n % 2}") for n in range(DOCUMENTS)] for s in range(2)]
    return with_checksums(token_folder(folder, shards))


def with_checksums(folder: Path) -> Path:
    record = json.loads((folder / DATASET).read_text())
    for shard in record["splits"]["train"]["shards"]:
        shard["sha256"] = hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest()
    (folder / DATASET).write_text(json.dumps(record))
    return folder


def state(dataset: TokenDataset) -> list[str]:
    """Of each document its key, or why it is damaged."""
    found = []
    for index in range(len(dataset)):
        try:
            found.append(dataset[index].key)
        except DamagedSample as damage:
            found.append(damage.reason)
            told_where = "train-000000.tar" in damage.shard and str(damage).startswith(damage.shard)
        else:
            continue
        assert told_where
    return found


def member(path: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(path) as archive:
        return archive.getmember(name)
