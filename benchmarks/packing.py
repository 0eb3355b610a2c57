"""What packing costs: rows of packed documents, against as many tokens in separate documents of equal length.

Ours on both sides, the forward and backward pass of the loss: packed rows of documents of many lengths, and as a batch
without packing, each document a row of its own, all as long as the packed ones are on average. Both have equally many
tokens and no pads.
"""

import argparse
from collections.abc import Sequence

import torch
from timing.rounds import in_turns, parser, positive, report
from train_step import composed, made_model, made_vocabulary

from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.train.machine import prepare


def lengths_of(places: int, mean: int) -> list[int]:
    """Lengths from half the mean to twice and a half as much that fill so many places, repeating."""
    shares = (0.5, 0.75, 1.0, 0.5, 2.5, 0.75, 1.0, 1.0)  # the mean is 1
    lengths: list[int] = []
    while sum(lengths) < places:
        lengths.append(min(int(mean * shares[len(lengths) % len(shares)]), places - sum(lengths)))
    return lengths


def step_of(model: OmnigramForCausalLM, document: torch.Tensor) -> float:
    """A forward and backward pass on random ids; the number of tokens."""
    ids = torch.randint(model.config.vocab_size, document.shape, generator=torch.Generator().manual_seed(0))
    parts = model.training_loss(ids, ids, torch.ones(document.shape), document_ids=document)
    model.zero_grad()
    (parts.loss / parts.weight).backward()
    return document.numel()


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser("packing.py", __doc__, rounds=5, steps=1)
    made.add_argument("--model", default="micro", help="an option of conf/model/")
    made.add_argument("--rows", type=positive, default=2, metavar="N", help="packed rows of a step")
    made.add_argument("--length", type=positive, default=2048, metavar="N", help="places of a packed row")
    made.add_argument("--mean", type=positive, default=128, metavar="N", help="average length of a document")
    made.add_argument("--compile", action="store_true", help="torch.compile; takes minutes more")
    args = made.parse_args(arguments)
    if args.length % args.mean:
        made.error(f"--length {args.length} has to be a multiple of --mean {args.mean}")
    tokens = args.rows * args.length
    config = composed(argparse.Namespace(**vars(args), tokens=tokens))
    prepare(config)
    model = made_model(config, made_vocabulary("omnigram", config)).train()
    if args.compile:
        model.model.compile(dynamic=False)
    lengths = lengths_of(args.length, args.mean)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    packed = torch.stack([row + len(lengths) * index for index in range(args.rows)])
    alone = torch.arange(tokens // args.mean)[:, None].expand(-1, args.mean).contiguous()
    rates = in_turns(
        {"ours": lambda _: step_of(model, packed), "peer": lambda _: step_of(model, alone)}, args.rounds, args.steps
    )
    what = {
        "ours": f"{args.rows} rows of {len(lengths)} documents, {min(lengths)} to {max(lengths)} tokens long",
        "peer": f"{len(alone)} rows of one document of {args.mean} tokens",
    }
    report(made.prog, args, rates, "tokens", what)


if __name__ == "__main__":
    main()
