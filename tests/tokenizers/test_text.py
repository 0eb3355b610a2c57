"""The text tokenizer: any Unicode string comes back, training repeats to the byte, faults are told in a line."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary

NOUNS = ["apple", "pear", "rocket", "tree", "house", "river", "clock", "face", "train", "boat", "時計", "Schlüssel"]
ADJECTIVES = ["red", "green", "tiny", "old", "smiling", "broken", "golden", "blue", "schöner", "赤い"]
CORPUS = [f"a {a} {n}, openmoji {i}*{i + 3}" for i, a in enumerate(ADJECTIVES) for n in NOUNS]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CORPUS, 320)


AWKWARD = [
    *("", " ", "   ", " a", "a ", "  two  spaces  ", "\n", "\r\n", "\t", "line\n\nline", "\0", "a\0b"),
    *("\u2581", "a\u2581b", "\u2581\u2581 \u2581", " \u2581", "\u2585", "\u2047", "\ufeff", "\u00a0", "\u3000"),
    *("e\u0301", "\u00e9", "\ufb01", "\u2460", "日本語", "👩‍👩‍👧", "\U0010ffff", "\ufffd", "\u200b", "١٢"),
    *("<unk>", "<s>", "</s>", "<0x41>", "<pad>", "64*64", "1234567890", "a red apple, openmoji"),
]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(iter(ids)) == text
    assert 0 not in ids  # <unk>
    assert all(type(id_) is int and 0 <= id_ < tokenizer.size for id_ in ids)


@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(alphabet=" \u2581\n\t*0<>xaA\u0301é▅", max_size=12))
def test_any_text_of_the_tokenizers_own_marks_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_the_corpus_become_few_pieces(tokenizer):
    text = "a golden rocket, openmoji"
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert "".join(tokenizer.pieces(text)).replace("\u2581", " ") == text


def test_digits_are_single_pieces_everywhere(tokenizer):
    assert list(tokenizer.digit_ids) == list("0123456789*")
    assert len(set(tokenizer.digit_ids.values())) == 11
    for symbol, id_ in tokenizer.digit_ids.items():
        assert tokenizer.decode([id_]) == symbol
        assert tokenizer.pieces(symbol) == [symbol]
    assert tokenizer.encode("12*8") == [tokenizer.digit_ids[symbol] for symbol in "12*8"]
    assert tokenizer.pieces("a 12") == ["a", "\u2581", "1", "2"]


def test_digits_are_pieces_even_if_the_corpus_has_none():
    with pytest.warns(UserWarning, match="fewer than vocab_size=400"):
        tokenizer = TextTokenizer.train(["one two three"], 400)
    assert tokenizer.pieces("10*7") == ["1", "0", "*", "7"]


def test_training_repeats_to_the_byte(tokenizer):
    again = TextTokenizer.train(iter(CORPUS), 320)
    assert again.model == tokenizer.model
    assert again.identity == tokenizer.identity
    assert TextTokenizer.train(CORPUS, 319).identity != tokenizer.identity


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "text.model"
    tokenizer.save(path)
    assert path.read_bytes() == tokenizer.model
    for again in (TextTokenizer.load(path), TextTokenizer.load(str(path)), pickle.loads(pickle.dumps(tokenizer))):
        assert again.identity == tokenizer.identity
        assert again.size == tokenizer.size == 320
        assert again.encode("a red apple 7*7\n") == tokenizer.encode("a red apple 7*7\n")


def test_a_small_corpus_gives_what_it_can_and_says_so_once():
    with pytest.warns(UserWarning, match=r"the corpus gives \d+ text pieces, fewer than vocab_size=5000") as caught:
        tokenizer = TextTokenizer.train(["a red apple"], 5_000)
    assert len(caught) == 1
    assert 268 <= tokenizer.size < 320
    assert tokenizer.decode(tokenizer.encode("\U0001f34e zebra")) == "\U0001f34e zebra"


def test_texts_with_marks_or_of_any_length_are_still_learnt_from():
    """SentencePiece itself drops a text that holds a tab or U+2585, or that is longer than 4,192 bytes."""
    with pytest.warns(UserWarning, match="fewer"):
        tokenizer = TextTokenizer.train(["zeppelin\t\u2585zeppelin\n" + "quokka " * 2_000], 600, character_coverage=1.0)
    assert tokenizer.pieces("zeppelin") == ["zeppelin"]
    assert tokenizer.pieces(" quokka") == ["\u2581quokka"]


def test_text_ids_fit_the_vocabulary(tokenizer):
    vocabulary = Vocabulary.appended(tokenizer.size, codebooks={"image": 4})
    ids = vocabulary.encode("text", tokenizer.encode("a red apple"))
    assert tokenizer.decode(vocabulary.decode("text", ids)) == "a red apple"


def test_faults_are_told_in_one_line(tokenizer, tmp_path):
    junk = tmp_path / "junk.model"
    junk.write_bytes(b"no model")
    faults = {
        r"text holds '\\ud800' at 2": lambda: tokenizer.encode("a \ud800"),
        r"text holds '\\udc00' at 0": lambda: TextTokenizer.train(["a", "\udc00"], 320),
        "text id -1 is outside 0": lambda: tokenizer.decode([5, -1]),
        f"text id {tokenizer.size} is outside 0": lambda: tokenizer.decode([tokenizer.size]),
        "vocab_size=267 .* set 268 or more": lambda: TextTokenizer.train(CORPUS, 267),
        r"text\.character_coverage=1\.5 must be from 0\.98 to 1": lambda: TextTokenizer.train(CORPUS, 400, 1.5),
        r"text\.character_coverage=0\.1 must be": lambda: TextTokenizer.train(CORPUS, 400, 0.1),
        r"text\.vocab_size=270: the corpus has too many characters; set \d+ or more": lambda: TextTokenizer.train(
            CORPUS, 270
        ),
        "holds no text": lambda: TextTokenizer.train(["", "\n"], 320),
        "junk.model: not a SentencePiece model": lambda: TextTokenizer.load(junk),
        "not a SentencePiece model": lambda: TextTokenizer(b""),
    }
    for reason, fault in faults.items():
        with pytest.raises(ValueError, match=reason) as caught:
            fault()
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        TextTokenizer.load(tmp_path / "missing.model")


def test_bytes_that_are_no_character_are_shown_as_such(tokenizer):
    lead = tokenizer.encode("\U0001f34e")[0]
    assert tokenizer.decode([lead]) == "\ufffd"
