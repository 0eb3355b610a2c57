"""Emu3 as BAAI has it, a decoder and an image tokenizer in two repositories, becomes one export and one model again."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_checkpoints import CODES, MOVQGAN_SHAPE, assert_same_tensors, emu3, emu3_names, save, weights
from safetensors.torch import save_file
from transformers import AutoTokenizer, Emu3ForCausalLM, Emu3ForConditionalGeneration

from omnigram.model.bundle import Omnigram
from omnigram.model.conversion import export_checkpoint, import_checkpoint
from omnigram.model.generation import Block
from omnigram.tokenizers.movqgan import MoVQGAN, MoVQGANConfig

BAAI = [
    ("encoder.down_block.down.", "encoder.down."),
    ("decoder.up_block.up.", "decoder.up."),
    (".middle_block.", ".mid."),
    ("attn_norm.", "attn_1.norm."),
]


def their_name(name: str) -> str:
    for ours, theirs in BAAI:
        name = name.replace(ours, theirs)
    name = re.sub(r"\.attn_norms\.(\d+)\.", r".attn.\1.norm.", name)
    return re.sub(r"\.([qkv])_proj\.", r".\1.", name).replace("out_proj", "proj_out")


def save_baai(folder: Path, tokenizer: MoVQGAN) -> Path:
    """BAAI's Emu3-VisionTokenizer."""
    folder.mkdir()
    state = {}
    for name, tensor in tokenizer.state_dict().items():
        linear = re.search(r"_proj\.weight$", name)
        state[their_name(name)] = (tensor[..., None, None] if linear else tensor).contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = tokenizer.config
    fields = {
        "model_type": "Emu3VisionVQ",
        "codebook_size": config.codebook_size,
        "embed_dim": 4,
        "z_channels": 4,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multiplier),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attn_resolutions),
    }
    (folder / "config.json").write_text(json.dumps(fields))
    preprocessor = {"image_processor_type": "Emu3VisionVQImageProcessor", "min_pixels": 64, "max_pixels": 1024}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"spatial_factor": 2}))
    return folder


def save_source(folder: Path, whole: Any) -> Path:
    """BAAI's decoder: no vocabulary_map, none of transformers' names, files for code of its own."""
    text: Any = Emu3ForCausalLM(whole.config.text_config)
    text.model.load_state_dict(whole.model.text_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    save(text, folder, emu3_names(image=False))
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"model_type": "Emu3", "auto_map": {"AutoConfig": "configuration_emu3.Emu3Config"}}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Emu3Tokenizer"}')
    return folder


def made(tmp_path: Path) -> tuple[Any, MoVQGAN, Any]:
    """The model of which the two repositories are the parts, its image tokenizer, and what transformers loads."""
    whole: Any = emu3()
    source = save_source(tmp_path / "source", whole)
    tokenizer = MoVQGAN(MoVQGANConfig.from_hf(MOVQGAN_SHAPE)).eval()
    tokenizer.load_state_dict(whole.model.vqmodel.state_dict())
    import_checkpoint(source, tmp_path / "in", image_tokenizer=save_baai(tmp_path / "image", tokenizer))
    with pytest.warns(UserWarning, match=r"preprocessor_config.json only comes near .*transparency='ignore'"):
        export_checkpoint(tmp_path / "in", "emu3", tmp_path / "out")
    loaded: Any = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs, info = loaded
    assert not any(info.values())
    return whole, tokenizer, theirs.eval()


def test_two_repositories_become_one_model(tmp_path: Path) -> None:
    whole, tokenizer, theirs = made(tmp_path)
    assert_same_tensors(theirs.state_dict(), whole.state_dict())
    assert weights(tmp_path / "out").keys() == weights(save(whole, tmp_path / "other")).keys()
    ours = Omnigram.from_pretrained(tmp_path / "in")
    assert_same_tensors(ours.image_tokenizer.state_dict(), tokenizer.state_dict())
    assert ours.card.preprocessing is not None
    assert (ours.card.preprocessing.max_ratio, ours.card.preprocessing.max_pixels) == (5, 1024)
    codes = torch.arange(16).reshape(1, 4, 4) % CODES
    assert torch.equal(ours.image_tokenizer.decode(codes), tokenizer.decode(codes))


def test_small_files_are_those_of_transformers(tmp_path: Path) -> None:
    """BAAI's own name code that does not come with them."""
    made(tmp_path)
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    preprocessor = read["preprocessor_config.json"]
    assert preprocessor["image_processor_type"] == "Emu3ImageProcessor"
    assert (preprocessor["image_mean"], preprocessor["max_pixels"]) == ([0.5, 0.5, 0.5], 1024)
    assert read["tokenizer_config.json"]["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read["config.json"]["model_type"] == "emu3"


def test_transformers_takes_pixels_for_its_placeholder(tmp_path: Path) -> None:
    """`<image>` is the id of a token without a use, as in transformers' own conversion; the logits are ours."""
    *_, theirs = made(tmp_path)
    placeholder = emu3_names(image=False)["<|extra_0|>"]
    assert theirs.config.image_token_id == placeholder
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.image_token_id == tokenizer("<image>")["input_ids"][0] == placeholder
    ours = Omnigram.from_pretrained(tmp_path / "in")
    pixels = torch.rand(1, 3, 8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = ours.image_tokenizer.encode(pixels)[0].numpy()
    assert len(np.unique(codes)) > 2
    document = torch.from_numpy(ours.codec.writer.write(["red", Block(codes)], True))[None]
    names = emu3_names(image=False)
    of_picture = torch.from_numpy(ours.vocabulary.contains("image", document.numpy()))
    of_picture |= document == names["<|extra_200|>"]  # the ends of rows, which transformers puts in as well
    assert int(of_picture.sum()) == 4 * (2 + 1)
    asked = torch.where(of_picture, placeholder, document)
    with torch.no_grad():
        shown = theirs(input_ids=asked, pixel_values=pixels, image_sizes=torch.tensor([[8, 4]])).logits
        torch.testing.assert_close(shown, ours.model(document).logits, rtol=1e-5, atol=1e-5)
