"""The commands of the README for published models run, in their order, with tiny models in the places of those."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from made_checkpoints import VOCAB, emu3, emu3_names, made_vqgan, save, save_meta
from PIL import Image
from transformers import ChameleonForConditionalGeneration

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.train.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Published models")[2].partition("\n## ")[0]


def commands() -> list[list[str]]:
    """Those that convert and ask; the training on exports composes in tests/test_readme.py and runs in
    test_imported_road.py."""
    blocks = re.findall(r"^```sh\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    return [line for line in lines if line[0] != "pretrain"]


@pytest.mark.filterwarnings("ignore:transformers. chameleon has no image decoder")  # both are said, and right
@pytest.mark.filterwarnings("ignore:preprocessor_config.json only comes near")
def test_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "models"
    torch.manual_seed(0)
    shape = OmnigramConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=256,
        num_hidden_layers=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        qk_norm="layer",
        qk_norm_per_head=True,
    )
    save_meta(models / "chameleon", OmnigramForCausalLM(shape), made_vqgan(), 1)
    save(emu3(), models / "Emu3-Chat-hf", emu3_names())
    monkeypatch.chdir(tmp_path)
    asked = commands()
    assert {command[0] for command in asked} == {"import", "sample", "export"}
    for command in asked:
        here = [re.sub("^/models/", f"{models}/", argument) for argument in command]
        assert main(here) == 0, capfd.readouterr().err
    with Image.open("red.png") as page:
        assert min(page.size) >= 16
    again = ChameleonForConditionalGeneration.from_pretrained(models / "chameleon-again")
    assert again.num_parameters() > 0
