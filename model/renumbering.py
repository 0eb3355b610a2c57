"""A decoder and its vocabulary follow a renumbering of the codes of one modality.

Each row of embedding and head goes where its id goes. A code that was taken out takes its row along: what is drawn in
its place is shared out among the codes that are left. Of codes that were put together the one that gave its look, the
most used, gives its row as well: there is no bias to which the others' share of the probability could be added.

Dimensions: V ids before, U after, K codes of the modality before, N after, D width of the model.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..tokenizers.vocabulary import TEXT, Range, Vocabulary
from .decoder import OmnigramForCausalLM

NAMED = ("pad_token_id", "bos_token_id", "eos_token_id")


def with_codes(vocabulary: Vocabulary, modality: str, kept: Sequence[int]) -> tuple[Vocabulary, NDArray[np.int64]]:
    """The vocabulary with the codes `kept` of a modality alone, in that order; and of each new id [U] what it was.

    All ids behind those that are gone move up. ValueError where ids of text, which others chose, would have to move.
    """
    range_ = vocabulary.range(modality)
    gone = range_.size - len(kept)
    text = vocabulary.range(TEXT)
    if gone and text.stop > range_.start:
        raise ValueError(
            f"{modality} codes stand among the ids of text, whose numbers are the text tokenizer's: "
            "codes can be renumbered, but not taken out"
        )
    made = Vocabulary(
        tuple(_moved(each, range_, len(kept)) for each in vocabulary.ranges),
        {name: id_ - gone if id_ >= range_.stop else id_ for name, id_ in vocabulary.specials.items()},
    )
    were = np.arange(made.size)
    were[were >= range_.stop - gone] += gone
    were[made.encode(modality, np.arange(len(kept)))] = vocabulary.encode(modality, np.asarray(kept))
    return made, were


def _moved(each: Range, changed: Range, size: int) -> Range:
    if each == changed:
        return Range(each.name, each.start, size, each.table if size == each.size else None)
    return Range(each.name, each.start - (changed.size - size) * (each.start >= changed.stop), each.size, each.table)


@torch.no_grad()
def with_ids(model: OmnigramForCausalLM, were: NDArray[np.int64]) -> OmnigramForCausalLM:
    """A decoder whose id i is what `were[i]` was in `model`, which stays as it is."""
    now = {was: number for number, was in enumerate(were.tolist())}
    made = copy.deepcopy(model)
    embedding, head = made.get_input_embeddings(), made.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    tied = head.weight is embedding.weight
    rows = torch.from_numpy(were).to(model.device)
    embedding.weight = nn.Parameter(embedding.weight[rows], requires_grad=embedding.weight.requires_grad)
    if tied:
        head.weight = embedding.weight
    else:
        head.weight = nn.Parameter(head.weight[rows], requires_grad=head.weight.requires_grad)
    embedding.num_embeddings = head.out_features = made.config.vocab_size = len(were)
    if made.config.modality_ranges is not None:
        held = [range(start, start + size) for start, size in made.config.modality_ranges]
        left = [[number for number, was in enumerate(were.tolist()) if was in ids] for ids in held]
        made.config.modality_ranges = [[min(ids), len(ids)] for ids in left]
    for config in (made.config, made.generation_config):
        for name in NAMED:
            named = getattr(config, name, None)
            if named is not None:
                setattr(config, name, [now[id_] for id_ in named] if isinstance(named, list) else now[named])
    return made
