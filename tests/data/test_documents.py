"""Documents and token documents: the round trip through a sample is exact, and faults are named."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigram.data.document import Document, Segment, TokenDocument, TokenSegment, _plain_codes, check_key

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
text_segments = st.builds(lambda text, others: Segment("text", text, tuple(others)), texts, st.lists(texts, max_size=3))
media_segments = st.builds(
    lambda kind, data: Segment(kind[0], data, suffix=kind[1]),
    st.sampled_from([("image", ".png"), ("image", ".jpg"), ("audio", ".flac"), ("video", ".mp4")]),
    st.binary(min_size=1, max_size=30),
)
fields = st.dictionaries(
    st.sampled_from(["concept", "style", "family", "camera"]), st.text(st.characters(codec="utf-8"))
)


@given(st.lists(text_segments | media_segments, min_size=1, max_size=5), texts, texts, fields)
def test_a_document_survives_its_sample(segments, source, terms, extra):
    document = Document("a/0001", tuple(segments), source, terms, extra)
    assert Document.from_sample("a/0001", document.to_sample()) == document


def test_a_sample_is_written_as_documented():
    segments = (Segment("text", "a red apple", ("ein roter Apfel",)), Segment("image", b"PNG", suffix=".png"))
    sample = Document("k", segments, "mine", "CC0", {"style": "oil", "concept": "apple"}).to_sample()
    assert list(sample) == ["json", "1.png"]
    assert json.loads(sample["json"]) == {
        "segments": [{"text": "a red apple", "alternatives": ["ein roter Apfel"]}, {"image": "1.png"}],
        "source": "mine",
        "license": "CC0",
        "concept": "apple",
        "style": "oil",
    }


def codes_of(shape, highest):
    return st.integers(0, highest).map(lambda seed: np.random.default_rng(seed).integers(0, highest + 1, shape))


@given(st.sampled_from([255, 65_535, 65_536, 2**32 - 1]), st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_token_document_survives_its_sample(highest, h, w, data):
    words = [data.draw(codes_of((n,), highest)) for n in (h, w)]
    segments = (
        TokenSegment("text", words[0], (words[1],)),
        TokenSegment("image", data.draw(codes_of((h, w), highest))),
        TokenSegment("text", words[1]),
    )
    document = TokenDocument("k", segments, {"concept": "apple"}, "mine", "CC0")
    sample = document.to_sample()
    back = TokenDocument.from_sample("k", sample)
    assert (back.key, back.fields, back.source, back.license) == ("k", {"concept": "apple"}, "mine", "CC0")
    for one, other in zip(back.segments, segments, strict=True):
        assert one.modality == other.modality
        np.testing.assert_array_equal(one.codes, other.codes)
        assert len(one.alternatives) == len(other.alternatives)
        for a, b in zip(one.alternatives, other.alternatives, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("highest", "dtype"), [(65_535, "uint16"), (65_536, "uint32")])
def test_codes_are_as_narrow_as_they_can_be(highest, dtype):
    sample = TokenDocument("k", (TokenSegment("image", np.full((2, 3), highest)),)).to_sample()
    back = TokenDocument.from_sample("k", sample).segments[0].codes
    assert back.dtype == dtype
    assert back.shape == (2, 3)


@pytest.mark.parametrize("key", ["", "a.b", "../x", "/x", "a/../b", "a//b", "a/", "a\\b", "a\nb", "a/."])
def test_keys_that_leave_the_folder_or_confuse_webdataset_are_refused(key):
    with pytest.raises(ValueError, match="cannot be a sample's key"):
        check_key(key)


def test_keys_may_have_folders_with_dots():
    assert check_key("cc-v1.0/0001") == "cc-v1.0/0001"


def head(**changes):
    return json.dumps({"segments": [{"image": "0.png"}], "source": "s", "license": "l"} | changes).encode()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"0.png": b"x"}, "no .json member"),
        ({"json": b"{"}, "cannot be read"),
        ({"json": b"\xff\xfe"}, "cannot be read"),
        ({"json": b"[" * 100_000}, "cannot be read"),
        ({"json": b"[1]"}, 'list "segments"'),
        ({"json": head(), "1.png": b"x"}, "names k.0.png, which the sample does not hold"),
        ({"json": head(), "0.png": b"x", "9.png": b"x"}, "no segment names the member k.9.png"),
        ({"json": head(segments=[])}, "no segments"),
        ({"json": head(segments=[{"text": ""}])}, "is empty"),
        ({"json": head(segments=[{"text": "\ud800"}])}, "not Unicode"),
        ({"json": head(segments=[{"text": 3}])}, "text of segment 0 is not a string"),
        ({"json": head(segments=[{"text": "a", "alternatives": "b"}])}, "is not a list"),
        ({"json": head(segments=[{"text": "a", "alternatives": [1]}])}, "is int, not a string"),
        ({"json": head(segments=[{"text": "a", "image": "0.png"}]), "0.png": b"x"}, "exactly one of"),
        ({"json": head(segments=["a"])}, "exactly one of"),
        ({"json": head(segments=[{"text": "a", "lang": "en"}])}, "unknown key 'lang'"),
        ({"json": head(), "0.png": b""}, "holds no bytes"),
        ({"json": head(concept=3), "0.png": b"x"}, "'concept' is not a string"),
        ({"json": head(license=None), "0.png": b"x"}, "'license' is not a string"),
    ],
)
def test_a_faulty_sample_says_why(members, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        Document.from_sample("k", members)
    assert "\n" not in str(caught.value)


def token_head(*segments):
    return json.dumps({"segments": list(segments)}).encode()


def npy(array):
    return TokenDocument("k", (TokenSegment("text", np.asarray(array)),)).to_sample()["codes.npy"]


TEXT_2 = {"modality": "text", "counts": [2]}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": token_head(TEXT_2)}, "has no k.codes.npy"),
        ({"json": token_head(TEXT_2), "codes.npy": b"no array"}, "cannot be read"),
        ({"json": token_head(TEXT_2), "codes.npy": npy([1, 2])[:-1]}, "cannot be read"),
        ({"json": token_head(TEXT_2), "codes.npy": npy([1])}, "needs codes up to 2, there are 1"),
        ({"json": token_head(TEXT_2), "codes.npy": npy([1, 2, 3])}, "describe 2 codes, there are 3"),
        ({"json": token_head({"modality": "image", "grid": [2]}), "codes.npy": npy([1, 2])}, "segment 0 must be"),
        ({"json": token_head({"modality": "image", "grid": [2, 0]}), "codes.npy": npy([1])}, "segment 0 must be"),
        ({"json": token_head({"modality": "text", "counts": []}), "codes.npy": npy([1])}, "segment 0 must be"),
        ({"json": token_head({"counts": [1]}), "codes.npy": npy([1])}, "segment 0 must be"),
        ({"json": token_head(TEXT_2), "codes.npy": npy([1, 2]), "0.png": b"x"}, "no member k.0.png"),
    ],
)
def test_a_faulty_token_sample_says_why(members, reason):
    with pytest.raises(ValueError, match=reason):
        TokenDocument.from_sample("k", members)


def test_codes_that_fit_no_format_are_refused():
    with pytest.raises(ValueError, match="outside"):
        TokenSegment("image", np.array([[-1]]))
    with pytest.raises(ValueError, match="not integers"):
        TokenSegment("image", np.array([[0.5]]))
    with pytest.raises(ValueError, match="no codes"):
        TokenSegment("text", np.zeros(0, int))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=300), st.sampled_from(["<u2", "<u4"]), st.data())
def test_codes_are_read_as_numpy_reads_them(values: list[int], kind: str, data: st.DataObject) -> None:
    """Headers as NumPy writes them go a short way of their own; what differs in a byte goes NumPy's, or fails there."""
    file = io.BytesIO()
    np.save(file, (np.array(values, dtype=np.int64) % 2 ** (8 * int(kind[-1]))).astype(kind))
    whole = file.getvalue()
    codes = _plain_codes(whole)
    assert codes is not None
    assert codes.flags.writeable
    assert codes.dtype == np.dtype(kind)
    assert np.array_equal(codes, np.load(io.BytesIO(whole)))
    at = data.draw(st.integers(0, len(whole) - 1))
    assert _plain_codes(whole[:at]) is None
    changed = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    if (codes := _plain_codes(changed)) is not None:
        assert np.array_equal(codes, np.load(io.BytesIO(changed)))


@pytest.mark.parametrize("codes", [np.arange(4, dtype=">u2"), np.ones((2, 2), "<u2"), np.array(3, "<u4"), np.ones(3)])
def test_other_codes_go_the_way_of_numpy(codes: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, codes)
    assert _plain_codes(file.getvalue()) is None
