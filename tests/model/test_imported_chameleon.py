"""A published model goes on here: an imported Chameleon learns pictures, and draws one that its own decoder shows.

transformers cannot do either: its forward hides the logits of pictures before the loss, and its VQ-VAE has no decoder.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_checkpoints import chameleon, chameleon_names, made_vqgan, save, save_vqgan
from PIL import Image
from transformers import ChameleonForConditionalGeneration

from omnigram.model.bundle import Omnigram
from omnigram.model.conversion import import_checkpoint
from omnigram.model.generation import Block
from omnigram.model.generation.tasks import draw

WORDS = ("one red square", "two blue dots", "three green bars", "no picture at all")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Chameleon as transformers has it, and the same imported with the decoder of its image tokenizer."""
    folder, vqgan = tmp_path_factory.mktemp("published"), made_vqgan()
    theirs = chameleon()
    encoder = {name: tensor for name, tensor in vqgan.state_dict().items() if not name.startswith("decoder.")}
    theirs.model.vqmodel.load_state_dict(encoder)
    save(theirs, folder / "theirs", chameleon_names())
    with torch.no_grad():
        assert vqgan.decoder is not None
        vqgan.decoder.conv_out.weight.mul_(0.05)  # pixels within -1 .. 1, as those of a trained one
    checkpoint = save_vqgan(folder, vqgan)
    import_checkpoint(folder / "theirs", folder / "ours", image_tokenizer=checkpoint)
    return folder / "theirs", folder / "ours"


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in WORDS]


def batch(ours: Omnigram) -> torch.Tensor:
    """Documents of words and a picture, [B, T], padded on the right."""
    written = [
        ours.codec.writer.write([words, Block(ours.codes(picture))], close=True)
        for words, picture in zip(WORDS, pictures(), strict=True)
    ]
    ids = torch.full((len(written), max(map(len, written))), ours.vocabulary.id("pad"))
    for row, document in zip(ids, written, strict=True):
        row[: len(document)] = torch.from_numpy(document)
    return ids


def losses(folders: tuple[Path, Path], steps: int = 40) -> tuple[list[float], float]:
    """Nats a picture token of ours while it trains on them, and the loss that transformers gives for the first."""
    ours = Omnigram.from_pretrained(folders[1])
    theirs = ChameleonForConditionalGeneration.from_pretrained(folders[0])
    ids = batch(ours)
    is_code = torch.from_numpy(ours.vocabulary.contains("image", ids.numpy()))
    targets = torch.where(is_code, ids, -100)
    with torch.no_grad():
        loss = theirs(input_ids=ids, labels=targets).loss
    optimizer, seen = torch.optim.AdamW(ours.model.parameters(), lr=3e-3), []
    ours.model.train()
    for _ in range(steps):
        parts = ours.model.training_loss(ids[:, :-1], targets[:, 1:], is_code[:, 1:].float())
        optimizer.zero_grad()
        (parts.loss / parts.weight).backward()
        optimizer.step()
        seen.append(float(parts.nats.detach() / parts.weight))
    return seen, float(loss)


def test_it_trains_on_picture_labels_as_transformers_cannot(folders: tuple[Path, Path]) -> None:
    seen, theirs = losses(folders)
    print(f"ours {seen[0]:.3f} -> {seen[-1]:.3f} nats a picture token, transformers {theirs:.3g}")
    assert theirs > 1e30 or not np.isfinite(theirs)  # the lowest float32, as a logit, against any other
    assert seen[0] < 30
    assert seen[-1] < 0.5 * seen[0]


def test_it_draws_a_picture_that_its_decoder_shows(folders: tuple[Path, Path]) -> None:
    ours = Omnigram.from_pretrained(folders[1])
    [codes] = draw(ours.sampler, "two blue dots", size=(8, 8), seed=1)
    block = ours.codec.grammar.blocks["image"]
    assert block.read(block.write(codes)).tolist() == codes.tolist()
    ids = ours.codec.writer.write(["two blue dots", Block(codes)], close=True)
    assert [type(segment) for segment in ours.codec.writer.read(ids)] == [str, Block]
    [picture] = ours.pictures([codes])
    assert picture.size == (16, 16)
    assert np.asarray(picture).std() > 5
    [again] = ours.draw("two blue dots", seed=1)
    assert np.array_equal(np.asarray(again), np.asarray(picture))
