"""Files of tensors: what is written is what the library reads, what it writes is read, and memory stays small."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_checkpoints import assert_same_tensors, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnigram.model.conversion import pickle_files
from omnigram.model.conversion.identity import image_identity
from omnigram.model.conversion.rules import EachHead, Join, Keep, Operation, Rule, check_all_used, planned
from omnigram.model.conversion.safetensors_files import Planned, read_file, read_folder, write_file, write_folder
from omnigram.tokenizers.checkpoint_names import taming_state
from omnigram.tokenizers.pixel_tokenizer import PixelTokenizer, load_image_tokenizer
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64]


def plan(tensors: dict[str, Tensor]) -> list[Planned]:
    return [Planned(name, tensor.dtype, tuple(tensor.shape), tensor.clone) for name, tensor in tensors.items()]


@st.composite
def states(draw: Any) -> dict[str, Tensor]:
    """Names, shapes (scalars and empty ones too) and types of any mixture."""
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    found = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        found[name] = (torch.randn(shape, generator=generator) * 100).to(draw(st.sampled_from(DTYPES)))
    found.pop("__metadata__", None)
    return found


@given(tensors=states())
def test_both_ways_are_the_library_s(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> None:
    folder = tmp_path_factory.mktemp("files")
    told: list[int] = []
    write_file(folder / "ours.safetensors", plan(tensors), told.append)
    assert sum(told) == sum(tensor.nbytes for tensor in tensors.values())
    assert_same_tensors(load_file(folder / "ours.safetensors"), tensors)
    save_file(tensors, folder / "theirs.safetensors")
    for name in ("ours", "theirs"):
        found = {key: stored.read() for key, stored in read_file(folder / f"{name}.safetensors").items()}
        assert_same_tensors(found, tensors)
        assert all(found[key].shape == tensor.shape for key, tensor in tensors.items())


@pytest.mark.parametrize("shard_bytes", [1, 700, 10**9])
def test_shards_are_no_larger_than_asked(tmp_path: Path, shard_bytes: int) -> None:
    tensors = {f"layer.{number}": torch.full((10, number), float(number)) for number in range(1, 9)}
    write_folder(tmp_path, plan(tensors), lambda _: None, shard_bytes)
    assert_same_tensors(weights(tmp_path), tensors)
    assert_same_tensors({name: stored.read() for name, stored in read_folder(tmp_path).items()}, tensors)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == {1: 8, 700: 3, 10**9: 1}[shard_bytes]
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            held = load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= shard_bytes
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert set(index["weight_map"].values()) == {file.name for file in files}


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Each is made when it is written, and gone before the next is made."""
    import weakref

    alive: list[weakref.ref[Tensor]] = []

    def make() -> Tensor:
        assert all(tensor() is None for tensor in alive)
        made = torch.zeros(4)
        alive.append(weakref.ref(made))
        return made

    write_file(tmp_path / "a", [Planned(str(number), torch.float32, (4,), make) for number in range(3)], lambda _: None)
    assert len(alive) == 3


def stored(tmp_path: Path, **tensors: Tensor) -> Any:
    save_file(tensors, tmp_path / "parts.safetensors")
    return read_file(tmp_path / "parts.safetensors")


@pytest.mark.parametrize(
    ("operation", "sources", "made"),
    [
        (Keep(), [[[1.0, 2.0]], [[1.0, 2.0]]], [[1.0, 2.0]]),
        (Join(0), [[[1.0]], [[2.0]]], [[1.0], [2.0]]),
        (Join(1), [[[1.0], [2.0]], [[3.0], [4.0]]], [[1.0, 3.0], [2.0, 4.0]]),
        (Join(0, heads=1), [[[0.0], [1.0]], [[2.0], [3.0]]], [[0.0], [2.0], [1.0], [3.0]]),
        (Join(0, heads=2), [[[0.0], [1.0], [2.0], [3.0]]], [[0.0], [1.0], [2.0], [3.0]]),
        (EachHead(4), [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]),
        (EachHead(1, rotary=True), [[0.0, 1.0, 2.0, 3.0]], [[0.0, 2.0, 1.0, 3.0]]),
    ],
)
def test_operations(tmp_path: Path, operation: Operation, sources: Any, made: Any) -> None:
    parts = {f"part{number}": torch.tensor(source) for number, source in enumerate(sources)}
    checkpoint = stored(tmp_path, **parts)
    rule = Rule("target", tuple(parts), operation)
    [tensor] = planned([rule], {"target": torch.tensor(made, device="meta")}, checkpoint, tmp_path, "config.json")
    assert tensor.make().tolist() == made
    check_all_used([rule], checkpoint, "config.json")


def test_what_differs_is_not_one_tensor(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, a=torch.zeros(2), b=torch.tensor([0.0, 1e-30]))
    [tensor] = planned([Rule("t", ("a", "b"))], {"t": torch.empty(2)}, checkpoint, tmp_path, "config.json")
    with pytest.raises(ValueError, match="tensor b differs from that in"):
        tensor.make()


def test_pickles_are_read_through_what_a_training_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the file is mapped anew between tensors, or for one alone."""
    state = {"a": torch.rand(3), "b": torch.rand(2, 2).bfloat16(), "c": torch.rand(2)}
    torch.save({"state_dict": state | {"loss.a": torch.rand(3)}, "epoch": 7}, tmp_path / "a.ckpt")
    for mapped_bytes in (pickle_files.MAPPED_BYTES, 12, 4):
        monkeypatch.setattr(pickle_files, "MAPPED_BYTES", mapped_bytes)
        found = pickle_files.read_file(tmp_path / "a.ckpt", taming_state)
        assert_same_tensors({name: stored.read() for name, stored in found.items()}, state)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "both"])
def test_the_identity_is_that_of_the_loaded_tokenizer(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    tokenizer: PixelTokenizer = VQGAN(VQGANConfig(8, 16, 8, 16, 32, (1, 2), 1))
    tokenizer.save_pretrained(tmp_path)
    if kind != "float32":
        state = load_file(tmp_path / "model.safetensors")
        state = {n: t.bfloat16() if kind == "bfloat16" or n.startswith("encoder") else t for n, t in state.items()}
        save_file(state, tmp_path / "model.safetensors")
    found = image_identity(tokenizer, read_file(tmp_path / "model.safetensors"))
    assert found == load_image_tokenizer(tmp_path).identity
