"""Documents of random ids, of the kinds and lengths of the default data: packed in rows, or dense."""

from collections.abc import Iterator, Sequence

import numpy as np
from omegaconf import DictConfig

from omnigram.data.document import TokenDocument, TokenSegment
from omnigram.data.kinds import Composer
from omnigram.data.packing import WrittenDocument, fullest
from omnigram.data.writing import Writer
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.networks import network_config
from omnigram.tokenizers.vocabulary import Vocabulary

# tokens of a caption with its style, and how many of the embedded picture dictionary's captions are so long
CAPTION_TOKENS, CAPTION_SHARES = range(3, 11), (0.06, 0.29, 0.29, 0.18, 0.10, 0.05, 0.02, 0.01)
FAMILY = 32  # pictures among which a page finds its companions


class MadeLibrary:
    """Captioned pictures of random codes, made when asked for: what a data set of tokens would give."""

    def __init__(self, vocabulary: Vocabulary, side: int) -> None:
        self.text, self.codes, self.side = vocabulary.range("text").size, vocabulary.range("image").size, side

    def __len__(self) -> int:
        return 100 * FAMILY

    def __getitem__(self, index: int) -> TokenDocument:
        random = np.random.default_rng(index)
        caption = random.integers(0, self.text, random.choice(CAPTION_TOKENS, p=CAPTION_SHARES))
        picture = random.integers(0, self.codes, (self.side, self.side))
        return TokenDocument(f"made{index}", (TokenSegment("text", caption), TokenSegment("image", picture)))

    def relatives(self, index: int) -> Sequence[int]:
        first = index - index % FAMILY
        return [number for number in range(first, first + FAMILY) if number != index]


def made_documents(vocabulary: Vocabulary, config: DictConfig, steps: int) -> list[list[list[WrittenDocument]]]:
    """For each step R rows of documents, chosen as the loader chooses them."""
    written = _written(vocabulary, config)
    waiting: list[WrittenDocument] = []
    rows: list[list[WrittenDocument]] = []
    while len(rows) < steps * config.loader.rows:
        while len(waiting) < config.loader.lookahead:
            waiting.append(next(written))
        chosen = fullest([len(document) for document in waiting], config.loader.length)
        rows.append([waiting[index] for index in chosen])
        waiting = [document for index, document in enumerate(waiting) if index not in chosen]
    return [rows[start : start + config.loader.rows] for start in range(0, len(rows), config.loader.rows)]


def dense_rows(vocabulary: Vocabulary, config: DictConfig, steps: int) -> list[list[list[WrittenDocument]]]:
    """For each step R rows that are one document each: the same documents laid end to end, cut where a row is full."""
    written, length = _written(vocabulary, config), config.loader.length
    needed = steps * config.loader.rows
    ids, free = np.empty(0, np.int64), np.empty(0, bool)
    while len(ids) < needed * length:
        some = [next(written) for _ in range(64)]
        ids = np.concatenate([ids, *(document.ids for document in some)])
        free = np.concatenate([free, *(document.free for document in some)])
    ends = [(start, start + length) for start in range(0, needed * length, length)]
    rows = [[WrittenDocument(ids[start:end], free[start:end], index)] for index, (start, end) in enumerate(ends)]
    return [rows[start : start + config.loader.rows] for start in range(0, needed, config.loader.rows)]


def _written(vocabulary: Vocabulary, config: DictConfig) -> Iterator[WrittenDocument]:
    patch = network_config(config.tokenizer.network).patch
    library = MadeLibrary(vocabulary, config.tokenizer.pictures.resolution // patch)
    composer = Composer(library, config.loader.kinds, config.loader.caption_dropout, config.seed)
    digit_ids = {symbol: index for index, symbol in enumerate("0123456789*")}
    writer = Writer(document_grammar(vocabulary, digit_ids), config.loader.length)
    number = 0
    while True:
        yield from writer.write(composer.compose(0, number % len(library)).segments, number).pieces
        number += 1
