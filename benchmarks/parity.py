"""Parity with transformers: our decoder beside Chameleon and Emu3 on random tiny configurations, from the same weights.

Every weight is random, norms and biases too. Both run in float32 on the same rows with left pads, and of four things
the table shows the greatest difference, max |ours - theirs| / max |theirs| over the tokens that are no pads:

    hidden     states after the last norm
    logits     but for Chameleon's image ids, which transformers sets to the least float
    gradients  of the cross-entropy of random ids: ours from `training_loss` on packed rows, theirs from their logits
               of padded rows; a ratio for each parameter, of which this is the greatest
    cached     our logits, a prompt first and then token by token from the cache, against theirs of the whole

Exits with 1 if a row is out of bounds. Dimensions: B rows, T tokens of a row, D width of the model, V vocabulary.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing.rounds import command, positive
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    Emu3ForCausalLM,
    Emu3TextConfig,
)

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM

FAMILIES = ("chameleon", "emu3")
LENGTH, ORIGINAL_LENGTH = 32, 8  # rows are shorter than the one, most are longer than what scaled rotary types had
ROPE: dict[str, dict[str, float]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_LENGTH,
    },
    "proportional": {"partial_rotary_factor": 0.5},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL_LENGTH},
}


_SHORT = {"qkvo+b": "attention_bias", "mlp+b": "mlp_bias", "tied": "tied", "drop": "dropout"}
WIDTH = 120  # of a configuration in the table


class Differences(NamedTuple):
    hidden: float
    logits: float
    gradients: float
    cached: float


BOUNDS = Differences(hidden=1e-5, logits=1e-5, gradients=1e-4, cached=1e-5)


@dataclass(frozen=True)
class Case:
    """One row: a configuration, and the rows of tokens that both models are run on."""

    family: str
    seed: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    image_ids: int  # the first ids; Chameleon only
    norm_order: str
    rope_type: str
    rope_theta: float
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    dropout: float  # evaluation switches it off
    attention: str  # our implementation
    length: int
    pads: tuple[int, ...]  # at the left of each row
    prompt: int  # tokens before the first cached step

    @property
    def padding(self) -> int:
        """The last id, never drawn: transformers gives the embedding of padding no gradient."""
        return self.vocab_size - 1

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments that both configurations have by the same names."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.heads * self.head_dim,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "rope_parameters": {"rope_type": self.rope_type, "rope_theta": self.rope_theta, **ROPE[self.rope_type]},
            "attention_dropout": self.dropout,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": LENGTH,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": self.padding,
        }

    def __str__(self) -> str:
        words = [
            f"{self.family:9}",
            f"{self.layers} x {self.heads * self.head_dim:3}",
            f"{self.heads}/{self.key_value_heads} heads",
            f"{self.norm_order:4}",
            f"{self.rope_type:12} {self.rope_theta:<7.0f}",
            f"{len(self.pads)} x {self.length:<2}",
            f"pads {','.join(map(str, self.pads)):11}",
            f"prompt {self.prompt:<2}",
            f"{self.attention:5}",
            " ".join(word for word, name in _SHORT.items() if getattr(self, name)),
        ]
        return "  ".join(words)


def draw(number: int, seed: int) -> list[Case]:
    """Configurations, the families in turns and in each the rotary types; the same seed draws the same."""
    source = random.Random(seed)
    rope_types = [name for name in ROPE for _ in FAMILIES]
    turns = zip(range(number), cycle(FAMILIES), cycle(rope_types), strict=False)
    return [_draw_one(source, family, rope_type) for _, family, rope_type in turns]


def _draw_one(source: random.Random, family: str, rope_type: str) -> Case:
    chameleon = family == "chameleon"  # Emu3 has neither biases nor another norm order
    heads = source.choice((1, 2, 3, 4, 6, 8))
    length, rows = source.randrange(5, 30, 2), source.randint(1, 4)
    return Case(
        family=family,
        seed=source.randrange(2**31),
        layers=source.randint(1, 4),
        heads=heads,
        key_value_heads=source.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        head_dim=source.choice((4, 6, 8, 16)),
        intermediate=source.randint(20, 90),
        vocab_size=source.randint(60, 150),
        image_ids=source.randint(8, 30) if chameleon else 0,
        norm_order=source.choice(("pre", "swin")) if chameleon else "pre",
        rope_type=rope_type,
        rope_theta=10.0 ** source.randint(2, 6),
        attention_bias=chameleon and source.random() < 0.3,
        mlp_bias=chameleon and source.random() < 0.3,
        tied=source.random() < 0.3,
        dropout=source.choice((0.0, 0.1)),
        attention=source.choice(("sdpa", "eager")),
        length=length,
        pads=tuple(source.choice((0, source.randint(1, length - 2))) for _ in range(rows)),
        prompt=source.randint(1, length - 1),
    )


def their_model(case: Case) -> nn.Module:
    """transformers' decoder of this shape, every weight of it random."""
    torch.manual_seed(case.seed)
    if case.family == "chameleon":
        names = {f"IMGIMG{_letters(code)}Z": code for code in range(case.image_ids)}
        smallest = ChameleonVQVAEConfig(
            embed_dim=4, num_embeddings=8, latent_channels=4, base_channels=32, channel_multiplier=[1], num_res_blocks=1
        )
        config = ChameleonConfig(
            **case.shape,
            swin_norm=case.norm_order == "swin",
            attention_bias=case.attention_bias,
            mlp_bias=case.mlp_bias,
            vq_config=smallest,
            vocabulary_map={**names, "<image>": case.image_ids},
        )
        model = ChameleonForConditionalGeneration(config)
    else:
        model = Emu3ForCausalLM(Emu3TextConfig(**case.shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vqmodel" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def _letters(code: int) -> str:
    """Digits as Chameleon's vocabulary writes them, A for 0."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(code))


def our_options(case: Case) -> dict[str, Any]:
    """The arguments of `OmnigramConfig`."""
    chameleon = case.family == "chameleon"
    return {
        **case.shape,
        "qk_norm": "layer" if chameleon else "none",
        "qk_norm_per_head": chameleon,
        "norm_order": case.norm_order,
        "attention_bias": case.attention_bias,
        "mlp_bias": case.mlp_bias,
        "residual_dropout": case.dropout,
        "attn_implementation": case.attention,
    }


def our_model(case: Case, theirs: nn.Module) -> OmnigramForCausalLM:
    """Ours with their weights, under their names."""
    model = OmnigramForCausalLM(OmnigramConfig(**our_options(case)))
    weights = {name: value for name, value in theirs.state_dict().items() if "vqmodel" not in name}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def compare(case: Case) -> Differences:
    """Runs both models on the case's rows."""
    theirs = their_model(case)
    ours = our_model(case, theirs)
    generator = torch.Generator().manual_seed(case.seed)
    shape = (len(case.pads), case.length)
    ids = torch.randint(case.padding, shape, generator=generator)
    targets = torch.randint(case.image_ids + 1, case.vocab_size, shape, generator=generator)
    real = torch.arange(case.length) >= torch.tensor(case.pads)[:, None]
    rows = {"attention_mask": real.long(), "position_ids": (real.cumsum(1) - 1).clamp(0)}
    shown = slice(case.image_ids, None)

    hidden = theirs.model(ids, **rows, use_cache=False).last_hidden_state  # pyright: ignore[reportCallIssue]
    logits = theirs(ids, **rows, use_cache=False).logits[real][:, shown]
    F.cross_entropy(logits, targets[real] - case.image_ids).backward()

    with torch.no_grad():
        our_hidden = ours.model(ids, **rows).last_hidden_state
        our_logits = ours(ids, **rows).logits[real][:, shown]
        cached = cached_logits(ours, ids, rows, case.prompt)[real][:, shown]
    parts = ours.training_loss(
        ids,
        targets,
        real.float(),
        document_ids=torch.where(real, 0, -1),
        position_ids=rows["position_ids"],
        partitions=[(case.image_ids, case.vocab_size - case.image_ids)],
        target_partition=torch.zeros_like(ids),
    )
    (parts.loss / parts.weight).backward()
    return Differences(
        hidden=difference(our_hidden[real], hidden[real]),
        logits=difference(our_logits, logits),
        gradients=max(difference(ours_, theirs_) for ours_, theirs_ in _gradients(ours, theirs)),
        cached=difference(cached, logits),
    )


def cached_logits(model: OmnigramForCausalLM, ids: Tensor, rows: dict[str, Tensor], prompt: int) -> Tensor:
    """[B, T, V] logits of a prompt and of one token after another, each seeing the cache and itself."""
    cache, found, done = None, [], 0
    for part in ids.split([prompt, *[1] * (ids.shape[1] - prompt)], dim=1):
        start, done = done, done + part.shape[1]
        out = model(
            part,
            attention_mask=rows["attention_mask"][:, :done],
            position_ids=rows["position_ids"][:, start:done],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        found.append(out.logits)
    return torch.cat(found, dim=1)


def _gradients(ours: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Both gradients of every parameter of the decoder."""
    wanted = {name: p.grad for name, p in theirs.named_parameters() if "vqmodel" not in name}
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert set(found) == set(wanted)
    pairs = []
    for name, gradient in found.items():
        expected = wanted[name]
        assert gradient is not None, name
        assert expected is not None, name
        pairs.append((gradient, expected))
    return pairs


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|."""
    greatest = theirs.detach().abs().max()
    apart = (ours - theirs).detach().abs().max()
    return float(apart / greatest) if greatest > 0 else float(apart)


def main(argv: Sequence[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmarks/parity.py", description=__doc__, formatter_class=formatter)
    parser.add_argument("--configurations", type=positive, default=32, metavar="N", help="rows of the table (32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and the weights (0)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # tiny products: more threads are slower, and sum in another order
    heads = "  ".join(f"{name:>9}" for name in Differences._fields)
    print(f"{'':3} {'configuration':{WIDTH}} {heads}")
    found = []
    for number, case in enumerate(draw(args.configurations, args.seed), start=1):
        found.append(compare(case))
        print(f"{number:3} {case!s:{WIDTH}} {'  '.join(f'{value:9.1e}' for value in found[-1])}", flush=True)
    worst = Differences(*(max(values) for values in zip(*found, strict=True)))
    print(f"{'':3} {'worst':{WIDTH}} {'  '.join(f'{value:9.1e}' for value in worst)}")
    print(f"{'':3} {'bound':{WIDTH}} {'  '.join(f'{value:9.1e}' for value in BOUNDS)}")
    print(f"repeat   {command('benchmarks/parity.py', args)}")
    outside = [name for name, value, bound in zip(worst._fields, worst, BOUNDS, strict=True) if not value <= bound]
    if outside:
        sys.exit(f"out of bounds: {', '.join(outside)}")


if __name__ == "__main__":
    main()
