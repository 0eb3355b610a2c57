"""Meta's Chameleon, written from a known model part by part, comes back bit for bit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange, repeat
from made_checkpoints import (
    LETTERS,
    RESERVED_IMAGE,
    VOCAB,
    assert_same_tensors,
    chameleon_names,
    made_vqgan,
    randomised,
    save_meta,
    split_rotary,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    ChameleonForConditionalGeneration,
)

from omnigram.model.bundle import Omnigram
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.conversion import export_checkpoint, import_checkpoint
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.tokenizers.preprocessing import CHAMELEON


def known(parts: int, norm_order: str, dtype: torch.dtype = torch.float32) -> OmnigramForCausalLM:
    """A Chameleon whose query and key norms are the same within the heads of each part, as devices had them."""
    torch.manual_seed(0)
    config = OmnigramConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        qk_norm="layer",
        qk_norm_per_head=True,
        norm_order=norm_order,
    )
    model = randomised(OmnigramForCausalLM(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                first = rearrange(parameter, "(n h) k -> n h k", n=parts)[:, 0].clone()
                parameter.copy_(repeat(first, "n k -> (n h) k", h=len(parameter) // parts))
    for parameter in model.parameters():  # not the rotary frequencies
        parameter.data = parameter.to(dtype)
    return model


@pytest.mark.parametrize(
    ("parts", "norm_order", "dtype"),
    [(1, "pre", torch.float32), (2, "pre", torch.float32), (4, "swin", torch.float32), (2, "swin", torch.bfloat16)],
)
def test_parts_become_the_model_they_were_made_of(
    tmp_path: Path, parts: int, norm_order: str, dtype: torch.dtype
) -> None:
    model, vqgan = known(parts, norm_order, dtype), made_vqgan()
    place = save_meta(tmp_path, model, vqgan, parts)
    import_checkpoint(place, tmp_path / "in", shard_bytes=100_000)
    ours = Omnigram.from_pretrained(tmp_path / "in")
    assert_same_tensors(ours.model.state_dict(), model.state_dict())
    assert_same_tensors(ours.image_tokenizer.state_dict(), vqgan.state_dict())
    ids = torch.randint(VOCAB, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours.model.float()(ids).logits, model.float()(ids).logits)
    assert ours.card.preprocessing is not None
    assert (ours.card.preprocessing.transparency, ours.card.preprocessing.crop) == (CHAMELEON.transparency, (16, 16))


def rotate_neighbours(x: Tensor) -> Tensor:
    """Positions as Meta turns them: pairs (2 i, 2 i + 1) as complex numbers. x [B, T, H, K]."""
    size = x.shape[-1]
    frequency = 1e4 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    turned = (
        torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    return torch.view_as_real(turned).flatten(-2).float()


def test_meta_computes_the_same_attention(tmp_path: Path) -> None:
    """Queries and keys by Meta's own order of things, of its own tensors, have the scores of the imported model."""
    model = known(1, "pre")
    place = save_meta(tmp_path, model, made_vqgan(), 1)
    import_checkpoint(place, tmp_path / "in")
    ours: Any = Omnigram.from_pretrained(tmp_path / "in").model.model
    theirs = torch.load(place / "consolidated.pth", weights_only=True)
    x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(2))

    def scores(query: Tensor, key: Tensor) -> Tensor:
        return torch.einsum("bthk,bshk->bhts", query, key.repeat_interleave(2, dim=2))

    def prepared(name: str) -> Tensor:
        head = F.linear(x, theirs[f"layers.1.attention.w{name}.weight"]).unflatten(-1, (-1, 6))
        norm = [theirs[f"layers.1.attention.{name}_normalization.{kind}"] for kind in ("weight", "bias")]
        return rotate_neighbours(F.layer_norm(head, (6,), *norm, eps=1e-5))

    attention = ours.layers[1].self_attn
    cos, sin = ours.rotary_emb(torch.arange(7)[None], torch.float32)
    made = []
    for name in ("q", "k"):
        head = getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, 6))
        head = getattr(attention, f"{name}_norm")(head)
        made.append(head * cos + torch.cat((-head[..., 3:], head[..., :3]), dim=-1) * sin)
    torch.testing.assert_close(scores(made[0], made[1]), scores(prepared("q"), prepared("k")), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:transformers' chameleon has no image decoder", "ignore:preprocessor_config.json only"
)
def test_out_to_transformers(tmp_path: Path) -> None:
    """As transformers' own conversion has it: the reserved token is <image>, and codes are found by name."""
    model, vqgan = known(2, "swin"), made_vqgan()
    import_checkpoint(save_meta(tmp_path, model, vqgan, 2), tmp_path / "in")
    export_checkpoint(tmp_path / "in", "chameleon", tmp_path / "out")
    loaded: Any = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs, info = loaded
    assert not any(info.values())
    image = chameleon_names(RESERVED_IMAGE)[RESERVED_IMAGE]
    assert theirs.config.image_token_id == image
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ids = Omnigram.from_pretrained(tmp_path / "in").vocabulary.encode("image", vqgan.encode(pixels).flatten())
    with torch.no_grad():
        assert theirs.model.get_image_tokens(pixels).flatten().tolist() == ids.tolist()
        text = torch.tensor([[0, *range(24, 44)]])
        kept = [id_ for name, id_ in chameleon_names().items() if not name.startswith("IMGIMG")]
        torch.testing.assert_close(theirs(text).logits[..., kept], model(text).logits[..., kept], rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a<image>b")["input_ids"] == [24 - 2 + LETTERS.index("a"), image, 24 - 2 + LETTERS.index("b")]
    assert (tokenizer.sep_token, tokenizer.boi_token) == ("<reserved08706>", "<racm3:break>")
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["crop_size"] == {
        "height": 16,
        "width": 16,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda place: (place / "consolidated.01.pth").unlink(),
            "holds 1 parts of .*te_params.json says 2: download all",
        ),
        (lambda place: (place / "consolidated.00.pth").unlink(), "consolidated.00.pth is missing"),
        (
            lambda place: edit(place, 1, {"norm.weight": lambda w: w + 1}),
            "01.pth: tensor norm.weight differs",
        ),
        (lambda place: edit(place, 1, {"output.weight": None}), "consolidated.01.pth:output.weight is missing"),
        (
            lambda place: edit(place, 1, {"new": lambda _: torch.ones(2)}),
            "01.pth: tensor new has no place",
        ),
        (
            lambda place: edit(place, 0, {"layers.1.attention.wo.weight": lambda w: w[:, 1:]}),
            re.escape("consolidated.00.pth: tensor layers.1.attention.wo.weight is float [48, 23], but"),
        ),
        (
            lambda place: edit(place, 1, {"layers.1.attention.wo.weight": Tensor.half}),
            "consolidated.01.pth: tensor layers.1.attention.wo.weight is torch.float16, in",
        ),
        (lambda place: params(place, n_heads=0), "params.json is not that of a Chameleon: num_attention_heads is 0"),
        (lambda place: params(place, n_kv_heads=0), "params.json is not that of a Chameleon: num_key_value_heads 0"),
        (lambda place: params(place, multiple_of=0), "params.json is not that of a Chameleon: multiple_of is 0"),
        (lambda place: params(place, dim="wide"), "params.json is not that of a Chameleon"),
        (
            lambda place: (place / "params.json").write_text('{"model": []}'),
            r"params.json is not that of a Chameleon: model is \[\], no object",
        ),
        (
            lambda place: (place / "consolidate_params.json").write_text('{"model_parallel_size": "2"}'),
            "consolidate_params.json: model_parallel_size is '2', and must be the number of parts",
        ),
        (lambda place: params(place, n_layers=3), "layers.2.* is missing, which .*params.json asks for"),
        (lambda place: params(place, dim=50), "params.json is not that of a Chameleon: .*multiple"),
        (lambda place: params(place, n_heads=None), "params.json is not that of a Chameleon"),
        (lambda place: params(place, norm_eps=1e-6), "rms_norm_eps 1e-06 is not supported"),
        (lambda place: params(place, qk_normalization=False), "attention.._normalization.* has no place"),
        (lambda place: (tokenizers(place) / "vqgan.ckpt").unlink(), "holds no image tokenizer|vqgan.ckpt"),
        (lambda place: (tokenizers(place) / "vqgan.yaml").unlink(), "vqgan.yaml is missing"),
        (lambda place: (tokenizers(place) / "vqgan.yaml").write_text("model: 3"), "vqgan.yaml is no configuration"),
        (lambda place: (tokenizers(place) / "text_tokenizer.json").unlink(), "text_tokenizer.json is missing"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, change: Any, message: str) -> None:
    place = save_meta(tmp_path, known(2, "pre"), made_vqgan(), 2)
    change(place)
    with pytest.raises((ValueError, OSError), match=message) as told:
        import_checkpoint(place, tmp_path / "in")
    assert "\n" not in str(told.value)
    assert not [path for path in tmp_path.iterdir() if "in" in path.name]


def edit(place: Path, part: int, changes: dict[str, Any]) -> None:
    path = place / f"consolidated.{part:02}.pth"
    state = torch.load(path, weights_only=True)
    for name, change in changes.items():
        tensor = state.pop(name, None)
        if change is not None:
            state[name] = change(tensor).contiguous()
    torch.save(state, path)


def params(place: Path, **changes: Any) -> None:
    fields = json.loads((place / "params.json").read_text())
    fields["model"] |= changes
    (place / "params.json").write_text(json.dumps(fields))


def tokenizers(place: Path) -> Path:
    return place.parents[1] / "tokenizer"


def test_a_pickle_of_before_zip_files(tmp_path: Path) -> None:
    """Such files cannot be mapped, and are read whole."""
    model = known(1, "pre")
    place = save_meta(tmp_path, model, made_vqgan(), 1)
    state = torch.load(place / "consolidated.pth", weights_only=True)
    torch.save(state, place / "consolidated.pth", _use_new_zipfile_serialization=False)
    import_checkpoint(place, tmp_path / "in")
    assert_same_tensors(Omnigram.from_pretrained(tmp_path / "in").model.state_dict(), model.state_dict())


def test_split_rotary_undoes_halves() -> None:
    """What the tests write is what Meta's checkpoints have, of which transformers' own conversion says the inverse."""
    weight = torch.arange(12.0)[:, None].expand(12, 2)
    meta = split_rotary(weight, 2)
    assert meta[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(meta.view(2, 3, 2, 2).transpose(1, 2).reshape(12, 2), weight)
