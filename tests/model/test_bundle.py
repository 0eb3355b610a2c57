"""The export: what is saved comes back and draws the same; parts that do not belong together are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from made_exports import CARD, random_picture, tiny_export, tiny_image_tokenizer
from made_samplers import tiny_model, words
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from omnigram.model.bundle import Omnigram
from omnigram.model.card import Card
from omnigram.model.codec import Codec
from omnigram.model.generation import Jacobi, Prompt, Sampling, tasks
from omnigram.tokenizers.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tiny_export().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "copy"))


def test_an_export_comes_back_as_it_was(export: Path) -> None:
    before, after = tiny_export(), Omnigram.from_pretrained(export)
    assert after.card == before.card
    assert after.vocabulary == before.vocabulary
    drawn = [one.draw("red apple", "twemoji", 2, seed=5) for one in (before, after)]
    assert [np.array(p).tolist() for p in drawn[0]] == [np.array(p).tolist() for p in drawn[1]]
    assert drawn[0][0].size == (24, 24)
    assert before.caption(drawn[0][0]) == after.caption(drawn[1][0])


def test_transformers_loads_an_export(export: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(export)
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(ids).logits, tiny_export().model(ids).logits)


@pytest.mark.parametrize(
    "first", ["import omnigram, sys\nassert 'torch' not in sys.modules", "import transformers, omnigram"]
)
def test_importing_omnigram_is_enough_for_the_auto_classes_and_takes_no_time(first: str, export: Path) -> None:
    for auto, ours in (("Config", "Config"), ("ModelForCausalLM", "ForCausalLM"), ("Processor", "Processor")):
        code = f"{first}\nfrom transformers import Auto{auto} as auto\nprint(type(auto.from_pretrained('.')).__name__)"
        done = subprocess.run([sys.executable, "-c", code], cwd=export, capture_output=True, text=True, timeout=100)
        assert done.stdout == f"Omnigram{ours}\n", done.stderr


def test_pictures_of_any_kind_take_the_nearest_size() -> None:
    omnigram = tiny_export()
    wide = omnigram.codes(random_picture(90, 40))
    assert wide.shape == (2, 4)
    clear = Image.new("RGBA", (30, 31), (255, 0, 0, 0))
    assert np.array_equal(omnigram.codes(clear), omnigram.codes(Image.new("RGB", (30, 31), "white")))


def test_completing_keeps_the_rows_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    omnigram, square, seen = tiny_export(), random_picture(24, 24), []
    shown = omnigram.pictures

    def pictures(codes: Sequence[np.ndarray]) -> list[Image.Image]:
        seen.extend(codes)
        return shown(codes)

    monkeypatch.setattr(omnigram, "pictures", pictures)
    first, second = omnigram.complete(square, rows=2, words="red apple", n=2, seed=1)
    assert first.size == second.size == (24, 24)
    omnigram.complete(square, rows=1, seed=2)
    codes = omnigram.codes(square)
    assert all(np.array_equal(one[:2], codes[:2]) for one in seen[:2])
    assert not np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[2][:1], codes[:1])
    assert not np.array_equal(seen[2], codes)


def test_a_page_is_text_and_pictures() -> None:
    page = tiny_export().page(["red apple, openmoji", random_picture(24, 24)], pictures=2, max_tokens=80)
    assert page[0] == "red apple, openmoji"
    assert sum(isinstance(part, Image.Image) for part in page) == 3
    assert isinstance(page[-1], Image.Image)


def test_a_model_without_pictures_writes_words() -> None:
    vocabulary = Vocabulary.appended(words().size, codebooks={})
    model = Omnigram(tiny_model(vocabulary.size), Codec(vocabulary, words(), None))
    assert model.card.sampling == {"text": Card().sampling["text"]}
    assert Card.from_json(model.card.to_json()) == model.card
    [page] = model.page(["plum"], pictures=0, max_tokens=9)
    assert isinstance(page, str)
    assert page.startswith("plum")
    assert len(page) > 4
    with pytest.raises(ValueError, match="this model has no image tokenizer"):
        model.page(["plum"], pictures=1)
    guided = Card(sampling={"image": Sampling(guidance=2)})
    refused = "sampling of the card has settings of 'image', and the modalities are text: leave 'image' out of its"
    with pytest.raises(ValueError, match=refused) as fault:
        Codec(vocabulary, words(), None, guided)
    assert "\n" not in str(fault.value)
    assert tiny_export().card.sampling == CARD.sampling


def test_examples_are_worded_in_the_style_they_name_or_that_is_asked_for() -> None:
    omnigram, picture = tiny_export(), random_picture(24, 24)
    assert CARD.example("plum, twemoji", "openmoji") == "plum, twemoji"
    assert CARD.example("plum", "twemoji") == "plum, twemoji"
    assert CARD.example("plum", None) == "plum, openmoji"
    assert Card().example("plum", None) == "plum"
    examples = [("plum, twemoji", picture), ("pear", random_picture(24, 24, 1))]
    [drawn] = omnigram.draw("red apple", "openmoji", examples=examples, seed=3)
    parts = [tasks.Block(omnigram.codes(shown)) for _, shown in examples]
    page = ["plum, twemoji", parts[0], "pear, openmoji", parts[1], "red apple, openmoji", tasks.Block((), size=(3, 3))]
    prompt = Prompt(tuple(page), {"text": False, "max_blocks": 0}, 3)
    [sample] = omnigram.sampler.sample([prompt])
    assert omnigram.pictures([sample.blocks()[-1]]) == [drawn]
    assert omnigram.caption(picture, max_tokens=6) != omnigram.caption(picture, max_tokens=6, examples=examples[1:])


def test_pairs_and_pictures_of_no_words() -> None:
    omnigram = tiny_export()
    for words_first in (True, False):
        pairs = omnigram.joint(2, words_first=words_first, max_tokens=4, size=(16, 32))
        assert all(words and picture.size == (32, 16) for words, picture in pairs)
    assert [picture.size for picture in omnigram.draw(None, n=2)] == [(24, 24)] * 2


def test_a_score_is_of_the_document_as_it_stands() -> None:
    omnigram, picture = tiny_export(), random_picture(24, 24)
    found = omnigram.score(["red apple", picture])
    pieces = ["red apple", tasks.Block(omnigram.codes(picture))]
    assert found.ids.tolist() == omnigram.sampler.writer.write(pieces, close=True).tolist()
    assert (found.nats[~found.chosen] == 0).all()
    assert (found.nats[found.chosen] > 0).all()
    assert found.chosen.sum() < len(found.ids) - 5  # marks and row ends are forced


def test_a_picture_begun_is_grey_below() -> None:
    omnigram, codes = tiny_export(), np.arange(9).reshape(3, 3)
    whole, begun = omnigram.codec.picture_begun(codes, (3, 3)), omnigram.codec.picture_begun(codes[:2], (3, 3))
    assert whole == omnigram.codec.picture(codes)
    assert begun.size == whole.size == (24, 24)
    assert (np.array(begun)[16:] == 225).all()
    assert np.array_equal(np.array(begun)[:16], np.array(omnigram.codec.picture(codes[:2])))
    assert (np.array(omnigram.codec.picture_begun(np.zeros((0, 3), int), (3, 3))) == 225).all()
    with pytest.raises(ValueError, match=r"rows of codes \(2, 3\) do not begin a picture of 3 x 4 codes"):
        omnigram.codec.picture_begun(codes[:2], (3, 4))


def test_an_export_takes_its_way_to_guess_ahead(export: Path) -> None:
    plain = Omnigram.from_pretrained(export)
    ahead = Omnigram.from_pretrained(export, speculation=Jacobi(2))
    assert ahead.draw("red apple", n=2, seed=5) == plain.draw("red apple", n=2, seed=5)
    assert ahead.sampler.statistics.guessed > 0
    assert plain.sampler.statistics.guessed == 0


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (lambda o: o.draw("apple", "openmojis"), "unknown style 'openmojis', did you mean openmoji?"),
        (lambda o: o.draw("apple", "zzz"), "unknown style 'zzz', did you mean openmoji or twemoji?"),
        (lambda o: o.draw("  "), "the prompt is empty"),
        (lambda o: o.draw(None, "openmoji"), "style 'openmoji' belongs to words"),
        (lambda o: o.draw("apple", size=(160, 160)), "20 x 20 codes makes a document of 431 tokens, and the context"),
        (lambda o: o.draw("apple " * 300), "leaves no room in the context of 160"),
        (lambda o: o.draw("apple", size=(24, 20)), "24 x 20 pixels: sides must be multiples of 8"),
        (lambda o: o.complete(random_picture(24, 24), rows=3), "rows 3 must be from 1 to 2"),
        (lambda o: o.complete(random_picture(24, 24), rows=1, style="a"), "style 'a' belongs to words"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_in_one_line(
    request_: Callable[[Omnigram], object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as fault:
        request_(tiny_export())
    assert "\n" not in str(fault.value)


def test_prompts_are_worded_like_captions() -> None:
    assert CARD.prompt("a red apple", "twemoji") == "a red apple, twemoji"
    assert CARD.prompt("a red apple ") == "a red apple, openmoji"
    assert CARD.prompt("a red apple, twemoji") == "a red apple, twemoji"
    assert Card().prompt("a red apple") == "a red apple"
    with pytest.raises(ValueError, match="this model has no styles"):
        Card().prompt("a red apple", "twemoji")


def test_a_card_is_read_strictly() -> None:
    assert Card.from_json(CARD.to_json()) == CARD
    for change in ({"styel": []}, {"format_version": 9}, {"prompt_template": "{x}"}, {"styles": []}, {"sizes": []}):
        with pytest.raises(ValueError, match=next(iter(change)).replace("styles", "prompt_template")):
            Card.from_json(json.dumps(json.loads(CARD.to_json()) | change))


def test_parts_that_do_not_belong_together_are_refused(copy: Path) -> None:
    def refused(complaint: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=complaint) as fault:
            Omnigram.from_pretrained(copy)
        assert "\n" not in str(fault.value)

    kept = (copy / "vocabulary.json").read_text()
    other = json.loads(kept)
    other["specials"]["bos"], other["specials"]["eos"] = other["specials"]["eos"], other["specials"]["bos"]
    (copy / "vocabulary.json").write_text(json.dumps(other))
    refused("trained with vocabulary [0-9a-f]{12}, but here is")
    (copy / "vocabulary.json").write_text("{}")
    refused("not the JSON of a vocabulary")
    (copy / "vocabulary.json").write_text(kept)
    tiny_image_tokenizer(seed=1).save_pretrained(copy / "image")
    refused("trained with image [0-9a-f]{12}, but here is")
    (copy / "text.model").write_bytes(b"nothing")
    refused("not a SentencePiece model")
    (copy / "vocabulary.json").unlink()
    refused("vocabulary.json is missing")


def test_a_decoder_of_another_vocabulary_is_refused(copy: Path) -> None:
    for path in copy.glob("*.*"):
        if path.name in ("config.json", "model.safetensors"):
            path.unlink()
    tiny_model(7, 0).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"the model has 7 ids, vocabulary.json \d+: they do not belong together"):
        Omnigram.from_pretrained(copy)


def test_damaged_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[0]
    save_file(
        {key: tensor for key, tensor in weights.items() if key != name}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=f"missing_keys {name}"):
        Omnigram.from_pretrained(copy)
    cut = {key: tensor[:-1] if key == name else tensor for key, tensor in weights.items()}
    save_file(cut, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"the weights do not fit config.json: mismatched_keys .*{name}") as fault:
        Omnigram.from_pretrained(copy)
    assert "\n" not in str(fault.value)
    (copy / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="the weights cannot be read") as fault:
        Omnigram.from_pretrained(copy)
    assert "\n" not in str(fault.value)
