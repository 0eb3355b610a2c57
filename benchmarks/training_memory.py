"""Peak memory of training: our steps on packed rows, against transformers' Trainer on the same documents padded.

The Trainer trains Llama with our shape, or another class of `--peer`. Each runs in a process of its own, some steps
from scratch, and what counts is how far resident memory grows at its peak over what the process held before there was
a model: weights, gradients, the optimizer's states and whatever a step keeps. Both train in float32 with AdamW, the
Trainer's own; a third row is ours with Muon as well, the default. `--mode dense` are full rows without pads.
"""

import argparse
from collections.abc import Sequence

import torch
from made.documents import dense_rows, made_documents
from peers.llama import HEAD_NORMS, padded, peer_model, run_trainer
from timing.memory import growths, in_own_process
from timing.rounds import command
from train_step import NO_MUON, Ours, composed, made_model, made_vocabulary, options

from omnigram.data.packing import Collator
from omnigram.train.machine import prepare


def measure(who: str, args: argparse.Namespace) -> float:
    """MiB that a few steps of one of `ours`, `peer`, `muon` need in this process."""
    config = composed(args, *(() if who == "muon" else (NO_MUON,)))
    prepare(config)
    vocabulary = made_vocabulary(args.vocabulary, config)
    documents = (made_documents if args.mode == "mix" else dense_rows)(vocabulary, config, args.steps)
    collator = Collator(
        vocabulary, config.loader.rows, config.loader.length, config.loss.weights, config.loss.partitioned
    )
    flat = [[document for row in rows for document in row] for rows in documents]
    packed = [collator.collate(rows) for rows in documents]

    def ours() -> None:
        steps = Ours(made_model(config, vocabulary, qk_norm=HEAD_NORMS[args.peer]), vocabulary, config)
        for batch in packed:
            steps.step(batch)

    def peer() -> None:
        with torch.device("meta"):
            shape = made_model(config, vocabulary, qk_norm=HEAD_NORMS[args.peer]).config
        run_trainer(peer_model(args.peer, shape), config, [padded(some, collator.pad) for some in flat])

    [peak] = growths([peer if who == "peer" else ours])
    return peak or float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    made = options("training_memory.py", __doc__)
    made.set_defaults(model="small", steps=2)
    args = made.parse_args(arguments)
    peaks = {who: in_own_process(measure, who, args) for who in ("peer", "ours", "muon")}
    print(f"training model={args.model}, float32, {args.mode}, {args.tokens:,} places of ours a step")
    for who, peak in peaks.items():
        print(f"{who:8} {peak:,.0f} MiB, {peak / peaks['peer']:.3f} of the peer's")
    print(f"repeat   {command(made.prog, args)}")


if __name__ == "__main__":
    main()
