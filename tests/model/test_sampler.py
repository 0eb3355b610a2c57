"""The sampler: its cache, batches and guidance change nothing, and what it writes is always within the grammar."""

import itertools
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from made_samplers import Recorded, some_codes, tiny_sampler
from torch import Tensor

from omnigram.model.generation import Block, Prompt, Sample, Sampling, draw, score
from omnigram.model.generation.lanes import Lanes

PICTURE = {"sizes": {"image": (2, 3)}, "text": False, "min_blocks": 1, "max_blocks": 1}
WORDS = {"max_blocks": 0, "max_tokens": 12}
PAGE = {"min_blocks": 2, "max_blocks": 2, "end_with_block": True, "max_codes": 6, "max_tokens": 70}
REST = {"text": False, "max_blocks": 0}
MIXED = [
    Prompt(("red apple",), PICTURE, 1),
    Prompt((), PICTURE, 2),
    Prompt((Block(some_codes(0, 2, 2)),), WORDS, 3),
    Prompt(("a much longer text, yellow lemon",), PAGE, 4),
    Prompt(("pear", Block(some_codes(1, 3, 2)[:2], size=(3, 2))), REST, 5),
    Prompt(("green pear", Block(some_codes(2, 1, 12)), "plum"), PAGE, 6),
    Prompt((Block([3], size=(2, 2)),), REST, 7),
    Prompt(("plum",), WORDS, 8),
]
GUIDED = {"image": Sampling(temperature=0.9, top_k=9, guidance=2.5), "text": Sampling(temperature=1.5, top_p=0.9)}


def ids_of(samples: Sequence[Sample]) -> list[list[int]]:
    return [sample.ids.tolist() for sample in samples]


GUIDANCE: dict[str, dict[str, Any]] = {
    "two branches": {"guidance": 2.5},
    "log-probabilities": {"guidance": 3.0, "guidance_space": "log_softmax"},
    "three branches": {"guidance": 3.0, "picture_guidance": 1.2},
    "three, log-probabilities": {"guidance": 0.5, "picture_guidance": 4, "guidance_space": "log_softmax"},
    "schedule": {"guidance": 3.0, "picture_guidance": 2.0, "guidance_schedule": ((0.2, 0), (0.6, 1), (1, 0.5))},
}
MORE = [
    Prompt(("lemon", Block(some_codes(5, 2, 3)), "red apple"), PICTURE, 9, negative="plum"),
    Prompt((Block(some_codes(6, 2, 2)),), {**PICTURE, "sizes": {"image": (2, 2)}}, 10),
    Prompt(("lemon", Block(some_codes(1, 3, 2)[:2], size=(3, 2))), REST, 11, negative="red apple"),
]


def plain_logits(sampler: Any, ids: list[int], columns: np.ndarray) -> Tensor:
    return sampler.model(torch.tensor([ids])).logits[0, -1, columns]


@pytest.mark.parametrize("form", GUIDANCE)
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": "rms", "num_key_value_heads": 4}, {"attn_implementation": "eager"}]
)
@torch.no_grad()
def test_cached_and_guided_logits_are_those_of_the_plain_formula(
    recorded: Recorded, options: dict[str, Any], form: str
) -> None:
    settings = GUIDANCE[form]
    sampler = tiny_sampler(sampling={**GUIDED, "image": Sampling(temperature=0.9, top_k=9, **settings)}, **options)
    prompts = [*MIXED, *MORE]
    negatives = {tuple(sampler.writer.write(p.segments).tolist()): p.negative for p in prompts if p.negative}
    sampler.sample(prompts)
    assert len(recorded) > 60
    marks, guided = {name: sampler.vocabulary.id(name) for name in ("boi", "eoi")}, 0
    tolerance = 1e-5 if "attn_implementation" in options else 1e-9  # eager attention's softmax is float32
    for ids, allowed, logits in recorded:
        columns = allowed.all_ids(sampler.vocabulary)
        expected = plain_logits(sampler, ids, columns)
        begins = [place for place, id_ in enumerate(ids) if id_ == marks["boi"]]
        ends = [place for place, id_ in enumerate(ids) if id_ == marks["eoi"]]
        if allowed.modality == "image":
            start = begins[-1]
            [negative] = [n for given, n in negatives.items() if tuple(ids[: len(given)]) == given] or [""]
            before = sampler.writer.write([negative] if negative else []).tolist()
            pictures = [id_ for a, b in zip(begins, ends, strict=False) for id_ in ids[a : b + 1]]
            branches = [expected, plain_logits(sampler, before + ids[start:], columns)]
            branches.append(plain_logits(sampler, ids[:1] + pictures + ids[start:], columns))
            if "guidance_space" in settings:
                branches = [branch.log_softmax(0) for branch in branches]
            full, without, of_pictures = branches
            share = 1.0
            if "guidance_schedule" in settings:
                size = sampler.grammar.blocks["image"].read_size(np.array(ids[start:]))
                codes = sum(sampler.vocabulary.holds("image", id_) for id_ in ids[start:])
                place = codes / max(1, size[0] * size[1] - 1)
                places, shares = np.array(settings["guidance_schedule"]).T
                share = float(np.interp(place, places, shares))
            scale = 1 + share * (settings["guidance"] - 1)
            if "picture_guidance" in settings:
                picture_scale = 1 + share * (settings["picture_guidance"] - 1)
                expected = without + picture_scale * (of_pictures - without) + scale * (full - of_pictures)
            else:
                expected = without + scale * (full - without)
            guided += 1
            if share == 0:  # then nothing is guided, and logits are what they were
                logits, expected = logits.log_softmax(0), full.log_softmax(0)
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    assert guided > 20


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    sampler = tiny_sampler(sampling=GUIDED)
    alone = [ids_of(sampler.sample([prompt]))[0] for prompt in MIXED]
    order = np.random.default_rng(0).permutation(len(MIXED) * 2) % len(MIXED)
    for batch_size in (3, 5, 64):
        together = ids_of(sampler.sample([MIXED[i] for i in order], batch_size=batch_size))
        assert together == [alone[i] for i in order]


def test_nothing_is_left_between_calls() -> None:
    sampler = tiny_sampler(sampling=GUIDED)
    first = ids_of(sampler.sample(MIXED))
    with pytest.raises(ValueError, match="context"):
        sampler.sample([MIXED[0], Prompt(("plum " * 200,), PICTURE)])
    sampler.sample(MIXED[3:5], {"image": Sampling(temperature=0)})
    assert ids_of(sampler.sample(MIXED)) == first
    with torch.no_grad():  # and weights may change between
        head = sampler.model.get_output_embeddings()
        assert head is not None
        head.weight.neg_()
    assert ids_of(sampler.sample(MIXED)) != first


def test_scale_one_is_the_conditional_at_no_further_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = Lanes.forward

    def counted(lanes: Lanes, feeds: Any) -> Tensor:
        sizes.append(len(feeds))
        return forward(lanes, feeds)

    monkeypatch.setattr(Lanes, "forward", counted)
    sampler = tiny_sampler()
    plain = draw(sampler, "red apple", 4, size=(8, 8), seed=3)
    assert sizes == [4] * 64  # one forward a code: row marks come along
    sizes.clear()
    barely = draw(sampler, "red apple", 4, size=(8, 8), seed=3, sampling={"image": Sampling(guidance=1 + 1e-9)})
    assert sizes == [8] * 64
    assert np.array_equal(plain, barely)
    sizes.clear()
    draw(sampler, None, 4, size=(8, 8), sampling={"image": Sampling(guidance=3)})
    assert sizes == [4] * 64  # without words both branches are the same


def test_finished_rows_leave_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = Lanes.forward
    monkeypatch.setattr(Lanes, "forward", lambda lanes, feeds: (sizes.append(len(feeds)), forward(lanes, feeds))[1])
    prompts = [Prompt(("plum",), {**PICTURE, "sizes": {"image": (1, width)}}) for width in (1, 3, 6)]
    tiny_sampler().sample(prompts)
    assert sizes == [3, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_write_what_was_asked_for(seed: int) -> None:
    sampler = tiny_sampler(seed=seed, sampling=GUIDED)
    prompts = [Prompt(p.segments, p.limits, seed=97 * seed + i) for i in range(3) for p in MIXED]
    samples = sampler.sample(prompts)  # which reads each back by the grammar
    for prompt, sample in zip(prompts, samples, strict=True):
        given, blocks = sampler.writer.write(prompt.segments), sample.blocks()
        assert sample.ids[: sample.given].tolist() == given.tolist()
        new = len(blocks) - sum(isinstance(s, Block) and s.size is None for s in prompt.segments)
        if prompt.limits is PICTURE:
            assert (new, blocks[-1].shape) == (1, (2, 3))
        elif prompt.limits is WORDS:
            assert new == 0
            assert len(sample.ids) - sample.given <= 12
        elif prompt.limits is PAGE:
            assert new == 2
            assert all(block.size <= 12 for block in blocks)
            assert len(sample.ids) - sample.given <= 70
            assert sample.ids[-2] == sampler.vocabulary.id("eoi")
        else:
            half = prompt.segments[-1]
            assert isinstance(half, Block)
            begun = np.ravel(np.asarray(half.codes))
            assert blocks[-1].shape == half.size
            assert blocks[-1].ravel()[: len(begun)].tolist() == begun.tolist()


def outcomes() -> list[np.ndarray]:
    """Every picture of at most two codes out of three."""
    grids = [(1, 1), (1, 2), (2, 1)]
    return [np.array(codes).reshape(grid) for grid in grids for codes in product(range(3), repeat=grid[0] * grid[1])]


SMALL = {"text": False, "min_blocks": 1, "max_blocks": 1, "max_codes": 2}


def test_samples_follow_the_exact_constrained_distribution() -> None:
    sampler = tiny_sampler(codebook_size=3)
    count = 3000
    # the exact probabilities, from whole forward passes: softmax over what the grammar allows, id by id
    automaton, probabilities = sampler.grammar.automaton(**SMALL), []
    for codes in outcomes():
        ids = sampler.writer.write(["plum", Block(codes)], close=True)
        given = len(sampler.writer.write(["plum"]))
        with torch.no_grad():
            logits = sampler.model(torch.from_numpy(ids)[None]).logits[0]
        state, probability = automaton.after(ids[:given]), 1.0
        for place in range(given, len(ids)):
            columns = automaton.allowed(state).all_ids(sampler.vocabulary).tolist()
            probability *= float(logits[place - 1, columns].softmax(0)[columns.index(ids[place])])
            state = automaton.step(state, int(ids[place]))
        probabilities.append(probability)
    assert sum(probabilities) == pytest.approx(1)
    names = [codes.tolist() for codes in outcomes()]
    samples = sampler.sample([Prompt(("plum",), SMALL, seed) for seed in range(count)], batch_size=1000)
    observed = np.bincount([names.index(sample.blocks()[0].tolist()) for sample in samples], minlength=len(names))
    expected = np.array(probabilities) * count
    rare = expected < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (observed, expected))
    assert len(expected) > 8
    statistic = float(((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    assert statistic < 45.3  # chi-square, at most 20 degrees of freedom, p = .001


def test_scores_are_a_distribution_and_do_not_depend_on_the_batch() -> None:
    sampler = tiny_sampler(codebook_size=3)
    documents = [[Block(codes)] for codes in outcomes()]
    scores = score(sampler, documents, batch_size=7, text=False, min_blocks=1, max_blocks=1, max_codes=2)
    assert sum(np.exp(-one.total) for one in scores) == pytest.approx(1)
    for document, one in zip(documents, scores, strict=True):
        [alone] = score(sampler, [document], text=False, min_blocks=1, max_blocks=1, max_codes=2)
        np.testing.assert_allclose(alone.nats, one.nats, atol=1e-9)
        automaton = sampler.grammar.automaton()
        states = itertools.accumulate(one.ids.tolist(), automaton.step, initial=automaton.start)
        forced = [automaton.allowed(state).forced is not None for state in states][:-1]
        assert not one.nats[forced].any()


def test_score_of_words_is_the_models_own_likelihood() -> None:
    sampler = tiny_sampler()
    picture = Block(some_codes(4, 2, 2))
    long, short = score(sampler, [[picture, "red apple"], [picture]], max_blocks=1)
    ids = torch.from_numpy(long.ids)[None]
    allowed = torch.tensor([*range(sampler.vocabulary.range("text").size), sampler.vocabulary.id("eos")])
    with torch.no_grad():
        logits = sampler.model(ids).logits[0]
    start = len(short.ids) - 1  # where the words begin
    place = [allowed.tolist().index(int(id_)) for id_ in ids[0, start:]]
    expected = -logits[start - 1 : -1, allowed].log_softmax(1)[range(len(place)), place]
    np.testing.assert_allclose(long.nats[start:], expected, rtol=1e-9)
    assert (long.modality == sampler.vocabulary.modality_of(long.ids)).all()


def test_the_model_is_left_as_it_was() -> None:
    sampler = tiny_sampler(residual_dropout=0.5, attn_implementation="flex_attention")
    sampler.model.train()
    once, again = (ids_of(sampler.sample(MIXED)) for _ in range(2))
    assert once == again
    assert sampler.model.training
    assert sampler.model.config._attn_implementation == "flex_attention"
    assert not any(parameter.is_inference() for parameter in sampler.model.parameters())


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (Prompt(("plum " * 200,), WORDS), "a prompt of .* tokens leaves no room in the context of 160"),
        (Prompt(("plum " * 60,), {**PICTURE, "sizes": {"image": (9, 9)}}), "context of 160"),
        (Prompt((Block([[99]]),), WORDS), "image code 99 is outside 0 .. 10"),
        (Prompt((Block([1, 2], size=(1, 2)),), REST), "2 codes leave nothing to complete"),
        (
            Prompt((Block([[1, 2, 3]], size=(4, 2)),), REST),
            "codes \\(1, 3\\) are not the first rows of a block of 4 x 2",
        ),
        (Prompt((Block([1], size=(2, 2)), "plum"), REST), "segment 0: only the last block"),
        (Prompt((Block([[1]], "sound"),), WORDS), "no block grammar for 'sound'"),
        (Prompt((Block([1], size=(2, 99)),), REST), "sides are 1 .. 16"),
    ],
)
def test_prompts_that_cannot_be_are_refused_in_one_line(prompt: Prompt, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as fault:
        tiny_sampler().sample([prompt])
    assert "\n" not in str(fault.value)


def test_settings_that_cannot_have_an_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="guidance 3 of text"):
        tiny_sampler(sampling={"text": Sampling(guidance=3)})
    with pytest.raises(ValueError, match="guidance of pictures 2 of text"):
        tiny_sampler(sampling={"text": Sampling(picture_guidance=2)})
    with pytest.raises(ValueError, match="'sound'; the modalities are text, image"):
        tiny_sampler().sample([], {"sound": Sampling()})
