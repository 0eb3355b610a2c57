"""The decoder of an export, read from its folder: with other options, or its configuration alone to go on with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..tokenizers.vocabulary import Vocabulary
from .codec import VOCABULARY, read_card
from .configuration import OmnigramConfig
from .decoder import OmnigramForCausalLM


def read_configuration(path: Path | str, attn_implementation: str, **dropouts: float | None) -> OmnigramConfig:
    """The configuration of an export's decoder, for going on with it. The errors of `read_card`.

    dropouts: embedding_dropout, attention_dropout, residual_dropout in place of the export's; None leaves its own.
    """
    read_card(path)
    changes: dict[str, Any] = {name: value for name, value in dropouts.items() if value is not None}
    return OmnigramConfig.from_pretrained(path, attn_implementation=attn_implementation, **changes)


def read_decoder(folder: Path, vocabulary: Vocabulary, options: Mapping[str, Any]) -> OmnigramForCausalLM:
    """The decoder of an export. ValueError unless the file holds exactly its weights."""
    size = OmnigramConfig.from_pretrained(folder).vocab_size
    if size != vocabulary.size:
        raise ValueError(f"the model has {size} ids, {VOCABULARY} {vocabulary.size}: they do not belong together")
    try:
        wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True, **options}  # which are told below
        read: Any = OmnigramForCausalLM.from_pretrained(folder, **wanted)
    except (SafetensorError, OSError, RuntimeError) as fault:
        raise ValueError(f"the weights cannot be read: {str(fault).splitlines()[0]}") from None
    model, loaded = read
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            raise ValueError(f"the weights do not fit config.json: {problem} {sorted(loaded[problem])[0]}")
    return model.eval()
