"""The published languages: their ids and lengths, round trips of many documents, and damage that is always located."""

import json

import numpy as np
import pytest
from transformers import ChameleonConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from omnigram.tokenizers.document_grammar import DocumentGrammar
from omnigram.tokenizers.grammar import GrammarError
from omnigram.tokenizers.modality import document_grammar
from omnigram.tokenizers.published import (
    CHAMELEON,
    EMU3,
    LUMINA,
    PUBLISHED,
    chameleon_code_name,
    chameleon_vocabulary,
    emu3_vocabulary,
    lumina_vocabulary,
)
from omnigram.tokenizers.vocabulary import TEXT, Vocabulary


def documents_of(name: str) -> tuple[DocumentGrammar, str]:
    """The grammar of documents of a published language, and its modality beside text."""
    language = PUBLISHED[name]
    [modality] = language.grammars
    return document_grammar(language.vocabulary, language.digit_ids, language.grammars), modality


GRAMMARS = {name: documents_of(name) for name in PUBLISHED}


def some_codes(name: str, rng: np.random.Generator, most: int = 6) -> np.ndarray:
    """Codes of a block of a random shape that the language can write."""
    documents, modality = GRAMMARS[name]
    block = documents.blocks[modality]
    fixed = block.grammar.fixed_size or (None,) * block.grammar.rank
    shape = [int(rng.choice([s for s in block.sides if s <= most])) if side is None else side for side in fixed]
    return rng.integers(0, documents.vocabulary.range(modality).size, shape)


def some_document(name: str, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Text and blocks in any order; no two runs of text beside each other."""
    documents, modality = GRAMMARS[name]
    words = documents.vocabulary.ids(TEXT)
    segments: list[tuple[str, np.ndarray]] = []
    for _ in range(rng.integers(0, 4)):
        if rng.random() < 0.5 and (not segments or segments[-1][0] != TEXT):
            segments.append((TEXT, rng.choice(words, rng.integers(1, 6))))
        else:
            segments.append((modality, some_codes(name, rng)))
    return segments


def test_sizes_of_the_published_vocabularies():
    sizes = {name: language.vocabulary.size for name, language in PUBLISHED.items()}
    assert sizes["chameleon"] == sizes["lumina"] == 65_536
    assert sizes["emu3"] == sizes["emu3_video"] == 184_622 == 151_643 + 211 + 32_768
    assert sizes["emu3_5"] == 282_926 == 151_854 + 131_072
    assert EMU3.encode("image", [0, 32_767]).tolist() == [151_854, 184_621]
    assert CHAMELEON.encode("image", [0, 8_191]).tolist() == [4, 8_195]
    lwm = PUBLISHED["lwm"].vocabulary
    assert [lwm.id(mark) - lwm.range("video").start for mark in ("eof", "eov")] == [8_192, 8_193]


def test_emu3_writes_the_published_sequence():
    documents, _ = GRAMMARS["emu3"]
    ids = documents.write([("image", np.array([[0, 1, 2], [32_767, 4, 5]]))]).tolist()
    assert ids == [
        *(151_849, 151_852, 17, 9, 18, 151_851),  # bos boi 2*3 img
        *(151_854, 151_855, 151_856, 151_846),  # row, eol
        *(184_621, 151_858, 151_859, 151_846),  # row, eol: the last too
        *(151_847, 151_853, 151_850),  # eof eoi eos
    ]


def test_published_lengths_of_a_32_x_32_grid():
    codes = np.arange(1_024).reshape(32, 32)

    def written(name: str) -> list[int]:
        documents, modality = GRAMMARS[name]
        return documents.blocks[modality].write(codes).tolist()

    emu3 = written("emu3")
    assert len(emu3) - 1 - emu3.index(EMU3.id("img")) + 1 == 1_059  # and eos
    emu3_5 = written("emu3_5")
    at_img = emu3_5.index(EMU3.id("img"))
    assert len(emu3_5) - 1 - at_img == 1_056
    assert emu3_5[at_img + 32 * (32 + 1)] == EMU3.id("eoi")
    chameleon = written("chameleon")
    assert (len(chameleon), chameleon[0], chameleon[1], chameleon[-1]) == (1_026, 8_197, 4, 8_196)
    lumina = written("lumina")
    assert len(lumina) == 1_060
    assert [lumina[at] for at in (0, 1, 2, 35, -2, -1)] == [8_197, 8_820, 8_820, 8_803, 8_803, 8_196]


def test_lwm_ends_each_frame_and_seed_has_32_codes():
    documents, _ = GRAMMARS["lwm"]
    ids = documents.write([("video", np.full((3, 16, 16), 7))])
    assert len(ids) == 3 * 257 + 2
    assert ids[[257, 514, 771]].tolist() == [40_192, 40_192, 40_193]
    documents, _ = GRAMMARS["seed"]
    assert documents.write([("image", np.arange(32))]).tolist() == [1, 40_192, *range(32_000, 32_032), 40_193, 2]


def test_emu3_video_writes_size_frames_and_rate_in_digits():
    documents, _ = GRAMMARS["emu3_video"]
    ids = documents.blocks["video"].write(np.zeros((4, 2, 3), dtype=int)).tolist()
    digit = PUBLISHED["emu3"].digit_ids
    assert ids[:9] == [151_852, digit["2"], 9, digit["3"], 9, digit["4"], 9, digit["8"], 151_851]
    assert [id_ for id_ in ids[9:] if id_ != 151_854] == [*([151_846] * 2 + [151_847]) * 4, 151_853]


@pytest.mark.parametrize("name", PUBLISHED)
def test_reading_undoes_writing_10000_documents(name):
    documents, _ = GRAMMARS[name]
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        segments = some_document(name, rng)
        back = documents.read(documents.write(segments))
        assert [modality for modality, _ in back] == [modality for modality, _ in segments]
        assert all(np.array_equal(codes, read) for (_, codes), (_, read) in zip(segments, back, strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_automaton_takes_what_is_written(name):
    """Token by token; `test_grammar` shows by brute force that it takes nothing else."""
    documents, modality = GRAMMARS[name]
    rng = np.random.default_rng(1)
    for number in range(8):
        codes = some_codes(name, rng)
        ids = documents.write([(modality, codes)])
        sizes = {modality: codes.shape} if number % 2 else None
        automaton = documents.automaton(sizes=sizes, text=False, min_blocks=1, max_blocks=1)
        state = automaton.after(ids[:1])
        for id_ in ids[1:].tolist():
            allowed = automaton.allowed(state)
            if sizes and not documents.vocabulary.holds(modality, id_):
                assert allowed.forced == id_
            state = automaton.step(state, id_)
        assert automaton.done(state)


def fault_of(documents: DocumentGrammar, ids: np.ndarray) -> GrammarError | None:
    try:
        segments = documents.read(ids)
    except GrammarError as fault:
        return fault
    np.testing.assert_array_equal(documents.write(segments), ids)
    return None


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_damage_is_located(name):
    """Ids changed, dropped, doubled, cut off: either they are another document, or the first wrong one is named.

    What comes before it can go on (the automaton takes it), and with it nothing can.
    """
    documents, _ = GRAMMARS[name]
    rng, automaton, located = np.random.default_rng(2), documents.automaton(), 0
    marks = [*documents.vocabulary.specials.values(), *documents.vocabulary.ids(TEXT)[:3].tolist()]
    for number in range(1_000):
        whole = documents.write(some_document(name, rng) or [(TEXT, documents.vocabulary.ids(TEXT)[:1])])
        at, kind = int(rng.integers(len(whole))), rng.integers(4)
        id_ = int(rng.choice(marks) if rng.random() < 0.6 else rng.integers(documents.vocabulary.size))
        middle = ([id_], [], [whole[at], whole[at]], [])[kind]
        tail = whole[at + 1 :] if kind < 3 else whole[:0]
        ids = np.concatenate([whole[:at], np.array(middle, dtype=np.int64), tail])
        fault = fault_of(documents, ids)
        if fault is None:
            continue
        located += 1
        assert at <= fault.position <= len(ids)
        assert str(fault).startswith(f"token {fault.position}: ")
        assert "\n" not in str(fault)
        if number % 10 == 0:
            state = automaton.advance(automaton.start, ids[: fault.position])
            if fault.position < len(ids):
                with pytest.raises(GrammarError):
                    automaton.step(state, int(ids[fault.position]))
            else:
                assert not automaton.done(state)
    assert located > 400


def reserved(number: int) -> str:
    return f"<reserved{number:05d}>"


def chameleon_names(order: np.ndarray) -> dict[str, int]:
    """Names as in Chameleon's file of tokens, the id of code c being 4 + order[c]."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": 8_196, "<racm3:break>": 8_197}
    names |= {chameleon_code_name(code): 4 + int(offset) for code, offset in enumerate(order)}
    names |= {reserved(id_ - 4): id_ for id_ in range(8_198, 9_000) if id_ != 8_711}
    return names | {"<image>": 8_711}


def test_chameleon_codes_are_found_by_name_in_any_order():
    rising = chameleon_names(np.arange(8_192))
    assert chameleon_vocabulary(rising, 65_536) == CHAMELEON
    assert lumina_vocabulary(rising, 65_536) == LUMINA
    order = np.random.default_rng(0).permutation(8_192)
    permuted = chameleon_vocabulary(chameleon_names(order))
    assert permuted.encode("image", [0, 5, 8_191]).tolist() == [4 + order[0], 4 + order[5], 4 + order[8_191]]
    assert permuted.identity != CHAMELEON.identity


def test_transformers_maps_the_same_ids_to_chameleons_codes():
    """Its map from codes to ids agrees always; the one back sorts both sides, right only for ids that rise."""
    for order in (np.arange(8_192), np.random.default_rng(0).permutation(8_192)):
        names = chameleon_names(order)
        theirs = ChameleonImageVocabularyMapping(ChameleonConfig(vocabulary_map=names).vocabulary_map)
        ours = chameleon_vocabulary(names)
        assert ours.encode("image", np.arange(8_192)).tolist() == [theirs.img2bpe[code] for code in range(8_192)]
        assert ours.decode("image", ours.ids("image")).tolist() == [theirs.bpe2img[id_] for id_ in range(4, 8_196)]


def emu3_names(codes: int = 32_768, first: int = 151_643) -> dict[str, int]:
    names = {"!": 0, "<|endoftext|>": first} | {f"<|extra_{n}|>": first + 3 + n for n in range(205)}
    marks = ("<|image token|>", "<|image start|>", "<|image end|>")
    names |= {mark: first + 208 + n for n, mark in enumerate(marks)}
    return names | {f"<|visual token {code:06d}|>": first + 211 + code for code in range(codes)}


def test_emu3_is_found_by_name():
    assert emu3_vocabulary(emu3_names(), 184_622) == EMU3
    small = emu3_vocabulary(emu3_names(codes=16, first=300))
    assert (small.size, small.range(TEXT).size, small.id("eoi")) == (527, 300, 510)


def without(names: dict[str, int], *dropped: str) -> dict[str, int]:
    return {name: id_ for name, id_ in names.items() if name not in dropped}


FEW = {"<s>": 0, "<pad>": 1, "</s>": 2, "IMGIMGAZ": 4, "IMGIMGBZ": 5, "<eoss>": 6, "<racm3:break>": 7}


@pytest.mark.parametrize(
    ("build", "names", "size", "reason"),
    [
        (chameleon_vocabulary, {"a": 0}, None, "none is named IMGIMG…Z"),
        (chameleon_vocabulary, without(FEW, "<eoss>"), None, r"<eoss> \(eoi\) is missing"),
        (chameleon_vocabulary, without(FEW, "IMGIMGAZ"), None, "code 0 is not among them"),
        (chameleon_vocabulary, {**FEW, "IMGIMGBZ": 9}, None, r"not one run, but lie in 4 .. 9"),
        (chameleon_vocabulary, FEW, 7, "go up to 7, the model has 7 ids"),
        (lumina_vocabulary, FEW, None, r"<reserved08799> \(eol\) is missing"),
        (emu3_vocabulary, FEW, None, r"none is named <\|visual token …\|>"),
        (emu3_vocabulary, without(emu3_names(4, 30), "<|extra_201|>"), None, r"<\|extra_201\|> \(eof\) is missing"),
        (emu3_vocabulary, emu3_names(4, 30), 300, "300 ids, but the last code has the id 244"),
    ],
)
def test_tokens_of_another_model_are_refused_in_one_line(build, names, size, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        build(names, size)
    assert "\n" not in str(caught.value)


def test_growth_keeps_every_old_id():
    grown = EMU3.grown("audio", 2_048, ("boa", "eoa"))
    assert (grown.id("boa"), grown.range("audio").start, grown.size) == (184_622, 184_624, 186_672)
    assert grown.modality_of(np.arange(EMU3.size)).tolist() == EMU3.modality_of(np.arange(EMU3.size)).tolist()
    assert {name: grown.id(name) for name in EMU3.specials} == EMU3.specials
    assert Vocabulary.from_json(json.dumps(json.loads(grown.to_json()))) == grown
    for name, specials in (("image", ()), ("audio", ("boi",)), ("boi", ())):
        with pytest.raises(ValueError, match=r"has '(image|boi)' already"):
            EMU3.grown(name, 4, specials)
    with pytest.raises(ValueError, match="size 0"):
        EMU3.grown("audio", 0)
