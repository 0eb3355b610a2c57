"""Small token data sets for tests, written without any tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omnigram.data.artefact import atomic_write_json, identity
from omnigram.data.document import TokenDocument, TokenSegment
from omnigram.data.record import DATASET, FORMAT_VERSION, TOKENS, VOCABULARY
from omnigram.data.shards import shard_name, write_shard
from omnigram.tokenizers.vocabulary import Vocabulary

DIGITS = {symbol: index for index, symbol in enumerate("0123456789*")}
TEXT_SIZE, CODES = 40, 16


def caption(number: int, length: int = 3, wordings: int = 1) -> TokenSegment:
    """A text that tells its document's number and its wording."""
    texts = [np.array([11 + number % 29, 11 + wording, *[12] * (length - 2)], np.uint16) for wording in range(wordings)]
    return TokenSegment("text", texts[0], tuple(texts[1:]))


def picture(number: int, height: int = 2, width: int = 3) -> TokenSegment:
    return TokenSegment("image", (np.arange(height * width, dtype=np.uint16) + number).reshape(height, width) % CODES)


def captioned(number: int, family: str | None = None, wordings: int = 1, length: int = 3) -> TokenDocument:
    fields = {} if family is None else {"family": family}
    return TokenDocument(f"doc{number:04d}", (caption(number, length, wordings), picture(number)), fields)


def token_folder(folder: Path, shards: Sequence[Sequence[TokenDocument]], split: str = "train") -> Path:
    """A folder as `make tokens` leaves it."""
    vocabulary = Vocabulary.appended(TEXT_SIZE, codebooks={"image": CODES})
    records = []
    for index, documents in enumerate(shards):
        write_shard(folder / shard_name(split, index), documents)
        records.append({"file": shard_name(split, index), "documents": len(documents)})
    (folder / VOCABULARY).write_text(vocabulary.to_json())
    record = {
        "format": TOKENS,
        "format_version": FORMAT_VERSION,
        "identity": identity([[document.key for document in documents] for documents in shards]),
        "vocabulary": vocabulary.identity,
        "digit_ids": DIGITS,
        "splits": {split: {"documents": sum(map(len, shards)), "shards": records}},
    }
    atomic_write_json(folder / DATASET, record)
    return folder
