"""Memory and time of the head and its loss: ours in chunks, against torch's linear map and cross-entropy of all logits.

Forward and backward pass, in float32 and in a process of its own each: how far resident memory grows at its peak over
what the process held before there was anything, so that hidden states, the head's matrix and the gradients of both
count alike. `partitioned` is ours with a softmax over the codes alone where a code follows, as it is trained. Exits
with 1 if ours gives another loss or other gradients than torch, or takes more than a quarter of torch's memory.

Dimensions: N tokens, D width of the model, V vocabulary.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timing.memory import growths, in_own_process
from timing.rounds import command, positive
from torch import Tensor

from omnigram.model.loss import weighted_cross_entropy

ALLOWED = 0.25
PICTURES = 0.9  # share of the targets that are codes
TOLERANCE = 1e-4


class Measured(NamedTuple):
    peak: float  # MiB
    seconds: float
    loss: float
    lengths: tuple[float, float]  # of the gradients of hidden states and head


def plain(hidden: Tensor, head: Tensor, targets: Tensor, codes: int) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), targets)


def chunked(hidden: Tensor, head: Tensor, targets: Tensor, codes: int) -> Tensor:
    parts = weighted_cross_entropy(hidden, head, targets, torch.ones(len(targets)))
    return parts.loss / parts.weight


def partitioned(hidden: Tensor, head: Tensor, targets: Tensor, codes: int) -> Tensor:
    text = len(head) - codes
    partition = (targets >= text).long()
    weights = torch.ones(len(targets))
    parts = weighted_cross_entropy(hidden, head, targets, weights, [(0, text), (text, codes)], partition)
    return parts.loss / parts.weight


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "plain": plain,
    "chunked": chunked,
    "partitioned": partitioned,
}


def measure(name: str, tokens: int, width: int, vocabulary: int, codes: int, threads: int) -> Measured:
    """In a fresh process: inputs are made, one forward and backward pass is run."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    found: list[tuple[float, float, Tensor, Tensor]] = []

    def work() -> None:
        torch.manual_seed(0)
        hidden = torch.randn(tokens, width, requires_grad=True)
        head = torch.empty(vocabulary, width).normal_(std=0.02).requires_grad_()
        code = torch.rand(tokens) < PICTURES
        text = vocabulary - codes
        targets = torch.where(code, text + torch.randint(codes, (tokens,)), torch.randint(text, (tokens,)))
        start = time.perf_counter()
        loss = LOSSES[name](hidden, head, targets, codes)
        loss.backward()
        assert hidden.grad is not None
        assert head.grad is not None
        found.append((time.perf_counter() - start, loss.item(), hidden.grad, head.grad))

    [peak] = growths([work])
    [(seconds, loss, *grads)] = found
    return Measured(peak or float("nan"), seconds, loss, (float(grads[0].norm()), float(grads[1].norm())))


def available() -> float:
    """MiB that the machine has left; Linux only."""
    file = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", file.read_text()) if file.exists() else None
    return int(found[1]) / 1024 if found else float("inf")


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(
        prog="benchmarks/loss_head.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--tokens", type=positive, default=4096, metavar="N", help="default 4096")
    made.add_argument("--width", type=positive, default=1024, metavar="D", help="default 1024")
    made.add_argument("--vocabulary", type=positive, default=184_622, metavar="V", help="default 184622, Emu3's")
    made.add_argument("--codes", type=positive, default=32_768, metavar="N", help="ids of pictures, default 32768")
    made.add_argument("--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="torch's choice")
    args = made.parse_args(arguments)
    needed = 4 * (3 * args.tokens * args.vocabulary + 2 * (args.tokens + args.vocabulary) * args.width) / 2**20
    if available() < needed + 512:
        sys.exit(f"all logits need {needed:,.0f} MiB, the machine has {available():,.0f} left: take fewer --tokens")
    print(f"{args.tokens:,} tokens, width {args.width:,}, {args.vocabulary:,} ids of which {args.codes:,} are codes")
    print(f"{'loss':12} {'peak MiB':>9} {'of plain':>9} {'seconds':>8} {'of plain':>9}")
    rows: dict[str, Measured] = {}
    for name in LOSSES:
        rows[name] = in_own_process(measure, name, args.tokens, args.width, args.vocabulary, args.codes, args.threads)
        found, peer = rows[name], rows["plain"]
        print(
            f"{name:12} {found.peak:9,.0f} {found.peak / peer.peak:9.3f} {found.seconds:8.2f} "
            f"{found.seconds / peer.seconds:9.3f}",
            flush=True,
        )
    print(f"repeat   {command(made.prog, args)}")
    ours, peer = rows["chunked"], rows["plain"]
    for name, mine, torchs in zip(
        ("loss", "gradient of the hidden states", "gradient of the head"),
        (ours.loss, *ours.lengths),
        (peer.loss, *peer.lengths),
        strict=True,
    ):
        if abs(mine / torchs - 1) > TOLERANCE:
            sys.exit(f"the {name} is {mine}, torch's is {torchs}")
    if max(rows[name].peak for name in ("chunked", "partitioned")) > ALLOWED * peer.peak:
        sys.exit(f"more than {ALLOWED} of plain's memory")


if __name__ == "__main__":
    main()
