"""Vocabulary growth: old ids keep rows and meaning, their probabilities move as little as promised, new ones learn."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from made_exports import tiny_export
from made_samplers import tiny_model, words
from transformers import AutoModelForCausalLM, AutoProcessor

from omnigram.model.bundle import Omnigram
from omnigram.model.codec import Codec
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Block, tasks
from omnigram.model.growth import TIED_NOISE, add_modality, grow_embeddings
from omnigram.tokenizers.grammar import BlockGrammar
from omnigram.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.appended(words().size, codebooks={"image": 16})
SPECIALS = ("bod", "eod")
OLD, NEW = VOCABULARY.size, len(SPECIALS) + 40


def matrices(model: OmnigramForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    return model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()


def grown(seed: int = 0, **options: Any) -> OmnigramForCausalLM:
    model = tiny_model(OLD, **options)
    add_modality(model, VOCABULARY, "depth", 40, SPECIALS, seed=seed)
    return model


def contexts() -> torch.Tensor:
    return torch.randint(OLD, (4, 12), generator=torch.Generator().manual_seed(1))


def test_ids_and_settings_grow_together() -> None:
    model = tiny_model(OLD)
    vocabulary = add_modality(model, VOCABULARY, "depth", 40, SPECIALS)
    assert [vocabulary.id(special) for special in SPECIALS] == [OLD, OLD + 1]
    assert vocabulary.encode("depth", [0, 39]).tolist() == [OLD + 2, OLD + 41]
    assert vocabulary.range("image") == VOCABULARY.range("image")
    assert model.config.vocab_size == vocabulary.size == OLD + NEW
    assert model.model.embed_tokens.num_embeddings == model.lm_head.out_features == OLD + NEW
    assert model(torch.tensor([[OLD + NEW - 1]])).logits.shape == (1, 1, OLD + NEW)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_old_rows_and_all_else_stay_bit_for_bit(tied: bool, dtype: torch.dtype) -> None:
    model = tiny_model(OLD, tie_word_embeddings=tied).to(dtype)  # pyright: ignore[reportArgumentType]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.lm_head.weight.requires_grad_(False)  # of both, when tied
    grow_embeddings(model, OLD + NEW)
    after = model.state_dict()
    assert not model.lm_head.weight.requires_grad
    assert model.model.embed_tokens.weight.requires_grad == (not tied)
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name][: len(tensor)], tensor), name
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_old_probabilities_fall_by_no_more_than_promised(tied: bool) -> None:
    before = tiny_model(OLD, tie_word_embeddings=tied)(contexts()).logits.detach()
    model = grown(tie_word_embeddings=tied)
    after = model(contexts()).logits.detach()
    torch.testing.assert_close(after[..., :OLD], before, rtol=0, atol=1e-12)  # logits of old ids do not move at all
    fall = before.log_softmax(-1) - after.log_softmax(-1)[..., :OLD]
    torch.testing.assert_close(fall, fall[..., :1].expand_as(fall))  # alike for all ids
    assert fall.min() > 0
    assert fall.max() <= math.log(1 + (math.exp(TIED_NOISE) if tied else 1) * NEW / OLD)
    if not tied:
        new = before.mean(-1, keepdim=True).exp() * NEW / before.exp().sum(-1, keepdim=True)
        torch.testing.assert_close(fall[..., :1], new.log1p())


def test_the_bound_of_tied_rows_holds_for_the_worst_hidden_state() -> None:
    """A hidden state as long as the norm allows, straight along a new row's noise: far from what a context gives."""
    model = tiny_model(OLD, tie_word_embeddings=True)
    grow_embeddings(model, OLD + 1)
    embedding, _ = matrices(model)
    norm = model.model.norm.weight.detach()
    noise = embedding[OLD] - embedding[:OLD].mean(0)
    hidden = noise / noise.norm() * norm.abs().max() * math.sqrt(model.config.hidden_size)
    logits = embedding @ hidden
    assert logits[OLD] - logits[:OLD].mean() == pytest.approx(TIED_NOISE)


def test_new_rows_are_distinct_and_as_large_as_old_ones() -> None:
    model = tiny_model(OLD)
    with torch.no_grad():
        scale = torch.linspace(0.1, 2, model.config.hidden_size, dtype=torch.float64)
        model.model.embed_tokens.weight.mul_(scale).add_(scale.flip(0))
    grow_embeddings(model, OLD + 4000)
    embedding, head = matrices(model)
    assert len(embedding[OLD:].unique(dim=0)) == 4000
    torch.testing.assert_close(embedding[OLD:].std(0), embedding[:OLD].std(0), rtol=0.06, atol=0)
    torch.testing.assert_close(embedding[OLD:].mean(0), embedding[:OLD].mean(0), rtol=0, atol=0.03)
    assert torch.equal(head[OLD:], head[:OLD].mean(0).expand(4000, -1))

    tied = grown(tie_word_embeddings=True).model.embed_tokens.weight.detach()[OLD:]
    assert len(tied.unique(dim=0)) == NEW


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_come_from_the_seed_alone(tied: bool) -> None:
    torch.manual_seed(3)
    first = grown(seed=5, tie_word_embeddings=tied)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    model = tiny_model(OLD, tie_word_embeddings=tied)
    torch.set_rng_state(state)
    add_modality(model, VOCABULARY, "depth", 40, SPECIALS, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(matrices(first), matrices(model), strict=True))
    other = grown(seed=6, tie_word_embeddings=tied)
    assert not torch.equal(matrices(first)[0], matrices(other)[0])


@pytest.mark.parametrize("tied", [False, True])
def test_a_grown_model_is_saved_and_loaded(tied: bool, tmp_path: Path) -> None:
    model = grown(tie_word_embeddings=tied).float()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == OLD + NEW
    ids = torch.cat([contexts(), torch.full((4, 1), OLD + 7)], dim=1)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_new_codes_are_learnt(tied: bool) -> None:
    model = grown(tie_word_embeddings=tied).train()
    ids = torch.randint(OLD, OLD + NEW, (4, 12), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(later < earlier for earlier, later in pairwise(losses))
    embedding, head = model.model.embed_tokens.weight.grad, model.lm_head.weight.grad
    assert embedding is not None
    assert head is not None
    shown, predicted = ids[:, :-1].unique(), ids[:, 1:].unique()
    assert (embedding[shown].abs().amax(1) > 0).all()
    assert (head[predicted].abs().amax(1) > 0).all()
    rows = matrices(model)[1]
    assert len(rows[predicted].unique(dim=0)) == len(predicted)  # one step tells equal head rows apart


def test_an_export_grows(tmp_path: Path) -> None:
    """Folder to folder. What was drawn before is drawn again to the last bit: within an image no new id may come."""
    tiny_export().save_pretrained(tmp_path / "old")
    old, again = (Omnigram.from_pretrained(tmp_path / "old") for _ in range(2))
    vocabulary = add_modality(again.model, again.vocabulary, "depth", 40, SPECIALS)
    grammars = {"depth": BlockGrammar(begin="bod", end="eod")}
    card = replace(again.card, grammars=grammars, identities={})
    codec = Codec(vocabulary, again.text_tokenizer, again.image_tokenizer, card)
    Omnigram(again.model, codec).save_pretrained(tmp_path / "new")

    new = Omnigram.from_pretrained(tmp_path / "new")
    assert new.card.identities["vocabulary"] == vocabulary.identity != old.card.identities["vocabulary"]
    assert new.draw("red apple", n=3, seed=7) == old.draw("red apple", n=3, seed=7)
    [depth] = tasks.draw(new.sampler, "red apple", size=(2, 3), modality="depth")
    assert depth.shape == (2, 3)

    processor = AutoProcessor.from_pretrained(tmp_path / "new")
    ids = new.codec.writer.write(["red apple", Block(depth, "depth")], close=True)
    assert processor.decode(ids, skip_special_tokens=True) == "red apple<depth>"
    [[words_, codes]] = processor.post_process([ids])
    assert words_ == "red apple"
    assert codes.tolist() == depth.tolist()


def test_a_vocabulary_grows_again() -> None:
    model = tiny_model(OLD)
    once = add_modality(model, VOCABULARY, "depth", 40, SPECIALS)
    before = matrices(model)
    twice = add_modality(model, once, "touch", 3)
    assert twice.modalities == ("text", "image", "depth", "touch")
    assert model.config.vocab_size == twice.size == once.size + 3
    assert all(torch.equal(new[: once.size], old) for new, old in zip(matrices(model), before, strict=True))


@pytest.mark.parametrize("size", [OLD - 1, OLD, 0])
def test_a_vocabulary_does_not_shrink(size: int) -> None:
    with pytest.raises(
        ValueError, match=f"the model has {OLD} ids: a vocabulary grows to more than that, not to {size}"
    ):
        grow_embeddings(tiny_model(OLD), size)


def test_nothing_is_changed_when_the_request_is_wrong() -> None:
    model = tiny_model(OLD)
    embedding = model.model.embed_tokens.weight
    with pytest.raises(ValueError, match="'image' already"):
        add_modality(model, VOCABULARY, "image", 8)
    with pytest.raises(ValueError, match="'eoi' already"):
        add_modality(model, VOCABULARY, "depth", 8, ("eoi",))
    with pytest.raises(ValueError, match="size 0"):
        add_modality(model, VOCABULARY, "depth", 0)
    other = Vocabulary.appended(words().size)
    with pytest.raises(ValueError, match=f"the model has {OLD} ids, the vocabulary {other.size}"):
        add_modality(model, other, "depth", 8)
    assert model.model.embed_tokens.weight is embedding
    assert model.config.vocab_size == OLD
