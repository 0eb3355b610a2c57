"""Emu3 of transformers with the weights of ours, driven by `generate` as its documentation does it.

https://huggingface.co/docs/transformers/model_doc/emu3: prompts end where the first code goes and are padded on the
left, `prefix_allowed_tokens_fn` rules out what the layout of the picture does not allow, `guidance_scale` runs the
model again on `negative_prompt_ids` for every token. Three things are kinder than the documentation: the ids allowed
at each place are made once, not at every call; the negative prompt is empty, and not a long list of words; and the
decoder alone is there (`Emu3ForCausalLM`), without the image tokenizer that `Emu3ForConditionalGeneration` carries.
The negative prompt ends where the first code goes, as in https://github.com/baaivision/Emu3 and not as in the
documentation, whose second branch sees codes without the marks before them.

In a batch there must be a negative prompt for each row, all of one length: the processor of the guidance gives its
forwards no positions, and appends a 1 for each row to the mask that it was given.

Dimensions: N prompts, T tokens of the longest, S ids of a block behind its header, H rows and W columns of codes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Emu3ForCausalLM, GenerationConfig

from omnigram.model.conversion.emu3 import Emu3
from omnigram.model.conversion.family import check_says_the_same
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Block, Sampler

Codes = NDArray[np.int64]


def as_emu3(model: OmnigramForCausalLM) -> Emu3ForCausalLM:
    """The same weights in transformers' class, as an export has them. ValueError for a decoder that Emu3 cannot say."""
    family = Emu3()
    config = family.compose(model.config, None, {})
    check_says_the_same(family, model.config, config)
    emu3 = Emu3ForCausalLM(config)  # pyright: ignore[reportArgumentType] (compose gives that of a decoder alone)
    emu3.load_state_dict({family.decoder_key(name, config): tensor for name, tensor in model.state_dict().items()})
    emu3.generation_config = GenerationConfig()  # nothing is asked for unseen
    return emu3.eval()


class Emu3Generate:
    """Draws pictures of one size."""

    def __init__(self, model: Emu3ForCausalLM, sampler: Sampler, size: tuple[int, int], top_k: int) -> None:
        self.model: Any = model
        self.writer, self.top_k = sampler.writer, top_k
        self.begin = Block((), size=size)
        self.block, vocabulary = sampler.grammar.blocks["image"], sampler.vocabulary
        self.pad, self.eos = vocabulary.id("pad"), vocabulary.id("eos")
        layout = self.block.layout(*size)
        self.header = int(layout.slots[0])
        self.length = len(layout.template) - self.header  # S
        codes = torch.from_numpy(vocabulary.ids("image"))
        behind = [*layout.template[self.header :].tolist(), self.eos]
        self.allowed = [codes if id_ < 0 else torch.tensor([id_]) for id_ in behind]

    def draw(self, words: Sequence[str], guidance: float, greedy: bool = False) -> list[Codes]:
        """The published recipe: one picture [H, W] for each prompt; with guidance 1 without a second branch."""
        ids, mask = self._prompts(words)
        longest = ids.shape[1]
        options: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "top_k": self.top_k}
        if guidance != 1:
            negative = torch.from_numpy(self.writer.write((self.begin,))).expand(len(words), -1)
            options |= {"guidance_scale": guidance, "negative_prompt_ids": negative}
            options |= {"negative_prompt_attention_mask": torch.ones_like(negative)}
        written = self._generate(
            ids,
            mask,
            max_new_tokens=self.length + 1,
            eos_token_id=self.eos,
            prefix_allowed_tokens_fn=lambda _, row: self.allowed[len(row) - longest],
            **options,
        )
        return [self.block.read(row[longest - self.header : -1]) for row in written.numpy()]

    def write(self, words: Sequence[str]) -> None:
        """Plain `generate`: as many ids as a block has, of any kind, for each prompt; a picture only by luck."""
        ids, mask = self._prompts(words)
        written = self._generate(ids, mask, max_new_tokens=self.length, do_sample=True, top_k=0)
        assert written.shape[1] == ids.shape[1] + self.length

    def _prompts(self, words: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> ids and mask [N, T]."""
        prompts = [self.writer.write((text, self.begin)) for text in words]
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad)
        for row, prompt in zip(ids, prompts, strict=True):
            row[longest - len(prompt) :] = torch.from_numpy(prompt)
        return ids, (ids != self.pad).long()

    def _generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """-> the ids given and written, [N, T + …]."""
        return self.model.generate(ids, attention_mask=mask, pad_token_id=self.pad, use_cache=True, **options)
