"""`omnigram import` and `export`: published checkpoints become exports of Omnigram, and go back out."""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.conversion import Progress

FORMATS, GRAMMARS = ("chameleon", "emu3", "llama"), ("lumina",)  # a test asks whether these are those there are
SECONDS_BETWEEN_LINES = 30.0

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def add_conversion_commands(add: Add) -> None:
    """Add the commands to the command line."""
    taken = add(
        "import",
        "make an export of a published checkpoint: Chameleon, Emu3 or Llama",
        (
            "chameleon-7b --out models/chameleon",
            "chameleon-7b --out models/chameleon --image-tokenizer meta/tokenizer/vqgan.ckpt",
            "meta/models/7b --out models/chameleon",
            "Emu3-Gen --image-tokenizer Emu3-VisionTokenizer --text-tokenizer tokenizer.json --out models/emu3",
        ),
        take_in,
    )
    taken.add_argument(
        "source", metavar="SOURCE", help="a folder as transformers saves it, or of Meta's Chameleon (params.json)"
    )
    taken.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="SOURCE2",
        help="of what SOURCE lacks: a vqgan.ckpt, or a folder such as Emu3-VisionTokenizer",
    )
    taken.add_argument("--text-tokenizer", type=Path, metavar="FILE", help="a tokenizer.json in place of SOURCE's")
    taken.add_argument(
        "--grammar",
        choices=GRAMMARS,
        help="how SOURCE writes pictures, if not as its architecture does: lumina for Lumina-mGPT, a chameleon",
    )
    _writes(taken)

    given = add(
        "export",
        "make a folder that transformers loads of an export",
        ("models/chameleon --format chameleon --out chameleon-7b-tuned", "models/mine --format llama --out mine-llama"),
        give_out,
    )
    given.add_argument("model", metavar="DIR", help="an export of Omnigram, such as `import` makes")
    given.add_argument("--format", required=True, choices=FORMATS, help="the architecture that it goes out as")
    _writes(given)


def _writes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="FOLDER", help="the folder that is made; it must not be there")


def take_in(options: argparse.Namespace) -> int:
    """`omnigram import`."""
    from ..model.conversion import import_checkpoint

    with _shown("import") as progress:
        import_checkpoint(
            options.source,
            options.out,
            image_tokenizer=options.image_tokenizer,
            text_tokenizer=options.text_tokenizer,
            grammar=options.grammar,
            progress=progress,
        )
    print(options.out, flush=True)
    return 0


def give_out(options: argparse.Namespace) -> int:
    """`omnigram export`."""
    from ..model.conversion import export_checkpoint

    with _shown("export") as progress:
        export_checkpoint(options.model, options.format, options.out, progress=progress)
    print(options.out, flush=True)
    return 0


@contextlib.contextmanager
def _shown(what: str) -> "Iterator[Progress]":
    """Bytes done as a bar with an estimate, or now and then as a line where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console, told = Console(stderr=True), time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            console.print(f"{what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB", highlight=False)

    if not console.is_terminal:
        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
