"""Image tokenizers side by side, by decoders that were trained alike on their codes: one table and one page.

comparison.md, comparison.json    a column a tokenizer: what its own run says of it, and what the decoder achieved
comparison.png                    a column a tokenizer: its reconstructions of unseen pictures, the decoder's samples

Bits are of whole pictures, so that tokenizers with other numbers of codes can be compared. They are bits of the codes:
a tokenizer that keeps less of a picture has less to say, so read them beside the PSNR.
"""

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw, ImageFont
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from ..data.artefact import atomic_write, atomic_write_json
from ..model.codec import IMAGE_MODEL, Card, read_card
from ..tokenizers.pixel_tokenizer import load_image_tokenizer
from .pretrain import EXPORT
from .pretrain_metrics import SAMPLES
from .runs import METRICS, finished_run
from .tokenizer import GRID

TABLE, NUMBERS, PAGE = "comparison.md", "comparison.json", "comparison.png"
WIDTH, GAP, FONT = 720, 16, 22  # pixels: of a column of the page, between its parts, of its heading
BESIDE = 5  # most columns beside one another
# metrics.json of the tokenizer, where `evaluate` adds to it, and of the decoder -> words and form of a row
OF_TOKENIZER: dict[str, tuple[str, str]] = {
    "psnr": ("PSNR of unseen pictures, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "perceptual_hed": ("perceptual distance", "{:.4f}"),
    "kid_efficientnet": ("KID", "{:.3f}"),
    "codebook_usage": ("codes used", "{:.0%}"),
    "codebook_perplexity": ("perplexity of the codes", "{:.0f}"),
    "drift": ("codes changed by encoding again", "{:.1%}"),
}
PIXELS = {"pixels_per_picture": ("pixels a picture", "{:,.0f}")}  # mean of its export's sizes; None without
OF_DECODER: dict[str, tuple[str, str]] = {
    "codes_per_picture": ("codes a picture", "{:.0f}"),
    "train_documents": ("documents seen", "{:,.0f}"),
    "bits_per_picture_train": ("bits a training picture", "{:.1f}"),
    "bits_per_picture_train_shuffled_captions": ("... after another's caption", "{:.1f}"),
    "own_caption_wins_train": ("... cheaper after its own", "{:.0%}"),
    "bits_first_code_train": ("... its first code", "{:.2f}"),
    "bits_per_picture": ("bits a held-out picture", "{:.1f}"),
    "bits_per_picture_shuffled_captions": ("... after another's caption", "{:.1f}"),
    "own_caption_wins": ("... cheaper after its own", "{:.0%}"),
    "bits_first_code": ("... its first code", "{:.2f}"),
    "retrieval_top1_train": ("nearest picture shows what was asked", "{:.1%}"),
}
LACKING = "-"


@dataclass(frozen=True)
class Judged:
    """One tokenizer: the run of the decoder, and its own where that is still there."""

    name: str
    run: Path
    decoder: dict[str, Any]
    config: DictConfig
    tokenizer_run: Path | None
    tokenizer: dict[str, Any]
    pixels: float | None


def compare(run_folders: Iterable[Path | str], out: Path, console: Console | None = None) -> Path:
    """Gather finished runs of decoders into the folder `out`, which is made; print the table.

    ValueError for no run, for one that is not finished, lacks a number or has no export, and for runs whose decoders or
    data differ in more than the tokenizer.
    """
    judged = [_judged(Path(folder)) for folder in dict.fromkeys(map(str, run_folders))]
    if not judged:
        raise ValueError("nothing to compare: name at least one finished run of a decoder")
    for other in judged[1:]:
        _check_alike(judged[0], other)
    table = _table(judged)
    atomic_write(out / TABLE, _markdown(table))
    atomic_write_json(out / NUMBERS, [_numbers(one) for one in judged])
    page = _page(judged)
    atomic_write(out / PAGE, lambda file: page.save(file, format="PNG"))
    (console or Console()).print(table)
    for one in judged:
        if one.tokenizer_run and any(one.tokenizer.get(name) is None for name in OF_TOKENIZER):
            print(f"{LACKING} for {one.name}: omnigram evaluate evaluate.run={one.tokenizer_run}", file=sys.stderr)
    return out


def _judged(run: Path) -> Judged:
    decoder = finished_run(run)
    for name in OF_DECODER:
        if name not in decoder:
            raise ValueError(f"{run / METRICS} has no number {name!r}: run `omnigram evaluate evaluate.run={run}`")
    try:
        config = OmegaConf.load(run / "config.yaml")
    except OSError:
        raise ValueError(f"{run / 'config.yaml'} is missing: without it nothing says how the run was made") from None
    assert isinstance(config, DictConfig)
    card, _ = read_card(run / EXPORT)
    found = _tokenizer_run(config, card.identities.get("image"))
    name = found.resolve().name if found else f"{config.tokenizer.name} {card.identities.get('image', '')[:8]}"
    return Judged(name, run, decoder, config, found, finished_run(found) if found else {}, _pixels(run / EXPORT, card))


def _pixels(export: Path, card: Card) -> float | None:
    """Of a picture, on average over the sizes that the export is made for."""
    if not card.sizes or not (export / IMAGE_MODEL).is_dir():
        return None
    tokenizer = load_image_tokenizer(export / IMAGE_MODEL)
    return mean(height * width for height, width in (tokenizer.size(*grid) for grid in card.sizes))


def _tokenizer_run(config: DictConfig, identity: str | None) -> Path | None:
    """The finished run of the image tokenizer with this identity, if it is where the configuration looks for it."""
    named = [Path(config.tokens.tokenizer)] if config.tokens.tokenizer else []
    for folder in (*named, *sorted(path.parent for path in Path(config.tokenizer.runs).glob(f"*/{METRICS}"))):
        if (folder / METRICS).is_file() and finished_run(folder).get("identity_of_image_tokenizer") == identity:
            return folder
    return None


def _check_alike(first: Judged, other: Judged) -> None:
    """ValueError unless they differ in their tokenizers alone."""
    pairs = [(run.decoder["made_from"], OmegaConf.to_container(run.config.data)) for run in (first, other)]
    (made, data), (others_made, others_data) = pairs
    differing = sorted(name for name in {*made, *others_made} - {"tokens"} if made.get(name) != others_made.get(name))
    if data != others_data:
        differing.append("data")
    if first.config.tokens.get("share", 1) != other.config.tokens.get("share", 1):
        differing.append("tokens.share")
    if differing:
        raise ValueError(
            f"{other.run} was not trained as {first.run}, {differing[0]} differs: their bits cannot be compared"
        )


def _numbers(one: Judged) -> dict[str, Any]:
    own = {name: one.tokenizer.get(name) for name in OF_TOKENIZER}
    of_decoder = {name: one.decoder[name] for name in OF_DECODER}
    return {"tokenizer": one.name, "run": str(one.run), **own, "pixels_per_picture": one.pixels, **of_decoder}


def _table(judged: Sequence[Judged]) -> Table:
    """A row a number, so that it fits a terminal."""
    table = Table("", box=MARKDOWN)
    for one in judged:
        table.add_column(one.name, justify="right", overflow="fold")
    every = [_numbers(one) for one in judged]
    for name, (words, form) in {**OF_TOKENIZER, **PIXELS, **OF_DECODER}.items():
        values = [numbers[name] for numbers in every]
        table.add_row(words, *(LACKING if value is None else form.format(value) for value in values))
    return table


def _markdown(table: Table) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=1000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip().splitlines()) + "\n"


def _page(judged: Sequence[Judged]) -> Image.Image:
    """Each column: a heading, the reconstructions, the samples; what is missing stays white. So many beside another."""
    font = ImageFont.load_default(FONT)
    columns = []
    for one in judged:
        paths = (one.tokenizer_run / GRID if one.tokenizer_run else None, one.run / SAMPLES)
        columns.append([_shrunk(path) if path is not None and path.is_file() else None for path in paths])
    heights = [max((column[row].height for column in columns if column[row] is not None), default=0) for row in (0, 1)]
    top = GAP + 2 * (FONT + 6)
    height = top + sum(heights) + 2 * GAP
    beside = min(BESIDE, len(judged))
    sheet = Image.new("RGB", (beside * (WIDTH + GAP) + GAP, -(-len(judged) // beside) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (one, pictures) in enumerate(zip(judged, columns, strict=True)):
        row, column = divmod(number, beside)
        x, above = GAP + column * (WIDTH + GAP), row * height
        numbers = _numbers(one)
        psnr = "" if numbers["psnr"] is None else f"{numbers['psnr']:.2f} dB, "
        told = f"{psnr}{numbers['bits_per_picture_train']:.1f} bits, {numbers['retrieval_top1_train']:.0%} found"
        pen.text((x, above + GAP), one.name, fill="black", font=font)
        pen.text((x, above + GAP + FONT + 4), told, fill="black", font=font)
        y = above + top
        for picture, space in zip(pictures, heights, strict=True):
            if picture is not None:
                sheet.paste(picture, (x, y))
            y += space + GAP
    return sheet


def _shrunk(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((WIDTH, round(picture.height * WIDTH / picture.width)))
