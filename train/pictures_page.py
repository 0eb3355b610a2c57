"""A grid of pictures with their captions, as one picture to look at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_FONT_PIXELS, _GAP = 13, 8


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """The pictures row by row, each over its caption, which is wrapped to the picture's width.

    columns: pictures a row; by default as many as make the grid nearly square
    scale: pixels are shown this many times larger; by default so that the largest picture is about 128 pixels wide
    ValueError for no pictures, or not one caption a picture.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures: give one each")
    if columns is None:
        columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    if columns < 1:
        raise ValueError(f"columns {columns} must be 1 or more")
    columns = min(columns, len(pictures))
    widest = max(picture.width for picture in pictures)
    scale = scale or max(1, round(128 / widest))
    width, height = widest * scale, max(picture.height for picture in pictures) * scale
    font = ImageFont.load_default(_FONT_PIXELS)
    lines = [wrap(caption, font, width) for caption in captions or [""] * len(pictures)]
    rows = range(0, len(pictures), columns)
    line_height = _FONT_PIXELS + 3
    heights = [height + line_height * max(len(text) for text in lines[row : row + columns]) + _GAP for row in rows]
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, sum(heights) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, lines, strict=True)):
        row, column = divmod(index, columns)
        x, y = _GAP + column * (width + _GAP), _GAP + sum(heights[:row])
        larger = picture.convert("RGB").resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
        sheet.paste(larger, (x, y))
        for number, line in enumerate(text):
            pen.text((x, y + height + 2 + number * line_height), line, fill="black", font=font)
    return sheet


def wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, and within words that are longer."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line]
