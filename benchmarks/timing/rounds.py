"""Ours and the peer in turns, round by round: medians, their ratio, and the command that repeats them.

Cores are shared and their speed drifts, so both run in one process on the same threads, take turns in every round, and
are never compared with figures of another run. The first round warms up and is not counted.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Step = Callable[[int], float]  # does step number i, gives the units of work done (tokens, pictures)
Rates = dict[str, list[float]]  # units a second of each counted round


def parser(prog: str, description: str | None, rounds: int, steps: int) -> argparse.ArgumentParser:
    """The options that all benchmarks take, with these defaults."""
    made = argparse.ArgumentParser(
        prog=f"benchmarks/{prog}",
        description=description,
        formatter_class=lambda prog: _Help(prog, max_help_position=30, width=120),
    )
    made.add_argument("--rounds", type=positive, default=rounds, metavar="N", help="rounds that are counted")
    made.add_argument("--steps", type=positive, default=steps, metavar="N", help="steps of each in every round")
    made.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="CPU threads, torch's own choice"
    )
    return made


def in_turns(contestants: Mapping[str, Step], rounds: int, steps: int) -> Rates:
    """Units a second of each contestant in each round; who begins changes from round to round."""
    rates: Rates = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            done = sum(contestants[name](step) for step in range(steps))
            seconds = time.perf_counter() - start
            if turn:
                rates[name].append(done / seconds)
    return rates


def report(prog: str, args: argparse.Namespace, rates: Rates, unit: str, what: Mapping[str, str]) -> None:
    """Print the lines of ours, the peer, the ratio and the command; `what` says in words what each of the two is."""
    medians = {name: median(rates[name]) for name in ("ours", "peer")}
    print(f"machine  {platform.machine()}, threads: {args.threads}, torch {torch.__version__}")
    for name, value in medians.items():
        spread = f"{digits(min(rates[name]))} .. {digits(max(rates[name]))}"
        print(f"{name}     {digits(value)} {unit}/s, rounds {spread}: {what[name]}")
    print(f"ratio    {digits(medians['ours'] / medians['peer'])}")
    print(f"repeat   {command(prog, args)}")


def command(prog: str, args: argparse.Namespace) -> str:
    """The call with every option written out; those that are switched off are left out."""
    options = {f"--{name}": value for name, value in vars(args).items() if value is not False}
    words = [name if value is True else f"{name} {_written(value)}" for name, value in options.items()]
    return " ".join([".venv/bin/python", prog, *words])


def _written(value: object) -> str:
    """As it is typed in a shell; several numbers one after the other."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def digits(value: float) -> str:
    """A positive number with four significant digits, or all that it has before the point."""
    return f"{value:,.{max(0, 3 - math.floor(math.log10(value)))}f}"


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands, and the defaults."""


def positive(text: str) -> int:
    """An option's whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be 1 or more")
    return number
