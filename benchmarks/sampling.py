"""Drawing pictures: our sampler, against `generate` of transformers' Emu3 with the same weights.

Two comparisons at each batch size, each contestant drawing the same words in turns:
guided   ours with guidance 3 in log-softmax space and top-k 2,048, against the recipe that Emu3's documentation
         publishes: unbatched guidance, prefix-constrained `generate` (see peers/emu3.py)
plain    ours without guidance, against plain `generate`: no guidance, no constraint, no end, as many new ids as the
         block has, of all the vocabulary. That is the quickest that the peer can be, and what it writes is hardly ever
         a picture; ours keeps to the grammar and to top-k.

Both are run with our default vocabulary, and with one of the size of Emu3's, whose head is most of a small decoder:
there it counts that ours computes only the rows that the grammar allows.

All write the same number of ids: those of a block behind its size, marks between the rows included, which is what
tokens/s counts. The peer runs a forward for each and the head for every id. Before anything is timed all draw the
likeliest codes, guided and plain, the peer within the layout; if they differ the script says so and exits with 1.
Peak is the growth of resident memory over that with the models loaded, each contestant in a process of its own, which
draws one batch after the other. The weights are random, without query-key norms, which Emu3 does not have.

Dimensions: H rows and W columns of codes.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig
from peers.emu3 import Emu3Generate, as_emu3
from timing.memory import growths, in_own_process
from timing.operators import print_operators
from timing.rounds import Rates, command, digits, in_turns, parser, positive

from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Prompt, Sampler, Sampling
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare

TOP_K = 2048
VOCABULARIES = {"omnigram": None, "emu3": (151_854, 32_768)}  # text ids with the marks, and codes; None: as configured
SETTINGS = {
    "guided": Sampling(top_k=TOP_K, guidance=3.0, guidance_space="log_softmax"),
    "plain": Sampling(top_k=TOP_K),
}
COLOURS = ("red", "green", "light blue", "white", "very dark brown")
THINGS = ("apple", "cat face", "house with garden", "clock", "woman mountain biking", "flag", "left arrow")
STYLES = ("twemoji", "openmoji")
PIECES = 400  # of the text tokenizer: prompts of 4 to 8 tokens, as captions have
SPREAD = 0.1  # standard deviation that is added to the weights: as they begin, pictures repeat a handful of codes

Codes = NDArray[np.int64]
Cell = tuple[str, int]  # "guided" or "plain", and the number of pictures in a batch


class Contest:
    """The contestants: "ours", "compiled" where it is asked for, and "peer"."""

    def __init__(self, args: argparse.Namespace, vocabulary: str) -> None:
        config = compose_config([f"model={args.model}", "model.qk_norm=none", f"threads={args.threads}", "device=cpu"])
        prepare(config)
        self.size = (args.side, args.side)
        text = TextTokenizer.train([f"{colour} {thing}, {style}" for colour, thing, style in _described()], PIECES)
        configured = config.tokenizer.text.vocab_size, config.tokenizer.quantizer.codebook_size
        model, sampler = made_sampler(config, text, VOCABULARIES[vocabulary] or configured)
        self.samplers = {"ours": sampler}
        if args.compile:
            self.samplers["compiled"] = Sampler(model, sampler.grammar, text, compile=True)
        self.peer = Emu3Generate(as_emu3(model), sampler, self.size, TOP_K)
        self.vocabulary = sampler.vocabulary

    @property
    def names(self) -> list[str]:
        return [*self.samplers, "peer"]

    def draw(self, name: str, kind: str, words: Sequence[str], seed: int = 0, greedy: bool = False) -> list[Codes]:
        """One picture [H, W] for each of the words, within the layout."""
        setting = SETTINGS[kind]
        if name == "peer":
            torch.manual_seed(seed)
            return self.peer.draw(words, setting.guidance, greedy)
        if greedy:
            setting = replace(setting, temperature=0.0)
        limits = {"sizes": {"image": self.size}, "text": False, "min_blocks": 1, "max_blocks": 1}
        prompts = [Prompt((text,), limits, seed + number) for number, text in enumerate(words)]
        samples = self.samplers[name].sample(prompts, {"image": setting}, batch_size=len(words))
        return [sample.blocks("image")[-1] for sample in samples]

    def work(self, name: str, kind: str, words: Sequence[str], seed: int = 0) -> int:
        """What is timed and measured. -> ids written."""
        if (name, kind) == ("peer", "plain"):
            torch.manual_seed(seed)
            self.peer.write(words)
        else:
            self.draw(name, kind, words, seed)
        return len(words) * self.peer.length

    def steps(self, name: str, kind: str, words: Sequence[Sequence[str]]) -> Callable[[int], float]:
        """`work` on the words of each step."""
        return lambda step: self.work(name, kind, words[step], seed=step)


def _described() -> list[tuple[str, str, str]]:
    return [(colour, thing, style) for colour in COLOURS for thing in THINGS for style in STYLES]


def made_words(step: int, pictures: int) -> list[str]:
    """Prompts of several lengths."""
    random = np.random.default_rng(step)
    return [f"{random.choice(COLOURS)} {random.choice(THINGS)}, {random.choice(STYLES)}" for _ in range(pictures)]


def made_sampler(
    config: DictConfig, text: TextTokenizer, sizes: tuple[int, int]
) -> tuple[OmnigramForCausalLM, Sampler]:
    """A decoder with random weights of the configured size, and its grammar. sizes: text ids and codes."""
    vocabulary = Vocabulary.appended(sizes[0], codebooks={"image": sizes[1]})
    specials = {f"{name}_token_id": vocabulary.id(name) for name in ("pad", "bos", "eos")}
    torch.manual_seed(config.seed)
    model = OmnigramForCausalLM(instantiate(config.model, vocab_size=vocabulary.size, **specials)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * SPREAD)
    return model, Sampler(model, document_grammar(vocabulary, text.digit_ids), text)


def check(contest: Contest, batches: Sequence[int]) -> str:
    """All draw the same likeliest codes. -> What was found, in words; exits with 1 if they do not."""
    pictures, distinct = 0, set()
    for kind in SETTINGS:
        for batch in batches:
            words = made_words(0, batch)
            drawn = {name: contest.draw(name, kind, words, greedy=True) for name in contest.names}
            for name, others in drawn.items():
                different = sum(not np.array_equal(*pair) for pair in zip(drawn["ours"], others, strict=True))
                if different:
                    sys.exit(
                        f"{different} of {batch} {kind} pictures have other codes when {name} draws them: no comparison"
                    )
            pictures += batch
            distinct |= {codes.tobytes() for codes in drawn["ours"]}
    return f"the likeliest are the same by all for {pictures} prompts, which give {len(distinct)} distinct pictures"


def peaks(args: argparse.Namespace, vocabulary: str, name: str, kind: str) -> list[float | None]:
    """MiB that one contestant needs for each batch size. Runs in a process of its own."""
    contest = Contest(args, vocabulary)
    return growths([lambda batch=batch: contest.work(name, kind, made_words(0, batch)) for batch in args.batches])


def compiling(contest: Contest, batches: Sequence[int]) -> float:
    """Seconds that the first draws of the compiled sampler take beyond the second ones."""
    extra = 0.0
    for kind in SETTINGS:
        for batch in batches:
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                contest.work("compiled", kind, made_words(0, batch))
                seconds.append(time.perf_counter() - start)
            extra += seconds[0] - seconds[1]
    return extra


def timed(contest: Contest, args: argparse.Namespace) -> dict[Cell, Rates]:
    """Tokens a second of each contestant in each round."""
    found: dict[Cell, Rates] = {}
    for kind in SETTINGS:
        for batch in args.batches:
            words = [made_words(step, batch) for step in range(args.steps)]
            steps = {name: contest.steps(name, kind, words) for name in contest.names}
            found[kind, batch] = in_turns(steps, args.rounds, args.steps)
    return found


def print_table(
    rates: Mapping[Cell, Rates],
    memory: Mapping[tuple[str, str], list[float | None]],
    args: argparse.Namespace,
    length: int,
) -> None:
    """A line for each contestant of each comparison at each batch size."""
    print(
        f"{'':6} {'batch':>5}  {'':8} {'tokens/s':>9}  {'rounds':>17} {'s a picture':>12} {'peak MiB':>9} {'ratio':>6}"
    )
    for (kind, batch), found in rates.items():
        peer = median(found["peer"])
        for name, values in found.items():
            rate = median(values)
            spread = f"{digits(min(values))} .. {digits(max(values))}"
            peak = memory.get((name, kind), [None] * len(args.batches))[args.batches.index(batch)]
            shown = "-" if peak is None else f"{peak:.1f}"
            ratio = "" if name == "peer" else digits(rate / peer)
            print(
                f"{kind:6} {batch:5}  {name:8} {digits(rate):>9}  {spread:>17} {digits(length / rate):>12} "
                f"{shown:>9} {ratio:>6}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    made = options()
    args = made.parse_args(arguments)
    for vocabulary in args.vocabularies:
        compare(args, vocabulary)
    print(f"repeat   {command(made.prog, args)}")


def compare(args: argparse.Namespace, vocabulary: str) -> None:
    """Both comparisons with one vocabulary, as a table."""
    contest = Contest(args, vocabulary)
    extra = compiling(contest, args.batches) if args.compile else 0.0
    agreed = check(contest, args.batches)
    memory: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for kind in SETTINGS:
        for name in ("ours", "peer"):
            memory[name, kind] = in_own_process(peaks, args, vocabulary, name, kind)
    rates = timed(contest, args)
    text, image = (contest.vocabulary.range(modality).size for modality in ("text", "image"))
    print(f"drawing  model={args.model} without query-key norms, {text:,} text ids and {image:,} codes,")
    print(f"         {args.side} x {args.side} codes a picture, {contest.peer.length} tokens behind its size")
    print(f"codes    {agreed}")
    print(f"machine  threads: {args.threads}, torch {torch.__version__}")
    print_table(rates, memory, args, contest.peer.length)
    if args.compile:
        print(f"compile  {extra:.1f} s in all before the first draws, which are not in the rates")
    if args.profile:
        name = "compiled" if args.compile else "ours"
        for batch in (args.batches[0], args.batches[-1]):
            words = made_words(0, batch)
            print_operators(f"{name}, guided, batch {batch}", lambda words=words: contest.work(name, "guided", words))


def options() -> argparse.ArgumentParser:
    made = parser("sampling.py", __doc__, rounds=5, steps=1)
    made.add_argument("--model", default="micro", help="size of the decoder, an option of conf/model/")
    made.add_argument("--side", type=positive, default=8, metavar="N", help="codes a side of the pictures")
    made.add_argument(
        "--batches", type=positive, nargs="+", default=[1, 4, 16], metavar="N", help="pictures of a batch, rising"
    )
    made.add_argument(
        "--vocabularies",
        choices=VOCABULARIES,
        nargs="+",
        default=list(VOCABULARIES),
        help="ours as it is configured, and one of the size of Emu3's",
    )
    made.add_argument("--compile", action="store_true", help="ours also with its steps compiled")
    made.add_argument("--profile", action="store_true", help="print where the time of ours goes, compiled if asked for")
    return made


if __name__ == "__main__":
    main()
