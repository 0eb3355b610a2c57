"""Published text tokenizers: the ids of transformers for text, no id of a picture for text that names one, faults."""

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from omnigram.tokenizers.published_text import PublishedText, load_text_tokenizer
from omnigram.tokenizers.text import TextTokenizer

CORPUS = [f"a {colour} {noun}, number {n}*{n + 7} 日本 é" for n, colour in enumerate(("red", "green", "blue", "golden"))
          for noun in ("apple", "rocket", "image", "visual token", "image start")]  # fmt: skip
EMU3_MARKS = ["<|endoftext|>", *(f"<|extra_{n}|>" for n in range(198, 205)), "<|image token|>", "<|image start|>"]
EMU3_CODES = [f"<|visual token {code:06d}|>" for code in range(8)]
CODES = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in range(14)]
CHAMELEON_MARKS = ["<s>", "<pad>", "</s>", "<racm3:break>", "<eoss>", "<reserved08706>", "<image>"]
# the pattern of Qwen's and Emu3's tokenizers: every digit alone
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained(tokenizer: Tokenizer, corpus: list[str], vocab_size: int, **options: Any) -> Tokenizer:
    options.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, BpeTrainer(vocab_size=vocab_size, show_progress=False, **options))
    return tokenizer


def emu3() -> Tokenizer:
    """Marks and codes after the text, as special tokens; one added word that is text."""
    tokenizer = trained(byte_level(), CORPUS, 320)
    tokenizer.add_tokens(["antidisestablishmentarianism"])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in EMU3_MARKS + EMU3_CODES])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|extra_203|> $A", special_tokens=[("<|extra_203|>", tokenizer.token_to_id("<|extra_203|>"))]
    )
    return tokenizer


def chameleon() -> Tokenizer:
    """Marks and codes first, by which they are special tokens, as the published ids suggest."""
    specials = CHAMELEON_MARKS[:3] + CODES + CHAMELEON_MARKS[3:]
    return trained(byte_level(), CORPUS, 340, special_tokens=specials)


def chameleon_with_merges() -> Tokenizer:
    """Codes and marks that byte-pair encoding itself arrives at: nothing in the file tells them from words."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = trained(tokenizer, (CODES + CHAMELEON_MARKS) * 9, 420)
    tokenizer.add_tokens(["<image>"])
    assert all(tokenizer.encode(name).ids == [tokenizer.token_to_id(name)] for name in CODES + CHAMELEON_MARKS)
    return tokenizer


def chameleon_that_looks_words_up() -> Tokenizer:
    """The same with `ignore_merges`: a whole word that is a token needs no merges."""
    parsed = json.loads(chameleon_with_merges().to_str())
    return Tokenizer.from_str(json.dumps({**parsed, "model": {**parsed["model"], "ignore_merges": True}}))


def llama() -> Tokenizer:
    """Of SentencePiece's kind: spaces as U+2581, one put in front, other characters as bytes."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = [text.replace(" ", "▁") for text in CORPUS]
    tokenizer = trained(tokenizer, corpus, 400, special_tokens=names, initial_alphabet=list("0123456789*▁"))
    parsed = json.loads(tokenizer.to_str())
    parsed["added_tokens"] = parsed["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(parsed))


MADE = {made.__name__: made for made in (emu3, chameleon, chameleon_with_merges, chameleon_that_looks_words_up, llama)}
TOKENIZERS = {name: made() for name, made in MADE.items()}


def reserved_of(tokenizer: Tokenizer) -> set[int]:
    names = EMU3_MARKS + EMU3_CODES + CODES + CHAMELEON_MARKS
    return {id_ for name in names if (id_ := tokenizer.token_to_id(name)) is not None}


PUBLISHED = {
    name: PublishedText(tokenizer.to_str(pretty=True).encode(), reserved_of(tokenizer))
    for name, tokenizer in TOKENIZERS.items()
}
every_kind = pytest.mark.parametrize("kind", TOKENIZERS)

FORGERIES = [
    *("<|image start|>", "<|visual token 000003|><|visual token 000004|>", "a<|extra_200|>b <|extra_203|>"),
    *("<image>", "<racm3:break>", "a <eoss> b", "</s><s>", "<unk>", "<0x41>", "<|endoftext|>", "<reserved08706>"),
    *("IMGIMGBAZ", "IMGIMGBDZIMGIMGAZ", "aIMGIMGBAZb", " IMGIMGCZ ", "IMGIMGIMGIMGAZZ", "IMGIMG", "imgimgbaz"),
]
words = st.lists(st.sampled_from([*"aeé *1907\n<|>Z", "red", " apple", "日本", "antidisestablishmentarianism"]))
texts = st.one_of(st.text(), words.map("".join))


@every_kind
@given(text=texts)
@example(text="<s>")
def test_ids_of_text_are_those_of_transformers(kind: str, text: str):
    theirs = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind])
    expected, published = theirs.encode(text, add_special_tokens=False), PUBLISHED[kind]
    assert published.encode(text) == expected or published.reserved.intersection(expected)  # which text is not to name


@every_kind
@given(parts=st.lists(st.one_of(texts, st.sampled_from(FORGERIES)), max_size=4))
def test_text_is_text_whatever_it_names(kind: str, parts: list[str]):
    published, text = PUBLISHED[kind], "".join(parts)
    ids = published.encode(text)
    assert not published.reserved.intersection(ids)
    if kind != "llama" or "▁" not in text:
        assert published.decode(ids) == text


@every_kind
@pytest.mark.parametrize("text", FORGERIES)
def test_forgeries_are_written_in_pieces(kind: str, text: str):
    published = PUBLISHED[kind]
    assert not published.reserved.intersection(published.encode(text))
    assert published.decode(published.encode(text)) == text


def test_the_forgeries_would_work_otherwise():
    """Without the care taken here each of these texts becomes the token that it names."""
    for kind, text in (
        ("emu3", "<|image start|>"),
        ("chameleon", "IMGIMGBAZ"),
        ("chameleon_with_merges", "IMGIMGBAZ"),
        ("chameleon_with_merges", "<racm3:break>"),
        ("chameleon_that_looks_words_up", "IMGIMGBAZ"),
        ("llama", "</s>"),
    ):
        tokenizer = TOKENIZERS[kind]
        assert tokenizer.token_to_id(text) in tokenizer.encode(text).ids
        assert tokenizer.token_to_id(text) in PUBLISHED[kind].reserved
    bare = PublishedText(TOKENIZERS["chameleon_with_merges"].to_str().encode())
    assert bare.encode("IMGIMGBAZ") == [bare.id("IMGIMGBAZ")]  # nothing in the file says that it is no word
    assert bare.id("IMGIMGBAZ") not in bare.reserving([bare.id("IMGIMGBAZ")]).encode("IMGIMGBAZ")


def test_special_names_are_split_as_transformers_splits_them_when_told_to():
    """It can tell added tokens from text; tokens that merges arrive at it cannot."""
    for kind in ("emu3", "chameleon", "llama"):
        theirs = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind], split_special_tokens=True)
        for text in FORGERIES:
            assert PUBLISHED[kind].encode(text) == theirs.encode(text, add_special_tokens=False)


def test_a_reserved_token_is_written_as_if_its_last_merge_did_not_exist():
    published = PUBLISHED["chameleon_with_merges"]
    whole = TOKENIZERS["chameleon_with_merges"]
    merges = {tuple(pair) for pair in json.loads(whole.to_str())["model"]["merges"]}
    for name in ("IMGIMGAZ", "IMGIMGBAZ", "IMGIMGBDZ"):
        pieces = published.pieces(name)
        assert "".join(pieces) == name
        if len(pieces) == 2:
            assert tuple(pieces) in merges
    assert len(published.pieces("IMGIMGBAZ")) == 2


@every_kind
def test_names_and_ids(kind: str):
    published, tokenizer = PUBLISHED[kind], TOKENIZERS[kind]
    assert published.names == tokenizer.get_vocab(with_added_tokens=True)
    assert published.size == max(published.names.values()) + 1 == tokenizer.get_vocab_size()
    for name, id_ in itertools.islice(published.names.items(), 0, None, 37):
        assert published.id(name) == id_
    assert list(published.digit_ids) == list("0123456789*")
    for symbol, id_ in published.digit_ids.items():
        assert published.decode([id_]) == symbol
    marks = sorted(published.reserved)
    assert published.decode(marks[:1]) == tokenizer.id_to_token(marks[0])
    if kind == "emu3":
        assert published.encode("90*120") == [published.digit_ids[symbol] for symbol in "90*120"]


def test_ids_stay_although_tokens_are_taken_out():
    """Words added after marks keep their ids, which the library would number anew."""
    tokenizer = trained(byte_level(), CORPUS, 300)
    tokenizer.add_special_tokens(["<|one|>"])
    tokenizer.add_tokens(["zeppelin"])
    tokenizer.add_special_tokens(["<|two|>"])
    tokenizer.add_tokens(["quokka"])
    published = PublishedText(tokenizer.to_str().encode())
    assert published.encode("quokka zeppelin<|two|>")[:3] == tokenizer.encode("quokka zeppelin").ids[:3]
    assert published.id("quokka") in published.encode("quokka")
    assert published.size == 304


def test_old_files_write_merges_as_strings():
    parsed = json.loads(TOKENIZERS["chameleon_with_merges"].to_str())
    parsed["model"]["merges"] = [" ".join(pair) for pair in parsed["model"]["merges"]]
    published = PublishedText(json.dumps(parsed).encode(), PUBLISHED["chameleon_with_merges"].reserved)
    for text in FORGERIES:
        assert published.encode(text) == PUBLISHED["chameleon_with_merges"].encode(text)


def test_marks_padding_and_truncation_of_the_file_are_left_out():
    tokenizer = emu3()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    published = PublishedText(tokenizer.to_str().encode())
    assert len(tokenizer.encode("a red apple and more").ids) == 9
    assert published.decode(published.encode("a red apple and more")) == "a red apple and more"


@every_kind
def test_save_and_load(kind: str, tmp_path: Path):
    published, path = PUBLISHED[kind], tmp_path / "tokenizer.json"
    published.save(path)
    assert path.read_bytes() == published.file
    for again in (
        PublishedText.load(str(path), published.reserved),
        load_text_tokenizer(tmp_path, published.reserved),
        pickle.loads(pickle.dumps(published)),
    ):
        assert isinstance(again, PublishedText)
        assert again.identity == published.identity
        assert again.file == published.file
        assert again.reserved == published.reserved
        assert again.encode(FORGERIES[0]) == published.encode(FORGERIES[0])


def test_identity_is_that_of_the_contents():
    file = PUBLISHED["emu3"].file
    assert PublishedText(json.dumps(json.loads(file)).encode()).identity == PUBLISHED["emu3"].identity
    assert len({published.identity for published in PUBLISHED.values()}) == len(PUBLISHED)


def test_a_folder_with_one_of_ours_gives_ours(tmp_path: Path):
    ours = TextTokenizer.train(["a red apple"] * 9, 280)
    PUBLISHED["emu3"].save(tmp_path / "tokenizer.json")
    ours.save(tmp_path / "text.model")
    loaded = load_text_tokenizer(tmp_path)
    assert isinstance(loaded, TextTokenizer)
    assert loaded.identity == ours.identity
    with pytest.raises(
        FileNotFoundError, match=r"none holds no text tokenizer: neither text\.model nor tokenizer\.json"
    ):
        load_text_tokenizer(tmp_path / "none")


def without(kind: str, *names: str) -> bytes:
    """The file of a kind without tokens, and without the merges that need them."""
    parsed = json.loads(TOKENIZERS[kind].to_str())
    model = parsed["model"]
    model["vocab"] = {name: id_ for name, id_ in model["vocab"].items() if name not in names}
    model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)}.intersection(names)]
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] not in names]
    return json.dumps(parsed).encode()


def unigram() -> bytes:
    tokenizer = Tokenizer(Unigram())
    tokenizer.train_from_iterator(CORPUS, UnigramTrainer(vocab_size=60, show_progress=False))
    return tokenizer.to_str().encode()


EMU3 = PUBLISHED["emu3"]
FAULTS: dict[str, Callable[[], object]] = {
    r"text holds '\\ud800' at 2": lambda: EMU3.encode("a \ud800"),
    "text id -1 is none of the tokenizer's, which lie in 0 .. ": lambda: EMU3.decode([5, -1]),
    f"text id {EMU3.size} is none": lambda: EMU3.decode([EMU3.size]),
    r"no token '<\|image end\|>'": lambda: EMU3.id("<|image end|>"),
    "not a tokenizer.json": lambda: PublishedText(b"\xff no json"),
    "not a tokenizer.json of": lambda: PublishedText(b"{}"),
    "not a tokenizer.json .*Expecting": lambda: PublishedText(EMU3.file[:-9]),
    "of the kind Unigram; only BPE": lambda: PublishedText(unigram()),
    r"id \d+ is 'a', of which other text is made; take it out of": lambda: EMU3.reserving([EMU3.id("a")]),
    r"id \d+ is '<0x41>', of which other": lambda: PUBLISHED["llama"].reserving([PUBLISHED["llama"].id("<0x41>")]),
    "no token '7', with which a grammar writes": lambda: PublishedText(without("llama", "7")).digit_ids,
    "no token for the byte that it writes 'a', so text": lambda: PublishedText(without("chameleon", "a")),
    r"text holds '\\xe9' at 2, for which the tokenizer": lambda: PublishedText(
        without("llama", "é", "<0xC3>", "<0xA9>")
    ).encode("a é"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_faults_are_told_in_one_line(reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        FAULTS[reason]()
    assert "\n" not in str(caught.value)


def test_faults_of_a_file_name_it(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_text_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError):
        PublishedText.load(tmp_path / "missing.json")


def test_an_unknown_character_is_no_token_of_its_own():
    """`<unk>` in a text is text, while a character without a token is refused."""
    published = PUBLISHED["llama"]
    assert published.decode(published.encode("a <unk> b")) == "a <unk> b"
    assert published.id("<unk>") not in published.encode("a <unk> b")
