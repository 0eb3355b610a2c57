"""Tiny models, vocabularies and samplers for the tests of generation."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Sampler, Sampling
from omnigram.tokenizers.automaton import Allowed
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary

Recorded = list[tuple[list[int], Allowed, Tensor]]  # (ids so far, allowed, logits) of every choice


@cache
def words() -> TextTokenizer:
    return TextTokenizer.train(["red apple, green pear, blue plum, yellow lemon"] * 3, 290)


def tiny_model(vocab_size: int, seed: int = 0, **options: Any) -> OmnigramForCausalLM:
    """A two-layer decoder in float64 whose choices are far from uniform."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 160}
    torch.manual_seed(seed)
    model = OmnigramForCausalLM(OmnigramConfig(vocab_size=vocab_size, **{**shape, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.double().eval()


def tiny_sampler(
    codebook_size: int = 11, sampling: dict[str, Sampling] | None = None, seed: int = 0, **options: Any
) -> Sampler:
    vocabulary = Vocabulary.appended(words().size, codebooks={"image": codebook_size})
    grammar = document_grammar(vocabulary, words().digit_ids, max_side=16)
    return Sampler(tiny_model(vocabulary.size, seed, **options), grammar, words(), sampling)


def some_codes(seed: int, height: int, width: int, codebook_size: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, codebook_size, (height, width))
