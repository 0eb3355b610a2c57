"""The registry of modalities: a new sensor is one record here and one tokenizer, and no other file changes."""

from collections.abc import Mapping
from dataclasses import dataclass

from .document_grammar import DocumentGrammar
from .grammar import RasterGrammar
from .vocabulary import TEXT, Vocabulary


@dataclass(frozen=True)
class Modality:
    """What the rest of the code has to know of a kind of signal."""

    name: str
    codebook_size: int | None  # None: as large as that of its tokenizer
    grid_rank: int  # axes of a block of codes: text 1, picture 2, video 3
    grammar: RasterGrammar | None  # how a block is written; None: bare ids, as text is
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"modality name {self.name!r} must be a plain word")
        if self.codebook_size is not None and self.codebook_size < 2:
            raise ValueError(f"modality {self.name!r}: codebook_size {self.codebook_size} must be 2 or more")
        if self.grid_rank < 1:
            raise ValueError(f"modality {self.name!r}: grid_rank {self.grid_rank} must be 1 or more")
        if self.loss_weight < 0:
            raise ValueError(f"modality {self.name!r}: loss_weight {self.loss_weight} must not be negative")


MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> Modality:
    """Add a modality under its name. ValueError if another one has it."""
    if MODALITIES.setdefault(modality.name, modality) != modality:
        raise ValueError(f"modality {modality.name!r} is registered already, as {MODALITIES[modality.name]}")
    return modality


register(Modality(TEXT, None, 1, None))
register(Modality("image", None, 2, RasterGrammar()))


def document_grammar(
    vocabulary: Vocabulary,
    digit_ids: Mapping[str, int],
    grammars: Mapping[str, RasterGrammar] | None = None,
    max_side: int = 256,
) -> DocumentGrammar:
    """The grammar of documents of all modalities of a vocabulary; `grammars` replaces registered ones by name."""
    blocks = {}
    for name in vocabulary.modalities:
        if name != TEXT and name not in MODALITIES:
            raise ValueError(f"modality {name!r} is not registered; known: {', '.join(MODALITIES)}")
        grammar = (grammars or {}).get(name) or MODALITIES[name].grammar
        if name != TEXT and grammar is not None:
            blocks[name] = grammar.bind(vocabulary, name, digit_ids, max_side)
    return DocumentGrammar(vocabulary, blocks)
