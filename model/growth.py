"""Vocabulary growth: rows for a new modality in the embedding and the head of a trained decoder.

New head rows at the mean of the old ones: https://nlp.stanford.edu/~johnhew/vocab-expansion.html
Dimensions: V old ids, N new ones, D width of the model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..tokenizers.vocabulary import Vocabulary
from .decoder import OmnigramForCausalLM

TIED_NOISE = 1.0  # nats by which the noise of a tied row can move its logit


def add_modality(
    model: OmnigramForCausalLM,
    vocabulary: Vocabulary,
    name: str,
    size: int,
    specials: Sequence[str] = (),
    *,
    seed: int = 0,
) -> Vocabulary:
    """Grows `model` in place by a modality of `size` codes, with the specials that its blocks need.

    Returns the vocabulary of the grown model: old ids mean what they meant (`Vocabulary.grown`).
    ValueError, before anything is changed, for names that are taken, no codes, or a vocabulary of another model.
    """
    if model.config.vocab_size != vocabulary.size:
        raise ValueError(
            f"the model has {model.config.vocab_size} ids, the vocabulary {vocabulary.size}: "
            "they do not belong together"
        )
    grown = vocabulary.grown(name, size, specials)
    grow_embeddings(model, grown.size, seed=seed)
    return grown


@torch.no_grad()
def grow_embeddings(model: OmnigramForCausalLM, size: int, *, seed: int = 0) -> None:
    """Adds rows to embedding and head in place, up to `size` ids, and sets `config.vocab_size`.

    Old rows stay as they are, bit for bit. Layers of modalities (`config.modality_ranges`) stay too: new ids pass
    through those of text. Optimizers, adapters and compiled graphs are made after it, for the matrices are new ones.

    | new rows           | initialised as                                                                              |
    | ------------------ | ------------------------------------------------------------------------------------------- |
    | embed_tokens       | normal, mean and std of the old rows in each dimension: distinct, and as large as old ones  |
    | lm_head            | mean of the old rows: whatever the context, all log-probabilities of old ids fall alike,    |
    |                    | by log(1 + N exp(mean of the old logits) / sum of exp(old logits)) <= log(1 + N / V)        |
    | both when tied     | that mean, plus noise of one length in a random direction: distinct, yet old                |
    |                    | log-probabilities fall by at most log(1 + exp(TIED_NOISE) N / V)                            |

    The bounds hold up to the rounding of the weights' dtype. The first is Jensen's inequality; the second adds that a
    hidden state, which leaves an RMS norm, is no longer than sqrt(D) times the norm's largest weight. The numbers come
    from `seed` alone, on any device; torch's own random state is neither read nor moved.

    ValueError if there are `size` ids or more already.
    """
    embedding, head, had = model.get_input_embeddings(), model.get_output_embeddings(), model.config.vocab_size
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    if size <= had:
        raise ValueError(f"the model has {had} ids: a vocabulary grows to more than that, not to {size}")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size - had, model.config.hidden_size, generator=generator).to(embedding.weight.device)
    mean = _mean(embedding.weight)
    tied = head.weight is embedding.weight
    if tied:
        longest = model.model.norm.weight.abs().max().float() * model.config.hidden_size**0.5
        rows = mean + noise * (TIED_NOISE / (longest * noise.norm(dim=1, keepdim=True)))
    else:
        rows = mean + noise * _deviation(embedding.weight, mean)
        head.weight = _appended(head.weight, _mean(head.weight).expand(size - had, -1))
    embedding.weight = _appended(embedding.weight, rows)
    if tied:
        head.weight = embedding.weight
    embedding.num_embeddings = head.out_features = model.config.vocab_size = size


def _mean(weight: Float[Tensor, "v d"]) -> Float[Tensor, " d"]:
    return weight.mean(dim=0, dtype=torch.promote_types(weight.dtype, torch.float32))


def _deviation(weight: Float[Tensor, "v d"], mean: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    return (weight - mean).square_().mean(dim=0).sqrt_()


def _appended(weight: Tensor, rows: Float[Tensor, "n d"]) -> nn.Parameter:
    return nn.Parameter(torch.cat([weight, rows.to(weight.dtype)]), requires_grad=weight.requires_grad)
