"""What an import says of the export it makes: what cannot be drawn, whose pixels are meant, what will not load."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from made_checkpoints import (
    MOVQGAN_SHAPE,
    NOT_DRAWN,
    assert_same_tensors,
    chameleon,
    chameleon_names,
    emu3,
    emu3_names,
    llama,
    llama_names,
    made_vqgan,
    save,
    save_vqgan,
    weights,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from omnigram.model.bundle import Omnigram
from omnigram.model.conversion import export_checkpoint, import_checkpoint
from omnigram.tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from omnigram.tokenizers.preprocessing import CHAMELEON, EMU3
from omnigram.train.cli import main


def told(source: Path, out: Path, **options: Any) -> list[str]:
    """The warnings of an import."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import_checkpoint(source, out, **options)
    said = [str(warning.message) for warning in caught]
    assert not [line for line in said if "\n" in line]
    return said


def test_a_tokenizer_without_decoder_is_told_with_the_remedy(tmp_path: Path) -> None:
    vqgan, theirs = made_vqgan(), chameleon()
    encoder = {name: tensor for name, tensor in vqgan.state_dict().items() if not name.startswith("decoder.")}
    theirs.model.vqmodel.load_state_dict(encoder)
    source = save(theirs, tmp_path / "source", chameleon_names())
    [said] = told(source, tmp_path / "in")
    assert said.startswith(f"{source}: pictures can be read but not drawn")
    assert said.endswith("give --image-tokenizer vqgan.ckpt")
    assert not Omnigram.from_pretrained(tmp_path / "in").image_tokenizer.can_decode
    (tmp_path / "tokenizer").mkdir()
    assert told(source, tmp_path / "whole", image_tokenizer=save_vqgan(tmp_path / "tokenizer", vqgan)) == []
    assert Omnigram.from_pretrained(tmp_path / "whole").image_tokenizer.can_decode


def test_the_command_line_says_it_and_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(chameleon(), tmp_path / "source", chameleon_names())
    with pytest.warns(UserWarning, match="pictures can be read but not drawn"):
        assert main(["import", str(source), "--out", str(tmp_path / "in")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "in")]


def test_emu3_without_its_file_has_the_pixels_of_baai_and_not_of_clip(tmp_path: Path) -> None:
    source = save(emu3(), tmp_path / "source", emu3_names())
    assert told(source, tmp_path / "with") == []
    (source / "preprocessor_config.json").unlink()
    said = told(source, tmp_path / "without")
    assert said == [f"{source}/preprocessor_config.json is missing: pixels are those of the published emu3"]
    assert Omnigram.from_pretrained(tmp_path / "without").card.preprocessing == EMU3
    assert MoVQGAN(MoVQGANConfig.from_hf(MOVQGAN_SHAPE)).can_decode


@pytest.mark.filterwarnings(NOT_DRAWN)
def test_chameleon_without_its_file_has_the_pixels_of_meta(tmp_path: Path) -> None:
    source = save(chameleon(), tmp_path / "source", chameleon_names())
    (source / "preprocessor_config.json").unlink()
    said, _ = told(source, tmp_path / "in")
    assert said.endswith("preprocessor_config.json is missing: pixels are those of the published chameleon")
    found = Omnigram.from_pretrained(tmp_path / "in").card.preprocessing
    assert found is not None
    assert (found.scale, found.transparency, found.side) == (CHAMELEON.scale, CHAMELEON.transparency, 16)
    export_checkpoint(tmp_path / "in", "chameleon", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in source.iterdir()}


def test_a_decoder_without_pictures_needs_no_pixels(tmp_path: Path) -> None:
    source = save(llama(), tmp_path / "source", llama_names())
    assert told(source, tmp_path / "in") == []


@pytest.mark.parametrize("lacking", ["bos_token_id", "eos_token_id", "tokenizer.json"])
def test_what_is_said_to_work_works_and_the_rest_does_not(tmp_path: Path, lacking: str) -> None:
    theirs = llama()
    source = save(theirs, tmp_path / "source", llama_names())
    if lacking == "tokenizer.json":
        (source / lacking).unlink()
    else:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {lacking: None}))
    [said] = told(source, tmp_path / "in")
    assert lacking.removesuffix("_token_id") in said
    assert said.endswith(
        "AutoModelForCausalLM and `omnigram export` take what is made, but sampling with it and training on from it "
        "are not possible"
    )
    with pytest.raises((ValueError, FileNotFoundError)):
        Omnigram.from_pretrained(tmp_path / "in")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "in")(ids).logits
        torch.testing.assert_close(found, theirs(ids).logits, rtol=1e-5, atol=1e-5)
    export_checkpoint(tmp_path / "in", "llama", tmp_path / "out")
    assert_same_tensors(weights(tmp_path / "out"), weights(source))
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").num_parameters() == theirs.num_parameters()
    shutil.rmtree(tmp_path / "out")
