"""Documents: the layouts on paper, the round trip, the automaton against brute force, its limits, damage located."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.tokenizers.document_grammar import DocumentGrammar
from omnigram.tokenizers.grammar import BlockGrammar, GrammarError
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.published import EMU3
from omnigram.tokenizers.vocabulary import Vocabulary

DIGITS = {symbol: id_ for id_, symbol in enumerate("0123456789*")}
SMALL = Vocabulary.appended(20, codebooks={"image": 5})
DOCUMENTS = document_grammar(SMALL, DIGITS, max_side=12)
CAPTION = ("text", np.array([11, 3, 10, 19]))


def picture(height: int, width: int) -> tuple[str, np.ndarray]:
    return "image", np.arange(height * width).reshape(height, width) % 5


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(left, right, strict=True)
    )


def merged(segments) -> list[tuple[str, np.ndarray]]:
    """Neighbouring text joined, empty text dropped: what reading gives back."""
    result = []
    for modality, codes in segments:
        if modality == "text" and result and result[-1][0] == "text":
            result[-1] = ("text", np.concatenate([result[-1][1], codes]))
        elif modality != "text" or len(codes):
            result.append((modality, codes))
    return result


texts = st.lists(st.integers(0, 19), max_size=5).map(lambda ids: ("text", np.array(ids, dtype=np.int64)))
sides = st.sampled_from([1, 2, 5, 12])
segment_lists = st.lists(st.one_of(texts, st.builds(picture, sides, sides)), max_size=4)


def test_layouts_of_the_three_kinds_of_document():
    names = {id_: name for name, id_ in SMALL.specials.items()}

    def spelled(segments) -> str:
        ids = DOCUMENTS.write(segments).tolist()
        return " ".join(names.get(id_) or (f"t{id_}" if id_ < 20 else f"c{id_ - 28}") for id_ in ids)

    block = "boi t2 t10 t2 img c0 c1 eol c2 c3 eol eof eoi"
    words = "t11 t3 t10 t19"
    assert spelled([CAPTION, picture(2, 2)]) == f"bos {words} {block} eos"
    assert spelled([picture(2, 2), CAPTION]) == f"bos {block} {words} eos"
    assert spelled([CAPTION]) == f"bos {words} eos"
    assert spelled([picture(2, 2)]) == f"bos {block} eos"  # the caption dropped
    assert spelled([]) == "bos eos"


def test_emu3_sequence_after_img_is_1059_long():
    documents = document_grammar(EMU3, DIGITS)
    ids = documents.write([CAPTION, ("image", np.zeros((32, 32), dtype=int))]).tolist()
    assert len(ids) - 1 - ids.index(EMU3.id("img")) == 1_059


@given(segment_lists)
def test_read_undoes_write(segments):
    ids = DOCUMENTS.write(segments)
    assert ids.dtype == np.int64
    assert same(DOCUMENTS.read(ids), merged(segments))
    np.testing.assert_array_equal(DOCUMENTS.write(segments, close=False), ids[:-1])


def test_automaton_generates_exactly_what_write_makes():
    """All documents of at most 9 ids, with a block that is short enough for many to fit."""
    vocabulary = Vocabulary.appended(2, ("bos", "eos", "boi", "eoi"), {"image": 2})
    fixed = BlockGrammar(size=None, separator=None, content=None, row_end=None, frame_end=None, fixed_size=(1, 1))
    documents = DocumentGrammar(vocabulary, {"image": fixed.bind(vocabulary, "image")})
    automaton, made, longest = documents.automaton(), set(), 7
    open_ = [((), automaton.start)]
    while open_:
        ids, state = open_.pop()
        if automaton.done(state):
            made.add(ids)
        elif len(ids) < longest:
            following = automaton.allowed(state).all_ids(vocabulary).tolist()
            open_ += [((*ids, id_), automaton.step(state, id_)) for id_ in following]

    pieces = [("text", np.array([0])), ("text", np.array([1])), ("image", np.array([[0]])), ("image", np.array([[1]]))]
    written = {
        tuple(documents.write(choice).tolist()) for n in range(6) for choice in itertools.product(pieces, repeat=n)
    }
    assert made == {ids for ids in written if len(ids) <= longest}
    with_limit = documents.automaton(max_tokens=longest)
    for ids in written:
        if len(ids) <= longest:
            assert with_limit.done(with_limit.advance(with_limit.start, ids))
        else:
            with pytest.raises(GrammarError):
                with_limit.advance(with_limit.start, ids)


@given(st.data())
def test_read_and_automaton_agree_on_edited_documents(data):
    ids = DOCUMENTS.write(data.draw(segment_lists)).tolist()
    at = data.draw(st.integers(0, len(ids) - 1))
    id_ = data.draw(st.sampled_from([0, 10, 19, *SMALL.specials.values(), 28, 32]))
    edited = data.draw(st.sampled_from([ids[:at] + ids[at + 1 :], [*ids[:at], id_, *ids[at + 1 :]]]))
    automaton, state, position = DOCUMENTS.automaton(), DOCUMENTS.automaton().start, None
    try:
        state = automaton.advance(state, edited)
        position = None if automaton.done(state) else len(edited)
    except GrammarError as fault:
        position = fault.position
    if position is None:
        assert DOCUMENTS.write(DOCUMENTS.read(edited)).tolist() == edited
    else:
        with pytest.raises(GrammarError) as caught:
            DOCUMENTS.read(edited)
        assert caught.value.position == position


@given(st.data())
def test_limits_hold_for_whatever_is_drawn(data):
    """Random walks always end, within the limits, in a document that can be read."""
    minimum = data.draw(st.integers(0, 2))
    maximum = data.draw(st.one_of(st.none(), st.integers(minimum, 3)))
    size = data.draw(st.sampled_from([None, (2, 3), (1, 1)]))
    text, budget = data.draw(st.booleans()), data.draw(st.integers(80, 120))
    first = data.draw(st.integers(0, 20)) if text else 0
    ends = maximum is not None and maximum > 0 and data.draw(st.booleans())
    automaton = DOCUMENTS.automaton(
        sizes={"image": size} if size else None,
        text=text,
        min_blocks=minimum,
        max_blocks=maximum,
        end_with_block=ends,
        max_codes=6,
        min_text=first,
        max_tokens=budget,
    )
    prompt_segments = data.draw(st.lists(st.one_of(texts, st.builds(picture, sides, sides)), max_size=2))
    prompt = DOCUMENTS.write(prompt_segments, close=False)
    state, drawn = automaton.after(prompt), []
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    while not automaton.done(state):
        id_ = int(rng.choice(automaton.allowed(state).all_ids(SMALL)))
        state = automaton.step(state, id_)
        drawn.append(id_)
    assert len(drawn) <= budget
    assert all(id_ < 20 for id_ in drawn[:first])
    segments = DOCUMENTS.read([*prompt, *drawn])
    written = segments[len([s for s in merged(prompt_segments) if s[0] == "image"]) :]
    blocks = [codes for modality, codes in segments if modality == "image"]
    blocks = blocks[len([s for s in prompt_segments if s[0] == "image"]) :]
    assert minimum <= len(blocks) <= (np.inf if maximum is None else maximum)
    assert all(codes.shape == size if size else codes.size <= 6 for codes in blocks)
    if not text:
        assert all(id_ >= 20 for id_ in drawn if id_ not in DIGITS.values())
    if ends and len(blocks) == maximum:
        assert written[-1][0] == "image"


def drawn_from(automaton, prompt) -> list[int | None]:
    """What follows a prompt, where a choice is None and taken as the smallest id."""
    state, following = automaton.after(prompt), []
    while not automaton.done(state):
        allowed = automaton.allowed(state)
        following.append(allowed.forced)
        state = automaton.step(state, int(allowed.all_ids(SMALL)[0]))
    return following


def test_words_to_picture_leaves_only_the_codes_open():
    automaton = DOCUMENTS.automaton(sizes={"image": (2, 2)}, text=False, min_blocks=1, max_blocks=1)
    following = drawn_from(automaton, DOCUMENTS.write([CAPTION], close=False))
    whole = DOCUMENTS.write([CAPTION, picture(2, 2)]).tolist()[5:]
    assert following == [None if id_ >= 28 else id_ for id_ in whole]


def test_picture_to_words_writes_no_picture():
    automaton = DOCUMENTS.automaton(max_blocks=0, max_tokens=4)
    state = automaton.after(DOCUMENTS.write([picture(3, 3)], close=False))
    for _ in range(3):
        assert automaton.allowed(state) == ((SMALL.id("eos"),), "text", ())
        state = automaton.step(state, 11)
    assert automaton.allowed(state).forced == SMALL.id("eos")
    with pytest.raises(GrammarError, match=r"expected eos \(22\)"):
        automaton.step(state, 11)


def test_text_comes_first_where_some_is_asked_for():
    """Before eos and before blocks, behind what the prompt has begun; digits of a size are no text."""
    eos, boi = SMALL.id("eos"), SMALL.id("boi")
    automaton = DOCUMENTS.automaton(max_blocks=1, min_text=2, max_codes=4)
    for prompt in ([picture(3, 3)], [CAPTION]):
        state = automaton.after(DOCUMENTS.write(prompt, close=False))
        for _ in range(2):
            assert automaton.allowed(state) == ((), "text", ())
            state = automaton.step(state, 11)
        assert automaton.allowed(state) == ((eos, boi), "text", ())
    whole = DOCUMENTS.write([picture(3, 2)]).tolist()
    rest = len(whole) - 1 - 9  # ids of the block
    following = drawn_from(DOCUMENTS.automaton(max_blocks=0, min_text=1, max_tokens=rest + 2), whole[:9])
    assert following[rest - 1 :] == [SMALL.id("eoi"), None, eos]


def test_text_first_leaves_room_for_the_rest():
    one = {"sizes": {"image": (2, 2)}, "min_blocks": 1, "max_blocks": 1, "end_with_block": True}
    prompt, block = DOCUMENTS.write([], close=False), 13
    automaton = DOCUMENTS.automaton(**one, min_text=3, max_tokens=3 + block + 1)
    following = drawn_from(automaton, prompt)
    assert following[:4] == [None] * 3 + [SMALL.id("boi")]
    assert len(following) == 3 + block + 1
    with pytest.raises(ValueError, match=f"max_tokens={3 + block} cannot hold the {4 + block} ids that have to follow"):
        DOCUMENTS.automaton(**one, min_text=3, max_tokens=3 + block).after(prompt)
    with pytest.raises(ValueError, match=r"min_text=4 must be 0 or more, and below max_tokens=4"):
        DOCUMENTS.automaton(min_text=4, max_tokens=4)
    with pytest.raises(ValueError, match=r"min_text=2 asks for text, and text=False forbids it"):
        DOCUMENTS.automaton(max_blocks=0, text=False, min_text=2)


def test_a_block_the_prompt_has_begun_is_finished():
    whole = DOCUMENTS.write([CAPTION, picture(3, 2)]).tolist()
    automaton = DOCUMENTS.automaton(text=False, max_blocks=0)
    for cut in range(10, len(whole)):  # behind the header
        assert drawn_from(automaton, whole[:cut]) == [None if id_ >= 28 else id_ for id_ in whole[cut:]]
    sized = DOCUMENTS.automaton(text=False, max_blocks=0, sizes={"image": (3, 2)})
    assert drawn_from(sized, whole[:6])[:4] == whole[6:10]  # behind boi the size asked for follows
    with pytest.raises(GrammarError):
        DOCUMENTS.automaton(sizes={"image": (2, 2)}).after(whole[:7])  # behind "boi 3" it cannot


def test_prompts_and_limits_that_cannot_be_met_are_refused():
    prompt = DOCUMENTS.write([CAPTION], close=False)
    one = {"sizes": {"image": (2, 2)}, "min_blocks": 1}
    assert DOCUMENTS.automaton(**one, max_tokens=15).after(prompt)
    with pytest.raises(ValueError, match="max_tokens=13 cannot hold the 14 ids"):
        DOCUMENTS.automaton(**one, max_tokens=13).after(prompt)
    with pytest.raises(ValueError, match="min_blocks=2 must be between 0 and max_blocks=1"):
        DOCUMENTS.automaton(min_blocks=2, max_blocks=1)
    with pytest.raises(ValueError, match="end_with_block"):
        DOCUMENTS.automaton(end_with_block=True)
    with pytest.raises(ValueError, match="no block grammar for 'audio'"):
        DOCUMENTS.automaton(sizes={"audio": (2, 2)})
    with pytest.raises(ValueError, match="no block grammar for 'audio'; there is image"):
        DOCUMENTS.automaton(modalities=["image", "audio"])
    with pytest.raises(ValueError, match=r"modalities 'image' is one name: give a list of them, as in \['image'\]"):
        DOCUMENTS.automaton(modalities="image")
    with pytest.raises(ValueError, match="min_blocks=1, but modalities allows none"):
        DOCUMENTS.automaton(**one, modalities=[])
    with pytest.raises(ValueError, match="sides are 1"):
        DOCUMENTS.automaton(sizes={"image": (2, 13)})
    with pytest.raises(GrammarError, match="expected bos"):
        DOCUMENTS.automaton().after([11])
    with pytest.raises(GrammarError, match="token 5: the prompt ends in eos"):
        DOCUMENTS.automaton().after(DOCUMENTS.write([CAPTION]))
    with pytest.raises(ValueError, match="max_tokens=1 cannot hold the 2 ids"):
        _ = DOCUMENTS.automaton(max_tokens=1).start


@pytest.fixture(params=["dboi", None])
def two_kinds(request: pytest.FixtureRequest) -> DocumentGrammar:
    """Pictures, and depth maps of 2 x 2 codes that are shorter; a mark begins these, or their first code."""
    vocabulary = Vocabulary.appended(20, (*SMALL.specials, "dboi"), {"image": 5, "depth": 3})
    depth = BlockGrammar(
        begin=request.param, size=None, separator=None, content=None, row_end=None, frame_end=None, fixed_size=(2, 2)
    )
    return document_grammar(vocabulary, DIGITS, {"depth": depth}, max_side=12)


def test_blocks_of_the_modalities_asked_for_alone_are_begun(two_kinds: DocumentGrammar) -> None:
    """What may begin, by hand, for each choice of modalities: with room for the shorter, for both, and for neither."""
    boi, eos = two_kinds.vocabulary.id("boi"), two_kinds.vocabulary.id("eos")
    sizes, depth = {"image": (2, 2)}, two_kinds.blocks["depth"].length(2, 2)
    assert depth < two_kinds.blocks["image"].length(2, 2) == 13
    bare = two_kinds.blocks["depth"].begin < 0
    prompt = two_kinds.write([CAPTION, ("depth", np.zeros((2, 2), dtype=int)), picture(3, 2)], close=False)
    for names, room in itertools.product((None, ["image"], ["depth"], ["depth", "image"], []), (depth, 13, depth - 1)):
        automaton = two_kinds.automaton(sizes=sizes, modalities=names, max_tokens=room + 1)
        ids, text, begun = automaton.allowed(automaton.after(prompt))
        expected = {boi} if room == 13 and (names is None or "image" in names) else set()
        has_depth = room >= depth and (names is None or "depth" in names)
        expected |= {two_kinds.blocks["depth"].begin} if has_depth and not bare else set()
        assert (set(ids), text, begun) == ({eos, *expected}, "text", ("depth",) if has_depth and bare else ())
    only = two_kinds.automaton(sizes=sizes, modalities=["image"], min_blocks=1, max_tokens=14)
    assert only.allowed(only.after(prompt)).forced == boi  # no room for text: what is left is the picture's
    with pytest.raises(ValueError, match="max_tokens=13 cannot hold the 14 ids that have to follow"):
        two_kinds.automaton(sizes=sizes, modalities=["image"], min_blocks=1, max_tokens=13).after(prompt)
    with pytest.raises(ValueError, match="max_codes=3 is less than the 4 codes of the smallest block"):
        two_kinds.automaton(max_codes=3)
    small = two_kinds.automaton(modalities=["image"], max_codes=3)  # which does not bind what is not begun
    assert boi in small.allowed(small.after(prompt)).ids


@pytest.mark.parametrize(
    ("damage", "position", "reason"),
    [
        (lambda ids: ids[1:], 0, "begins with bos"),
        (lambda ids: ids[:0], 0, "begins with bos"),
        (lambda ids: ids[:-1], 18, "without eos"),
        (lambda ids: [*ids, 20], 19, "20 after eos"),
        (lambda ids: [*ids[:2], 28, *ids[2:]], 2, "28 is neither text nor the begin of a block nor eos"),
        (lambda ids: [*ids[:13], 26, *ids[14:]], 13, "in a 2 x 2 block of image, expected an image id"),
    ],
)
def test_damage_is_located_in_the_document(damage, position, reason):
    ids = DOCUMENTS.write([CAPTION, picture(2, 2)]).tolist()
    with pytest.raises(GrammarError, match=reason) as caught:
        DOCUMENTS.read(damage(ids))
    assert caught.value.position == position
    assert str(caught.value).startswith(f"token {position}: ")


def test_pickle_keeps_the_grammar():
    again = pickle.loads(pickle.dumps(DOCUMENTS))
    ids = again.write([CAPTION, picture(3, 4)])
    assert ids.tolist() == DOCUMENTS.write([CAPTION, picture(3, 4)]).tolist()
    assert same(again.read(ids), [CAPTION, picture(3, 4)])


BARE = BlockGrammar(
    rank=3,
    begin=None,
    size=None,
    separator=None,
    content=None,
    row_end=None,
    last_frame_end="eov",
    end=None,
    fixed_size=(None, 1, 2),
)


def test_blocks_without_a_begin_mark_begin_with_their_first_code():
    """LWM's frames, among text: a run of codes is a block, up to its end mark."""
    vocabulary = Vocabulary.appended(4, ("bos", "eos", "eof", "eov"), {"video": 3})
    documents = DocumentGrammar(vocabulary, {"video": BARE.bind(vocabulary, "video", max_side=4)})
    clip, still = ("video", np.array([[[0, 1]], [[2, 2]]])), ("video", np.array([[[1, 0]]]))
    segments = [("text", np.array([3, 3])), clip, still, ("text", np.array([0]))]
    ids = documents.write(segments).tolist()
    eof, eov = vocabulary.id("eof"), vocabulary.id("eov")
    assert ids == [4, 3, 3, 8, 9, eof, 10, 10, eov, 9, 8, eov, 0, 5]
    assert same(documents.read(ids), segments)
    automaton = documents.automaton(max_tokens=40)
    assert automaton.done(automaton.advance(automaton.start, ids))
    allowed = automaton.allowed(automaton.after(ids[:1]))
    assert allowed == ((vocabulary.id("eos"),), "text", ("video",))
    assert allowed.all_ids(vocabulary).tolist() == [0, 1, 2, 3, 5, 8, 9, 10]
    assert allowed.describe(vocabulary) == "eos (5) or a text id or a video id"
    longer = [*ids[:8], eof, 8, 8, eof, 8, 8, eof, 8, 8, eov, 5]  # five frames: one more than max_side
    with pytest.raises(GrammarError, match=r"token 14: .* expected eov \(7\)"):
        documents.read(longer)
    with pytest.raises(GrammarError, match=r"expected eov \(7\)"):
        automaton.advance(automaton.start, longer)
    with pytest.raises(GrammarError, match=r"expected eof \(6\) or eov \(7\)"):
        documents.read([4, 8, 9, 5])


def test_states_are_values():
    automaton = DOCUMENTS.automaton(max_tokens=100, max_codes=4)
    ids = DOCUMENTS.write([CAPTION, picture(2, 2)])
    states = list(itertools.accumulate(ids.tolist(), automaton.step, initial=automaton.start))
    assert len(set(states)) == len(states)  # hashable, none changed by a later step
    assert pickle.loads(pickle.dumps(states)) == states
    assert states == list(itertools.accumulate(ids.tolist(), automaton.step, initial=automaton.start))
