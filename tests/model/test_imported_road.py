"""The road goes on from an imported model: its tokens, its training and its evaluation, and the same command again."""

import json
from pathlib import Path

import pytest
from made_checkpoints import (
    chameleon,
    chameleon_names,
    emu3,
    emu3_names,
    llama,
    llama_names,
    made_vqgan,
    save,
    save_vqgan,
)
from PIL import Image

from omnigram.model.bundle import Omnigram
from omnigram.model.conversion import import_checkpoint
from omnigram.train.compose import compose_config
from omnigram.train.pretrain import pretrain

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about how they are written

SMALL = (
    "trainer.max_steps=2",
    "trainer.compile=false",
    "trainer.validate_every_n_steps=2",
    "trainer.checkpoint_every_n_steps=2",
    "trainer.validation_documents=2",
    "trainer.sample_pictures=1",
    "evaluation={queries:2,heldout_queries:2,gallery:8,page:1,features:false}",
    "threads=1",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Captioned pictures, and nothing else."""
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        shade = (10 * number, 250 - 10 * number, 7 * number)
        Image.new("RGB", (20 + number % 3, 18), shade).save(tmp_path / "pictures" / f"shade{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go_on(folder: Path, *settings: str) -> Path:
    data = ("data=folder", f"data.source.path={folder / 'pictures'}", "data.name=shades", "data.splits.heldout_style=0")
    start = ("model=export", f"model.path={folder / 'ours'}", "loss.partitioned=false", "loader.length=256")
    return pretrain(compose_config([*data, *start, *SMALL, *settings]))


def imported_chameleon(folder: Path) -> None:
    theirs, vqgan = chameleon(), made_vqgan()
    encoder = {name: tensor for name, tensor in vqgan.state_dict().items() if not name.startswith("decoder.")}
    theirs.model.vqmodel.load_state_dict(encoder)
    save(theirs, folder / "theirs", chameleon_names())
    import_checkpoint(folder / "theirs", folder / "ours", image_tokenizer=save_vqgan(folder, vqgan))


def test_a_chameleon_is_trained_on_and_the_same_command_finds_its_run(folder: Path) -> None:
    imported_chameleon(folder)
    run = go_on(folder)
    assert json.loads((run / "metrics.json").read_text())["bits_per_picture"] > 0
    before = (run / "metrics.json").stat().st_mtime_ns
    assert go_on(folder) == run
    assert (run / "metrics.json").stat().st_mtime_ns == before
    start, end = Omnigram.from_pretrained(folder / "ours"), Omnigram.from_pretrained(run / "export")
    assert end.card.grammars == start.card.grammars
    assert end.card.preprocessing == start.card.preprocessing
    assert end.vocabulary == start.vocabulary
    kept = {path.name: path.read_bytes() for path in (folder / "ours" / "source").iterdir()}
    assert {path.name: path.read_bytes() for path in (run / "export" / "source").iterdir()} == kept
    start.save_pretrained(folder / "ours")  # in its own place
    assert {path.name: path.read_bytes() for path in (folder / "ours" / "source").iterdir()} == kept


def test_an_emu3_is_trained_on_at_its_own_sizes(folder: Path) -> None:
    save(emu3(), folder / "theirs", emu3_names())
    small = {"image_processor_type": "Emu3ImageProcessor", "min_pixels": 64, "max_pixels": 400, "spatial_factor": 4}
    (folder / "theirs" / "preprocessor_config.json").write_text(json.dumps(small))
    import_checkpoint(folder / "theirs", folder / "ours")
    run = go_on(folder)
    assert go_on(folder) == run
    end = Omnigram.from_pretrained(run / "export")
    assert end.card.max_side == 512
    assert all(height * width * end.patch**2 <= 400 for height, width in end.card.sizes)


def test_what_cannot_end_well_is_said_before_tokens_are_made(folder: Path) -> None:
    imported_chameleon(folder)
    with pytest.raises(ValueError, match=r"codes lie among the text ids .*: set loss.partitioned=false"):
        go_on(folder, "loss.partitioned=true")
    save(llama(), folder / "words", llama_names())
    import_checkpoint(folder / "words", folder / "llama")
    with pytest.raises(ValueError, match="this model has no image tokenizer, it only reads and writes words"):
        go_on(folder, f"model.path={folder / 'llama'}")
    save(chameleon(), folder / "blind", chameleon_names())
    import_checkpoint(folder / "blind", folder / "reads")
    with pytest.raises(ValueError, match=r"image tokenizer has no decoder, so it cannot draw: import it again with"):
        go_on(folder, f"model.path={folder / 'reads'}")
    with pytest.raises(ValueError, match="has no decoder, so it cannot draw"):
        Omnigram.from_pretrained(folder / "reads").draw("a red apple")
    assert not (folder / "datasets").exists()
