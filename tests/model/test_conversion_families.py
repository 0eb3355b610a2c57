"""transformers' folders in and out: the same logits here, the same tensors and files there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_checkpoints import (
    CODES,
    LETTERS,
    NOT_DRAWN,
    VOCAB,
    assert_same_tensors,
    chameleon,
    chameleon_names,
    emu3,
    emu3_names,
    llama,
    llama_names,
    made_vqgan,
    randomised,
    save,
    save_vqgan,
    weights,
)
from made_exports import tiny_export
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ChameleonForConditionalGeneration,
    Emu3ForCausalLM,
    Emu3ForConditionalGeneration,
    LlamaForCausalLM,
    PreTrainedModel,
)

from omnigram.model.bundle import Omnigram
from omnigram.model.conversion import export_checkpoint, import_checkpoint
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation import Block
from omnigram.tokenizers.movqgan import MoVQGAN
from omnigram.tokenizers.preprocessing import CHAMELEON_TRANSFORMERS
from omnigram.tokenizers.vqgan import VQGAN

pytestmark = pytest.mark.filterwarnings(NOT_DRAWN)
MADE: dict[str, Any] = {"chameleon": chameleon, "emu3": emu3, "llama": llama}
NAMES: dict[str, Any] = {"chameleon": chameleon_names, "emu3": emu3_names, "llama": llama_names}
CLASSES: dict[str, Any] = {
    "chameleon": ChameleonForConditionalGeneration,
    "emu3": Emu3ForConditionalGeneration,
    "llama": LlamaForCausalLM,
}
PREPROCESSOR = {"image_processor_type": "Emu3ImageProcessor", "min_pixels": 64, "max_pixels": 256, "spatial_factor": 2}
LINEAR = {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}
VARIANTS = [
    ("chameleon", {}),
    ("chameleon", {"swin_norm": True, "num_key_value_heads": 4, "rope_parameters": LINEAR}),
    ("chameleon", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("emu3", {}),
    ("emu3", {"num_key_value_heads": 1, "rope_parameters": LINEAR, "rms_norm_eps": 1e-6}),
    ("llama", {"head_dim": 10, "attention_bias": True}),
    ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
]


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def some_ids() -> Tensor:
    return torch.randint(20, VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))  # not Chameleon's codes


def assert_computes_the_same(ours: Any, theirs: Any, family: str) -> None:
    ids = some_ids()
    shown = logits(ours, ids), logits(theirs, ids)
    if family == "chameleon":  # which transformers hides
        codes = [id_ for name, id_ in chameleon_names().items() if name.startswith("IMGIMG")]
        kept = [id_ for id_ in range(VOCAB) if id_ not in codes]
        shown = shown[0][..., kept], shown[1][..., kept]
    torch.testing.assert_close(*shown, rtol=1e-5, atol=1e-5)


def loaded(kind: Any, folder: Path) -> Any:
    """The model that transformers loads, after a check that nothing was missing, unexpected or of another shape."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert {problem: list(names) for problem, names in info.items() if names} == {}
    return model


def small_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "safetensors" not in path.name}


@pytest.mark.parametrize(("dtype", "shards"), [(torch.float32, None), (torch.bfloat16, "40KB")])
@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=str)
def test_in_and_out_again(
    tmp_path: Path, family: str, changes: dict[str, Any], dtype: torch.dtype, shards: str | None
) -> None:
    theirs: PreTrainedModel = MADE[family](dtype, **changes)
    source = save(theirs, tmp_path / "source", NAMES[family](), **({"max_shard_size": shards} if shards else {}))
    assert (source / "model.safetensors.index.json").exists() == (shards is not None)
    told: list[tuple[int, int]] = []
    import_checkpoint(source, tmp_path / "in", progress=lambda *bytes_: told.append(bytes_), shard_bytes=60_000)
    total = sum(tensor.nbytes for tensor in weights(source).values())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    ours = Omnigram.from_pretrained(tmp_path / "in")
    assert ours.model.dtype == dtype
    if dtype == torch.float32:
        assert_computes_the_same(ours.model, theirs, family)

    export_checkpoint(tmp_path / "in", family, tmp_path / "out", shard_bytes=60_000)
    assert_same_tensors(weights(tmp_path / "out"), weights(source))
    assert small_files(tmp_path / "out") == small_files(source)
    back = loaded(CLASSES[family], tmp_path / "out")
    assert_same_tensors(back.state_dict(), theirs.state_dict())


def test_the_export_is_one(tmp_path: Path) -> None:
    """Vocabulary, grammar, pixels and specials of what is imported; the Auto classes load it."""
    source = save(chameleon(), tmp_path / "source", chameleon_names())
    import_checkpoint(source, tmp_path / "in")
    ours = Omnigram.from_pretrained(tmp_path / "in")
    names = chameleon_names()
    assert ours.vocabulary.specials["boi"] == names["<racm3:break>"]
    assert int(ours.vocabulary.encode("image", 11)) == names["IMGIMGBBZ"]
    assert isinstance(ours.image_tokenizer, VQGAN)
    assert ours.card.sizes == ((8, 8),)
    assert ours.card.preprocessing is not None
    assert (ours.card.preprocessing.side, ours.card.preprocessing.scale) == (16, CHAMELEON_TRANSFORMERS.scale)
    assert ours.card.identities["image"] == ours.image_tokenizer.identity
    assert [ours.model.config.pad_token_id, ours.model.config.bos_token_id, ours.model.config.eos_token_id] == [1, 0, 2]
    assert AutoConfig.from_pretrained(tmp_path / "in").model_type == "omnigram"
    model = loaded(AutoModelForCausalLM, tmp_path / "in")
    document = ours.codec.writer.write(["red", Block(np.arange(64).reshape(8, 8) % CODES)], True)
    assert document.tolist()[:2] == [names["<s>"], names["r"]]
    assert logits(model, torch.from_numpy(document)[None]).isfinite().all()


def test_an_imported_emu3_has_pictures(tmp_path: Path) -> None:
    model = emu3()
    source = save(model, tmp_path / "source", emu3_names())
    (source / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    import_checkpoint(source, tmp_path / "in")
    ours = Omnigram.from_pretrained(tmp_path / "in")
    assert isinstance(ours.image_tokenizer, MoVQGAN)
    assert ours.card.preprocessing is not None
    assert ours.card.preprocessing.max_pixels == 256
    ids = torch.randint(CODES, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model.model.vqmodel.decode(ids[:, None])
    torch.testing.assert_close(ours.image_tokenizer.decode(ids), theirs[:, 0].clamp(-1, 1), rtol=0, atol=1e-5)


def test_names_of_memory_and_of_files_are_both_taken(tmp_path: Path) -> None:
    """transformers has called Emu3's tensors differently in files and in memory."""
    model = emu3()
    source = save(model, tmp_path / "source", emu3_names())
    before = weights(source)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert state.keys().isdisjoint(before)
    save_file(state, source / "model.safetensors", {"format": "pt"})
    import_checkpoint(source, tmp_path / "in")
    export_checkpoint(tmp_path / "in", "emu3", tmp_path / "out")
    assert_same_tensors(weights(tmp_path / "out"), before)


@pytest.mark.parametrize("kind", ["emu3_text_model", "Emu3"])
def test_the_decoder_of_emu3_alone(tmp_path: Path, kind: str) -> None:
    whole = emu3()
    text = Emu3ForCausalLM(whole.config.text_config)
    text.load_state_dict({name.replace("model.text_model", "model"): tensor for name, tensor in
                          whole.state_dict().items() if "vqmodel" not in name})  # fmt: skip
    source = save(text.eval(), tmp_path / "source", emu3_names())
    if kind == "Emu3":  # as BAAI's repository has it
        fields = json.loads((source / "config.json").read_text())
        fields |= {
            "model_type": kind,
            "auto_map": {"AutoConfig": "configuration_emu3.Emu3Config"},
            "image_area": 518400,
        }
        del fields["rope_parameters"]
        fields |= {"rope_theta": 1e6, "rope_scaling": None, "img_token_id": 4, "torch_dtype": "float32"}
        (source / "config.json").write_text(json.dumps(fields))
    import_checkpoint(source, tmp_path / "in")
    ours = Omnigram.from_pretrained(tmp_path / "in")
    assert_computes_the_same(ours.model, text, "emu3")
    with pytest.raises(ValueError, match="no image tokenizer"):
        _ = ours.image_tokenizer
    export_checkpoint(tmp_path / "in", "emu3", tmp_path / "out")
    back = loaded(Emu3ForCausalLM, tmp_path / "out")
    assert_same_tensors(back.state_dict(), text.state_dict())


def test_old_rotary_settings_are_read(tmp_path: Path) -> None:
    """rope_theta and rope_scaling, as config.json had them before rope_parameters."""
    theirs = llama(rope_parameters={"rope_type": "linear", "rope_theta": 777.0, "factor": 3.0})
    source = save(theirs, tmp_path / "source", llama_names())
    fields = json.loads((source / "config.json").read_text())
    del fields["rope_parameters"]
    fields |= {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 3.0}}
    (source / "config.json").write_text(json.dumps(fields))
    import_checkpoint(source, tmp_path / "in")
    assert_computes_the_same(Omnigram.from_pretrained(tmp_path / "in").model, theirs, "llama")


@pytest.mark.parametrize("family", MADE)
def test_a_changed_model_goes_out_as_it_is(tmp_path: Path, family: str) -> None:
    """Another dtype, as after training in float32: config.json is written anew, and loads all the same."""
    import_checkpoint(save(MADE[family](torch.bfloat16), tmp_path / "source", NAMES[family]()), tmp_path / "in")
    ours = Omnigram.from_pretrained(tmp_path / "in", dtype=torch.float32)
    with torch.no_grad():
        ours.model.lm_head.weight += 0.1
    ours.model.save_pretrained(tmp_path / "in")
    export_checkpoint(tmp_path / "in", family, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    back = loaded(CLASSES[family], tmp_path / "out")
    assert_computes_the_same(ours.model, back, family)


def chameleon_of(image: dict[str, Tensor]) -> PreTrainedModel:
    """With this image tokenizer, in bfloat16."""
    model: Any = chameleon()
    model.model.vqmodel.load_state_dict(image)
    return model.to(torch.bfloat16)


def test_the_decoder_that_transformers_lacks(tmp_path: Path) -> None:
    """vqgan.ckpt adds the image decoder; on the way out it is left out again, which a warning says."""
    whole = made_vqgan()
    inside = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("decoder.")}
    source = save(chameleon_of(inside), tmp_path / "source", chameleon_names())
    (tmp_path / "tokenizer").mkdir()
    rounded = whole.to(torch.bfloat16).float()  # published in float32, of which transformers keeps what bfloat16 can
    checkpoint = save_vqgan(tmp_path / "tokenizer", rounded)
    import_checkpoint(source, tmp_path / "in", image_tokenizer=checkpoint)
    ours = Omnigram.from_pretrained(tmp_path / "in").image_tokenizer
    codes = torch.arange(64).reshape(1, 8, 8) % CODES
    assert torch.equal(ours.decode(codes), rounded.decode(codes))
    with pytest.warns(UserWarning, match="transformers' chameleon has no image decoder: .* left out"):
        export_checkpoint(tmp_path / "in", "chameleon", tmp_path / "out")
    assert_same_tensors(weights(tmp_path / "out"), weights(source))


def test_one_norm_for_all_heads_is_repeated(tmp_path: Path) -> None:
    """Our own way of storing query and key norms goes out as transformers' Chameleon has them."""
    import_checkpoint(save(chameleon(), tmp_path / "source", chameleon_names()), tmp_path / "in")
    config = Omnigram.from_pretrained(tmp_path / "in").model.config
    config.qk_norm_per_head = False
    ours = randomised(OmnigramForCausalLM(config))
    ours.save_pretrained(tmp_path / "in")
    export_checkpoint(tmp_path / "in", "chameleon", tmp_path / "out")
    back = loaded(ChameleonForConditionalGeneration, tmp_path / "out")
    assert_computes_the_same(ours, back, "chameleon")


def test_text_without_a_tokenizer_file(tmp_path: Path) -> None:
    """vocabulary_map of config.json stands in for the names, and a warning says what is missing."""
    source = save(chameleon(), tmp_path / "source")
    with pytest.warns(UserWarning, match="no tokenizer.json is there, so that it has no words: Auto"):
        import_checkpoint(source, tmp_path / "in")
    vocabulary = json.loads((tmp_path / "in/vocabulary.json").read_text())
    assert vocabulary["specials"]["eoi"] == chameleon_names()["<eoss>"]
    export_checkpoint(tmp_path / "in", "chameleon", tmp_path / "out")
    assert_same_tensors(weights(tmp_path / "out"), weights(source))
    assert small_files(tmp_path / "out") == small_files(source)


def test_ours_goes_out_as_llama(tmp_path: Path) -> None:
    """What never was a published model: its decoder is a Llama, the image tokenizer stays, which a warning says."""
    ours = tiny_export()
    ours.save_pretrained(tmp_path / "in")
    with pytest.warns(UserWarning, match="llama has no image tokenizer"):
        export_checkpoint(tmp_path / "in", "llama", tmp_path / "out")
    back = loaded(LlamaForCausalLM, tmp_path / "out")
    torch.testing.assert_close(logits(back, some_ids()), logits(ours.model, some_ids()), rtol=1e-5, atol=1e-5)


def test_letters_are_the_text(tmp_path: Path) -> None:
    import_checkpoint(save(llama(), tmp_path / "source", llama_names()), tmp_path / "in")
    ours = Omnigram.from_pretrained(tmp_path / "in")
    assert ours.text_tokenizer.encode("ab") == [3 + LETTERS.index("a"), 3 + LETTERS.index("b")]
    assert ours.vocabulary.specials == {"bos": 1, "eos": 2}
