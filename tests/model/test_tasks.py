"""What people ask for: prompts as training wrote documents, ranking by the plain formula, and the laws of pairs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_samplers import some_codes, tiny_model, tiny_sampler, words

from omnigram.model.generation import Block, BlockRows, Event, Finished, Jacobi, Prompt, Sampler, Sampling, tasks
from omnigram.model.generation.ranking import best_of, picture_given_words, words_given_picture
from omnigram.model.generation.room import most_codes
from omnigram.tokenizers.grammar import BlockGrammar
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.vocabulary import TEXT, Vocabulary

SIZE = (2, 3)
PAIRS = [("red apple", some_codes(0, 2, 3)), ("plum", some_codes(1, 2, 3)), ("a pear", some_codes(2, 3, 2))]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return tiny_sampler()


def test_examples_stand_before_as_a_page_of_training_has_them(sampler: Sampler) -> None:
    prompt = tasks.to_draw(sampler, "green", size=SIZE, examples=PAIRS[:2])
    written = sampler.writer.write(prompt.segments)
    text = [np.array(words().encode(name)) for name in ("red apple", "plum", "green")]
    blocks = [("image", codes) for _, codes in PAIRS[:2]] + [("image", np.zeros(SIZE, dtype=int))]
    document = sampler.grammar.write(
        [part for pair in zip(((TEXT, t) for t in text), blocks, strict=True) for part in pair]
    )
    first_code = np.flatnonzero(document == sampler.vocabulary.id("img"))[-1] + 1
    np.testing.assert_array_equal(written, document[:first_code])


@torch.no_grad()
def test_words_given_a_picture_are_those_of_a_plain_forward(sampler: Sampler) -> None:
    vocabulary = sampler.vocabulary
    columns = torch.tensor([vocabulary.id("eos"), *vocabulary.ids(TEXT)])
    for (text, codes), found in zip(PAIRS, words_given_picture(sampler, PAIRS), strict=True):
        ids = sampler.writer.write([Block(codes), text], close=True)
        start = len(sampler.writer.write([Block(codes)]))
        logits = sampler.model(torch.from_numpy(ids)[None]).logits[0]
        expected = 0.0
        for place in range(start, len(ids)):
            allowed = logits[place - 1, columns].log_softmax(0)
            expected -= float(allowed[columns == ids[place]])
        assert found == pytest.approx(expected, abs=1e-8)


@torch.no_grad()
def test_a_picture_given_words_is_that_of_a_plain_forward(sampler: Sampler) -> None:
    vocabulary, automaton = sampler.vocabulary, sampler.grammar.automaton(max_blocks=1)
    for (text, codes), found in zip(PAIRS, picture_given_words(sampler, PAIRS), strict=True):
        ids, start = sampler.writer.write([text, Block(codes)]), len(sampler.writer.write([text]))
        logits = sampler.model(torch.from_numpy(ids)[None]).logits[0]
        expected = 0.0
        for place in range(start, len(ids)):  # marks cost nothing, a size what the grammar leaves open
            allowed = automaton.allowed(automaton.after(ids[:place])).all_ids(vocabulary)
            expected -= float(logits[place - 1, allowed].log_softmax(0)[allowed == ids[place]])
        assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("rank_by", "measure"), [("picture", picture_given_words), ("words", words_given_picture)])
def test_the_best_of_k_is_the_likeliest(sampler: Sampler, rank_by: str, measure: Callable[..., list[float]]) -> None:
    candidates = tasks.draw(sampler, ["red apple", "plum"], 6, size=SIZE, seed=5)
    names = ["red apple"] * 6 + ["plum"] * 6
    nats = measure(sampler, list(zip(names, candidates, strict=True)))
    expected = [int(np.argmin(nats[start : start + 3])) + start for start in range(0, 12, 3)]
    assert best_of(sampler, ["red apple"] * 2 + ["plum"] * 2, candidates, 3, rank_by) == expected
    assert len({number % 3 for number in expected}) > 1
    kept = tasks.draw(sampler, ["red apple", "plum"], 2, size=SIZE, seed=5, best=3, rank_by=rank_by)
    assert np.array_equal(kept, [candidates[number] for number in expected])
    with pytest.raises(ValueError, match="5 pictures for 2 prompts: best of 3 takes 3 for each"):
        best_of(sampler, ["a", "b"], candidates[:5], 3)
    with pytest.raises(ValueError, match="rank_by 'both' must be one of picture, words"):
        best_of(sampler, ["a", "b"], candidates[:6], 3, "both")
    with pytest.raises(ValueError, match="rank_by 'both' must be one of picture, words"):
        tasks.draw(sampler, "plum", size=SIZE, best=3, rank_by="both")
    with pytest.raises(ValueError, match="rank_by 'words' has no effect on the best of one sample"):
        tasks.draw(sampler, "plum", size=SIZE, rank_by="words")


@pytest.mark.parametrize("words_first", [True, False])
def test_a_pair_is_words_and_one_picture_in_the_order_asked_for(words_first: bool) -> None:
    counts = []
    for seed in range(2):
        made = tiny_sampler(seed=seed, sampling={"text": Sampling(temperature=4)})  # so that some end early
        prompt = tasks.to_joint(made, size=SIZE, words_first=words_first, max_tokens=40)
        samples = made.sample(tasks.seeded(prompt, range(32)))
        for sample in samples:
            kinds = [modality for modality, _ in made.grammar.read(sample.ids)]
            assert kinds == (["text", "image"] if words_first else ["image", "text"])
            parts = dict(made.grammar.read(sample.ids))
            assert parts["image"].shape == SIZE
            counts.append(len(parts["text"]))
        pairs = tasks.joint(made, 32, size=SIZE, words_first=words_first, max_tokens=40)
        assert [text for text, _ in pairs] == [sample.text for sample in samples]
        assert len({codes.tobytes() for _, codes in pairs}) > 24
    assert set(counts) <= set(range(1, 41))
    assert len(set(counts)) > 2


def test_a_picture_that_comes_first_follows_the_model() -> None:
    """All nine pictures of two codes of three, by their probabilities from plain forwards."""
    made = tiny_sampler(codebook_size=3)
    first = tasks.to_joint(made, size=(1, 2), words_first=False, max_tokens=3)
    counts = np.zeros((3, 3))
    for sample in made.sample(tasks.seeded(first, range(600)), batch_size=300):
        counts[tuple(sample.blocks()[0][0])] += 1
    with torch.no_grad():
        begun = made.writer.write([Block((), size=(1, 2))])
        codes = torch.from_numpy(made.vocabulary.ids("image"))
        one = made.model(torch.from_numpy(begun)[None]).logits[0, -1, codes].softmax(0)
        both = np.zeros((3, 3))
        for left in range(3):
            ids = torch.tensor([[*begun, int(codes[left])]])
            both[left] = one[left] * made.model(ids).logits[0, -1, codes].softmax(0)
    assert ((counts - 600 * both) ** 2 / (600 * both)).sum() < 26.1  # chi-square, 8 degrees of freedom, p = .001


def test_where_nothing_comes_before_the_likeliest_is_not_taken_unless_asked_for() -> None:
    greedy = {"image": Sampling(temperature=0, top_k=9), "text": Sampling(temperature=0)}
    made = tiny_sampler(sampling=greedy)
    assert tasks.unprompted(made, None, "image") == {"image": replace(greedy["image"], temperature=1.0)}
    both = {modality: replace(settings, temperature=1.0) for modality, settings in greedy.items()}
    assert tasks.unprompted(made, None, "text", "image") == both
    assert tasks.unprompted(made, {"text": greedy["text"]}, "text", "image") == {**both, "text": greedy["text"]}
    assert tasks.unprompted(made, greedy, "text", "image") == greedy
    assert tasks.unprompted(tiny_sampler(), None, "image") == {}
    free = tasks.draw(made, None, 4, size=SIZE)
    assert len({codes.tobytes() for codes in free}) > 1
    same = tasks.draw(made, None, 4, size=SIZE, sampling=greedy)
    assert len({codes.tobytes() for codes in same}) == 1
    assert len({codes.tobytes() for codes in tasks.draw(made, "plum", 4, size=SIZE)}) == 1
    for first in (True, False):

        def pairs(sampling: dict[str, Sampling] | None, first: bool = first) -> list[tuple[str, list[list[int]]]]:
            made_pairs = tasks.joint(made, 4, size=SIZE, max_tokens=5, words_first=first, sampling=sampling)
            return [(text, codes.tolist()) for text, codes in made_pairs]

        assert pairs(None) == pairs(both)
        assert len({text for text, _ in pairs(None)}) > 1
        for modality in greedy:  # each of the two is drawn by chance
            assert pairs(None) != pairs({modality: greedy[modality]})


def test_a_caption_is_what_comes_last(sampler: Sampler) -> None:
    picture = some_codes(5, 2, 2)
    [plain] = tasks.caption(sampler, [picture], max_tokens=9)
    [shown] = tasks.caption(sampler, [picture], max_tokens=9, examples=PAIRS[:1])
    page = tasks.page(sampler, [Block(PAIRS[0][1]), PAIRS[0][0], Block(picture)], blocks=0, max_tokens=9,
                      sampling={"text": tasks.GREEDY})  # fmt: skip
    assert shown == tasks.last_text(page[0])
    assert shown != plain
    assert "red apple" not in shown
    stop = plain[1]
    assert tasks.caption(sampler, [picture], max_tokens=9, stop=[stop]) == [plain[: plain.index(stop)]]


def test_words_for_no_picture_are_drawn_by_chance() -> None:
    made = tiny_sampler()
    words = tasks.caption(made, [None] * 8, max_tokens=6, seed=3)
    limits = {"max_blocks": 0, "min_text": 1, "max_tokens": 6}
    prompts = [Prompt((), limits, seed) for seed in range(3, 11)]
    assert words == [tasks.last_text(sample) for sample in made.sample(prompts, {"text": Sampling()})]
    assert len(set(words)) > 1
    greedy = tasks.caption(made, [None] * 8, max_tokens=6, sampling=tasks.GREEDY)
    assert len(set(greedy)) == 1
    with pytest.raises(ValueError, match="examples show how pictures are named"):
        tasks.caption(made, [None], examples=PAIRS[:1])


def test_a_size_takes_only_the_room_that_it_needs(sampler: Sampler) -> None:
    whole = sampler.grammar.blocks["image"].length(*SIZE)
    limits = tasks.to_draw(sampler, "plum", size=SIZE).limits
    assert limits["max_tokens"] == whole - 5 + 1  # boi 2 * 3 img are begun, eos follows
    kept = tasks.to_complete(sampler, some_codes(0, 1, 3), size=SIZE).limits
    assert kept["max_tokens"] == whole - 5 - 4 + 1  # three codes and eol


def test_whoever_watches_is_told_of_each() -> None:
    made, finished = tiny_sampler(), []

    def watch(event: Event) -> None:
        if isinstance(event, Finished):
            finished.append(event.prompt)

    tasks.draw(made, ["plum", "pear"], 2, size=SIZE, watch=watch)
    tasks.joint(made, 1, size=SIZE, max_tokens=3, watch=watch)
    tasks.caption(made, [some_codes(0, 2, 2)], max_tokens=3, watch=watch)
    tasks.complete(made, some_codes(0, 1, 3), size=SIZE, watch=watch)
    tasks.page(made, ["plum"], size=SIZE, blocks=1, watch=watch)
    assert sorted(finished[:4]) == [0, 1, 2, 3]
    assert finished[4:] == [0] * 4


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"words": " "}, "the prompt is empty"),
        ({"words": "a", "best": 0}, "best of 0: of at least 1 sample"),
        ({"words": None, "best": 2}, "best of 2 is judged by words: say in words what to draw"),
        ({"words": None, "examples": PAIRS}, "examples show what words mean: say in words"),
        ({"words": "a", "negative": "plum"}, "negative words 'plum' have no effect without guidance"),
        ({"words": "a", "size": (12, 12)}, "a block of 12 x 12 codes makes a document of 167 tokens, and the context"),
        ({"words": "a", "modality": "depth"}, "cannot draw 'depth': the model has image"),
        ({"words": "a", "modality": "depth", "negative": "plum"}, "cannot draw 'depth': the model has image"),
        ({"words": "apple " * 300}, "leaves no room in the context of 160"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(sampler: Sampler, asked: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as fault:
        tasks.draw(sampler, **{"size": SIZE, **asked})
    assert "\n" not in str(fault.value)
    guided = {"image": Sampling(guidance=2)}
    with pytest.raises(ValueError, match="negative words lead away from words: say in words"):
        tasks.draw(sampler, None, size=SIZE, negative="plum", sampling=guided)


def unmarked(begin: str | None, height: int | None) -> Sampler:
    """Blocks [height, 3] whose size is not written: any number of rows for None."""
    grammar = BlockGrammar(2, begin, None, None, content=None, row_end=None, frame_end=None, fixed_size=(height, 3))
    vocabulary = Vocabulary.appended(words().size, codebooks={"image": 11})
    documents = document_grammar(vocabulary, words().digit_ids, {"image": grammar})
    return Sampler(tiny_model(vocabulary.size), documents, words(), {"image": Sampling(guidance=2)})


@pytest.mark.parametrize(("begin", "height"), [(None, 2), (None, None), ("boi", None)])
def test_blocks_that_no_mark_begins_or_measures_are_drawn(begin: str | None, height: int | None) -> None:
    made = unmarked(begin, height)
    drawn = tasks.draw(made, ["plum", "pear"], 3, size=SIZE, examples=PAIRS[:2])
    assert len({codes.tobytes() for codes in drawn}) > 3
    halves = tasks.complete(made, [[1, 2, 3]], 3, size=SIZE, words="plum")
    assert all(codes[0].tolist() == [1, 2, 3] for codes in halves)
    pairs = tasks.joint(made, 3, size=SIZE, max_tokens=5)
    assert {codes.shape for codes in (*drawn, *halves, *(codes for _, codes in pairs))} == {SIZE}
    made.speculation = Jacobi(3)
    assert np.array_equal(tasks.draw(made, ["plum", "pear"], 3, size=SIZE, examples=PAIRS[:2]), drawn)
    if begin is None:
        with pytest.raises(ValueError, match="no mark begins image blocks of this model, so words come first"):
            tasks.joint(made, size=SIZE, words_first=False)
    else:
        [(text, codes)] = tasks.joint(made, size=SIZE, words_first=False, max_tokens=5)
        assert text
        assert codes.shape == SIZE


@pytest.mark.parametrize("begin", ["dboi", None])
def test_of_two_kinds_of_blocks_the_one_asked_for_is_drawn(begin: str | None) -> None:
    """Depth maps [2, 3], which a mark begins or their first code, beside pictures of any size."""
    depth = BlockGrammar(2, begin, None, None, content=None, row_end=None, frame_end=None, fixed_size=(2, 3))
    marks = tiny_sampler().vocabulary.specials
    vocabulary = Vocabulary.appended(words().size, (*marks, "dboi"), {"image": 11, "depth": 7})
    documents = document_grammar(vocabulary, words().digit_ids, {"depth": depth}, max_side=16)
    made = Sampler(tiny_model(vocabulary.size), documents, words(), {"text": Sampling(temperature=3)})
    for modality in ("image", "depth"):
        pairs = tasks.joint(made, 12, size=SIZE, modality=modality, max_tokens=8)
        drawn = tasks.draw(made, "plum", 6, size=SIZE, modality=modality)
        assert {codes.shape for codes in (*drawn, *(codes for _, codes in pairs))} == {SIZE}
        for page in tasks.page(made, ["plum"], 6, size=SIZE, modality=modality):
            assert [part.modality for part in page.segments if isinstance(part, Block)] == [modality] * 2
    assert {len(page.blocks("depth")) for page in tasks.page(made, ["plum"], 6, modality="depth")} == {2}


def test_one_text_is_no_list_of_stop_words(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="stop 'end' is one text: give a list"):
        tasks.caption(sampler, [some_codes(0, 2, 2)], stop="end")
    with pytest.raises(ValueError, match="stop 'end' is one text"):
        tasks.page(sampler, ["plum"], blocks=0, stop="end")
    with pytest.raises(ValueError, match="a stop word is empty"):
        Prompt(stop=[""])


@pytest.mark.parametrize(
    ("size", "told"), [((6,), [(6,)]), ((3, 2), [(1, 2), (2, 2), (3, 2)]), ((3, 1, 2), [(3, 1, 2)])]
)
def test_rows_are_told_of_blocks_of_two_axes_alone(size: tuple[int, ...], told: list[tuple[int, ...]]) -> None:
    grammar = BlockGrammar(len(size), "boi", None, None, content=None, row_end=None, frame_end=None, fixed_size=size)
    vocabulary = Vocabulary.appended(words().size, codebooks={"image": 11})
    made = Sampler(tiny_model(vocabulary.size), document_grammar(vocabulary, {}, {"image": grammar}), words())
    events = list(made.stream([Prompt(("plum",), {"text": False, "min_blocks": 1, "max_blocks": 1})]))
    assert [event.codes.shape for event in events if isinstance(event, BlockRows)] == told


def test_limits_that_the_grammar_does_not_have_are_refused(sampler: Sampler) -> None:
    every = {"sizes": {"image": SIZE}, "modalities": ["image"], "text": True, "min_blocks": 1, "max_blocks": 1,
             "end_with_block": True, "max_codes": 6, "min_text": 1, "max_tokens": 30}  # fmt: skip
    assert len(sampler.sample([Prompt((), every)])) == 1
    with pytest.raises(ValueError, match=r"^unknown limit 'max_block', did you mean max_blocks\?$"):
        Prompt((), {"text": False, "max_block": 1})
    with pytest.raises(ValueError, match=f"^unknown limit 'zzz', there are {', '.join(every)}$"):
        Prompt((), {"zzz": 1})


def test_pictures_of_a_page_without_a_size_share_the_room(sampler: Sampler) -> None:
    """The most codes of which every shape fits, counted shape by shape, at the context, max_tokens and half a block."""
    block, half = sampler.grammar.blocks["image"], Block([[1, 2, 3]], size=SIZE)
    shapes = [(height, width) for height in range(1, 17) for width in range(1, 17)]
    asked = ((["plum"], 1, None), (["plum", half], 2, None), (["plum"], 3, 90), ([], 4, 60))
    for segments, blocks, max_tokens in asked:
        pages = tasks.page(sampler, segments, 12, blocks=blocks, max_tokens=max_tokens)
        assert {len(page.blocks()) for page in pages} == {blocks + (half in segments)}
        prompt = sampler.writer.write(segments)
        rest = block.length(*SIZE) - 9 if half in segments else 0  # of which boi 2 * 3 img and three codes and eol are
        room = (160 - len(prompt) if max_tokens is None else max_tokens) - rest - 1
        assert all(len(page.ids) <= len(prompt) + rest + room + 1 for page in pages)
        longest = {
            codes: max(block.length(*shape) for shape in shapes if np.prod(shape) <= codes) for codes in range(1, 161)
        }
        fit = max(codes for codes in longest if blocks * longest[codes] <= room)
        found = most_codes(sampler, segments, "", blocks, max_tokens, "image")
        assert found <= fit
        assert longest[found] + 8 > longest[fit]
    short = tasks.page(sampler, ["plum"], 12, blocks=1, max_codes=4)
    assert len({page.blocks()[0].size for page in short}) > 1
    assert all(page.blocks()[0].size <= 4 for page in short)


def test_a_page_without_room_for_its_pictures_says_what_to_shorten(sampler: Sampler) -> None:
    long = "apple " * 30
    given = len(sampler.writer.write([long]))
    smallest = sampler.grammar.blocks["image"].length(1, 1)
    with pytest.raises(
        ValueError, match="max_tokens=9, and blocks=1 of image need 10 or more: raise it, or ask for fewer"
    ):
        tasks.page(sampler, ["plum"], blocks=1, max_tokens=smallest)
    [page] = tasks.page(sampler, ["plum"], blocks=1, max_tokens=smallest + 1)
    assert page.blocks()[0].shape == (1, 1)
    blocks = (160 - given) // smallest + 1
    left = f"a prompt of {given} tokens leaves {160 - given} of the context of 160, and blocks={blocks} of image need "
    with pytest.raises(ValueError, match=f"{left}{blocks * smallest + 1} or more: shorten it, or ask for fewer blocks"):
        tasks.page(sampler, [long], blocks=blocks)
    with pytest.raises(ValueError, match="cannot draw 'depth': the model has image"):
        tasks.page(sampler, ["plum"], modality="depth")
    with pytest.raises(ValueError, match="blocks of any size may be that long: name their size, or max_codes"):
        sampler.sample([Prompt(("plum",), {"min_blocks": 1})])
