"""Vocabulary and decoder follow the codes: every row is where its id is, and what is drawn is the same picture."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_exports import CARD, VOCABULARY, tiny_export, tiny_image_tokenizer
from made_samplers import tiny_model

from omnigram.model.bundle import Omnigram
from omnigram.model.codec import Codec
from omnigram.model.generation import Sampling
from omnigram.model.generation.choice import Noise
from omnigram.model.renumbering import with_codes, with_ids
from omnigram.tokenizers.vocabulary import Range, Vocabulary

K = 16
ORDER = [3, 0, 1, 2, 15, 14, 7, 6, 5, 4, 8, 13, 12, 11, 10, 9]


def followed(model: Omnigram, kept: list[int]) -> Omnigram:
    vocabulary, were = with_codes(model.vocabulary, "image", kept)
    image = tiny_image_tokenizer().with_codes(torch.tensor(kept))
    return Omnigram(with_ids(model.model, were), Codec(vocabulary, model.text_tokenizer, image, CARD))


@given(
    text=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    tabled=st.booleans(),
    data=st.data(),
)
def test_every_id_but_those_taken_out_keeps_its_meaning(
    text: int, sizes: list[int], tabled: bool, data: st.DataObject
) -> None:
    names = ("image", "audio", "video")
    old = Vocabulary.appended(text, ("bos", "eos"), dict(zip(names, sizes, strict=False)))
    changed = data.draw(st.sampled_from(names[: len(sizes)]))
    codes = range(old.range(changed).size)
    if tabled:
        table = tuple(data.draw(st.permutations(codes)))
        ranges = [Range(r.name, r.start, r.size, table if r.name == changed else None) for r in old.ranges]
        old = Vocabulary(tuple(ranges), {**old.specials, "last": old.size})
    kept = data.draw(st.lists(st.sampled_from(codes), min_size=1, unique=True))
    new, were = with_codes(old, changed, kept)
    assert new.size == len(were) == len(set(were.tolist())) == old.size - len(codes) + len(kept)
    assert new.modalities == old.modalities
    assert were[list(new.specials.values())].tolist() == list(old.specials.values())
    for name in old.modalities:
        mapped = kept if name == changed else list(range(old.range(name).size))
        assert were[new.encode(name, np.arange(len(mapped)))].tolist() == old.encode(name, mapped).tolist()
    again, back = with_codes(new, changed, np.argsort(kept).tolist())
    if len(kept) == len(codes) and not tabled:
        assert again == old
        assert were[back].tolist() == list(range(old.size))


def test_ids_of_text_do_not_move() -> None:
    carved = Vocabulary((Range("text", 0, 40), Range("image", 4, 8)), {"bos": 0})
    with pytest.raises(ValueError, match="image codes stand among the ids of text"):
        with_codes(carved, "image", [0, 1])
    new, were = with_codes(carved, "image", [7, 6, 5, 4, 3, 2, 1, 0])
    assert new == carved
    assert were.tolist() == [0, 1, 2, 3, 11, 10, 9, 8, 7, 6, 5, 4, *range(12, 40)]


@pytest.mark.parametrize("tied", [False, True])
def test_rows_follow_and_the_decoder_is_left_alone(tied: bool) -> None:
    old = tiny_export(tie_word_embeddings=tied)
    before = {name: weight.clone() for name, weight in old.model.state_dict().items()}
    _, were = with_codes(VOCABULARY, "image", [5, 2, 9])
    model = with_ids(old.model, were)
    for name, weight in model.state_dict().items():
        of_ids = name in ("model.embed_tokens.weight", "lm_head.weight")
        assert torch.equal(weight, before[name][torch.from_numpy(were)] if of_ids else before[name])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.vocab_size == model.model.config.vocab_size == VOCABULARY.size - 13
    assert all(torch.equal(weight, before[name]) for name, weight in old.model.state_dict().items())
    assert old.model.config.vocab_size == VOCABULARY.size


def test_named_ids_and_ranges_of_layers_follow() -> None:
    names = {"image": K, "audio": 4}
    old = Vocabulary.appended(VOCABULARY.range("text").size, (), names)
    old = Vocabulary(old.ranges, {"pad": old.size, "bos": old.size + 1, "eos": old.size + 2})
    ranges = [[r.start, r.size] for r in old.ranges[1:]]
    options: dict[str, Any] = {f"{name}_token_id": id_ for name, id_ in old.specials.items()}
    model = tiny_model(old.size, modality_ranges=ranges, modality_norms=True, **options)
    new, were = with_codes(old, "image", [5, 2, 9])
    made = with_ids(model, were)
    assert made.config.modality_ranges == [[r.start, r.size] for r in new.ranges[1:]]
    for name, id_ in new.specials.items():
        assert getattr(made.config, f"{name}_token_id") == id_
        assert getattr(made.generation_config, f"{name}_token_id") == id_
    ids = torch.from_numpy(new.encode("image", [0, 2, 1]))[None]
    theirs = torch.from_numpy(were)[ids]
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits, model(theirs).logits[..., torch.from_numpy(were)])


def test_new_numbers_draw_the_same_pictures() -> None:
    old, greedy = tiny_export(), {"image": Sampling(temperature=0, guidance=2.0)}
    new = followed(old, ORDER)
    assert new.vocabulary == old.vocabulary
    words = ["red apple", "green pear", "a"]
    pictures, again = (model.draw(words, n=2, sampling=greedy) for model in (old, new))
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
    assert len({picture.tobytes() for picture in pictures}) > 1
    document = ["red apple, openmoji", pictures[0]]
    np.testing.assert_allclose(old.score(document).nats, new.score(document).nats, atol=1e-4)


def test_new_numbers_draw_by_the_same_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise belongs to ids: where it follows its code, pictures are the same at any temperature."""
    old, draws = tiny_export(), {"image": Sampling(temperature=1.0, top_p=0.8, guidance=2.0)}
    new = followed(old, ORDER)
    pictures = old.draw("red apple", n=6, sampling=draws)
    others = new.draw("red apple", n=6, sampling=draws)
    plain = Noise.__call__

    def moved(self: Noise, choices: Any, count: int) -> torch.Tensor:
        noise = plain(self, choices, count)
        return noise[:, ORDER] if count == K else noise

    monkeypatch.setattr(Noise, "__call__", moved)
    again = new.draw("red apple", n=6, sampling=draws)
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
    assert [picture.tobytes() for picture in pictures] != [picture.tobytes() for picture in others]


def test_without_codes_that_it_never_draws_it_draws_the_same(tmp_path: Any) -> None:
    old, greedy = tiny_export(), {"image": Sampling(temperature=0, guidance=1.0)}
    dead = [2, 3, 11, 15]
    with torch.no_grad():
        old.model.lm_head.weight[VOCABULARY.encode("image", dead)] = 0
    kept = [code for code in range(K) if code not in dead]
    new = followed(old, kept)
    drawn = [old.codes(picture) for picture in old.draw(["red apple", "green pear"], n=3, sampling=greedy)]
    assert not np.isin(np.stack(drawn), dead).any()
    pictures, again = (model.draw(["red apple", "green pear"], n=3, sampling=greedy) for model in (old, new))
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
    new.save_pretrained(tmp_path / "export")
    read = Omnigram.from_pretrained(tmp_path / "export")
    assert read.vocabulary == new.vocabulary
    assert read.image_tokenizer.codebook_size == 12
    assert read.draw("red apple", sampling=greedy)[0].tobytes() == again[0].tobytes()
