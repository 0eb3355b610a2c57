"""All quantizers at equal minutes and equal bits, by their pictures and through the decoder.

1. steps      how many each quantizer makes in the minutes, from rates measured in turns; kept in `--out`, so that the
              same command goes on after a stop
2. runs       `omnigram tokenizer tokenizer/quantizer=…` for each quantizer and seed, and `omnigram evaluate` of it
3. decoders   `omnigram through-decoder` on all of them: the table and the page
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from timing.rounds import command, in_turns, parser
from tokenizer import Ours, made_pictures

from omnigram.data.artefact import atomic_write_json
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare

QUANTIZERS = ["ema", "cosine", "fsq", "lfq", "ibq", "simvq", "gumbel"]


def options() -> argparse.ArgumentParser:
    made = parser("quantizers.py", __doc__, rounds=5, steps=10)
    made.add_argument("--minutes", type=float, default=4.0, metavar="N", help="of training, for each")
    made.add_argument(
        "--quantizers", nargs="+", default=QUANTIZERS, metavar="NAME", help="of conf/tokenizer/quantizer/"
    )
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="a run of each for every seed")
    made.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of all of them")
    made.add_argument("--decoder", action="store_true", help="judge them through the decoder, too")
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


def omnigram(*words: str) -> str:
    """The last line that a command prints."""
    done = subprocess.run([sys.executable, "-m", "omnigram.train.cli", *words], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode().strip().splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    args = options().parse_args(arguments)
    kept = args.out / "steps.json"
    steps: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}
    if lacking := [name for name in args.quantizers if name not in steps]:
        args.out.mkdir(parents=True, exist_ok=True)
        steps |= measured_steps(argparse.Namespace(**{**vars(args), "quantizers": lacking}))
        atomic_write_json(kept, steps)
    runs = []
    for seed in args.seeds:
        for name in args.quantizers:
            chosen = [
                f"tokenizer/quantizer={name}",
                f"tokenizer.name={name}",
                f"tokenizer.trainer.max_steps={steps[name]}",
            ]
            runs.append(omnigram("tokenizer", *chosen, f"seed={seed}", f"threads={args.threads}", *args.settings))
            omnigram("evaluate", f"evaluate.run={runs[-1]}")
    if args.decoder:
        print(omnigram("through-decoder", *runs))
    print("\n".join(runs))
    print(f"repeat   {command('benchmarks/quantizers.py', args)}")


if __name__ == "__main__":
    main()
