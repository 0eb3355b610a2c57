"""What `--resolution` of `omnigram codebook` does to each kind of folder."""

import dataclasses
from pathlib import Path

import pytest
from made_evaluation import world
from made_export import made_export
from PIL import Image

from omnigram.model.bundle import Omnigram
from omnigram.model.codec import Codec
from omnigram.tokenizers.preprocessing import EMU3
from omnigram.train.code_use import count_codes
from omnigram.train.codebook_folder import open_codebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures; an export with the preprocessing of a published model, and its image tokenizer alone."""
    folder = tmp_path_factory.mktemp("folders")
    world(folder / "pictures")
    model = made_export(folder / "made")
    card = dataclasses.replace(model.card, preprocessing=EMU3, identities={})
    codec = Codec(model.vocabulary, model.text_tokenizer, model.image_tokenizer, card)
    Omnigram(model.model, codec).save_pretrained(folder / "published")
    model.image_tokenizer.save_pretrained(folder / "bare")
    return folder


def test_a_tokenizer_alone_asks_for_a_size_before_it_reads_pictures(folder: Path) -> None:
    opened = open_codebook(folder / "bare")
    with pytest.raises(ValueError, match=r"bare does not say how large its pictures are: set --resolution, in pixels$"):
        count_codes(opened.tokenizer, folder / "pictures", opened.fitting(None))
    assert int(count_codes(opened.tokenizer, folder / "pictures", opened.fitting(16)).sum()) % 4 == 0


def test_pictures_of_a_published_model_are_squares_of_the_size_that_is_asked_for(folder: Path) -> None:
    opened = open_codebook(folder / "published")
    picture = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    assert opened.fitting(None).preprocessing == EMU3
    fitting = opened.fitting(16)
    ready = fitting.ready(picture)
    assert ready.shape == (3, 16, 16)
    middle = picture.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    assert fitting.shown(picture).tolist() == [[list(middle.getpixel((x, y))) for x in range(16)] for y in range(16)]  # pyright: ignore
    with pytest.raises(ValueError, match="pictures of 12 pixels are not cut into codes of 8 pixels"):
        opened.fitting(12)
