"""Training the decoder: ours on packed rows, against transformers' Llama of the same shape on padded ones.

Both see the same documents, of the kinds and lengths of the default data: a step of ours is a batch of full rows with
attention within documents and the chunked, partitioned loss; a step of the peer is those documents as a batch, each
padded to the longest, pads masked and labelled -100, which is what one gets by default. Both count useful tokens alone.
Ours carries query-key norms, which Llama lacks, and steps of Muon, where the peer has AdamW alone. The share is of the
machine's own float32 matrix products, for the arithmetic that ours cannot do without: no pads, no pairs across
documents, no logits outside of a target's range.

Dimensions: R rows of a packed batch, B documents padded to L tokens.
"""

import argparse
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric
from omegaconf import DictConfig
from timing.rounds import digits, in_turns, parser, report
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from omnigram.data.document import TokenDocument, TokenSegment
from omnigram.data.kinds import Composer
from omnigram.data.packing import NO_TARGET, Collator, PackedBatch, WrittenDocument, fullest
from omnigram.data.writing import Writer
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.size import StepFlops, step_flops
from omnigram.tokenizers.convolutional import NetworkConfig
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare
from omnigram.train.pretraining import Pretraining

# tokens of a caption with its style, and how many of the embedded picture dictionary's captions are so long
CAPTION_TOKENS, CAPTION_SHARES = range(3, 11), (0.06, 0.29, 0.29, 0.18, 0.10, 0.05, 0.02, 0.01)
FAMILY = 32  # pictures among which a page finds its companions
PRODUCT = 1024  # side of the matrices whose product gives the machine's rate


class Padded(NamedTuple):
    """The documents of a step as people batch them."""

    ids: Tensor  # [B, L]
    mask: Tensor  # [B, L] 1 for a token
    labels: Tensor  # [B, L] the ids, -100 on pads; the model shifts them


class MadeLibrary:
    """Captioned pictures of random codes, made when asked for: what a data set of tokens would give."""

    def __init__(self, vocabulary: Vocabulary, side: int) -> None:
        self.text, self.codes, self.side = vocabulary.range("text").size, vocabulary.range("image").size, side

    def __len__(self) -> int:
        return 100 * FAMILY

    def __getitem__(self, index: int) -> TokenDocument:
        random = np.random.default_rng(index)
        caption = random.integers(0, self.text, random.choice(CAPTION_TOKENS, p=CAPTION_SHARES))
        picture = random.integers(0, self.codes, (self.side, self.side))
        return TokenDocument(f"made{index}", (TokenSegment("text", caption), TokenSegment("image", picture)))

    def relatives(self, index: int) -> Sequence[int]:
        first = index - index % FAMILY
        return [number for number in range(first, first + FAMILY) if number != index]


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


class Peer:
    """The usual loop around a causal model of transformers."""

    def __init__(self, model: LlamaForCausalLM, config: DictConfig) -> None:
        self.model, self.clip = model.train(), config.optimizer.gradient_clip
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate, fused=True)
        if config.trainer.compile:
            model.compile()

    def step(self, batch: Padded) -> float:
        loss = self.model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return int(batch.mask.sum())


def made_documents(vocabulary: Vocabulary, config: DictConfig, steps: int) -> list[list[list[WrittenDocument]]]:
    """For each step R rows of documents, chosen as the loader chooses them."""
    patch = NetworkConfig(**config.tokenizer.network).patch
    library = MadeLibrary(vocabulary, config.tokenizer.pictures.resolution // patch)
    composer = Composer(library, config.loader.kinds, config.loader.caption_dropout, config.seed)
    digit_ids = {symbol: index for index, symbol in enumerate("0123456789*")}
    writer = Writer(document_grammar(vocabulary, digit_ids), config.loader.length)
    waiting: list[WrittenDocument] = []
    rows: list[list[WrittenDocument]] = []
    number = 0
    while len(rows) < steps * config.loader.rows:
        while len(waiting) < config.loader.lookahead:
            waiting += writer.write(composer.compose(0, number).segments, number).pieces
            number += 1
        chosen = fullest([len(document) for document in waiting], config.loader.length)
        rows.append([waiting[index] for index in chosen])
        waiting = [document for index, document in enumerate(waiting) if index not in chosen]
    return [rows[start : start + config.loader.rows] for start in range(0, len(rows), config.loader.rows)]


def padded(documents: Sequence[WrittenDocument], pad: int) -> Padded:
    """Each document in a row of its own, as long as the longest."""
    shape = (len(documents), max(map(len, documents)))
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.ids)
        mask[row, : len(document)] = 1
    return Padded(ids, mask, ids.masked_fill(mask == 0, NO_TARGET))


def llama(config: OmnigramConfig) -> LlamaForCausalLM:
    """Llama with the shape of our decoder."""
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    same += ("num_key_value_heads", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "attention_bias")
    same += ("mlp_bias", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    return LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in same}, use_cache=False))


def needed_flops(flops: StepFlops, batch: PackedBatch, module: Pretraining) -> float:
    """Of a forward and backward pass: blocks, attention within documents, logits of each target's range."""
    assert module.partitions is not None
    sizes = torch.tensor([size for _, size in module.partitions])
    logits = int(sizes[batch.partition[batch.weights > 0].long()].sum())
    return flops.needed(batch.num_tokens, batch.num_pairs, logits)


def main(arguments: Sequence[str] | None = None) -> None:
    made = options()
    args = made.parse_args(arguments)
    overrides = [f"model={args.model}", f"threads={args.threads}", f"trainer.compile={str(args.compile).lower()}"]
    config = compose_config([*overrides, "device=cpu"])
    prepare(config)
    torch.manual_seed(config.seed)
    codebooks = {"image": config.tokenizer.quantizer.codebook_size}
    vocabulary = Vocabulary.appended(config.tokenizer.text.vocab_size, codebooks=codebooks)
    specials = {f"{name}_token_id": vocabulary.id(name) for name in ("pad", "bos", "eos")}
    model = OmnigramForCausalLM(instantiate(config.model, vocab_size=vocabulary.size, **specials))
    ours, peer = Ours(model, vocabulary, config), Peer(llama(model.config), config)

    documents = made_documents(vocabulary, config, args.steps)
    collator = Collator(
        vocabulary, config.loader.rows, config.loader.length, config.loss.weights, config.loss.partitioned
    )
    packed = [collator.collate(rows) for rows in documents]
    others = [padded([document for row in rows for document in row], collator.pad) for rows in documents]
    matrices = torch.randn(2, PRODUCT, PRODUCT)

    def product(step: int) -> float:
        torch.mm(*matrices)
        return 2.0 * PRODUCT**3

    contestants = {
        "ours": lambda step: ours.step(packed[step]),
        "peer": lambda step: peer.step(others[step]),
        "product": product,
    }
    rates = in_turns(contestants, args.rounds, args.steps)

    tokens = sum(batch.num_tokens for batch in packed)
    assert tokens == sum(int(batch.mask.sum()) for batch in others), "both have to see the same documents"
    fill = {
        "ours": tokens / sum(batch.ids.numel() for batch in packed),
        "peer": tokens / sum(batch.ids.numel() for batch in others),
    }
    needs = step_flops(model.config)
    flops = sum(needed_flops(needs, batch, ours.module) for batch in packed) / tokens
    rate = {name: median(found) for name, found in rates.items()}
    what = {
        "ours": f"{size(model)}, packed rows, {1 - fill['ours']:.1%} pads",
        "peer": f"{size(peer.model)}, padded rows, {1 - fill['peer']:.1%} pads",
    }
    how = "compiled" if args.compile else "eager"
    print(f"training model={args.model}, {how}, {tokens / args.steps:,.0f} tokens a step")
    report(made.prog, args, rates, "tokens", what)
    places = {name: rate[name] / fill[name] for name in fill}
    print(
        f"places   {digits(places['ours'])} against {digits(places['peer'])} a second with the pads counted: "
        f"{digits(places['ours'] / places['peer'])} is about the ratio if nobody had any"
    )
    print(
        f"share    {rate['ours'] * flops / rate['product']:.3f} of the {rate['product'] / 1e9:,.0f} GFLOP/s of matrix "
        f"products, reached by ours"
    )


def size(model: PreTrainedModel) -> str:
    return f"{model.num_parameters() / 1e6:.2f} M parameters"


def options() -> argparse.ArgumentParser:
    made = parser("train_step.py", __doc__, rounds=5, steps=6)
    made.add_argument("--model", default="micro", help="size of both, an option of conf/model/")
    made.add_argument("--compile", action="store_true", help="torch.compile both; takes minutes more")
    return made


if __name__ == "__main__":
    main()
