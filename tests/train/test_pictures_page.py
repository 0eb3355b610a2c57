"""The contact sheet: every picture is on it, unchanged, and every caption fits under its own."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from omnigram.train.pictures_page import contact_sheet, wrap


def test_every_picture_is_shown_as_it_is() -> None:
    pictures = [Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)) for i in range(5)]
    sheet = np.array(contact_sheet(pictures, ["red apple"] * 5, columns=3, scale=2))
    for picture in pictures:
        colour = np.array(picture)[0, 0]
        assert (sheet == colour).all(-1).sum() >= 16 * 16
    assert sheet.shape[1] == 3 * (16 + 8) + 8


def test_captions_make_room_for_themselves() -> None:
    picture = Image.new("RGB", (64, 64), "red")
    bare = contact_sheet([picture])
    short = contact_sheet([picture], ["apple"])
    long = contact_sheet([picture], ["a very long caption that needs several lines under its picture"])
    assert bare.height < short.height < long.height
    below = np.array(short)[8 + 128 :]
    assert (below < 128).any()


def test_lines_fit_the_width() -> None:
    font = ImageFont.load_default(13)
    text = "an extraordinarilylongwordwithoutanyspaces and short ones"
    lines = wrap(text, font, 70)
    assert all(font.getlength(line) <= 70 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", font, 70) == []


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        contact_sheet([Image.new("RGB", (8, 8))] * 2, ["one"])
