"""Llama, as transformers has it: the decoder and text alone. https://arxiv.org/abs/2302.13971"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ...tokenizers.preprocessing import Preprocessing
from ...tokenizers.vocabulary import TEXT, Range, Vocabulary
from ..card import Card
from ..configuration import OmnigramConfig
from ..generation.choice import Sampling
from .family import Family, shared
from .stored import Checkpoint

_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")  # was saved once


class Llama(Family):
    name = "llama"
    model_types = ("llama",)

    def parse(self, fields: Mapping[str, Any]) -> PreTrainedConfig:
        return LlamaConfig(**fields)

    def decoder(self, theirs: PreTrainedConfig) -> OmnigramConfig:
        return OmnigramConfig(**shared(theirs), head_dim=theirs.head_dim)

    def compose(self, ours: OmnigramConfig, image: PixelTokenizer | None, names: Mapping[str, int]) -> PreTrainedConfig:
        return LlamaConfig(**shared(ours), head_dim=ours.head_dim, architectures=["LlamaForCausalLM"])

    def vocabulary(self, theirs: OmnigramConfig, names: Mapping[str, int]) -> Vocabulary:
        """All ids are text but for the specials of config.json, each once."""
        if names and max(names.values()) >= theirs.vocab_size:
            raise ValueError(
                f"not the tokens of this model: they go up to {max(names.values())}, it has {theirs.vocab_size} ids"
            )
        specials: dict[str, int] = {}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(theirs, name)
            id_ = value[0] if isinstance(value, list) else value  # Llama 3 ends with any of several
            if id_ is not None and 0 <= id_ < theirs.vocab_size and id_ not in specials.values():
                specials[name.removesuffix("_token_id")] = id_
        return Vocabulary((Range(TEXT, 0, theirs.vocab_size),), specials)

    def card(self, image: PixelTokenizer | None, preprocessing: Preprocessing | None) -> Card:
        return Card(sampling={TEXT: Sampling(temperature=0.7, top_p=0.9)})

    def tidied(self, checkpoint: Checkpoint) -> Checkpoint:
        return {key: stored for key, stored in checkpoint.items() if not _COMPUTED.search(key)}
