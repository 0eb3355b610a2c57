"""docs/published.md shows ids that the code writes: each table is made again and compared."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from omnigram.tokenizers.grammar import BoundGrammar
from omnigram.tokenizers.published import PUBLISHED
from omnigram.tokenizers.vocabulary import TEXT

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
NAMES = {
    "chameleon": "Chameleon",
    "lumina": "Lumina-mGPT",
    "emu3": "Emu3",
    "emu3_video": "Emu3, video",
    "emu3_5": "Emu3.5",
    "lwm": "LWM",
    "seed": "SEED",
}
SHAPES = {"emu3_video": (2, 16, 16), "lwm": (2, 16, 16), "seed": (32,)}  # of the others: 32 x 32


def block_of(name: str) -> tuple[BoundGrammar, np.ndarray]:
    """The grammar of a model's blocks, and a block of codes 0, 1, 2, … in reading order."""
    language = PUBLISHED[name]
    [(modality, grammar)] = language.grammars.items()
    shape = SHAPES.get(name, (32, 32))
    return grammar.bind(language.vocabulary, modality, language.digit_ids), np.arange(np.prod(shape)).reshape(shape)


def symbols(block: BoundGrammar) -> dict[int, str]:
    """What to call an id that is no code."""
    named = {id_: name for name, id_ in block.vocabulary.specials.items()}
    digits = {id_: symbol for symbol, id_ in block.digit_ids.items()}
    return named | digits


def token(block: BoundGrammar, id_: int) -> str:
    if block.vocabulary.holds(block.modality, id_):
        return f"code {block.vocabulary.decode(block.modality, [id_])[0]} = {id_}"
    return f"{symbols(block)[id_]} = {id_}"


def spelled(block: BoundGrammar, ids: list[int]) -> str:
    return ", ".join(token(block, id_) for id_ in ids) or "-"


def side_by_side() -> list[str]:
    """One row a model: what it writes where, for one block."""
    lines = [
        "| model | block | before the codes | first codes | after row 1 | after a frame | at the end | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in NAMES.items():
        block, codes = block_of(name)
        ids, layout = block.write(codes).tolist(), block.layout(*codes.shape)
        slots = layout.slots.tolist()
        columns, places = codes.shape[-1], int(np.prod(codes.shape[-2:])) if codes.ndim > 1 else codes.size
        rows = codes.ndim > 1 and slots[columns] > slots[columns - 1] + 1
        after_row = ids[slots[columns - 1] + 1 : slots[columns]] if rows else []
        after_frame = ids[slots[places - 1] + 1 : slots[places]] if codes.ndim == 3 else []
        cells = [
            title,
            " x ".join(map(str, codes.shape)),
            spelled(block, ids[: slots[0]]),
            spelled(block, ids[slots[0] : slots[0] + 2]) + ", …",
            spelled(block, after_row),
            spelled(block, after_frame),
            spelled(block, ids[slots[-1] + 1 :]),
            f"{len(ids):,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def vocabularies() -> list[str]:
    """One row a model: where its ids lie."""
    lines = ["| model | ids in all | text | codes | bos | eos |", "| --- | --- | --- | --- | --- | --- |"]
    for name, title in NAMES.items():
        vocabulary = PUBLISHED[name].vocabulary
        text, codes = (vocabulary.ids(modality) for modality in (TEXT, vocabulary.modalities[1]))
        cells = [
            title,
            f"{vocabulary.size:,}",
            f"{len(text):,} in {text[0]} … {text[-1]}",
            f"{len(codes):,} in {codes[0]} … {codes[-1]}",
            str(vocabulary.id("bos")),
            str(vocabulary.id("eos")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def test_the_page_shows_what_is_written() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for lines in (side_by_side(), vocabularies()):
        assert "\n".join(lines) in page, "docs/published.md should hold:\n" + "\n".join(lines)


def test_the_short_pictures_on_the_page_are_what_is_written() -> None:
    """Every token of a 2 x 2 picture, or both ends of a block of fixed size."""
    page, few = PAGE.read_text(encoding="utf-8"), np.array([[5, 17], [200, 8191]])
    for name in ("lumina", "emu3", "emu3_5"):
        assert f"\n{NAMES[name]:<12} {' '.join(map(str, block_of(name)[0].write(few).tolist()))}\n" in page
    for name, shape in (("chameleon", (32, 32)), ("lwm", (1, 16, 16)), ("seed", (32,))):
        codes = np.zeros(shape, dtype=int)
        codes.flat[[0, 1, -2, -1]] = few.ravel()
        block = block_of(name)[0]
        ids, slots = block.write(codes).tolist(), block.layout(*shape).slots
        first, last = ids[: slots[1] + 1], ids[slots[-2] :]
        assert f"\n{NAMES[name]:<12} {' '.join(map(str, first))} … {' '.join(map(str, last))}\n" in page


def test_the_python_on_the_page_runs() -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["codes"].tolist() == [[5, 17], [200, 8191]]
    assert names["allowed"].modality == "image"
