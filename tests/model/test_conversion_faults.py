"""Damaged and contradictory sources: one line that names file, tensor and remedy, and no output."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_checkpoints import (
    CODES,
    NOT_DRAWN,
    VOCAB,
    chameleon_names,
    llama_names,
    made_vqgan,
    save_published,
    save_tokenizer,
    save_vqgan,
    weights,
)
from safetensors.torch import load_file, save_file

from omnigram.model.conversion import export_checkpoint, import_checkpoint
from omnigram.tokenizers.published import chameleon_code_name

pytestmark = pytest.mark.filterwarnings(NOT_DRAWN)
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published(tmp_path_factory.mktemp("published"))


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Changes the tensors of model.safetensors."""

    def act(folder: Path) -> None:
        state = weights(folder)
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return act


def config(**changes: Any) -> Change:
    def act(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return act


def nested(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())[name]


def content(change: Callable[[bytes], bytes], name: str = "model.safetensors") -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Changes the JSON at the beginning of model.safetensors."""

    def act(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        fields = json.loads(data[8 : 8 + length])
        change(fields)
        text = json.dumps(fields).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return content(act)


def index(change: Callable[[dict[str, str]], Any]) -> Change:
    def act(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        fields = json.loads(path.read_text())
        change(fields["weight_map"])
        path.write_text(json.dumps(fields))

    return act


def second_copy(folder: Path) -> None:
    """A tensor of the first shard in the last as well."""
    first, *_, last = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: tensor}, last, {"format": "pt"})


def setting(path: Path, **changes: Any) -> None:
    """Changes the vqgan.yaml beside a vqgan.ckpt."""
    settings = yaml.safe_load(path.with_suffix(".yaml").read_text())
    settings["model"]["params"]["ddconfig"] |= changes
    path.with_suffix(".yaml").write_text(yaml.safe_dump(settings))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = "<!DOCTYPE html><html><head><title>Log in</title></head></html>"
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
NORM, HEAD = "model.norm.weight", "lm_head.weight"
FAULTS: dict[str, tuple[str, Change, str]] = {
    "missing tensor": ("one", tensors(lambda s: s.pop(NORM)), f"one: tensor {NORM} is missing, which .*config.json"),
    "extra tensor": (
        "one",
        tensors(lambda s: s.update(extra=torch.ones(2))),
        "model.safetensors: tensor extra has no place in a model of .*config.json",
    ),
    "misshapen tensor": (
        "one",
        tensors(lambda s: s.update({HEAD: torch.ones(VOCAB, 31)})),
        rf"model.safetensors: tensor {HEAD} is float \[160, 31\], but .*config.json asks for float \[160, 32\]: take",
    ),
    "integers for floats": (
        "one",
        tensors(lambda s: s.update({NORM: torch.ones(32, dtype=torch.int64)})),
        f"tensor {NORM} is integer .* asks for float",
    ),
    "image tensor": (
        "one",
        tensors(lambda s: s.pop("model.vqmodel.quant_conv.bias")),
        "tensor model.vqmodel.quant_conv.bias is missing",
    ),
    "type": (
        "one",
        tensors(lambda s: s.update({NORM: s[NORM].to(torch.float8_e4m3fn)})),
        f"model.safetensors: tensor {NORM} is of type F8_E4M3, and only float32, float16 and bfloat16 are converted",
    ),
    "width": ("one", config(hidden_size=64), r"tensor .* is float .* but .*config.json asks for float .*64"),
    "more layers": ("one", config(num_hidden_layers=3), r"tensor model.layers.2.* \(and 12 more\) is missing"),
    "fewer layers": ("one", config(num_hidden_layers=1), r"tensor model.layers.1.* has no place"),
    "tied": ("one", config(tie_word_embeddings=True), f"tensor {HEAD} has no place"),
    "activation": ("one", config(hidden_act="gelu"), "config.json: hidden_act 'gelu' is not supported"),
    "epsilon": ("one", config(rms_norm_eps=1e-6), "config.json: rms_norm_eps 1e-06 is not supported"),
    "rotary": ("llama", config(rope_parameters=DYNAMIC), "config.json: rope_parameters.rope_type 'dynamic'"),
    "no number": ("one", config(hidden_size="wide"), "config.json is no configuration of a chameleon: .*hidden_size"),
    "codes": (
        "one",
        lambda folder: config(vq_config=nested(folder, "vq_config") | {"num_embeddings": 8})(folder),
        "tensor model.vqmodel.quantize.embedding.weight is float",
    ),
    "model type": (
        "one",
        config(model_type="bert"),
        "config.json: model_type 'bert' is not known; those that are: chameleon, emu3, emu3_text_model, Emu3, llama",
    ),
    "no JSON": ("one", content(lambda data: data[:40], "config.json"), "config.json is no JSON"),
    "a list": ("one", content(lambda _: b"[]", "config.json"), "config.json holds no JSON object"),
    "no heads": ("llama", config(num_attention_heads=0), "config.json: a width or a number of heads is 0: take"),
    "no channels": (
        "one",
        lambda folder: config(vq_config=nested(folder, "vq_config") | {"base_channels": 0})(folder),
        "config.json: base_channels 0 times",
    ),
    "names with words for ids": ("one", config(vocabulary_map={"a": "b"}), "config.json: vocabulary_map is not tokens"),
    "pointer": ("one", content(lambda _: LFS.encode()), "model.safetensors is a pointer of git-lfs in the place of"),
    "pointer of an index": (
        "several",
        content(lambda _: LFS.encode(), "model.safetensors.index.json"),
        "index.json is a pointer of git-lfs",
    ),
    "pointer of tokens": ("one", content(lambda _: LFS.encode(), "tokenizer.json"), "tokenizer.json is a pointer of"),
    "page": ("one", content(lambda _: PAGE.encode()), "model.safetensors is a web page in the place of the file"),
    "empty": ("one", content(lambda _: b""), "model.safetensors is empty: download it again"),
    "sides": (
        "one",
        lambda folder: (folder / "preprocessor_config.json").write_text(
            '{"image_processor_type": "ChameleonImageProcessor", "crop_size": {"height": 13, "width": 16}}'
        ),
        "preprocessor_config.json: pictures of 13 x 16 pixels: sides must be multiples of 2",
    ),
    "no header": ("one", content(lambda data: data[:5]), "model.safetensors is cut off or no safetensors"),
    "cut in the header": ("one", content(lambda data: data[:500]), "model.safetensors is cut off or no safetensors"),
    "cut in the data": ("one", content(lambda data: data[:-1]), "model.safetensors is cut off: tensor .* is not all"),
    "longer": ("one", content(lambda data: data + b"12"), "model.safetensors has 2 bytes behind its tensors"),
    "other bytes": ("one", content(lambda data: data[:8] + b"\xff" * (len(data) - 8)), "file: its header is damaged"),
    "huge header": ("one", content(lambda data: b"\xff" * 8 + data[8:]), "model.safetensors is cut off or no"),
    "offsets": (
        "one",
        header(lambda fields: fields[NORM].update(data_offsets=[0, 128])),
        "model.safetensors: tensor .* does not lie where the header says",
    ),
    "header entry": ("one", header(lambda fields: fields.update({NORM: 3})), "safetensors file: its header is damaged"),
    "no weights": ("one", lambda f: (f / "model.safetensors").unlink(), "holds no weights, .*: download it again"),
    "pickled weights": (
        "one",
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "holds no weights, neither .*: pytorch_model.bin is not read: load it with transformers",
    ),
    "no shard": (
        "several",
        lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(),
        "model-00002-of-.* is missing, in which model.safetensors.index.json has tensor .*: download",
    ),
    "shard elsewhere": (
        "several",
        index(lambda listed: listed.update({NORM: "../one/model.safetensors"})),
        "model.safetensors is missing, in which",
    ),
    "not in the shard": (
        "several",
        index(lambda listed: listed.update(more=listed[NORM])),
        "safetensors: tensor more is missing, which model.safetensors.index.json has there",
    ),
    "not in the index": ("several", index(lambda listed: listed.pop(NORM)), f"tensor {NORM} is not where .* has it"),
    "twice": ("several", second_copy, "tensor .* is in model-00001-of-.* as well"),
    "no index": (
        "several",
        content(lambda _: b"{}", "model.safetensors.index.json"),
        "index.json is no index of safetensors",
    ),
    "tokens of another model": (
        "one",
        lambda folder: save_tokenizer(folder / "tokenizer.json", llama_names()),
        r"tokenizer.json is of another model: '.*' is \S+, in the vocabulary_map of .*config.json \d+; take",
    ),
    "tokens without pictures": (
        "one",
        lambda folder: (config(vocabulary_map={})(folder), save_tokenizer(folder / "tokenizer.json", llama_names())),
        "tokenizer.json: not the tokens of Chameleon: none is named IMGIMG",
    ),
    "too many tokens": (
        "llama",
        lambda folder: save_tokenizer(folder / "tokenizer.json", {f"t{number}": number for number in range(VOCAB + 1)}),
        "tokenizer.json: not the tokens of this model: they go up to 160, it has 160 ids",
    ),
    "fewer codes": (
        "one",
        lambda folder: (config(vocabulary_map={})(folder), save_tokenizer(folder / "tokenizer.json", fewer_codes())),
        "tokenizer.json names 15 image codes, .*config.json 16",
    ),
    "no names": (
        "one",
        lambda folder: (config(vocabulary_map=None)(folder), (folder / "tokenizer.json").unlink()),
        "names no tokens: neither tokenizer.json nor a vocabulary_map",
    ),
    "no tokenizer": ("one", content(lambda _: b"{}", "tokenizer.json"), "tokenizer.json is no tokenizer.json"),
    "pixels": (
        "one",
        lambda folder: (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIP"}'),
        "preprocessor_config.json: .*image_processor_type='CLIP' is none of",
    ),
}  # fmt: skip


def fewer_codes() -> dict[str, int]:
    """Chameleon's tokens, but for code 15, whose id is not used."""
    names = chameleon_names()
    ids = sorted(id_ for name, id_ in names.items() if name.startswith("IMGIMG"))
    names = {name: id_ for name, id_ in names.items() if not name.startswith("IMGIMG")}
    return names | {chameleon_code_name(code): ids[code] for code in range(CODES - 1)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_source_is_one_line(published: Path, tmp_path: Path, fault: str) -> None:
    which, change, message = FAULTS[fault]
    shutil.copytree(published / which, tmp_path / which)
    change(tmp_path / which)
    with pytest.raises((ValueError, OSError), match=message) as told:
        import_checkpoint(tmp_path / which, tmp_path / "out")
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == [which]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensors(lambda s: s.pop(NORM)), f"in: tensor {NORM} is missing, which in/config.json asks for"),
        (tensors(lambda s: s.update(extra=torch.ones(2))), "in/model.safetensors: tensor extra has no place in a"),
        (content(lambda data: data[:-1]), "in/model.safetensors is cut off"),
        (content(lambda data: data[:-1], "image/model.safetensors"), "in/image/model.safetensors is cut off"),
        (content(lambda _: b"{", "image/config.json"), "in/image/config.json is not the configuration of an image"),
        (content(lambda _: b"{", "config.json"), "in/config.json is no JSON"),
        (config(hidden_size="wide"), "in/config.json is not the configuration of an export: .*hidden_size"),
        (
            config(num_attention_heads=0),
            "config.json is not the configuration of .*: num_attention_heads is 0",
        ),
        (config(model_type="llama"), "in/config.json is of a model of type 'llama', not of an export"),
        (lambda folder: (folder / "config.json").unlink(), "in is not an export of Omnigram: config.json is missing"),
        (
            content(lambda text: text.replace(b'"eos": 2', b'"eos": 3'), "vocabulary.json"),
            r"in/vocabulary.json is not what .* with \(vocabulary \w{12}, in omnigram.json .*: put back",
        ),
        (
            content(lambda text: text.replace(b'"!"', b'"+"'), "tokenizer.json"),
            r"in/tokenizer.json is not what the model was trained with \(text ",
        ),
        (
            lambda folder: tensors(lambda s: s["quant_conv.bias"].add_(1))(folder / "image"),
            r"in/image/model.safetensors is not what the model was trained with \(image ",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "in holds no text tokenizer"),
        (
            content(lambda _: b'{"kind": "vqgan", "depth": 3}', "image/config.json"),
            "in/image/config.json is not the",
        ),
        (content(lambda _: b"{", "omnigram.json"), "in: not the card of an export"),
    ],
)
def test_a_damaged_export_is_one_line(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    import_checkpoint(published / "one", "in")
    change(Path("in"))
    with pytest.raises((ValueError, OSError), match=message) as told:
        export_checkpoint("in", "chameleon", "out")
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: torch.save({"state_dict": {"a": Code()}}, path), "vqgan.ckpt is refused, .* code that would run"),
        (lambda path: path.write_bytes(path.read_bytes()[:-90]), "vqgan.ckpt is (cut off|refused)"),
        (lambda path: path.write_bytes(b""), "vqgan.ckpt is empty: download it again"),
        (lambda path: path.write_text("hello"), "vqgan.ckpt is cut off or no file of torch.save"),
        (lambda path: path.write_text(LFS), "vqgan.ckpt is a pointer of git-lfs .*: run `git lfs pull`"),
        (lambda path: path.write_text(PAGE), "vqgan.ckpt is a web page in the place of the file"),
        (lambda path: path.with_suffix(".yaml").write_text(LFS), "vqgan.yaml is a pointer of git-lfs"),
        (lambda path: setting(path, ch="wide"), "vqgan.yaml: base_channels is 'wide': it must be a whole number"),
        (lambda path: setting(path, ch=0), "vqgan.yaml: base_channels 0 times"),
        (lambda path: setting(path, ch_mult=3), "vqgan.yaml is no configuration of a VQGAN"),
        (lambda path: torch.save({"state_dict": [1]}, path), "vqgan.ckpt: its state_dict is a list, no tensors"),
        (lambda path: torch.save({1: torch.ones(2)}, path), "vqgan.ckpt: 1 is a Tensor"),
        (lambda path: path.write_bytes(b"no checkpoint"), "vqgan.ckpt is refused, for it is damaged"),
        (lambda path: torch.save([1, 2], path), "vqgan.ckpt holds a list, no tensors by name"),
        (lambda path: torch.save({"a": 1}, path), "vqgan.ckpt: a is a int, no tensor"),
        (lambda path: torch.save({"a": torch.ones(2).double()}, path), "vqgan.ckpt: tensor a is of type float64"),
        (lambda path: torch.save({"a": torch.ones(2)}, path), r"tensor vqgan.ckpt:\S+ \(and \d+ more\) is missing"),
        (
            lambda path: save_vqgan(path.parent, made_vqgan(3)),
            "vqgan.ckpt: tensor .* differs from that in",
        ),
        (
            lambda path: save_vqgan(path.parent, made_vqgan(3, codebook_size=8)),
            "vqgan.yaml is not of the image tokenizer that .*config.json describes",
        ),
        (lambda path: path.unlink(), "vqgan.ckpt holds no image tokenizer"),
    ],
)
def test_a_faulty_image_tokenizer_is_one_line(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Change, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_vqgan(tmp_path, made_vqgan())
    made(path)
    with pytest.raises((ValueError, OSError), match=message) as told:
        import_checkpoint(published / "one", tmp_path / "out", image_tokenizer=path)
    assert "\n" not in str(told.value)
    assert not {"out", ".out.partial", "ran"} & {found.name for found in tmp_path.iterdir()}
