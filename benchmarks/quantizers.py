"""All quantizers at equal minutes and equal bits, by their pictures and through the decoder.

1. steps      how many each quantizer makes in the minutes, from rates measured in turns; kept in `--out`, so that the
              same command goes on after a stop
2. runs       for each quantizer and seed `omnigram tokenizer tokenizer/quantizer=…`, `omnigram evaluate` of it, and
              `omnigram through-decoder`; as many side by side as wanted, as the steps are fixed
3. table      of all of them, and the page of their reconstructions and samples
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from timing.rounds import command, in_turns, parser
from tokenizer import Ours, made_pictures

from omnigram.data.artefact import atomic_write_json
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare

QUANTIZERS = ["ema", "ecvq", "cosine", "fsq", "lfq", "ibq", "simvq", "gumbel"]


def options() -> argparse.ArgumentParser:
    made = parser("quantizers.py", __doc__, rounds=5, steps=10)
    made.add_argument("--minutes", type=float, default=4.0, metavar="N", help="of training, for each")
    made.add_argument(
        "--quantizers", nargs="+", default=QUANTIZERS, metavar="NAME", help="of conf/tokenizer/quantizer/"
    )
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="a run of each for every seed")
    made.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of all of them")
    made.add_argument("--decoder", action="store_true", help="judge them through the decoder, too")
    made.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="runs side by side, each with --threads; steps are fixed"
    )
    made.add_argument("--out", type=Path, default=Path("runs/quantizers"), metavar="DIR", help="where steps are kept")
    return made


def measured_steps(args: argparse.Namespace) -> dict[str, int]:
    """Steps that each quantizer makes in the minutes."""
    contestants = {}
    for name in args.quantizers:
        config = compose_config(
            [f"tokenizer/quantizer={name}", f"threads={args.threads}", "device=cpu", *args.settings]
        )
        prepare(config)
        settings = config.tokenizer
        number = max(settings.trainer.init_pictures, args.steps * settings.trainer.batch_size)
        pictures = made_pictures(number, settings.pictures.resolution)
        ours = Ours(settings, pictures[: settings.trainer.init_pictures])
        batches = pictures.split(settings.trainer.batch_size)

        def step(number: int, ours: Ours = ours, batches: Sequence = batches) -> float:
            ours.step(batches[number])
            return 1

        contestants[name] = step
    rates = in_turns(contestants, args.rounds, args.steps)
    return {name: round(60 * args.minutes * median(found)) for name, found in rates.items()}


def omnigram(log: Path, *words: str) -> str:
    """The last line that a command prints; what it says of its progress goes to the end of the log."""
    with log.open("a") as file:
        command = [sys.executable, "-m", "omnigram.train.cli", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True)
    if done.returncode:
        sys.exit(f"omnigram {' '.join(words)} failed, see {log}: {log.read_text().strip().splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1]


def judged(args: argparse.Namespace, steps: int, name: str, seed: int, advance: Callable[[], None]) -> str:
    """The run of one quantizer, trained, evaluated and, if wanted, learnt by a decoder."""
    log, threads = args.out / f"{name}-{seed}.log", f"threads={args.threads}"
    chosen = [f"tokenizer/quantizer={name}", f"tokenizer.name={name}", f"tokenizer.trainer.max_steps={steps}"]
    run = omnigram(log, "tokenizer", *chosen, f"seed={seed}", threads, *args.settings)
    advance()
    omnigram(log, "evaluate", f"evaluate.run={run}", threads)
    advance()
    if args.decoder:
        omnigram(log, "through-decoder", run, threads)
        advance()
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    args = options().parse_args(arguments)
    kept = args.out / "steps.json"
    asked = {"minutes": args.minutes, "threads": args.threads, "settings": args.settings}
    record: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {**asked, "steps": {}}
    if differing := [name for name in asked if record[name] != asked[name]]:
        sys.exit(f"{kept} is of other --{differing[0]}, {record[differing[0]]}: give another --out")
    steps: dict[str, int] = record["steps"]
    if lacking := [name for name in args.quantizers if name not in steps]:
        args.out.mkdir(parents=True, exist_ok=True)
        steps |= measured_steps(argparse.Namespace(**{**vars(args), "quantizers": lacking}))
        atomic_write_json(kept, record)
    wanted = [(name, seed) for seed in args.seeds for name in args.quantizers]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("commands", total=len(wanted) * (3 if args.decoder else 2))

        def each(one: tuple[str, int]) -> str:
            name, seed = one
            return judged(args, steps[name], name, seed, lambda: progress.advance(task))

        with ThreadPoolExecutor(args.at_once) as pool:
            runs = list(pool.map(each, wanted))
    if args.decoder:
        print(omnigram(args.out / "comparison.log", "through-decoder", *runs, f"threads={args.threads}"))
    print("\n".join(runs))
    print(f"repeat   {command('benchmarks/quantizers.py', args)}")


if __name__ == "__main__":
    main()
