"""The decoder's laws: packing, caching, padding, saving, compiling; every attention implementation agrees."""

from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers import modeling_flash_attention_utils as flash
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from omnigram.model import attention
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.document_attention import documents

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "layer": {"qk_norm": "layer", "qk_norm_per_head": True},
    "rms": {"qk_norm": "rms", "tie_word_embeddings": True},
    "swin": {"norm_order": "swin", "qk_norm": "layer", "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0}},
    "experts": {"num_experts": 4, "num_experts_per_token": 2, "mlp_bias": True},
    "modalities": {
        "modality_ranges": [[40, 21], [20, 12]],
        "modality_norms": True,
        "modality_key_value": True,
        "num_key_value_heads": 2,
    },
}
EVERYTHING: dict[str, Any] = {**OPTIONS["modalities"], "norm_order": "swin", "num_experts": 3}
# two documents and pads; pads between documents; one document
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9 + [-1] * 4, [4] * 3 + [-1] * 2 + [7] * 15, [2] * 20])


def tiny(seed: int = 0, **options: Any) -> OmnigramForCausalLM:
    """A two-layer decoder whose every weight is random, norms and biases included."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    model = OmnigramForCausalLM(OmnigramConfig(vocab_size=61, **{**shape, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=OPTIONS)
def model(request: pytest.FixtureRequest) -> OmnigramForCausalLM:
    return tiny(**OPTIONS[request.param])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_documents_are_the_documents_alone(model: OmnigramForCausalLM, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    tokens = ids(*DOCUMENTS.shape)
    packed = model.model(tokens, document_ids=DOCUMENTS).last_hidden_state
    seen = 0
    for row, document in enumerate(DOCUMENTS):
        for index in set(document.tolist()) - {-1}:
            place = document == index
            alone = model.model(tokens[row, place][None]).last_hidden_state[0]
            torch.testing.assert_close(packed[row, place], alone, rtol=1e-5, atol=1e-5)
            seen += int(place.sum())
    assert seen == (DOCUMENTS >= 0).sum()


def losses(model: OmnigramForCausalLM, implementation: str) -> dict[str, Tensor]:
    """Loss and all gradients of the packed rows."""
    model.set_attn_implementation(implementation)
    model.zero_grad()
    tokens = ids(*DOCUMENTS.shape)
    weights = (DOCUMENTS >= 0).float()
    parts = model.training_loss(tokens, tokens.roll(-1, 1), weights, DOCUMENTS, z_loss=1e-3)
    parts.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(grads) == len(list(model.parameters()))
    return {"loss": parts.loss.detach(), **grads}


@pytest.mark.parametrize("heads", [4, 2])
def test_document_loop_trains_like_the_mask(heads: int) -> None:
    model = tiny(num_key_value_heads=heads)
    ours, reference = losses(model, "sdpa"), losses(model, "eager")
    for name, value in reference.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_sdpa_with_attention_dropout_takes_the_mask() -> None:
    model = tiny(attention_dropout=0.5)  # evaluation: the dropout itself is off
    mask, arguments = attention.document_mask(model.config, DOCUMENTS, torch.float32)
    assert mask.shape == (3, 1, 20, 20)
    assert not arguments
    tokens = ids(*DOCUMENTS.shape)
    masked = model.model(tokens, document_ids=DOCUMENTS).last_hidden_state
    looped = tiny().model(tokens, document_ids=DOCUMENTS).last_hidden_state
    real = DOCUMENTS >= 0
    torch.testing.assert_close(masked[real], looped[real], rtol=1e-5, atol=1e-5)


def varlen_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """flash-attention's interface of [tokens, heads, width], written out; refuses what the kernel refuses."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert causal
    assert (dropout_p, window_size, softcap) == (0.0, (-1, -1), 0.0)
    bounds = cu_seqlens_q.tolist()
    assert (bounds[0], bounds[-1]) == (0, len(q))
    out = []
    for start, end in pairwise(bounds):
        assert 0 < end - start <= min(max_seqlen_q, max_seqlen_k)
        query, key, value = (x[start:end].transpose(0, 1) for x in (q, k, v))
        key, value = (x.repeat_interleave(len(query) // len(key), 0) for x in (key, value))
        scores = query @ key.mT * (softmax_scale or q.shape[-1] ** -0.5)
        future = torch.full(scores.shape[-2:], float("-inf")).triu(1)
        out.append(((scores + future).softmax(-1) @ value).transpose(0, 1))
    return torch.cat(out)


def test_flash_attention_is_handed_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through transformers to a stand-in of the kernel: outputs and gradients are those of the documents alone."""
    calls: list[Tensor] = []

    @wraps(varlen_by_definition)  # transformers looks at its signature
    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs["cu_seqlens_q"])
        return varlen_by_definition(*args, **kwargs)

    def not_these(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("packed rows go to the variable-length kernel")

    model = tiny(num_key_value_heads=2, qk_norm="rms").train()
    tokens = ids(*DOCUMENTS.shape)
    parameters = dict(model.model.named_parameters())

    def summed(states: Tensor, seed: int) -> Tensor:  # another factor for each token, so that no two can be exchanged
        return (states * torch.randn(states.shape[-2:], generator=torch.Generator().manual_seed(seed))).sum()

    places = [(row, DOCUMENTS[row] == n) for row in range(3) for n in set(DOCUMENTS[row].tolist()) - {-1}]
    alone = [model.model(tokens[row, place][None]).last_hidden_state[0] for row, place in places]
    total = sum((summed(states, seed) for seed, states in enumerate(alone)), torch.zeros(()))
    wanted = torch.autograd.grad(total, list(parameters.values()))

    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn"):
        monkeypatch.setattr(flash, name, None)  # what transformers sets when it loads kernels, to be undone
    for name in ("_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):
        monkeypatch.setattr(flash, name, None)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *_, **__: (not_these, kernel, None, None, None))
    model.config._attn_implementation_internal = "flash_attention_2"
    packed = model.model(tokens, document_ids=DOCUMENTS).last_hidden_state
    for (row, place), states in zip(places, alone, strict=True):
        torch.testing.assert_close(packed[row, place], states, rtol=1e-5, atol=1e-5)
    total = sum((summed(packed[row, place], seed) for seed, (row, place) in enumerate(places)), torch.zeros(()))
    found = torch.autograd.grad(total, list(parameters.values()))
    for name, grad, value in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)
    assert [bounds.tolist() for bounds in calls] == [[0, 7, 16, 20, 23, 25, 40, 60]] * 2


@torch.no_grad()
def test_flex_attention_receives_a_block_mask_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention as torch_flex

    def interpreted(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        assert isinstance(mask, torch_flex.BlockMask)
        dense = torch_flex.create_mask(mask.mask_mod, q.shape[0], 1, q.shape[2], k.shape[2], device="cpu")
        additive = torch.where(dense, 0.0, float("-inf"))
        return attention.eager_attention(module, q, k, v, additive, scaling)

    build = torch_flex.create_block_mask
    monkeypatch.setattr(
        "transformers.masking_utils.create_block_mask", lambda **kwargs: build(**{**kwargs, "_compile": False})
    )
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention", interpreted)
    model = tiny()
    tokens = ids(*DOCUMENTS.shape)
    expected = model.model(tokens, document_ids=DOCUMENTS).last_hidden_state
    model.set_attn_implementation("flex_attention")
    flex = model.model(tokens, document_ids=DOCUMENTS).last_hidden_state
    real = DOCUMENTS >= 0
    torch.testing.assert_close(flex[real], expected[real], rtol=1e-5, atol=1e-5)


def test_documents_of_neighbouring_rows_with_one_id_stay_apart() -> None:
    assert documents(torch.tensor([[0, 0, 1], [1, 1, -1], [-1, 3, 3]])) == [(0, 2), (2, 3), (3, 5), (7, 9)]
    assert attention.document_positions(torch.tensor([[5, 5, 5, 2, 2, -1]])).tolist() == [[0, 1, 2, 0, 1, 0]]


@torch.no_grad()
def test_cached_steps_are_the_whole(model: OmnigramForCausalLM) -> None:
    tokens = ids(2, 12)
    whole = model(tokens).logits
    cache, steps = None, []
    for part in tokens.split([5, 1, 1, 3, 1, 1], dim=1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, whole[:, -3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"num_key_value_heads": 2}, EVERYTHING])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_left_padded_prompts_generate_as_alone(implementation: str, options: dict[str, Any]) -> None:
    model = tiny(**options, pad_token_id=0)
    model.set_attn_implementation(implementation)
    prompts = [ids(1, length, seed=length) for length in (3, 6, 9)]
    padded = torch.cat([torch.nn.functional.pad(p, (9 - p.shape[1], 0)) for p in prompts])
    mask = torch.stack([torch.arange(9) >= 9 - p.shape[1] for p in prompts]).long()
    generate = partial(cast(Any, model).generate, max_new_tokens=6, do_sample=False)
    together = generate(padded, attention_mask=mask)
    uncached = generate(padded, attention_mask=mask, use_cache=False)
    assert torch.equal(together, uncached)
    for prompt, row in zip(prompts, together, strict=True):
        alone = generate(prompt, attention_mask=torch.ones_like(prompt))
        assert torch.equal(row[9:], alone[0, prompt.shape[1] :])


@torch.no_grad()
def test_saved_and_loaded_by_the_auto_class(model: OmnigramForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is OmnigramForCausalLM
    assert loaded.config.to_diff_dict() == {**model.config.to_diff_dict(), "architectures": ["OmnigramForCausalLM"]}
    tokens = ids(2, 8)
    assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("options", [{"qk_norm": "rms"}, EVERYTHING])
def test_compiled_trunk_is_one_graph_and_equal(options: dict[str, Any]) -> None:
    model = tiny(**options).train()
    tokens = ids(*DOCUMENTS.shape)
    real = DOCUMENTS >= 0
    expected = model.model(tokens, document_ids=DOCUMENTS).last_hidden_state
    wanted = torch.autograd.grad(expected[real].square().sum(), list(model.model.parameters()))
    compiled = torch.compile(model.model, fullgraph=True, backend="aot_eager")
    out = compiled(tokens, document_ids=DOCUMENTS).last_hidden_state
    grads = torch.autograd.grad(out[real].square().sum(), list(model.model.parameters()))
    torch.testing.assert_close(out[real], expected[real], rtol=1e-5, atol=1e-5)
    for grad, value in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_gradient_checkpointing_changes_no_gradient(options: dict[str, Any]) -> None:
    model = tiny(**options)
    plain = losses(model.train(), "sdpa")
    model.activation_checkpointing_enable()
    checkpointed = losses(model, "sdpa")
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_autocast_trains_packed_rows(options: dict[str, Any]) -> None:
    model = tiny(qk_norm="layer", **options).train()
    tokens = ids(*DOCUMENTS.shape)
    weights = (DOCUMENTS >= 0).float()
    exact = model.training_loss(tokens, tokens.roll(-1, 1), weights, DOCUMENTS).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.training_loss(tokens, tokens.roll(-1, 1), weights, DOCUMENTS).loss
    loss.backward()
    assert abs(loss.item() / exact.item() - 1) < 0.02
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_hidden_states_and_attentions_are_recorded() -> None:
    model = tiny(attn_implementation="eager")
    out = model(ids(2, 5), output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in out.hidden_states] == [(2, 5, 32)] * 3
    assert [a.shape for a in out.attentions] == [(2, 4, 5, 5)] * 2
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(2, 4, 5))


def test_labels_are_shifted_by_the_model() -> None:
    model = tiny()
    tokens = ids(2, 9)
    labels = tokens.clone()
    labels[:, 4:6] = -100
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    parts = model.training_loss(tokens, targets, torch.ones_like(targets, dtype=torch.float32))
    torch.testing.assert_close(model(tokens, labels=labels).loss, parts.loss / (targets >= 0).sum())


def test_no_cache_in_training_or_for_packed_rows() -> None:
    model = tiny()
    assert model.model(ids(1, 4)).past_key_values is not None
    assert model.model(ids(*DOCUMENTS.shape), document_ids=DOCUMENTS).past_key_values is None
    assert model.train().model(ids(1, 4)).past_key_values is None


def test_wrong_calls_are_named() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.model()
    with pytest.raises(ValueError, match="document_ids go with neither"):
        model.model(ids(3, 20), document_ids=DOCUMENTS, attention_mask=torch.ones(3, 20))
