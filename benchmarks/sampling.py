"""Drawing pictures: our sampler, against transformers' generate on the same weights within the same grammar.

Both draw the likeliest codes of 8 x 8 blocks for the same prompts, in one batch, from the same model; its weights are
random. The peer is what one writes with `generate`: prompts padded on the left, and a logits processor that steps our
grammar's automaton for each row and rules out every id it does not allow. It runs a forward for every token and the
head for every id; ours feeds forced tokens along with the code before them and computes the logits of the range alone.
If the two draw different codes the script says so and exits with 1.

Dimensions: N prompts, T tokens so far, V vocabulary, H rows and W columns of codes.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig
from timing.rounds import in_turns, parser, positive, report
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Sampler, Sampling, draw
from omnigram.tokenizers.automaton import Allowed
from omnigram.tokenizers.document_grammar import DocumentAutomaton, DocumentState
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train.compose import compose_config
from omnigram.train.machine import prepare

SIZE = (8, 8)
GREEDY = {"image": Sampling(temperature=0), "text": Sampling(temperature=0)}
COLOURS = ("red", "green", "light blue", "white", "very dark brown")
THINGS = ("apple", "cat face", "house with garden", "clock", "woman mountain biking", "flag", "left arrow")
STYLES = ("twemoji", "openmoji")
PIECES = 400  # of the text tokenizer: prompts of 4 to 8 tokens, as captions have
SPREAD = 0.1  # standard deviation that is added to the weights: as they begin, pictures repeat a handful of codes

Codes = NDArray[np.int64]


class Peer:
    """`generate` within the grammar."""

    def __init__(self, sampler: Sampler) -> None:
        self.model, self.writer, self.grammar = sampler.model, sampler.writer, sampler.grammar
        self.automaton = self.grammar.automaton(sizes={"image": SIZE}, text=False, min_blocks=1, max_blocks=1)
        self.pad = self.grammar.vocabulary.id("pad")

    def draw(self, words: Sequence[str]) -> list[Codes]:
        """One picture [H, W] for each prompt."""
        prompts = [self.writer.write((text,)) for text in words]
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad)
        for row, prompt in zip(ids, prompts, strict=True):
            row[longest - len(prompt) :] = torch.from_numpy(prompt)
        processor = GrammarProcessor(self.automaton, [self.automaton.after(prompt) for prompt in prompts])
        written = self.model.generate(  # pyright: ignore[reportCallIssue] (of GenerationMixin)
            ids,
            attention_mask=(ids != self.pad).long(),
            do_sample=False,
            max_new_tokens=self.grammar.blocks["image"].length(*SIZE) + 1,  # and eos
            logits_processor=LogitsProcessorList([processor]),
        )
        block = self.grammar.blocks["image"]
        return [block.read(row[longest:-1]) for row in written.numpy()]


class GrammarProcessor(LogitsProcessor):
    """Rules out what the automaton of each row does not allow. States go on from call to call, masks are kept."""

    def __init__(self, automaton: DocumentAutomaton, states: Sequence[DocumentState]) -> None:
        self.automaton, self.states = automaton, list(states)
        self.began = False
        self.masks: dict[Allowed, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[N, T] ids and [N, V] scores -> the scores, -inf where an id may not come next."""
        if self.began:
            last = input_ids[:, -1].tolist()
            self.states = [self.automaton.step(state, id_) for state, id_ in zip(self.states, last, strict=True)]
        self.began = True
        ruled_out = torch.stack([self.mask(self.automaton.allowed(state), scores.shape[1]) for state in self.states])
        return scores.masked_fill(ruled_out, -torch.inf)

    def mask(self, allowed: Allowed, size: int) -> Tensor:
        """[V] True for what is not allowed."""
        if allowed not in self.masks:
            mask = torch.ones(size, dtype=torch.bool)
            mask[torch.from_numpy(allowed.all_ids(self.automaton.vocabulary))] = False
            self.masks[allowed] = mask
        return self.masks[allowed]


def made_words(steps: int, pictures: int) -> list[list[str]]:
    """Prompts of several lengths, for each step."""
    random = np.random.default_rng(0)
    return [
        [f"{random.choice(COLOURS)} {random.choice(THINGS)}, {random.choice(STYLES)}" for _ in range(pictures)]
        for _ in range(steps)
    ]


def made_sampler(config: DictConfig) -> Sampler:
    """A decoder with random weights of the configured size, its vocabulary and grammar."""
    lines = [f"{colour} {thing}, {style}" for colour in COLOURS for thing in THINGS for style in STYLES]
    text = TextTokenizer.train(lines, PIECES)
    codebooks = {"image": config.tokenizer.quantizer.codebook_size}
    vocabulary = Vocabulary.appended(config.tokenizer.text.vocab_size, codebooks=codebooks)
    specials = {f"{name}_token_id": vocabulary.id(name) for name in ("pad", "bos", "eos")}
    torch.manual_seed(config.seed)
    model = OmnigramForCausalLM(instantiate(config.model, vocab_size=vocabulary.size, **specials)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * SPREAD)
    return Sampler(model, document_grammar(vocabulary, text.digit_ids), text, GREEDY)


def differing(ours: Sequence[Codes], peers: Sequence[Codes]) -> int:
    """Number of pictures that are not the same."""
    return sum(not np.array_equal(one, other) for one, other in zip(ours, peers, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    made = options()
    args = made.parse_args(arguments)
    config = compose_config([f"model={args.model}", f"threads={args.threads}", "device=cpu"])
    prepare(config)
    sampler = made_sampler(config)
    peer, words = Peer(sampler), made_words(args.steps, args.pictures)
    drawn: dict[str, dict[int, list[Codes]]] = {"ours": {}, "peer": {}}

    def ours_step(step: int) -> float:
        drawn["ours"][step] = draw(sampler, words[step], size=SIZE, batch_size=args.pictures)
        return args.pictures

    def peer_step(step: int) -> float:
        drawn["peer"][step] = peer.draw(words[step])
        return args.pictures

    rates = in_turns({"ours": ours_step, "peer": peer_step}, args.rounds, args.steps)
    different = sum(differing(drawn["ours"][step], drawn["peer"][step]) for step in range(args.steps))
    pictures, height, width = args.steps * args.pictures, *SIZE
    if different:
        sys.exit(f"{different} of {pictures} pictures have other codes when the peer draws them: no comparison")
    distinct = len({codes.tobytes() for batch in drawn["ours"].values() for codes in batch})
    print(f"drawing with model={args.model}, {args.pictures} pictures of {height} x {width} codes in a batch")
    print(f"codes    the same by both for all {pictures} prompts, which give {distinct} distinct pictures")
    what = {"ours": "Sampler", "peer": "transformers' generate with a logits processor"}
    report(made.prog, args, rates, "pictures", what)


def options() -> argparse.ArgumentParser:
    made = parser("sampling.py", __doc__, rounds=5, steps=2)
    made.add_argument("--model", default="micro", help="size of the decoder, an option of conf/model/")
    made.add_argument("--pictures", type=positive, default=32, metavar="N", help="pictures of a batch")
    return made


if __name__ == "__main__":
    main()
