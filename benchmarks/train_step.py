"""Training the decoder: ours on packed rows, against a model of transformers with the same shape and optimizer.

Both see the same documents. `--mode mix` are those of the default data in kinds and lengths: a step of ours is a batch
of full rows with attention within documents and the chunked, partitioned loss; a step of the peer is those documents as
a batch, each padded to the longest, pads masked and labelled -100, which is what one gets by default. `--mode dense`
are the same documents laid end to end and cut into full rows, each row one document, so that nobody has pads and both
attend to all that is before. Both count useful tokens alone, and both have query-key norms where the peer's class has
(Qwen3's has, as our shipped sizes have). Another line says what Muon, which our default adds to AdamW, costs ours.

The share is of the machine's own float32 matrix products, for the arithmetic that ours cannot do without: no pads, no
pairs across documents, no logits outside of a target's range.
"""

import argparse
from collections.abc import Sequence
from statistics import median

import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric
from made.documents import dense_rows, made_documents
from omegaconf import DictConfig
from peers.llama import CLASSES, HEAD_NORMS, Peer, padded, peer_model
from timing.operators import print_operators
from timing.rounds import digits, in_turns, parser, positive, report
from transformers import PreTrainedModel

from omnigram.data.packing import Collator, PackedBatch
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.size import StepFlops, step_flops
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare
from omnigram.train.pretraining import Pretraining

PRODUCT = 1024  # side of the matrices whose product gives the machine's rate
PRODUCTS = 64  # in a row, which take about as long as a step, so that both meet the same machine
EMU3_TEXT, EMU3_CODES = 151_846, 32_768  # with our eight specials 184,622 ids, as Emu3 has
NO_MUON = "optimizer.muon_learning_rate=null"


class Ours:
    """The steps of `omnigram pretrain`, without the loop around them."""

    def __init__(self, model: OmnigramForCausalLM, vocabulary: Vocabulary, config: DictConfig) -> None:
        self.module = Pretraining(model, vocabulary, config)
        Fabric(accelerator="cpu", devices=1).setup(self.module, *self.module.configure_optimizers())
        if config.trainer.compile:
            model.model.compile(dynamic=False)

    def step(self, batch: PackedBatch) -> float:
        self.module.training_step(batch, 0)
        self.module.steps_done += 1
        return batch.num_tokens


def made_vocabulary(name: str, config: DictConfig) -> Vocabulary:
    """Our default one, or one of the size of Emu3's."""
    text, codes = config.tokenizer.text.vocab_size, config.tokenizer.quantizer.codebook_size
    if name == "emu3":
        text, codes = EMU3_TEXT, EMU3_CODES
    return Vocabulary.appended(text, codebooks={"image": codes})


def made_model(config: DictConfig, vocabulary: Vocabulary, **changed: object) -> OmnigramForCausalLM:
    specials = {f"{name}_token_id": vocabulary.id(name) for name in ("pad", "bos", "eos")}
    torch.manual_seed(config.seed)
    return OmnigramForCausalLM(instantiate(config.model, vocab_size=vocabulary.size, **specials, **changed))


def needed_flops(flops: StepFlops, batch: PackedBatch, module: Pretraining) -> float:
    """Of a forward and backward pass: blocks, attention within documents, logits of each target's range."""
    assert module.partitions is not None
    sizes = torch.tensor([size for _, size in module.partitions])
    logits = int(sizes[batch.partition[batch.weights > 0].long()].sum())
    return flops.needed(batch.num_tokens, batch.num_pairs, logits)


def composed(args: argparse.Namespace, *more: str) -> DictConfig:
    length = min(args.length, args.tokens)
    overrides = [f"model={args.model}", f"threads={args.threads}", f"trainer.compile={str(args.compile).lower()}"]
    overrides += [f"loader.rows={max(1, args.tokens // length)}", f"loader.length={length}", "device=cpu", *more]
    return compose_config(overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    made = options("train_step.py", __doc__)
    made.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of both")
    made.add_argument("--profile", action="store_true", help="tables of the operators of a step of each")
    args = made.parse_args(arguments)
    config, plain = composed(args), composed(args, NO_MUON)
    both = config if args.optimizer == "muon" else plain
    prepare(config)
    vocabulary = made_vocabulary(args.vocabulary, config)
    norm = {"qk_norm": HEAD_NORMS[args.peer]}
    ours = Ours(made_model(config, vocabulary, **norm), vocabulary, both)
    peer = Peer(peer_model(args.peer, ours.module.model.config), both)
    assert peer.model.num_parameters() == ours.module.model.num_parameters(), "both have to be of one shape"
    with_muon = Ours(made_model(config, vocabulary, **norm), vocabulary, config) if both is plain else None

    documents = (made_documents if args.mode == "mix" else dense_rows)(vocabulary, config, args.steps)
    collator = Collator(
        vocabulary, config.loader.rows, config.loader.length, config.loss.weights, config.loss.partitioned
    )
    packed = [collator.collate(rows) for rows in documents]
    others = [padded([document for row in rows for document in row], collator.pad) for rows in documents]
    matrices = torch.randn(2, PRODUCT, PRODUCT)

    def product(step: int) -> float:
        for _ in range(PRODUCTS):
            torch.mm(*matrices)
        return PRODUCTS * 2.0 * PRODUCT**3

    contestants = {
        "ours": lambda step: ours.step(packed[step]),
        "peer": lambda step: peer.step(others[step]),
        "product": product,
    }
    if with_muon is not None:
        contestants["muon"] = lambda step: with_muon.step(packed[step])
    rates = in_turns(contestants, args.rounds, args.steps)

    tokens = sum(batch.num_tokens for batch in packed)
    assert tokens == sum(batch.num_tokens for batch in others), "both have to see the same documents"
    fill = {
        "ours": tokens / sum(batch.ids.numel() for batch in packed),
        "peer": tokens / sum(batch.ids.numel() for batch in others),
    }
    needs = step_flops(ours.module.model.config)
    flops = sum(needed_flops(needs, batch, ours.module) for batch in packed) / tokens
    rate = {name: median(found) for name, found in rates.items()}
    what = {
        "ours": f"{size(ours.module.model)}, packed rows, {1 - fill['ours']:.1%} pads",
        "peer": f"{size(peer.model)}, {type(peer.model).__name__}, padded rows, {1 - fill['peer']:.1%} pads",
    }
    how = "compiled" if args.compile else "eager"
    optimizer = "Muon and AdamW" if args.optimizer == "muon" else "AdamW"
    print(
        f"training model={args.model}, {vocabulary.size:,} ids, {how}, both with {optimizer}, {args.mode}: "
        f"{tokens / args.steps:,.0f} tokens a step"
    )
    report(made.prog, args, rates, "tokens", what)
    places = {name: rate[name] / fill[name] for name in fill}
    print(
        f"places   {digits(places['ours'])} against {digits(places['peer'])} a second with the pads counted: "
        f"{digits(places['ours'] / places['peer'])} is about the ratio if nobody had any"
    )
    if with_muon is not None:
        print(f"muon     {digits(rate['muon'])} tokens/s, {rate['muon'] / rate['ours']:.3f} of ours, with Muon as well")
    print(
        f"share    {rate['ours'] * flops / rate['product']:.3f} of the {rate['product'] / 1e9:,.0f} GFLOP/s of matrix "
        f"products, reached by ours"
    )
    if args.profile:
        print_operators("ours", lambda: ours.step(packed[0]), rows=24)
        print_operators("peer", lambda: peer.step(others[0]), rows=24)


def size(model: PreTrainedModel) -> str:
    return f"{model.num_parameters() / 1e6:.2f} M parameters"


def options(prog: str, description: str | None) -> argparse.ArgumentParser:
    """What a step is of, for this and other benchmarks of it."""
    made = parser(prog, description, rounds=5, steps=2)
    made.add_argument("--model", default="micro", help="size of both, an option of conf/model/")
    made.add_argument("--peer", choices=CLASSES, default="llama", help="class of transformers")
    made.add_argument("--mode", choices=("mix", "dense"), default="mix", help="packed documents, or full rows")
    made.add_argument("--tokens", type=positive, default=4096, metavar="N", help="places of a step of ours")
    made.add_argument(
        "--length", type=positive, default=2048, metavar="N", help="places of a row, if a step has so many"
    )
    made.add_argument("--vocabulary", choices=("omnigram", "emu3"), default="omnigram", help="its size")
    made.add_argument("--compile", action="store_true", help="torch.compile both; takes minutes more")
    return made


if __name__ == "__main__":
    main()
