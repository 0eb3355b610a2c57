"""The text tokenizer of a published model: byte-pair encoding as its `tokenizer.json` has it, for text alone.

Hugging Face's tokenizers: https://github.com/huggingface/tokenizers. Such a file also names tokens that are no text:
marks and codes of pictures. In ordinary use a text in which such a name occurs becomes that token, so a caption can
forge a picture. Here text is written by a copy of the tokenizer in which these tokens do not exist, with their merges,
and without marks added at the ends; every other text gets the ids that the model was trained on.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from .text import REQUIRED, TextTokenizer, check_characters

TEXT_MODEL, TOKENIZER_JSON = "text.model", "tokenizer.json"  # what they are called in the folder of a model
_NO_BYTES = "ÀÁõö÷øùúûüýþÿ"  # how byte-level tokenizers write the bytes that UTF-8 never has


class PublishedText:
    """A tokenizer.json of the BPE kind: ids 0 .. size - 1, of which text is written without the `reserved` ones.

    file: contents of the tokenizer.json.
    reserved: ids that `encode` must not write, on top of the tokens that the file calls special.

    ValueError in one line if it is no such file, or if a reserved token is a character that text needs.
    """

    def __init__(self, file: bytes, reserved: Iterable[int] = ()):
        try:
            parsed = json.loads(file)
            self._tokenizer = Tokenizer.from_buffer(file)
        except Exception as fault:  # the library raises no narrower one
            reason = str(fault).partition("\n")[0]
            raise ValueError(f"not a tokenizer.json of Hugging Face's tokenizers: {reason}") from None
        model, added = parsed["model"], parsed.get("added_tokens") or []
        if "merges" not in model:
            raise ValueError(f"a tokenizer.json of the kind {model.get('type')}; only BPE is supported")
        self.file = file
        self.names: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.reserved = frozenset(reserved) | {token["id"] for token in added if token["special"]}
        self._unknown_id = self.names.get(model.get("unk_token"))
        self._ids = frozenset(self.names.values())
        self._writer = _without(parsed, self.names, self.reserved)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._ids) + 1

    @cached_property
    def identity(self) -> str:
        """sha256 of the file as canonical JSON, in hex: however it is indented, the same tokenizer."""
        canonical = json.dumps(json.loads(self.file), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def digit_ids(self) -> dict[str, int]:
        """Id of each of "0" .. "9" and "*", for the sizes that grammars write. ValueError if one is no token."""
        lacking = [symbol for symbol in REQUIRED if symbol not in self.names]
        if lacking:
            raise ValueError(f"the text tokenizer has no token {lacking[0]!r}, with which a grammar writes sizes")
        return {symbol: self.names[symbol] for symbol in REQUIRED}

    def id(self, token: str) -> int:
        """Id of a token by its exact name, such as "<|image start|>". ValueError if there is none."""
        if token not in self.names:
            raise ValueError(f"the text tokenizer has no token {token!r}")
        return self.names[token]

    def reserving(self, ids: Iterable[int]) -> "PublishedText":
        """This tokenizer with more reserved ids, such as those of a model's image codes."""
        return PublishedText(self.file, self.reserved.union(ids))

    def encode(self, text: str) -> list[int]:
        """Text -> ids, none of them reserved. ValueError for a lone surrogate, and for what has no token."""
        return self._encoding(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; a reserved one gives its name. ValueError for an id that is no token."""
        ids = [int(id_) for id_ in ids]
        foreign = next((id_ for id_ in ids if id_ not in self._ids), None)
        if foreign is not None:
            raise ValueError(f"text id {foreign} is none of the tokenizer's, which lie in 0 .. {self.size - 1}")
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def pieces(self, text: str) -> list[str]:
        """The tokens a text is cut into by their names, for people to look at."""
        return self._encoding(text).tokens

    def save(self, path: str | Path) -> None:
        """Write the file as it was read, to the byte."""
        Path(path).write_bytes(self.file)

    @classmethod
    def load(cls, path: str | Path, reserved: Iterable[int] = ()) -> "PublishedText":
        """Read a tokenizer.json. ValueError if it is none."""
        try:
            return cls(Path(path).read_bytes(), reserved)
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from None

    def _encoding(self, text: str) -> Encoding:
        check_characters(text)
        encoding = self._writer.encode(text, add_special_tokens=False)
        if self._unknown_id in encoding.ids:
            start, end = encoding.offsets[encoding.ids.index(self._unknown_id)]
            raise ValueError(f"text holds {text[start:end]!a} at {start}, for which the tokenizer has no token")
        return encoding

    def __reduce__(self) -> tuple[type["PublishedText"], tuple[bytes, frozenset[int]]]:
        return PublishedText, (self.file, self.reserved)


def load_text_tokenizer(folder: str | Path, reserved: Iterable[int] = ()) -> TextTokenizer | PublishedText:
    """The text tokenizer of a folder: its `text.model`, one of ours, or else its `tokenizer.json`, a published one.

    reserved: ids that a published one must not write. FileNotFoundError in one line if there is neither.
    """
    folder = Path(folder)
    if (folder / TEXT_MODEL).is_file():
        return TextTokenizer.load(folder / TEXT_MODEL)
    if (folder / TOKENIZER_JSON).is_file():
        return PublishedText.load(folder / TOKENIZER_JSON, reserved)
    raise FileNotFoundError(f"{folder} holds no text tokenizer: neither {TEXT_MODEL} nor {TOKENIZER_JSON}")


def _without(parsed: Mapping[str, Any], names: Mapping[str, int], reserved: frozenset[int]) -> Tokenizer:
    """The tokenizer without the tokens of these ids and what they merge into, and without marks at the ends."""
    model = parsed["model"]
    unknown = model.get("unk_token")  # stays, as an alarm, but is not looked for in texts
    # added tokens stand in this table too, or the library would number them anew
    vocab = {token: id_ for token, id_ in names.items() if id_ not in reserved or token == unknown}
    letters = {token for token in model["vocab"] if len(token) == 1 or (model.get("byte_fallback") and _is_byte(token))}
    for letter in sorted(letters - vocab.keys()):
        raise ValueError(f"id {names[letter]} is {letter!r}, of which other text is made; take it out of `reserved`")
    if unknown is None and "ByteLevel" in json.dumps(parsed.get("pre_tokenizer")):
        for letter in sorted(set(ByteLevel.alphabet()) - set(_NO_BYTES) - letters):
            raise ValueError(
                f"the tokenizer has no token for the byte that it writes {letter!r}, so text would be lost"
            )
    prefix = len(model.get("continuing_subword_prefix") or "")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [[a, b] for a, b in merges if a in vocab and b in vocab and a + b[prefix:] in vocab]
    added = [token for token in parsed.get("added_tokens") or [] if token["id"] not in reserved]
    ours = dict.fromkeys(("post_processor", "truncation", "padding"))
    changed = {**parsed, **ours, "added_tokens": added, "model": {**model, "vocab": vocab, "merges": merges}}
    return Tokenizer.from_str(json.dumps(changed))


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
