"""`omnigram codebook`: look at a trained codebook, take codes out, put them together, renumber or revive them."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from ..tokenizers.codebook_surgery import Renumbering
    from .codebook_folder import CodebookFolder

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]

RUN = "runs/tokenizer/latest"
PAGE = "codebook.png"
SHOWN, COLUMNS, SIDE = 4096, 32, 32  # most codes of a page, codes of a row, about so many pixels a side
ALIKE = (1.0, 2.0, 4.0, 8.0)  # grey levels at which redundancy is told


def add_codebook_commands(add: Add) -> None:
    """Add the command to the command line."""
    command = add(
        "codebook",
        "look at a trained codebook; take codes out, put them together, renumber or revive them",
        (
            f"inspect {RUN}",
            f"prune {RUN} --out runs/tokenizer/pruned",
            f"merge {RUN} --closer-than 2 --out runs/tokenizer/merged",
            "remap runs/pretrain/latest/export --by frequency --data datasets/emoji --out models/sorted",
            f"revive {RUN} --out runs/tokenizer/revived",
        ),
        lambda options: _no_action(command),
    )
    actions = command.add_subparsers(title="actions", dest="action", metavar="ACTION")

    def action(name: str, summary: str, act: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        made.set_defaults(act=act)
        made.add_argument("folder", metavar="FOLDER", help="a run of `tokenizer`, an image tokenizer, or an export")
        made.add_argument(
            "--data",
            type=Path,
            metavar="DATASET",
            help="pictures, or tokens of this tokenizer, in which codes are counted (default: those of the run)",
        )
        made.add_argument(
            "--resolution", type=int, metavar="PIXELS", help="pictures get the area of such a square (default: as ever)"
        )
        return made

    looked = action("inspect", "usage, perplexity, codes that are alike, and a page of what each looks like", inspect)
    looked.add_argument("--out", type=Path, default=Path(PAGE), metavar="FILE", help=f"the page (default {PAGE})")
    pruned = action("prune", "take out codes that are hardly used", change)
    pruned.add_argument("--min-count", type=int, default=1, metavar="N", help="codes used less often go (default 1)")
    merged = action("merge", "put codes that decode alike together, to the more used one", change)
    how = merged.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--closer-than", type=float, metavar="D", help="root mean squared difference of pixels, in grey levels of 255"
    )
    how.add_argument("--share", type=float, metavar="S", help="of the codes that goes, by the distance that does so")
    mapped = action("remap", "renumber the codes", change)
    mapped.add_argument(
        "--by", required=True, choices=("frequency", "similarity"), help="the most used first, or neighbours in a row"
    )
    revived = action("revive", "put codes that are never used on vectors with the largest errors", revive)
    for made in (pruned, merged, mapped, revived):
        made.add_argument("--out", required=True, type=Path, metavar="FOLDER2", help="the folder that is made")


def _no_action(command: argparse.ArgumentParser) -> int:
    command.print_help()
    return 0


def inspect(options: argparse.Namespace) -> int:
    """`omnigram codebook inspect`: numbers as JSON on stdout and beside the page."""
    from PIL import Image

    from ..data.artefact import atomic_write, atomic_write_json
    from ..tokenizers.codebook_surgery import code_patches, code_vectors, patch_features
    from .codebook_folder import open_codebook
    from .pictures_page import contact_sheet

    if options.out.suffix.lower() == ".json":
        raise ValueError(f"--out {options.out} is the page, and its numbers go beside it as .json: name it .png")
    opened = open_codebook(options.folder)
    tokenizer = opened.tokenizer
    counts = _counts(opened, options, needed=False)
    numbers: dict[str, Any] = {"codes": tokenizer.codebook_size, "identity": tokenizer.identity}
    if counts is not None:
        numbers |= _use(counts)
    try:
        numbers |= _alike(code_vectors(tokenizer), "vectors")
    except ValueError as fault:
        print(f"without vectors of the codes: {fault}", file=sys.stderr)
    try:
        patches = code_patches(tokenizer)
    except ValueError as fault:
        print(f"without pictures of the codes: {fault}", file=sys.stderr)
    else:
        numbers |= _alike(patch_features(patches), "pixels", "grey_levels")
        order = range(len(patches)) if counts is None else counts.argsort(descending=True, stable=True).tolist()
        shown = list(order)[:SHOWN]
        images = [Image.fromarray(patches[code].numpy()) for code in shown]
        sheet = contact_sheet(images, [str(code) for code in shown], COLUMNS, max(1, round(SIDE / tokenizer.patch)))
        atomic_write(options.out, lambda file: sheet.save(file, format="PNG"))
        print(f"see {options.out}", file=sys.stderr)
    atomic_write_json(options.out.with_suffix(".json"), numbers)
    print(json.dumps(numbers, indent=2), flush=True)
    return 0


def change(options: argparse.Namespace) -> int:
    """`omnigram codebook prune`, `merge` and `remap`."""
    from ..data.artefact import check_free
    from ..tokenizers.codebook_surgery import check_changeable, renumbered
    from .codebook_folder import open_codebook
    from .machine import quiet

    quiet()
    check_free(options.out)
    opened = open_codebook(options.folder)
    check_changeable(opened.tokenizer)
    opened.check(resizes=options.action != "remap")
    renumbering = _renumbering(opened, options)
    made = renumbered(opened.tokenizer, renumbering)
    asked = {name: getattr(options, name, None) for name in ("min_count", "closer_than", "share", "by")}
    done = {"action": options.action, **{name: value for name, value in asked.items() if value is not None}}
    opened.save(made, renumbering, options.out, done)
    _tell(f"{options.out}: {made.codebook_size} codes of {opened.tokenizer.codebook_size}", opened)
    print(options.out, flush=True)
    return 0


def revive(options: argparse.Namespace) -> int:
    """`omnigram codebook revive`."""
    import torch

    from ..data.artefact import check_free
    from ..model.codec import CARD
    from ..tokenizers.codebook_surgery import check_changeable, revived
    from .code_use import pixels_of
    from .codebook_folder import open_codebook

    if (Path(options.folder) / CARD).is_file():
        raise ValueError(f"{options.folder} is an export, whose decoder would not know the new codes: name tokenizers")
    check_free(options.out)
    opened = open_codebook(options.folder)
    tokenizer = opened.tokenizer
    check_changeable(tokenizer)
    tokenizer.vector_quantizer.put(torch.empty(0, dtype=torch.int64), torch.empty(0, 1))  # says so if it cannot
    data = _data(opened, options)
    counts = _counts(opened, options)
    assert counts is not None
    dead = (counts == 0).nonzero().flatten()
    if not len(dead):
        raise ValueError(f"all {len(counts)} codes are used in {data}: there is none to revive")
    made = revived(tokenizer, dead, pixels_of(data, opened.fitting(options.resolution)))
    opened.save(made, None, options.out, {"action": "revive", "revived": dead.tolist()})
    _tell(f"{options.out}: {len(dead)} codes revived; a decoder trained on the old codes does not know them", opened)
    print(options.out, flush=True)
    return 0


def _renumbering(opened: "CodebookFolder", options: argparse.Namespace) -> "Renumbering":
    from rich.console import Console

    from ..tokenizers import codebook_surgery as surgery

    tokenizer = opened.tokenizer
    if options.action == "prune":
        if options.min_count < 1:
            raise ValueError(f"--min-count {options.min_count} must be 1 or more")
        counts = _counts(opened, options)
        assert counts is not None
        return surgery.pruning(counts, options.min_count, surgery.code_vectors(tokenizer))
    if options.action == "remap" and options.by == "frequency":
        counts = _counts(opened, options)
        assert counts is not None
        return surgery.by_frequency(counts)
    if options.action == "remap":
        with Console(stderr=True).status(f"comparing {tokenizer.codebook_size:,} codes"):
            alike = tokenizer.can_decode
            return surgery.by_similarity(
                surgery.patch_features(surgery.code_patches(tokenizer)) if alike else surgery.code_vectors(tokenizer)
            )
    if options.closer_than is not None and not options.closer_than > 0:
        raise ValueError(f"--closer-than {options.closer_than:g} must be above 0")
    features = surgery.patch_features(surgery.code_patches(tokenizer))
    counts = _counts(opened, options)
    assert counts is not None
    with Console(stderr=True).status(f"comparing {tokenizer.codebook_size:,} codes"):
        closer_than = options.closer_than
        if closer_than is None:
            closer_than = surgery.distance_of_share(features, counts, options.share)
        return surgery.merging(features, counts, closer_than)


def _data(opened: "CodebookFolder", options: argparse.Namespace) -> Path:
    data = options.data or opened.data
    if data is None:
        raise ValueError(f"{opened.folder} does not say what it was trained on: name a data set with --data")
    return data


def _counts(opened: "CodebookFolder", options: argparse.Namespace, needed: bool = True) -> "Int[Tensor, ' k'] | None":
    """How often codes occur in the data; None where there are none and they are not `needed`."""
    from rich.console import Console

    from .code_use import count_codes

    if not needed and options.data is None and (opened.data is None or not opened.data.is_dir()):
        return None
    data = _data(opened, options)
    with Console(stderr=True).status(f"counting codes in {data}"):
        return count_codes(opened.tokenizer, data, opened.fitting(options.resolution))


def _use(counts: "Int[Tensor, ' k']") -> dict[str, Any]:
    from ..tokenizers.quantizers.quantizer import perplexity

    return {
        "counted": int(counts.sum()),
        "used": int((counts > 0).sum()),
        "usage": float((counts > 0).float().mean()),
        "perplexity": float(perplexity(counts / counts.sum())),
        "most_used": float(counts.max() / counts.sum()),
    }


def _alike(features: "Float[Tensor, 'k f']", name: str, unit: str | None = None) -> dict[str, Any]:
    """How near each code's nearest other one is; by unit also which share has one within so much."""
    from ..tokenizers.codebook_surgery import most_alike

    found = most_alike(features)
    pairs = {tuple(sorted((code, int(found.code[code])))): float(found.distance[code]) for code in range(len(features))}
    nearest = sorted(pairs.items(), key=lambda pair: pair[1])[:10]
    numbers: dict[str, Any] = {f"nearest_by_{name}_median": float(found.distance.median())}
    if unit is not None:
        numbers[f"redundancy_by_{unit}"] = {f"{d:g}": float((found.distance < d).float().mean()) for d in ALIKE}
    numbers[f"nearest_pairs_by_{name}"] = {f"{a} {b}": round(distance, 4) for (a, b), distance in nearest}
    return numbers


def _tell(line: str, opened: "CodebookFolder") -> None:
    from .codebook_folder import Run

    if isinstance(opened, Run) and opened.config is not None:
        line += "; measure it with `omnigram evaluate evaluate.run=`, make its tokens with `tokens.tokenizer=`"
    print(line, file=sys.stderr)
