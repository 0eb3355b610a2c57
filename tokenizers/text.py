"""The text tokenizer: byte-pair encoding by SentencePiece that keeps every character.

SentencePiece: https://arxiv.org/abs/1808.06226. Identity normalisation, no dummy prefix and byte fallback make
`decode(encode(text)) == text` for any Unicode string, with NUL, line ends and runs of spaces. SentencePiece writes a
space as U+2581; a U+2581 of the text itself is written as bytes.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import sentencepiece

REQUIRED = "0123456789*"  # one piece each: grammars write sizes with them
_SPACE = "\u2581"
# SentencePiece drops whole training texts that hold its own marks (tab, U+2585) or more bytes than its limit
_BREAKS = re.compile("[\0\t\r\n\u2581\u2585]+")
_MAX_CHARACTERS = 1000


class TextTokenizer:
    """A trained SentencePiece model: ids 0 .. size - 1, of which 0 (unknown) is never written and 256 are bytes."""

    def __init__(self, model: bytes):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError):
            model = b""  # as bad as none, which SentencePiece takes
        if not model:
            raise ValueError("not a SentencePiece model")
        self.model = model
        self._space_bytes = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        if not all(self._processor.is_byte(id_) for id_ in self._space_bytes):
            raise ValueError("the SentencePiece model has no byte pieces; train it with byte_fallback")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, character_coverage: float = 0.9995) -> "TextTokenizer":
        """Learn at most `vocab_size` pieces; the same texts give the same bytes.

        A corpus too small for so many gives fewer, with a warning. Characters beyond `character_coverage` of all that
        occur are written as bytes. ValueError if `vocab_size` cannot hold the characters and the 256 bytes.
        """
        least = 1 + 256 + len(REQUIRED)
        if vocab_size < least:
            raise ValueError(f"text.vocab_size={vocab_size} cannot hold the bytes and digits; set {least} or more")
        if not 0.98 <= character_coverage <= 1:  # SentencePiece takes no less, and never ends with more
            raise ValueError(f"text.character_coverage={character_coverage} must be from 0.98 to 1")
        lines, model = list(_training_lines(texts)), io.BytesIO()
        if not lines:
            raise ValueError("the corpus of the text tokenizer holds no text")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=character_coverage,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_digits=True,
                required_chars=REQUIRED,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as fault:
            reason = str(fault).rpartition("] ")[2].partition("\n")[0]  # behind the source line of SentencePiece
            needed = re.search(r"required_chars\. \d+ vs (\d+)", reason)
            if needed:
                reason = f"the corpus has too many characters; set {needed[1]} or more"
            raise ValueError(f"no text tokenizer with text.vocab_size={vocab_size}: {reason}") from None
        tokenizer = cls(model.getvalue())
        if tokenizer.size < vocab_size:
            warnings.warn(
                f"the corpus gives {tokenizer.size} text pieces, fewer than vocab_size={vocab_size}", stacklevel=2
            )
        return tokenizer

    @property
    def size(self) -> int:
        """Number of ids; at most the `vocab_size` asked for."""
        return self._processor.vocab_size()

    @cached_property
    def identity(self) -> str:
        """sha256 of the model file, in hex."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def digit_ids(self) -> dict[str, int]:
        """Id of each of "0" .. "9" and "*", for the sizes that grammars write."""
        return {symbol: self._processor.piece_to_id(symbol) for symbol in REQUIRED}

    def encode(self, text: str) -> list[int]:
        """Text -> ids. ValueError for a lone surrogate, which is no character."""
        check_characters(text)
        first, *others = [self._processor.encode(part) for part in text.split(_SPACE)]
        ids = list(first)
        for part in others:
            ids += [*self._space_bytes, *part]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Bytes that are no UTF-8, which `encode` never writes, become U+FFFD.

        ValueError for an id outside 0 .. size - 1.
        """
        ids = [int(id_) for id_ in ids]
        if ids and (min(ids) < 0 or max(ids) >= self.size):
            id_ = next(id_ for id_ in ids if not 0 <= id_ < self.size)
            raise ValueError(f"text id {id_} is outside 0 .. {self.size - 1}")
        return self._processor.decode(ids)

    def pieces(self, text: str) -> list[str]:
        """The pieces a text is cut into, for people to look at."""
        return [self._processor.id_to_piece(id_) for id_ in self.encode(text)]

    def save(self, path: str | Path) -> None:
        """Write the model file, the format of SentencePiece itself."""
        Path(path).write_bytes(self.model)

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Read a model file. ValueError if it is none."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from None

    def __reduce__(self) -> tuple[type["TextTokenizer"], tuple[bytes]]:
        return TextTokenizer, (self.model,)


def check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise ValueError(f"text holds {text[fault.start]!a} at {fault.start}, which is no character") from None


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        check_characters(text)
        for line in _BREAKS.split(text):
            yield from (line[start : start + _MAX_CHARACTERS] for start in range(0, len(line), _MAX_CHARACTERS))
