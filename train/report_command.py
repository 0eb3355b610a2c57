"""`omnigram report`: the page of a run, finished or not."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

Add = Callable[[str, str, Sequence[str], Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def add_report_command(add: Add) -> None:
    """Add the command to the command line."""
    command = add(
        "report",
        "a run as one page: curves, samples, incidents, numbers",
        ("runs/pretrain/latest", "runs/tokenizer/latest"),
        run_report,
    )
    command.add_argument("run", metavar="RUN", help="folder of a run, finished or not; report.html is written there")


def run_report(options: argparse.Namespace) -> int:
    """Write the page; its path on stdout."""
    from .report import write_report

    print(write_report(Path(options.run)))
    return 0
