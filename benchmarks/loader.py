"""The loader: ours with all it does, against plain webdataset on the same shards of tokens.

Ours orders, mixes two data sets by weights that change, draws kinds of documents and wordings, writes them by the
grammar, packs them into full rows, and carries with each batch the state to resume from. The peer is what
webdataset's own documentation begins with: shuffled shards and a shuffle buffer, decoded samples, batches of as many
documents, padded to the longest. Both begin each round where they stopped, and read shards that are not all in memory.
`ours` and `peer` work in this process when asked; the second pair has `--workers` processes each, ours as
`loader.workers`, the peer as those of torch's DataLoader, both with two batches ahead for each of them.

Dimensions: B documents of a batch, L codes of the longest.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from timing.rounds import digits, in_turns, parser, positive, report
from torch import Tensor
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset

from omnigram.data.document import TokenDocument, TokenSegment
from omnigram.data.loader import Loader
from omnigram.data.mixture import Mixture, Source
from omnigram.data.packing import PackedBatch
from omnigram.data.record import DATASET, FORMAT_VERSION, TOKENS, VOCABULARY
from omnigram.data.shards import shard_name, write_shard
from omnigram.data.stream import LoaderConfig
from omnigram.data.tokens import TokenDataset
from omnigram.tokenizers.vocabulary import Vocabulary

TEXT, CODES, SIDE = 2048, 1024, 8  # of the default data
KINDS = {"words_to_picture": 0.84, "picture_to_words": 0.1, "page": 0.04, "text": 0.02}
SHARDS, DOCUMENTS, FAMILY = 16, 250, 25  # of each of two data sets, of a shard, of a family
ROWS, LENGTH = 4, 2048
BATCH = 88  # documents that the rows hold, about


def made_tokens(folder: Path, seed: int) -> TokenDataset:
    """A data set of captioned pictures as `omnigram tokens` leaves it, of random codes."""
    random = np.random.default_rng(seed)
    vocabulary = Vocabulary.appended(TEXT, codebooks={"image": CODES})
    shards = []
    for index in range(SHARDS):
        documents = []
        for number in range(DOCUMENTS):
            caption = random.integers(0, TEXT, random.integers(3, 10), dtype=np.uint16)
            picture = random.integers(0, CODES, (SIDE, SIDE), dtype=np.uint16)
            segments = (TokenSegment("text", caption), TokenSegment("image", picture))
            fields = {"family": str(number // FAMILY), "concept": f"concept {number}", "style": "made"}
            documents.append(TokenDocument(f"{index:03d}{number:05d}", segments, fields, "made", "CC0-1.0"))
        write_shard(folder / shard_name("train", index), documents)
        shards.append({"file": shard_name("train", index), "documents": len(documents)})
    (folder / VOCABULARY).write_text(vocabulary.to_json())
    record = {
        "format": TOKENS,
        "format_version": FORMAT_VERSION,
        "name": folder.name,
        "identity": folder.name,
        "vocabulary": vocabulary.identity,
        "digit_ids": {symbol: index for index, symbol in enumerate("0123456789*")},
        "splits": {"train": {"documents": SHARDS * DOCUMENTS, "shards": shards}},
    }
    (folder / DATASET).write_text(json.dumps(record))
    return TokenDataset(folder, "train")


def ours(folders: Sequence[Path], workers: int) -> Iterator[PackedBatch]:
    first, second = (TokenDataset(folder, "train") for folder in folders)
    mixture = Mixture([Source("first", first, ((0, 1.0), (10**6, 0.5))), Source("second", second)])
    config = LoaderConfig(ROWS, LENGTH, kinds=KINDS, prefetch=2 * workers, workers=workers, partitioned=True)
    return iter(Loader(mixture, mixture.grammar(), config))


def collated(samples: Sequence[tuple[dict[str, Any], np.ndarray]]) -> tuple[list[dict[str, Any]], Tensor]:
    """The JSON of B samples and their codes [B, L], padded with -1."""
    codes = [torch.from_numpy(codes.astype(np.int64)) for _, codes in samples]
    return [head for head, _ in samples], torch.nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=-1)


def peer(folders: Sequence[Path], workers: int) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    shards = [str(path) for folder in folders for path in sorted(folder.glob("*.tar"))]
    samples = WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000).decode()
    batches = samples.to_tuple("json", "codes.npy").batched(BATCH, collation_fn=collated)
    batches = batches.repeat()  # pyright: ignore[reportAttributeAccessIssue] - it stays the WebDataset
    ahead = {"prefetch_factor": 2, "multiprocessing_context": "spawn"} if workers else {}
    return iter(DataLoader(batches, batch_size=None, num_workers=workers, **ahead))


def main(arguments: Sequence[str] | None = None) -> None:
    made = options()
    args = made.parse_args(arguments)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root, name) for name in ("first", "second")]
        for seed, folder in enumerate(folders):
            made_tokens(folder, seed)
        packed = {"ours": ours(folders, 0), "ours_processes": ours(folders, args.workers)}
        padded = {"peer": peer(folders, 0), "peer_processes": peer(folders, args.workers)}
        filled = [0, 0]

        def ours_step(name: str) -> float:
            batch = next(packed[name])
            filled[0], filled[1] = filled[0] + batch.num_tokens, filled[1] + batch.ids.numel()
            return len(batch.sources)

        contestants = {
            "ours": lambda step: ours_step("ours"),
            "peer": lambda step: len(next(padded["peer"])[0]),
            "ours_processes": lambda step: ours_step("ours_processes"),
            "peer_processes": lambda step: len(next(padded["peer_processes"])[0]),
        }
        rates = in_turns(contestants, args.rounds, args.steps)
        for batches in packed.values():
            batches.close()  # pyright: ignore[reportAttributeAccessIssue]
        padded.clear()  # ends the peer's processes
    print(f"loading {2 * SHARDS} shards of {DOCUMENTS} documents, about {BATCH} documents a step")
    what = {
        "ours": f"mixed, composed, written and packed, {1 - filled[0] / filled[1]:.2%} pads",
        "peer": f"webdataset {webdataset.__version__}, shuffled, decoded, padded",
    }
    report(made.prog, args, rates, "documents", what)
    with_workers = {name: median(rates[f"{name}_processes"]) for name in ("ours", "peer")}
    print(
        f"workers  {digits(with_workers['ours'])} against {digits(with_workers['peer'])} documents/s with "
        f"{args.workers} processes each: {digits(with_workers['ours'] / with_workers['peer'])}"
    )


def options() -> argparse.ArgumentParser:
    made = parser("loader.py", __doc__, rounds=5, steps=60)
    made.add_argument("--workers", type=positive, default=2, metavar="N", help="processes of the second pair")
    return made


if __name__ == "__main__":
    main()
