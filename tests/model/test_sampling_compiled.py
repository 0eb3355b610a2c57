"""Compiled steps are plain ones: for any batch, growing documents, streams, guesses, and models that change."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from made_samplers import Recorded, tiny_model, tiny_sampler
from test_sampler import GUIDED, MIXED, ids_of

from omnigram.model.generation import Draft, Finished, Jacobi, Prompt, Sampler, compiled

# torch's own compiler still scripts a class of its own when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

OPEN = [Prompt(("plum",), {"max_blocks": 0, "min_text": 60}, seed) for seed in (1, 2)]  # room for it is made on the way


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without its back end, which takes long: the programs and when they fit are the same."""
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


def programs() -> int:
    """Made in this process so far."""
    return torch._dynamo.utils.counters["frames"]["ok"]


def test_compiled_steps_are_plain_ones_whatever_the_batch(recorded: Recorded) -> None:
    sampler = tiny_sampler(num_hidden_layers=1)
    sampler.model.float()
    plain_open = ids_of(sampler.sample(OPEN))
    for settings in (None, GUIDED):
        found = []
        for compile in (False, True):
            sampler.compile = compile
            recorded.clear()
            found.append((ids_of(sampler.sample(MIXED, settings)), [logits for _, _, logits in recorded]))
        (plain, expected), (compiled, logits) = found
        assert compiled == plain
        assert len(logits) == len(expected) > 60
        for one, other in zip(logits, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    made = programs()
    assert made > 0
    assert [ids_of(sampler.sample([prompt], settings))[0] for prompt in MIXED] == plain  # one lane or two
    assert ids_of(sampler.sample(OPEN)) == plain_open  # room that grows
    assert streamed(sampler, MIXED, settings) == plain
    assert programs() == made  # are no new program
    other = tiny_sampler(
        seed=1, num_hidden_layers=1, hidden_size=24, num_attention_heads=2
    )  # another model has its own
    [words] = [prompt for prompt in MIXED if prompt.segments == ("plum",)]
    expected = ids_of(other.sample([words]))
    other.compile = True
    assert ids_of(other.sample([words])) == expected


def streamed(sampler: Sampler, prompts: list[Prompt], settings: Any = None) -> list[list[int]]:
    """What `sample` gives, by `stream`."""
    found = {event.prompt: event.sample for event in sampler.stream(prompts, settings) if isinstance(event, Finished)}
    return ids_of([found[number] for number in range(len(prompts))])


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("guessing", [Jacobi, lambda: Draft(tiny_model(tiny_sampler().vocabulary.size, 9), 3)])
def test_guesses_in_compiled_steps(guessing: Callable[[], Any]) -> None:
    sampler = tiny_sampler()
    plain = ids_of(sampler.sample(MIXED, GUIDED))
    sampler.compile, sampler.speculation = True, guessing()
    assert ids_of(sampler.sample(MIXED, GUIDED)) == plain
    assert ids_of(sampler.sample(MIXED, GUIDED)) == plain
    assert sampler.statistics.confirmed > 0


@pytest.mark.usefixtures("traced")
def test_a_model_that_changed_between_calls_is_noticed() -> None:
    sampler = tiny_sampler()
    sampler.compile = True
    before = ids_of(sampler.sample(MIXED))

    def drop_a_layer() -> None:
        del sampler.model.model.layers[1]

    def scale_weights() -> None:
        with torch.no_grad():
            sampler.model.model.norm.weight.mul_(3)

    for change in (scale_weights, drop_a_layer, lambda: sampler.model.float()):
        change()
        after = ids_of(sampler.sample(MIXED))
        assert after != before or change not in (scale_weights, drop_a_layer)
        assert ids_of(plain(sampler).sample(MIXED)) == after
        before = after


def plain(sampler: Sampler) -> Sampler:
    return Sampler(sampler.model, sampler.grammar, sampler.writer.text_tokenizer)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "hindered",
    [
        lambda: torch._dynamo.config.patch(recompile_limit=1),  # pyright: ignore[reportAttributeAccessIssue]
        lambda: torch.compiler.set_stance("force_eager"),
    ],
)
def test_where_nothing_more_may_be_compiled_the_steps_run_as_they_are(
    hindered: Callable[[], contextlib.AbstractContextManager[Any]],
) -> None:
    sampler = tiny_sampler()
    expected = ids_of(sampler.sample(MIXED))
    sampler.compile = True
    with hindered():
        assert [ids_of(sampler.sample(MIXED)) for _ in range(2)] == [expected, expected]
