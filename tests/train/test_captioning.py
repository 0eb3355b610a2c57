"""Token F1, styles taken off, and captions that are right, half right and wrong."""

import pytest
from made_evaluation import CARD, NAMES, STYLES, known, oracle, tiny

from omnigram.train.captioning import measure_captioning, strip_style, token_f1


@pytest.mark.parametrize(
    ("text", "reference", "f1"),
    [
        ("red apple", "red apple", 1.0),
        ("Red  Apple", "red apple", 1.0),
        ("apple red", "red apple", 1.0),
        ("red pear", "red apple", 0.5),
        ("apple", "red apple", 2 / 3),  # precision 1, recall 1/2
        ("red red red apple", "red apple", 2 * (2 / 4) * 1 / (2 / 4 + 1)),  # a word counts as often as it is there
        ("pear", "red apple", 0.0),
        ("", "red apple", 0.0),
        ("red apple", "", 0.0),
        ("", " ", 1.0),
    ],
)
def test_token_f1(text: str, reference: str, f1: float) -> None:
    assert token_f1(text, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "template", "styles", "bare"),
    [
        ("red apple, flat", "{caption}, {style}", STYLES, "red apple"),
        ("red apple, round", "{caption}, {style}", STYLES, "red apple"),
        ("red, flat apple", "{caption}, {style}", STYLES, "red, flat apple"),
        ("apple, flat, round", "{caption}, {style}", STYLES, "apple, flat"),
        ("flat: red apple", "{style}: {caption}", STYLES, "red apple"),
        ("[flat] apple!", "[{style}] {caption}!", STYLES, "apple"),
        (" red apple ", "{caption}", (), "red apple"),
        (", flat", "{caption}, {style}", STYLES, ""),
    ],
)
def test_the_style_is_taken_off(text: str, template: str, styles: tuple[str, ...], bare: str) -> None:
    assert strip_style(text, template, styles) == bare


def test_captions_of_a_model_that_knows() -> None:
    pictures = [known(name, style) for name in NAMES for style in STYLES]
    measured = measure_captioning(oracle().sampler, pictures, CARD)
    assert (measured.exact, measured.f1) == (1, 1)
    assert measured.captions == [picture.wordings[0] for picture in pictures]


def test_another_style_is_right_and_every_wording_is() -> None:
    apple, pear = known("red apple", "flat"), known("green pear", "flat")
    object.__setattr__(apple, "wordings", ("roter Apfel, flat", "red apple, round"))  # the second one, in other words
    object.__setattr__(pear, "wordings", ("green plum, flat",))
    measured = measure_captioning(oracle().sampler, [apple, pear], CARD)
    assert (measured.exact, measured.f1) == (0.5, pytest.approx(0.75))


def test_captions_of_a_random_model_are_wrong() -> None:
    measured = measure_captioning(tiny().sampler, [known(name, "flat") for name in NAMES[:3]], CARD, batch_size=2)
    assert measured.exact == 0
    assert 0 <= measured.f1 < 0.5
    assert len(measured.captions) == 3
