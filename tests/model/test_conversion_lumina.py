"""Lumina-mGPT comes in as the Chameleon that it says it is, and writes pictures of many sizes."""

from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import CODES, NOT_DRAWN, chameleon, chameleon_names, llama, llama_names, save

from omnigram.model.bundle import Omnigram
from omnigram.model.conversion import import_checkpoint
from omnigram.model.conversion.lumina import sizes

pytestmark = pytest.mark.filterwarnings(NOT_DRAWN)


def lumina_names() -> dict[str, int]:
    """Chameleon's, with the row mark and the numbers 1 .. 48 in the places of fillers."""
    reserved = ["<reserved08799>", *(f"<reserved{8800 + number:05d}>" for number in range(1, 49))]
    free = iter(reserved)
    return {next(free, name) if name.startswith("filler") else name: id_ for name, id_ in chameleon_names().items()}


def test_it_writes_sizes_and_rows(tmp_path: Path) -> None:
    model = chameleon()
    model.config.vocabulary_map = lumina_names()
    save(model, tmp_path / "theirs", lumina_names())
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours", grammar="lumina")
    codec = Omnigram.from_pretrained(tmp_path / "ours").codec
    names, codes = lumina_names(), np.arange(8).reshape(4, 2) % CODES
    ids = codec.grammar.blocks["image"].write(codes)
    assert ids[:3].tolist() == [names["<racm3:break>"], names["<reserved08802>"], names["<reserved08801>"]]
    assert ids[5] == ids[8] == ids[-2] == names["<reserved08799>"]
    assert ids[-1] == names["<eoss>"]
    assert codec.card.sizes[0] == (48, 48)


def test_its_sizes_are_those_of_its_crops() -> None:
    """About 768 x 768 pixels in steps of 32, no side more than four times the other."""
    grids = np.array(sizes())
    assert (grids % 2 == 0).all()
    assert (grids.prod(axis=1) <= 48 * 48).all()
    assert (grids.max(axis=1) <= 4 * grids.min(axis=1)).all()
    assert {(32, 72), (72, 32), (24, 96), (96, 24)} <= {tuple(grid) for grid in grids.tolist()}


def test_a_model_without_pictures_is_no_lumina(tmp_path: Path) -> None:
    save(llama(), tmp_path / "theirs", llama_names())
    with pytest.raises(ValueError, match="grammar 'lumina' is not known for a llama: leave it out"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours", grammar="lumina")
    assert not (tmp_path / "ours").exists()
