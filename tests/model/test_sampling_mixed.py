"""Random batches of everything at once give what each prompt gives alone, and so do streams that take turns."""

import gc
import weakref
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from made_samplers import some_codes, tiny_model, tiny_sampler

from omnigram.model.generation import Block, Draft, Event, Finished, Jacobi, Prompt, Sampler, Sampling
from omnigram.model.generation.engine import Engine

SHAPE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1}
WORDS = ("", "plum", "red apple", "a much longer text, yellow lemon, green pear")
CODES = 11


def small_sampler(**settings: Sampling) -> Sampler:
    return tiny_sampler(CODES, settings, **SHAPE)


def some_picture(rng: np.random.Generator) -> Block:
    return Block(some_codes(int(rng.integers(100)), int(rng.integers(1, 3)), int(rng.integers(1, 4))))


def some_prompt(rng: np.random.Generator, guided: bool) -> Prompt:
    """A picture of a size or of any, words, the rest of a picture, or a page; behind anything."""
    before: list[str | Block] = []
    for _ in range(rng.integers(3)):
        before.append(some_picture(rng) if rng.random() < 0.4 else str(rng.choice(WORDS)))
    height, width = (int(side) for side in rng.integers(1, 4, 2))
    picture = {"text": False, "min_blocks": 1, "max_blocks": 1}
    kind, stop = int(rng.integers(6)), tuple[str, ...]()
    limits: dict[str, Any] = {
        0: {**picture, "sizes": {"image": (height, width)}},
        1: {**picture, "max_codes": 5},
        2: {"max_blocks": 0, "max_tokens": 5, "min_text": int(rng.integers(3))},
        3: {"min_blocks": 2, "max_blocks": 2, "end_with_block": True, "max_codes": 4, "max_tokens": 44},
        4: {"max_blocks": 1, "max_codes": 4, "max_tokens": 26},
        5: {"text": False, "max_blocks": 0},
    }[kind]
    if kind == 5:
        count = int(rng.integers(height * width))
        before.append(Block(some_codes(1, 1, count)[0], size=(height, width)))
    if kind in (2, 4) and rng.random() < 0.7:
        stop = tuple(rng.choice(list("aelpru "), 3))
    negative = str(rng.choice(WORDS)) if guided and rng.random() < 0.5 else ""
    return Prompt(tuple(before), limits, int(rng.integers(2**63)), negative, stop)


def some_setting(rng: np.random.Generator, guided: bool) -> Sampling:
    """Each setting is at rest as often as not."""

    def maybe(value: Any, rest: Any) -> Any:
        return value if rng.random() < 0.5 else rest

    options: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.7, 1.0, 1.6]),
        "top_k": maybe(int(rng.integers(1, 9)), 0),
        "top_p": maybe(rng.uniform(0.3, 1), 1.0),
        "min_p": maybe(rng.uniform(0, 0.3), 0.0),
        "repetition_penalty": maybe(rng.uniform(0.7, 1.6), 1.0),
    }
    if guided:
        options |= {
            "guidance": rng.uniform(-1, 4),
            "picture_guidance": maybe(rng.uniform(0, 3), None),
            "guidance_space": maybe("log_softmax", "logits"),
            "guidance_schedule": maybe(((0.2, rng.uniform(0, 1)), (0.7, 1.0)), ()),
        }
    return Sampling(**options)


def ids_alone(sampler: Sampler, prompts: list[Prompt]) -> list[list[int]]:
    """Of each prompt by itself, one code at a time."""
    speculation, sampler.speculation = sampler.speculation, None
    alone = [sample.ids.tolist() for prompt in prompts for sample in sampler.sample([prompt])]
    sampler.speculation = speculation
    return alone


@pytest.mark.parametrize("part", range(4))
def test_a_batch_gives_what_each_prompt_gives_alone(part: int) -> None:
    """200 random batches: any prompts, settings and batch sizes, with guesses of either kind or without."""
    rng, draft = np.random.default_rng(part), tiny_model(small_sampler().vocabulary.size, 5, **SHAPE)
    confirmed, refilled, guided_batches = {Jacobi: 0, Draft: 0}, 0, 0
    for number in range(50):
        guided = bool(rng.random() < 0.6)
        sampler = small_sampler(image=some_setting(rng, guided), text=some_setting(rng, False))
        prompts = [some_prompt(rng, sampler.sampling["image"].is_guided) for _ in range(rng.integers(2, 6))]
        alone = ids_alone(sampler, prompts)
        batch_size = int(rng.integers(1, 6))
        kind = rng.integers(3)
        sampler.speculation = (None, Jacobi(int(rng.integers(1, 6))), Draft(draft, int(rng.integers(1, 5))))[kind]
        together = [sample.ids.tolist() for sample in sampler.sample(prompts, batch_size=batch_size)]
        assert together == alone, f"batch {number} of part {part}"
        assert sampler.statistics.tokens == sum(
            len(ids) - len(sampler.writer.write(prompt.segments)) for ids, prompt in zip(alone, prompts, strict=True)
        )
        if sampler.speculation is not None:
            confirmed[type(sampler.speculation)] += sampler.statistics.confirmed
        refilled += batch_size < len(prompts)
        guided_batches += guided
    assert min(*confirmed.values(), refilled, guided_batches) > 5


def test_a_guided_block_begins_in_the_step_in_which_another_ends() -> None:
    """With three branches each, so that lanes are opened and closed before any of the new ones is fed."""
    sampler, shown = small_sampler(image=GUIDED), Block(some_codes(0, 1, 2))
    block = sampler.grammar.blocks["image"].length(1, 2)
    begins = {"min_text": 1, "min_blocks": 1, "max_blocks": 1, "end_with_block": True, "sizes": {"image": (1, 2)}}
    ends = {"max_blocks": 0, "max_tokens": 30, "min_text": 3}
    for length in (1, 2, 3):  # ids of text before the one block, and codes of the other
        limits = {**begins, "min_text": length, "max_tokens": length + block + 1}
        pair = [Prompt(("plum", shown), limits, 1), Prompt(("red", shown, Block([], size=(1, length))), ends, 2)]
        alone = ids_alone(sampler, pair)
        for order in (slice(None), slice(None, None, -1)):
            assert [sample.ids.tolist() for sample in sampler.sample(pair[order])] == alone[order]


PAGE = {"min_blocks": 2, "max_blocks": 2, "end_with_block": True, "max_codes": 4, "max_tokens": 44}
PROMPTS = [
    Prompt(("red apple",), PAGE, 1, "plum"),
    Prompt((Block([3], size=(2, 3)),), {"text": False, "max_blocks": 0}, 2),
    Prompt((Block(some_codes(3, 2, 2)), "pear"), PAGE, 3),
    Prompt(("plum",), {"max_blocks": 0, "max_tokens": 9}, 4),
    Prompt(("green pear",), PAGE, 5),
]
GUIDED = Sampling(0.9, guidance=2.0, picture_guidance=1.5)


def told(events: list[Event]) -> list[tuple[Any, ...]]:
    """Events as values that can be compared."""
    return [(type(event), event.prompt, str(vars(event).get("ids", vars(event).get("codes")))) for event in events]


@pytest.mark.parametrize("speculation", [None, Jacobi(3)])
def test_streams_that_take_turns_give_what_they_give_alone(speculation: Jacobi | None) -> None:
    """Three of them: two of one sampler, and one of another on the same model, with other settings."""
    first = small_sampler(image=GUIDED)
    second = Sampler(first.model, first.grammar, first.writer.text_tokenizer, {"image": Sampling(1.4, top_k=5)})
    first.speculation = speculation
    unguided = [Prompt(prompt.segments, prompt.limits, prompt.seed + 9) for prompt in PROMPTS]

    def streams() -> list[Any]:
        return [
            first.stream(PROMPTS, batch_size=2),
            first.stream(PROMPTS[::-1], {"image": GUIDED, "text": Sampling(temperature=0)}, batch_size=3),
            second.stream(unguided, batch_size=4),
        ]

    alone = [told(list(stream)) for stream in streams()]
    going, turns = dict(enumerate(streams())), [list[Event]() for _ in alone]
    order = np.random.default_rng(0)
    while going:
        number = int(order.choice(list(going)))
        try:
            turns[number].append(next(going[number]))
        except StopIteration:
            del going[number]
    assert [told(events) for events in turns] == alone
    assert len({str(events) for events in alone}) == 3
    assert all(sum(kind is Finished for kind, *_ in events) == len(PROMPTS) for events in alone)


@pytest.mark.parametrize("events", [1, 7, 30])
def test_a_stream_that_is_abandoned_leaves_nothing_behind(events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the model, not in the sampler, and no memory."""
    engines = list[weakref.ref[Engine]]()
    run = Engine.run

    def seen(self: Engine, rows: Any, batch_size: int) -> Any:
        engines.append(weakref.ref(self))
        return run(self, rows, batch_size)

    monkeypatch.setattr(Engine, "run", seen)
    sampler = small_sampler(image=GUIDED)
    sampler.model.train()
    sampler.model.set_attn_implementation("flex_attention")
    before = [sample.ids.tolist() for sample in sampler.sample(PROMPTS)]
    attributes = {name: value for name, value in vars(sampler).items() if name != "statistics"}
    stream = sampler.stream(PROMPTS, batch_size=3)
    for _ in range(events):
        next(stream)
    assert sampler.model.training  # between steps too
    assert sampler.model.config._attn_implementation == "flex_attention"
    assert isinstance(stream, Generator)
    stream.close()
    del stream
    gc.collect()
    assert [engine() for engine in engines] == [None, None]
    assert {name: value for name, value in vars(sampler).items() if name != "statistics"} == attributes
    assert sampler.model.training
    assert sampler.model.config._attn_implementation == "flex_attention"
    assert [sample.ids.tolist() for sample in sampler.sample(PROMPTS)] == before


def test_a_watcher_that_fails_leaves_nothing_behind() -> None:
    sampler = small_sampler(image=GUIDED)
    before = [sample.ids.tolist() for sample in sampler.sample(PROMPTS)]
    seen: list[Event] = []

    def watch(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(PROMPTS, batch_size=2, watch=watch)
    last = seen[-1]
    assert isinstance(last, Finished)
    assert last.sample.ids.tolist() == before[last.prompt]
    assert [sample.ids.tolist() for sample in sampler.sample(PROMPTS)] == before
