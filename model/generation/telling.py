"""What has happened to a row since it was told last, as events."""

from collections.abc import Iterator

import numpy as np

from .events import BlockRows, Event, Finished, Tokens
from .prompts import Writer
from .row import Row

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Teller:
    """Tells the events of one row, from where its prompt ended."""

    def __init__(self, row: Row, writer: Writer) -> None:
        self._row, self._writer = row, writer
        self._ids, self._blocks, self._rows = row.given, len(row.spans), 0
        if row.block is not None:  # begun by the prompt, or forced at once
            self._rows = self._whole_rows() if row.block.start < row.given else 0
        self._characters = len(row.text(row.given))
        self._text_of = len(row.spans)  # number of blocks before the text that is being told

    def tell(self) -> Iterator[Event]:
        row = self._row
        if new := tuple(row.ids[self._ids :]):
            self._ids = len(row.ids)
            yield Tokens(row.number, new, self._new_text())
        while self._blocks < len(row.spans):
            yield self._whole(*row.spans[self._blocks])
            self._blocks, self._rows = self._blocks + 1, 0
        if row.block is not None and self._whole_rows() > self._rows:
            self._rows = self._whole_rows()
            height, width = row.block_state.sizes
            codes = self._writer.grammar.vocabulary.decode(row.block.modality, row.codes[: self._rows * width])
            yield BlockRows(
                row.number, row.block.number, row.block.modality, codes.reshape(self._rows, width), (height, width)
            )
        if row.done:
            yield Finished(row.number, row.sample())

    def _new_text(self) -> str:
        """Text that has not been told; a stop word and what comes with it is not, but for what was told before."""
        row = self._row
        if self._text_of != len(row.spans):
            self._text_of, self._characters = len(row.spans), 0
        text = row.text()[: row.cut].rstrip(_BROKEN)
        told, self._characters = self._characters, max(self._characters, len(text))
        return text[told:]

    def _whole_rows(self) -> int:
        """Rows of codes that the open block has; 0 while its size is open, and with three axes."""
        row = self._row
        if row.layout is None or len(row.block_state.sizes) != 2:
            return 0
        return row.layout[2] // row.block_state.sizes[1]

    def _whole(self, start: int, end: int) -> BlockRows:
        ids = np.array(self._row.ids[start:end], dtype=np.int64)
        modality = self._writer.grammar.begun_by(int(ids[0]))
        assert modality is not None
        codes = self._writer.grammar.blocks[modality].read(ids)
        return BlockRows(self._row.number, self._blocks, modality, codes, codes.shape)
