"""The registry of modalities: how the blocks of each are written among the tokens of a document.

Vocabulary, grammar, packing, loss and sampling know a modality by its record alone. The codebook size is that of its
tokenizer, the loss weight a setting (`loss.weights`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .document_grammar import DocumentGrammar
from .grammar import BlockGrammar
from .vocabulary import TEXT, Vocabulary


@dataclass(frozen=True)
class Modality:
    """What the rest of the code has to know of a kind of signal."""

    name: str
    grammar: BlockGrammar | None  # how a block of codes is written; None: bare ids, as text is

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"modality name {self.name!r} must be a plain word")


MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> Modality:
    """Add a modality under its name. ValueError if another one has it."""
    if MODALITIES.setdefault(modality.name, modality) != modality:
        raise ValueError(f"modality {modality.name!r} is registered already, as {MODALITIES[modality.name]}")
    return modality


register(Modality(TEXT, None))
register(Modality("image", BlockGrammar()))


def block_grammars(
    vocabulary: Vocabulary, grammars: Mapping[str, BlockGrammar] | None = None
) -> dict[str, BlockGrammar]:
    """The block grammar of each modality of a vocabulary; `grammars`, by name, go before registered ones."""
    found = {}
    for name in vocabulary.modalities[1:]:
        if name not in (grammars or {}) and name not in MODALITIES:
            raise ValueError(f"modality {name!r} is not registered; known: {', '.join(MODALITIES)}")
        grammar = (grammars or {}).get(name) or MODALITIES[name].grammar
        if grammar is not None:
            found[name] = grammar
    return found


def document_grammar(
    vocabulary: Vocabulary,
    digit_ids: Mapping[str, int],
    grammars: Mapping[str, BlockGrammar] | None = None,
    max_side: int = 256,
) -> DocumentGrammar:
    """The grammar of documents of all modalities of a vocabulary, with `block_grammars`.

    digit_ids: ids of the digits and the star, where a grammar writes sizes with them.
    """
    blocks = {
        name: grammar.bind(vocabulary, name, digit_ids, max_side)
        for name, grammar in block_grammars(vocabulary, grammars).items()
    }
    return DocumentGrammar(vocabulary, blocks)
