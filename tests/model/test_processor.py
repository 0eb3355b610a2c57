"""The processor: what it writes it reads, `generate` under its constraint stays in the grammar and draws as we do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_exports import VOCABULARY, random_picture, tiny_export
from transformers import AutoModelForCausalLM, AutoProcessor, Trainer, TrainingArguments

from omnigram.model.bundle import Omnigram
from omnigram.model.generation import Block, Sampling
from omnigram.model.processor import OmnigramProcessor

WORDS = ["red apple", "a yellow lemon, and a pear"]
GREEDY = {"image": Sampling(temperature=0), "text": Sampling(temperature=0)}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tiny_export().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(export: Path) -> OmnigramProcessor:
    return AutoProcessor.from_pretrained(export)


@pytest.fixture(scope="module")
def model(export: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(export)


def test_auto_processor_knows_an_export(processor: OmnigramProcessor) -> None:
    assert type(processor) is OmnigramProcessor
    assert processor.card == tiny_export().card
    assert "prompt_template" in repr(processor)


def test_documents_are_written_as_training_wrote_them_and_padded_on_the_left(processor: OmnigramProcessor) -> None:
    pictures = [random_picture(24, 24, seed) for seed in range(3)]
    square = processor(pictures, ["red <image> and <image>", "<image>"], return_tensors="pt", close=True)
    omnigram = tiny_export()
    codes = [Block(omnigram.codes(picture)) for picture in pictures]
    for row, mask, pieces in zip(
        square["input_ids"], square["attention_mask"], [["red ", codes[0], " and ", codes[1]], [codes[2]]], strict=True
    ):
        expected = omnigram.sampler.writer.write(pieces, close=True).tolist()
        pads = len(row) - len(expected)
        assert row.tolist() == [VOCABULARY.id("pad")] * pads + expected
        assert mask.tolist() == [0] * pads + [1] * len(expected)
    assert square["attention_mask"].sum(1).tolist() == [square["input_ids"].shape[1], 21]


def test_pictures_are_given_flat_nested_or_alone(processor: OmnigramProcessor) -> None:
    one, two = (random_picture(24, 24, seed) for seed in range(2))
    texts = ["<image> or <image>?", "none"]
    flat = processor([one, two], texts)
    assert flat["input_ids"] == processor([[one, two], []], texts)["input_ids"]
    assert processor(one)["input_ids"] == processor([one], "<image>")["input_ids"]
    ragged = processor([one, two], texts, padding=False)
    assert [len(row) for row in ragged["input_ids"]] == [sum(mask) for mask in flat["attention_mask"]]


def test_ids_come_back_as_text_and_pictures(processor: OmnigramProcessor) -> None:
    pictures = [random_picture(24, 24), random_picture(33, 15)]
    texts = ["a red apple: <image> it is.", "<image>"]
    for close in (True, False):
        ids = processor(pictures, texts, close=close, return_tensors="pt")["input_ids"]
        first, second = processor.post_process(ids)
        seen = [processor.codec.picture(processor.codec.codes(picture)) for picture in pictures]
        assert first == ["a red apple: ", seen[0], " it is."]
        assert second == [seen[1]]
        assert processor.batch_decode(ids, skip_special_tokens=True) == texts
    assert processor.decode(ids[0]) == f"<bos>{texts[0]}"
    assert processor.decode([*ids[1].tolist(), VOCABULARY.id("eos")]).endswith("<pad><bos><image><eos>")


def test_what_is_broken_is_left_out_of_text_and_refused_as_picture(processor: OmnigramProcessor) -> None:
    [ids] = processor(random_picture(24, 24), "apple<image> pear")["input_ids"]
    end = ids.index(VOCABULARY.id("eoi"))
    for damaged in (ids[: end - 1], [*ids[: end - 1], *ids[end:]]):
        assert "<image>" not in processor.decode(damaged)
        assert processor.decode(damaged).startswith("<bos>apple<boi>3*3<img>")
        with pytest.raises(ValueError, match=rf"row 1, behind 2 pads: token {end - 1}: ") as fault:
            processor.post_process([ids, [VOCABULARY.id("pad")] * 2 + damaged])
        assert "\n" not in str(fault.value)
    assert processor.decode(ids[end:], skip_special_tokens=True) == " pear"  # only what is new


@pytest.mark.parametrize("size", [None, (16, 32)])
def test_generate_draws_what_omnigram_draws(
    processor: OmnigramProcessor, model: Any, size: tuple[int, int] | None
) -> None:
    texts = [processor.card.prompt(words, "twemoji") for words in WORDS]
    inputs = processor(text=texts, draw=size or True, return_tensors="pt")
    only = processor.prefix_allowed_tokens_fn(inputs, text=False, max_blocks=0)
    ids = model.generate(**inputs, prefix_allowed_tokens_fn=only, max_new_tokens=40, do_sample=False)
    drawn = tiny_export().draw(WORDS, "twemoji", size=size, sampling=GREEDY)
    for row, text, picture in zip(processor.post_process(ids), texts, drawn, strict=True):
        assert row == [text, picture]


def test_generate_captions_as_omnigram_captions(processor: OmnigramProcessor, model: Any) -> None:
    picture = random_picture(24, 24)
    inputs = processor(picture, return_tensors="pt")
    only = processor.prefix_allowed_tokens_fn(inputs, max_blocks=0, min_text=1, max_tokens=12)
    ids = model.generate(**inputs, prefix_allowed_tokens_fn=only, max_new_tokens=12, do_sample=False)
    [[_, caption]] = processor.post_process(ids)
    assert caption == tiny_export().caption(picture, max_tokens=12)


@pytest.mark.parametrize("how", [{"do_sample": True, "num_return_sequences": 4}, {"num_beams": 3}])
def test_whatever_is_generated_is_a_document(processor: OmnigramProcessor, model: Any, how: dict[str, object]) -> None:
    torch.manual_seed(0)
    inputs = processor(text=WORDS, return_tensors="pt")
    only = processor.prefix_allowed_tokens_fn(inputs, min_blocks=1, max_codes=8, max_tokens=60)
    ids = model.generate(**inputs, prefix_allowed_tokens_fn=only, max_new_tokens=60, **how)
    for row, words in zip(ids, np.repeat(WORDS, len(ids) // 2), strict=True):
        assert VOCABULARY.id("eos") in row  # max_tokens left room to end
        [text, *rest] = processor.post_process([row])[0]
        assert isinstance(text, str)
        assert text.startswith(words)
        assert len(rest) > 0
    free = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    with pytest.raises(ValueError, match="row 0"):
        processor.post_process(free)


def test_the_constraint_remembers_nothing(processor: OmnigramProcessor, model: Any) -> None:
    inputs = processor(text=WORDS, return_tensors="pt")
    limits = {"max_blocks": 1, "max_codes": 6, "max_tokens": 40}
    used = processor.prefix_allowed_tokens_fn(inputs, **limits)
    torch.manual_seed(1)
    ids = model.generate(**inputs, prefix_allowed_tokens_fn=used, max_new_tokens=40, do_sample=True)
    random = np.random.default_rng(0)
    given = inputs["input_ids"].shape[1]
    for _ in range(60):
        row, length = random.integers(2), random.integers(given, ids.shape[1] + 1)
        fresh = processor.prefix_allowed_tokens_fn(inputs, **limits)
        assert torch.equal(used(0, ids[row, :length]), fresh(0, ids[row, :length]))
    other = processor(text="green pear", return_tensors="pt")["input_ids"][0]
    with pytest.raises(ValueError, match="other input_ids than the constraint"):
        used(0, other)


def test_only_pads_follow_what_is_no_document(processor: OmnigramProcessor) -> None:
    """Beams of probability zero, which take any id, must not stop the others."""
    inputs = processor(text=WORDS, return_tensors="pt")
    row, pad = inputs["input_ids"][0], [VOCABULARY.id("pad")]
    for wrong in (VOCABULARY.id("eol"), int(VOCABULARY.encode("image", 3)), VOCABULARY.id("pad")):
        only = processor.prefix_allowed_tokens_fn(inputs)
        assert only(0, row).tolist() != pad
        for id_ in (wrong, VOCABULARY.id("boi")):
            row = torch.cat([row, torch.tensor([id_])])
            assert only(0, row).tolist() == pad
        row = inputs["input_ids"][0]


def test_with_the_model_it_saves_an_export(
    processor: OmnigramProcessor, model: Any, export: Path, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    files = {path.relative_to(export) for path in export.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for file in files:
        assert (tmp_path / file).read_bytes() == (export / file).read_bytes(), file
    assert Omnigram.from_pretrained(tmp_path).card == processor.card


def test_trainer_takes_it(processor: OmnigramProcessor, export: Path, tmp_path: Path) -> None:
    """Two steps on a captioned picture; the checkpoint is an export."""
    inputs = processor(random_picture(24, 24), "red apple, twemoji<image>", close=True)
    row = {name: values[0] for name, values in inputs.items()}
    settings = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(export)
    before = model(**processor(random_picture(24, 24), return_tensors="pt")).logits
    rows = [row | {"labels": row["input_ids"]}] * 4
    trainer = Trainer(model, settings, train_dataset=rows, processing_class=processor)
    trainer.train()
    loaded = Omnigram.from_pretrained(tmp_path / "checkpoint-2")
    after = loaded.model(**processor(random_picture(24, 24), return_tensors="pt")).logits
    assert not torch.equal(before, after)
    assert loaded.model.config.eos_token_id == VOCABULARY.id("eos")


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (lambda p: p(), "neither text nor images: give at least one of them"),
        (lambda p: p(random_picture(8, 8), ["a", "b"]), r"\[1\] pictures for texts with \[0, 0\] places"),
        (lambda p: p([[], [random_picture(8, 8)]], ["<image>", "b"]), r"\[0, 1\] pictures for texts with \[1, 0\]"),
        (lambda p: p(text="an <image>"), r"\[0\] pictures for texts with \[1\] places: write <image>"),
        (lambda p: p(text="a", draw=(24, 20)), "24 x 20 pixels: sides must be multiples of 8"),
        (lambda p: p(text="a", draw=True, close=True), "draw=True begins what close=True ends"),
        (lambda p: p(text="a\ud800"), "which is no character"),
        (lambda p: p.prefix_allowed_tokens_fn(p(text=["a", "b"], close=True)), "prompt 0: token 2: the prompt ends in"),
        (lambda p: p.prefix_allowed_tokens_fn(p(text="a", draw=True), max_tokens=9), "max_tokens=9 cannot hold the 1"),
        (lambda p: p.prefix_allowed_tokens_fn(p(text="a"), sizes={"sound": (1,)}), "no block grammar for 'sound'"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_in_one_line(
    processor: OmnigramProcessor, request_: Callable[[OmnigramProcessor], object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as fault:
        request_(processor)
    assert "\n" not in str(fault.value)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, export: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not an export of Omnigram: omnigram.json is missing"):
        OmnigramProcessor.from_pretrained(tmp_path)
    processor = OmnigramProcessor.from_pretrained(export)
    processor.save_pretrained(tmp_path)
    swapped = VOCABULARY.to_json().replace('"bos": 291', '"bos": 292').replace('"eos": 292', '"eos": 291')
    (tmp_path / "vocabulary.json").write_text(swapped)
    with pytest.raises(ValueError, match=r"trained with vocabulary [0-9a-f]{12}, but here is"):
        OmnigramProcessor.from_pretrained(tmp_path)
