"""What the sampler does beside choosing: shared beginnings, refilled batches, events, stop words, compiling."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from made_samplers import some_codes, tiny_model, tiny_sampler
from test_sampler import GUIDED, MIXED, PAGE, PICTURE, WORDS, ids_of

from omnigram.model.generation import (
    Block,
    BlockRows,
    Draft,
    Event,
    Finished,
    Jacobi,
    Prompt,
    Sampler,
    Sampling,
    Tokens,
    draw,
)
from omnigram.model.generation.cache import Store
from omnigram.model.generation.forward import evaluating
from omnigram.model.generation.lanes import Lanes


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(lanes, ids a lane) of every forward of the model."""
    shapes: list[tuple[int, int]] = []
    feed = Lanes._feed

    def counted(self: Lanes, feeds: Any, parts: Any, whole: bool = False) -> None:
        shapes.append((len(feeds), max(len(ids) for _, ids in feeds)))
        feed(self, feeds, parts, whole)

    monkeypatch.setattr(Lanes, "_feed", counted)
    return shapes


def test_what_begins_alike_is_computed_once(fed: list[tuple[int, int]]) -> None:
    sampler = tiny_sampler()
    alone = [draw(sampler, "red apple", size=(2, 2), seed=seed)[0] for seed in range(5)]
    fed.clear()
    together = draw(sampler, "red apple", 5, size=(2, 2))
    assert fed[0][0] == 1  # the prompt of five rows
    assert {lanes for lanes, _ in fed[1:]} == {5}
    assert np.array_equal(together, alone)


def test_a_long_beginning_that_prompts_share_is_computed_before_they_part(fed: list[tuple[int, int]]) -> None:
    sampler = tiny_sampler()
    long = "blue plum, yellow lemon, green pear "
    words = [long + "red apple", long + "plum", long + "red apple", long + "lemon and pear"]
    alone = [draw(sampler, text, size=(1, 2), seed=0)[0] for text in words]
    fed.clear()
    assert np.array_equal(draw(sampler, words, size=(1, 2)), alone)
    (first, shared), (second, _), *_ = fed
    assert (first, second) == (1, 3)  # one of them goes twice
    assert shared >= 16
    prompts = [sampler.writer.write([text]) for text in words]
    assert all(np.array_equal(ids[:shared], prompts[0][:shared]) for ids in prompts)


def test_a_row_that_is_done_makes_room_for_the_next(fed: list[tuple[int, int]]) -> None:
    widths = [1, 6, 2, 3, 1]
    prompts = [Prompt(("plum",), {**PICTURE, "sizes": {"image": (1, width)}}) for width in widths]
    tiny_sampler().sample(prompts, batch_size=2)
    assert max(lanes for lanes, _ in fed) == 2
    sampler = tiny_sampler()
    order = [event.prompt for event in sampler.stream(prompts, batch_size=2) if isinstance(event, Finished)]
    assert order == [0, 2, 1, 3, 4]
    assert sampler.statistics.choices == sum(widths)


@pytest.mark.parametrize("speculation", [None, Jacobi(5)])
def test_events_tell_all_that_happens(speculation: Jacobi | None) -> None:
    sampler = tiny_sampler(sampling=GUIDED)
    sampler.speculation = speculation
    samples = sampler.sample(MIXED)
    events: list[Event] = []
    assert ids_of(sampler.sample(MIXED, batch_size=3, watch=events.append)) == ids_of(samples)
    ids, text, rows = defaultdict(list), defaultdict(str), defaultdict(list)
    for event in events:
        if isinstance(event, Tokens):
            ids[event.prompt] += event.ids
            text[event.prompt] += event.text
        elif isinstance(event, BlockRows):
            rows[event.prompt, event.number].append(event)
        else:
            assert event.sample.ids.tolist() == samples[event.prompt].ids.tolist()
    for number, (prompt, sample) in enumerate(zip(MIXED, samples, strict=True)):
        assert ids[number] == sample.ids[sample.given :].tolist()
        if prompt.limits is WORDS:
            assert sample.text.rstrip("\ufffd").endswith(text[number].rstrip("\ufffd"))
        drawn = {block: told for (of, block), told in rows.items() if of == number}
        blocks = sample.blocks()
        whole = sum(not isinstance(piece, str) and piece.size is None for piece in prompt.segments)
        assert sorted(drawn) == list(range(whole, len(blocks)))
        for block, told in drawn.items():
            heights = [len(event.codes) for event in told]
            assert heights == sorted(set(heights))
            assert told[-1].is_whole
            for event in told:
                assert event.size == blocks[block].shape
                assert np.array_equal(event.codes, blocks[block][: len(event.codes)])
            if speculation is None and prompt.limits is PAGE and blocks[block].shape[0] > 1:
                assert len(told) > 1
    finished = [event.prompt for event in events if isinstance(event, Finished)]
    assert sorted(finished) == list(range(len(MIXED)))


def test_a_stop_word_ends_the_document_and_is_cut_off() -> None:
    sampler = tiny_sampler(sampling={"text": Sampling(temperature=2.0)})
    limits = {"max_blocks": 0, "max_tokens": 60, "min_text": 8}
    for seed in range(6):
        [plain] = sampler.sample([Prompt(("red apple, gr",), limits, seed)])
        written = plain.text[len("red apple, gr") :]
        assert len(written) > 6
        stop = written[5:7]
        prompt = Prompt(("red apple, gr",), limits, seed, stop=("@", stop))
        [stopped] = sampler.sample([prompt])
        assert stopped.text == "red apple, gr" + written[: written.index(stop)]
        assert stopped.ids[:-1].tolist() == plain.ids[: len(stopped.ids) - 1].tolist()
        assert stopped.ids[-1] == sampler.vocabulary.id("eos")
        assert len(stopped.ids) - stopped.given > 8  # not before it may end
        assert ids_of(sampler.sample([Prompt(("red apple, gr",), limits, seed, stop=("red",))])) == ids_of([plain])


def test_stop_words_and_pictures_that_must_come_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"stop words end a document, but min_blocks=2 more blocks have to come"):
        tiny_sampler().sample([Prompt(("plum",), PAGE, stop=(".",))])
    with pytest.raises(ValueError, match="a stop word is empty"):
        Prompt(stop=("",))


def test_a_negative_prompt_needs_guidance_and_room() -> None:
    sampler = tiny_sampler()
    with pytest.raises(ValueError, match="negative prompt 'plum' has no effect without guidance"):
        sampler.sample([Prompt(("pear",), PICTURE, negative="plum")])
    with pytest.raises(ValueError, match=r"a prompt of .* tokens leaves no room in the context of 160"):
        sampler.sample([Prompt(("pear",), PICTURE, negative="plum " * 50)], GUIDED)
    with pytest.raises(ValueError, match=r"seed -1 must be from 0 to 2\^64 - 1"):
        Prompt(seed=-1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_drafts_for_itself_is_always_right(temperature: float) -> None:
    sampler = tiny_sampler(sampling={"image": Sampling(temperature=temperature, guidance=2.0)})
    plain = draw(sampler, "red apple", 3, size=(4, 4))
    assert sampler.statistics.forwards == 16
    sampler.speculation = Draft(sampler.model, 3)
    assert np.array_equal(draw(sampler, "red apple", 3, size=(4, 4)), plain)
    statistics = sampler.statistics
    assert statistics.forwards == 4
    assert statistics.confirmed == statistics.guessed == 3 * 12
    assert statistics.choices == 3 * 16


def test_guesses_save_forwards_and_change_nothing() -> None:
    sampler = tiny_sampler()
    plain = draw(sampler, "red apple", 4, size=(6, 6))
    for speculation in (Jacobi(4), Draft(tiny_model(sampler.vocabulary.size, seed=0, num_hidden_layers=1), 3)):
        sampler.speculation = speculation
        assert np.array_equal(draw(sampler, "red apple", 4, size=(6, 6)), plain)
        assert sampler.statistics.forwards < 36
        assert 0 < sampler.statistics.confirmed < sampler.statistics.guessed


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    sampler = tiny_sampler()
    sampler.speculation = Draft(tiny_model(50))
    with pytest.raises(ValueError, match="the model that drafts has 50 ids, the vocabulary"):
        sampler.sample(MIXED)
    sampler.speculation = Draft(tiny_model(sampler.vocabulary.size, max_position_embeddings=80))
    with pytest.raises(ValueError, match="the model that drafts has a context of 80 tokens, the model 160"):
        sampler.sample(MIXED)
    for wrong in (lambda: Jacobi(0), lambda: Draft(sampler.model, 0)):
        with pytest.raises(ValueError, match="0 must be 1 code or more"):
            wrong()


def test_ids_that_were_taken_back_leave_no_trace() -> None:
    model = tiny_model(40)
    lanes = Lanes(model, 2, 30)
    one, other = lanes.open(), lanes.open()
    with evaluating(model):
        lanes.forward([(one, [1, 2, 3]), (other, [4, 5])])
        lanes.forward([(one, [7, 8, 9, 10]), (other, [11])])
        one.length = 4
        hidden = lanes.forward([(one, [12]), (other, [13, 14])])
        expected = model.model(torch.tensor([[1, 2, 3, 7, 12]])).last_hidden_state[0, -1]
        torch.testing.assert_close(hidden[one.base], expected)


@pytest.mark.parametrize(("settings", "lanes"), [({}, 1), ({"guidance": 2}, 2), ({"picture_guidance": 2}, 3)])
def test_room_is_made_for_the_branches_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], lanes: int
) -> None:
    rooms: list[int] = []
    made, reserve = Store.__init__, Store.reserve

    def recorded(self: Store, config: Any, lanes: int, *rest: Any) -> None:
        rooms.append(lanes)
        made(self, config, lanes, *rest)

    def never(self: Store, lanes: int, length: int) -> None:
        before = self.layers[0]
        reserve(self, lanes, length)
        assert self.layers[0] is before

    monkeypatch.setattr(Store, "__init__", recorded)
    monkeypatch.setattr(Store, "reserve", never)
    words = ("pear", Block(some_codes(1, 2, 2)), "plum")
    limits = {**PICTURE, "max_tokens": 20}
    prompts = [Prompt(words, limits, seed) for seed in range(5)]
    tiny_sampler().sample(prompts, {"image": Sampling(**settings)}, batch_size=4)
    assert rooms == [4 * lanes]


def test_parts_of_a_model_that_were_in_evaluation_stay_so() -> None:
    sampler = tiny_sampler(residual_dropout=0.3)
    sampler.model.train()
    sampler.model.model.norm.eval()
    before = [module.training for module in sampler.model.modules()]
    sampler.sample(MIXED[:2])
    assert [module.training for module in sampler.model.modules()] == before


def test_a_head_that_is_more_than_a_matrix_is_refused() -> None:
    sampler = tiny_sampler()
    sampler.model.lm_head = torch.nn.Sequential(sampler.model.lm_head)
    with pytest.raises(ValueError, match="the head of the model is Sequential, and only the rows of a plain Linear"):
        sampler.sample(MIXED[:1])


def test_samplers_with_many_settings_and_settings_that_contradict() -> None:
    for settings, complaint in (
        ({"min_p": 1.5}, "min_p 1.5 must be from 0"),
        ({"repetition_penalty": 0}, "repetition_penalty 0 must be above 0"),
        ({"picture_guidance": float("inf")}, "picture_guidance inf must be a finite number"),
        ({"guidance_space": "probability", "guidance": 2}, "guidance_space 'probability' must be one of logits"),
        ({"guidance_space": "log_softmax"}, "guidance_space has no effect without guidance"),
        ({"guidance_schedule": [[0, 1]]}, "guidance_schedule has no effect without guidance"),
        ({"guidance": 2, "guidance_schedule": [[1, 1], [0, 1]]}, "places must rise from 0 to 1"),
        ({"guidance": 2, "guidance_schedule": [[0, float("nan")]]}, "shares must be finite"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Sampling(**settings)  # pyright: ignore[reportArgumentType]


def test_blocks_that_are_begun_are_told_from_where_the_prompt_left_them() -> None:
    sampler = tiny_sampler()
    half = Block(some_codes(3, 3, 2)[:2], size=(3, 2))
    events = list(sampler.stream([Prompt((half,), {"text": False, "max_blocks": 0})]))
    [rows] = [event for event in events if isinstance(event, BlockRows)]
    assert rows.is_whole
    assert np.array_equal(rows.codes[:2], some_codes(3, 3, 2)[:2])


def test_two_samplers_of_one_model_share_nothing() -> None:
    one, other = tiny_sampler(sampling=GUIDED), tiny_sampler()
    other = Sampler(one.model, one.grammar, one.writer.text_tokenizer)
    first, second = ids_of(one.sample(MIXED)), ids_of(other.sample(MIXED))
    streams = [one.stream(MIXED, batch_size=3), other.stream(MIXED, batch_size=2)]
    found: list[dict[int, list[int]]] = [{}, {}]
    running = [0, 1]
    while running:
        for index in list(running):
            event = next(streams[index], None)
            if event is None:
                running.remove(index)
            elif isinstance(event, Finished):
                found[index][event.prompt] = event.sample.ids.tolist()
    assert [list(dict(sorted(part.items())).values()) for part in found] == [first, second]
