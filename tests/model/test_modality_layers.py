"""Norms, keys and values of each modality: plain decoders by brute force, and everything a decoder is asked to do."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_samplers import tiny_model
from torch import Tensor, nn

from omnigram.model.attention import eager_attention
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.generation.lanes import Lanes
from omnigram.model.modality_layers import ModalityLayers, modality_of
from omnigram.model.rotary import rotate
from omnigram.model.size import build_on_meta, flops_per_token, parameters_by_group

SIZES: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0}
RANGES = [[35, 15], [20, 10]]  # modality 1 behind modality 2, text around them
SEPARATE: dict[str, dict[str, Any]] = {
    "norms": {"modality_norms": True},
    "key_value": {"modality_key_value": True, "attention_bias": True},
    "both": {"modality_norms": True, "modality_key_value": True, "qk_norm": "layer", "qk_norm_per_head": True},
    "swin": {"modality_norms": True, "modality_key_value": True, "norm_order": "swin"},
}
IDS = torch.tensor([[1, 30, 35, 36, 49, 2, 20, 25, 29, 19, 34, 41], [20, 21, 3, 4, 35, 5, 6, 7, 8, 9, 10, 11]])
MODALITY = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2, 2, 0, 0, 1], [2, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]])


def separate(name: str, **options: Any) -> OmnigramForCausalLM:
    return tiny_model(**SIZES, modality_ranges=RANGES, **SEPARATE[name], **options)


def plain_of(model: OmnigramForCausalLM, modality: int) -> OmnigramForCausalLM:
    """The plain decoder with the weights that this modality has."""
    options = {**model.config.to_diff_dict(), "modality_ranges": None}
    config = OmnigramConfig(**{**options, "modality_norms": False, "modality_key_value": False})
    plain = OmnigramForCausalLM(config).double().eval()
    weights = model.state_dict()
    for name in plain.state_dict():
        if name not in weights:
            module, kind = name.rsplit(".", 1)
            weights[name] = weights[f"{module}.{modality}.{kind}"]
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain


def by_modality(layers: list[Any], x: Tensor) -> Tensor:
    """Each token through the layer of its modality, one token at a time."""
    rows = [
        torch.stack([layers[kind](token) for token, kind in zip(row, kinds, strict=True)])
        for row, kinds in zip(x, MODALITY.tolist(), strict=True)
    ]
    return torch.stack(rows)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SEPARATE)
@torch.no_grad()
def test_each_token_goes_through_the_layers_of_its_plain_decoder(name: str) -> None:
    model = separate(name)
    plains = [plain_of(model, modality).model for modality in range(3)]
    config = model.config
    assert config.head_dim is not None
    heads, length = (-1, config.head_dim), IDS.shape[1]
    future = torch.full((length, length), float("-inf")).triu(1)
    rotary = plains[0].rotary_emb(torch.arange(length)[None], torch.float64)
    x = model.model.embed_tokens(IDS)
    for index, block in enumerate(plains[0].layers):
        same = cast(Any, block)
        of = [cast(Any, plain.layers[index]) for plain in plains]

        def attention(x: Tensor, same: Any = same, of: list[Any] = of) -> Tensor:
            q, k, v = (
                projected.unflatten(-1, heads)
                for projected in (
                    same.self_attn.q_proj(x),
                    by_modality([b.self_attn.k_proj for b in of], x),
                    by_modality([b.self_attn.v_proj for b in of], x),
                )
            )
            q, k = rotate(same.self_attn.q_norm(q), *rotary), rotate(same.self_attn.k_norm(k), *rotary)
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            out, _ = eager_attention(same, q, k, v, future[None, None], same.self_attn.scaling)
            return same.self_attn.o_proj(out.flatten(2))

        before = partial(by_modality, [b.input_layernorm for b in of])
        between = partial(by_modality, [b.post_attention_layernorm for b in of])
        if config.norm_order == "pre":
            h = x + attention(before(x))
            x = h + same.mlp(between(h))
        else:
            h = x + before(attention(x))
            x = h + between(same.mlp(h))
    # softmax and norms are float32
    torch.testing.assert_close(model.model(IDS).last_hidden_state, plains[0].norm(x), rtol=1e-5, atol=1e-5)


def equalise(model: OmnigramForCausalLM) -> None:
    """Every modality gets the weights of modality 0."""
    for module in model.modules():
        if isinstance(module, ModalityLayers):
            for layer in module[1:]:
                layer.load_state_dict(module[0].state_dict())


@pytest.mark.parametrize("name", SEPARATE)
@torch.no_grad()
def test_equal_weights_compute_exactly_the_plain_decoder(name: str) -> None:
    model = separate(name)
    plain = plain_of(model, 0)
    assert not torch.equal(model(IDS).logits, plain(IDS).logits)
    equalise(model)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("name", SEPARATE)
def test_gradients_reach_the_modalities_present_alone(name: str) -> None:
    model = separate(name)
    present = IDS[:1, :6]  # text and modality 1
    targets = present.roll(-1, 1)
    model.training_loss(present, targets, torch.ones(targets.shape), torch.zeros_like(present)).loss.backward()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ModalityLayers)}
    assert len(layers) == 2 * sum(model.config.to_dict()[f"modality_{part}"] for part in ("norms", "key_value")) * 2
    for where, module in layers.items():
        for modality, layer in enumerate(module):
            for parameter in layer.parameters():
                assert parameter.grad is not None
                assert bool(parameter.grad.any()) == (modality < 2), (where, modality)


def test_embeddings_need_the_modality_and_compute_the_same() -> None:
    model = separate("both")
    embedded = model.model.embed_tokens(IDS)
    with pytest.raises(ValueError, match="inputs_embeds need modality_ids"):
        model(inputs_embeds=embedded)
    whole = model(IDS).logits
    assert torch.equal(model(inputs_embeds=embedded, modality_ids=MODALITY).logits, whole)
    assert not torch.equal(model(inputs_embeds=embedded, modality_ids=MODALITY.roll(1, 1)).logits, whole)
    # generation goes on with ids, and hands the modalities of the prompt on
    generate = partial(cast(Any, model).generate, max_new_tokens=6, do_sample=False)
    by_ids = generate(IDS, attention_mask=torch.ones_like(IDS))
    by_embedding = generate(inputs_embeds=embedded, modality_ids=MODALITY, attention_mask=torch.ones_like(IDS))
    assert by_ids[:, IDS.shape[1] :].tolist() == by_embedding.tolist()


@torch.inference_mode()
def test_lanes_of_the_sampler_keep_the_keys_of_each_modality() -> None:
    model = separate("both")
    lanes = Lanes(model, lanes=2, length=16)
    open_lanes = [lanes.open() for _ in IDS]
    fed = [0, 0]
    for pieces in ((3, 1), (1, 4), (1, 1), (4, 3)):
        starts, fed = fed, [start + piece for start, piece in zip(fed, pieces, strict=True)]
        spans = zip(starts, fed, strict=True)
        feeds = [
            (lane, row[start:end]) for lane, row, (start, end) in zip(open_lanes, IDS.tolist(), spans, strict=True)
        ]
        hidden = lanes.forward(feeds)
        for row, (lane, ids) in enumerate(feeds):
            found = hidden[lane.base : lane.base + len(ids)]
            expected = model.model(IDS[row : row + 1, : fed[row]]).last_hidden_state[0, starts[row] :]
            assert_equal(found, expected)


@st.composite
def disjoint_ranges(draw: st.DrawFn) -> list[list[int]]:
    bounds = sorted(draw(st.sets(st.integers(0, 50), min_size=2, max_size=8)))
    pairs = [[a, b - a] for a, b in zip(bounds[::2], bounds[1::2], strict=False)]
    return draw(st.permutations(pairs))


@given(disjoint_ranges())
def test_the_modality_of_an_id_is_the_range_that_holds_it(ranges: list[list[int]]) -> None:
    config = OmnigramConfig(vocab_size=50, modality_ranges=ranges, modality_norms=True)
    expected = [next((i for i, (a, n) in enumerate(ranges, 1) if a <= k < a + n), 0) for k in range(50)]
    assert modality_of(torch.arange(50)[None], config).tolist() == [expected]


def test_a_token_passes_through_one_projection_of_each_kind() -> None:
    options: dict[str, Any] = {"vocab_size": 50, "num_hidden_layers": 2, "num_key_value_heads": 2}
    plain = OmnigramConfig(**options)
    config = OmnigramConfig(**options, modality_ranges=RANGES, modality_key_value=True, modality_norms=True)
    counts, before = (parameters_by_group(build_on_meta(c)) for c in (config, plain))
    assert counts["attention"] - before["attention"] == 2 * 2 * 2 * 256 * 128  # layers, modalities more, key and value
    assert counts["norms"] - before["norms"] == 2 * 2 * 2 * 256
    assert flops_per_token(config, 10) == pytest.approx(flops_per_token(plain, 10), rel=1e-12)


def test_every_projection_is_split_over_devices_but_a_router() -> None:
    kinds: list[dict[str, Any]] = [{}, {"num_experts": 2}, {"modality_ranges": RANGES, "modality_key_value": True}]
    for options in kinds:
        model = build_on_meta(OmnigramConfig(vocab_size=50, num_hidden_layers=1, **options))
        names = {n for n, m in model.model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("router")}
        general = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
        plan = cast(dict[str, str], model.config.base_model_tp_plan)
        assert set(plan) == general
        rows = {name for name, style in plan.items() if style == "rowwise"}
        assert rows == {name for name in general if name.endswith(("o_proj", "down_proj"))}
