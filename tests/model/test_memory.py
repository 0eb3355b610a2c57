"""The memory model against what is there: counts of transformers' models, tensors that a forward pass keeps, the most
memory that a whole step takes, states of the real optimizers, shards of the real FSDP2."""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from made_memory import Live
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3ForCausalLM,
    Emu3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from omnigram.model.activations import AUTOCAST, BFLOAT16, FLOAT32, Precision, kept_bytes, loss_bytes
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.model.memory import Division, count_parameters, training_memory
from omnigram.model.size import build_on_meta
from omnigram.train.optimizer import build_optimizers, hidden_matrices

FOLDER = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "export")


@cache
def load(name: str) -> OmnigramConfig:
    with initialize_config_module("omnigram.conf", version_base="1.3"):
        node = compose(overrides=[f"+model={name}"]).model
    if OmegaConf.is_missing(node, "vocab_size"):
        node.vocab_size = 3072
    return instantiate(node)


def theirs(config: OmnigramConfig) -> nn.Module:
    """transformers' model of the same sizes, on the meta device."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "tie_word_embeddings"
    )
    sizes: dict[str, Any] = {name: getattr(config, name) for name in names.split()}
    assert config.head_dim is not None
    with torch.device("meta"):
        if config.norm_order == "swin" or config.qk_norm == "layer":
            return ChameleonForConditionalGeneration(
                ChameleonConfig(**sizes, swin_norm=config.norm_order == "swin", vocabulary_map={"<image>": 8711})
            )
        if config.qk_norm == "rms":
            return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=config.head_dim))
        if config.num_experts:
            return MixtralForCausalLM(
                MixtralConfig(**sizes, num_local_experts=config.num_experts, num_experts_per_tok=2)
            )
        if config.vocab_size == Emu3TextConfig().vocab_size:
            return Emu3ForCausalLM(Emu3TextConfig(**sizes))
        return LlamaForCausalLM(LlamaConfig(**sizes, head_dim=config.head_dim))


def counted(model: nn.Module, *words: str) -> int:
    """Parameters of the decoder whose name has one of the words."""
    named = [(name, p) for name, p in model.named_parameters() if "vqmodel" not in name]
    return sum(p.numel() for name, p in named if any(word in name for word in words))


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_transformers(name: str) -> None:
    config, model = load(name), theirs(load(name))
    found = count_parameters(config)
    assert found.total == found.active == counted(model, "")
    assert found.by_group == {
        "embedding": counted(model, "embed_tokens"),
        "head": counted(model, "lm_head"),
        "attention": counted(model, "q_proj", "k_proj", "v_proj", "o_proj"),
        "feed_forward": counted(model, "mlp."),
        "norms": counted(model, "norm"),
    }
    ours = build_on_meta(config)
    assert found.matrices == found.linear == found.divided == sum(m.numel() for m in hidden_matrices(ours))
    assert found.block * config.num_hidden_layers == sum(p.numel() for p in ours.model.layers.parameters())


def test_a_token_passes_through_few_experts() -> None:
    config = made(num_experts=4, num_key_value_heads=2)
    found, model = count_parameters(config), theirs(config)
    experts = counted(model, "experts")
    assert found.total == counted(model, "")
    assert found.active == found.total - experts // 2
    assert found.linear == found.matrices == sum(m.numel() for m in hidden_matrices(build_on_meta(config)))
    assert found.divided == found.linear - 3 * 4 * 64  # routers stay whole
    assert found.block_divided == found.divided // 3


def test_a_token_has_one_modality() -> None:
    config = made(modality_ranges=[[100, 50], [300, 20]], modality_norms=True, modality_key_value=True)
    found, plain = count_parameters(config), count_parameters(made())
    assert found.total > found.active == plain.total


def made(**options: Any) -> OmnigramConfig:
    sizes: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
    return OmnigramConfig(**{**sizes, "num_attention_heads": 4, **options})


def model_of(config: OmnigramConfig, precision: Precision, checkpointing: bool) -> OmnigramForCausalLM:
    torch.manual_seed(0)
    model = OmnigramForCausalLM(config).train()
    if precision is BFLOAT16:
        model = model.to(torch.bfloat16)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


def autocast(precision: Precision) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision is AUTOCAST else contextlib.nullcontext()


def loss_of(model: OmnigramForCausalLM, rows: int, length: int) -> Tensor:
    ids = torch.randint(0, model.config.vocab_size, (rows, length))
    weights = torch.ones(rows, length)
    parts = model.training_loss(ids, ids, weights, document_ids=torch.zeros_like(ids))
    return parts.loss / parts.weight


def kept_by_forward(model: OmnigramForCausalLM, precision: Precision, rows: int, length: int) -> int:
    """Bytes of the storages that autograd saves, the model's own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}  # alive, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with autocast(precision), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, rows, length)
    return sum(storage.nbytes() for storage in storages.values())


def expected(config: OmnigramConfig, precision: Precision, rows: int, length: int, checkpointing: bool) -> float:
    """The same by the formulas: activations, bfloat16 weights, and the gradients that the loss keeps."""
    tokens, width = rows * length, config.hidden_size
    kept = tokens * kept_bytes(config, precision, length, checkpointing, on_cpu=True)
    kept += tokens * width * max(precision.weight, precision.stream) + precision.weight * config.vocab_size * width
    if checkpointing:  # alive, but held by the functions that compute again, where autograd's hooks do not come
        assert config.head_dim is not None
        return kept - tokens * (8 + 2 * config.head_dim * precision.stream)
    return kept + (2 * count_parameters(config).linear if precision is AUTOCAST else 0)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rms": {"qk_norm": "rms"},
    "grouped": {"qk_norm": "rms", "num_key_value_heads": 2},
    "layer": {"qk_norm": "layer", "qk_norm_per_head": True},
    "swin": {"qk_norm": "rms", "norm_order": "swin"},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "eager": {"attn_implementation": "eager", "num_key_value_heads": 2},
    "dropout": {"residual_dropout": 0.1, "embedding_dropout": 0.1},
    "experts": {"num_experts": 4},
    "modalities": {"modality_ranges": [[100, 50]], "modality_norms": True, "modality_key_value": True},
    "modalities, swin": {"modality_ranges": [[100, 50]], "modality_norms": True, "norm_order": "swin"},
}
PRECISIONS = {"float32": FLOAT32, "autocast": AUTOCAST, "bfloat16": BFLOAT16}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_forward_pass_keeps_what_the_formula_says(option: str, precision: str, checkpointing: bool) -> None:
    config, bytes_of = made(**OPTIONS[option]), PRECISIONS[precision]
    found = kept_by_forward(model_of(config, bytes_of, checkpointing), bytes_of, rows=2, length=64)
    assert expected(config, bytes_of, 2, 64, checkpointing) == pytest.approx(found, rel=0.015)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("name", ["tiny", "nano"])
@pytest.mark.parametrize("length", [128, 320])
def test_shipped_models_keep_what_the_formula_says(name: str, length: int, checkpointing: bool) -> None:
    config = load(name)
    found = kept_by_forward(model_of(config, FLOAT32, checkpointing), FLOAT32, rows=1, length=length)
    assert expected(config, FLOAT32, 1, length, checkpointing) == pytest.approx(found, rel=0.01)


def optimizers_of(model: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    usual = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01}
    settings = OmegaConf.create({**usual, "muon_learning_rate": 1e-3 if muon else None})
    return build_optimizers(model, settings, torch.device("cpu"))


def states(optimizers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from ((name, value) for name, value in state.items() if isinstance(value, Tensor))


@pytest.mark.parametrize("muon", [False, True], ids=["AdamW", "Muon"])
@pytest.mark.parametrize("option", ["plain", "biases", "experts", "modalities"])
def test_the_optimizers_hold_what_is_counted(option: str, muon: bool) -> None:
    config = made(**OPTIONS[option])
    model = model_of(config, FLOAT32, False)
    optimizers = optimizers_of(model, muon)
    loss_of(model, 1, 64).backward()
    for optimizer in optimizers:
        optimizer.step()
    found = sum(value.nbytes for name, value in states(optimizers) if name != "step")  # a number each
    memory = training_memory(config, count_parameters(config), Division(), 1, 64, muon)
    assert memory.optimizer == found
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("precision", ["float32", "autocast"])
@pytest.mark.parametrize("options", [{}, {"vocab_size": 4096}, {"hidden_size": 128}, {"num_experts": 4}], ids=str)
@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("accumulated", [False, True], ids=["alone", "accumulated"])
def test_a_step_takes_at_its_highest_what_is_said(
    accumulated: bool,
    length: int,
    options: dict[str, Any],
    precision: str,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With gradients of a batch before throughout, or only until the forward pass is over."""
    # the room that Muon works in is left out: megabytes, which would be most of so small a model's
    monkeypatch.setattr("omnigram.train.muon.TOGETHER", 1)
    config, bytes_of = made(qk_norm="rms", **options), PRECISIONS[precision]
    model = model_of(config, bytes_of, checkpointing)
    optimizers = optimizers_of(model, muon=True)

    def step() -> None:
        with autocast(bytes_of):  # as Lightning, whose context lasts for the backward pass, too
            loss = loss_of(model, 1, length)
            if not accumulated:
                model.zero_grad()
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    live = Live([*model.parameters(), *model.buffers(), *gradients, *(value for _, value in states(optimizers))])
    del gradients
    with live:
        step()
    mixed = bytes_of is AUTOCAST
    division = Division(checkpointing=checkpointing)
    memory = training_memory(config, count_parameters(config), division, 1, length, True, mixed, on_cpu=True)
    assert memory.total == pytest.approx(live.most, rel=0.06 if accumulated else 0.11)


def test_chunks_save_the_memory_of_the_logits() -> None:
    config = made(vocab_size=20_000, num_hidden_layers=1)
    [tokens, width, vocabulary] = 1024, 64, 20_000
    chunked, whole = loss_bytes(config, FLOAT32, tokens)
    hidden, head = torch.randn(tokens, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    live = Live([hidden, head])
    with live:
        logits = hidden @ head.T
        loss = nn.functional.cross_entropy(logits, torch.zeros(tokens, dtype=torch.long))
        del logits
        loss.backward()
    found = live.most - hidden.nbytes - head.nbytes
    assert whole == pytest.approx(found, rel=0.05)
    assert chunked < whole / 4


def test_a_large_head_has_one_gradient_in_float32() -> None:
    """Emu3's, in bf16-mixed: beside it the bfloat16 product that is added, and 256 tokens' logits in both types."""
    assert loss_bytes(load("emu3_8b"), AUTOCAST, 8192).chunked == 4 * 8192 * 4096 + 6 * 184_622 * (4096 + 256)


@pytest.fixture
def eight_ranks() -> Iterator[None]:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("eight_ranks")
@pytest.mark.parametrize("muon", [False, True], ids=["AdamW", "Muon"])
def test_shards_are_those_of_fsdp2(muon: bool) -> None:
    config = made(num_key_value_heads=2)
    model = OmnigramForCausalLM(config)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    local = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
    assert len(local) == len(list(model.parameters()))
    parameters = count_parameters(config)
    memory = training_memory(config, parameters, Division(shards=8), 1, 64, muon)
    assert memory.weights == memory.gradients == sum(t.nbytes for t in local)
    assert memory.optimizer == (2 * 4 * parameters.total - (4 * parameters.matrices if muon else 0)) / 8


def test_a_division_by_hand() -> None:
    """D 64, F 160, 3 layers, 4 heads of 16, 2 of keys, V 512, untied."""
    config = made(num_key_value_heads=2)
    attention, feed_forward = 64 * 64 * 2 + 64 * 32 * 2, 3 * 64 * 160
    block, root = attention + feed_forward + 2 * 64, 2 * 512 * 64 + 64
    parameters = count_parameters(config)
    assert (parameters.block, parameters.block_divided) == (block, block - 128)
    whole = training_memory(config, parameters, Division(), 1, 64, muon=False)
    total = 3 * block + root
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * total, 4 * total, 8 * total)
    assert (whole.weight_casts, whole.gathered, whole.recomputed) == (2 * 3 * (block - 128), 0, 0)
    four = training_memory(config, parameters, Division(4), 1, 64, muon=False)
    assert (four.weights, four.gradients, four.optimizer) == (total, total, 2 * total)
    # bfloat16: the root, two blocks, and one's gradients in bfloat16 and float32
    assert (four.weight_casts, four.gathered) == (0, 2 * root + 2 * 2 * block + (2 + 4) * block)
    parallel = training_memory(config, parameters, Division(4, 2, checkpointing=True), 1, 64, muon=False)
    half = (block - 128) / 2 + 128
    assert parallel.weights == 3 * half + root
    muon = training_memory(config, parameters, Division(4, 2), 1, 64, muon=True)
    assert parallel.optimizer - muon.optimizer == 3 * (block - 128) / 2  # a float32 less of each matrix
    assert parallel.gathered == 2 * root + 10 * half
    assert parallel.activations < four.activations
    assert parallel.total == sum(
        (
            4 * parallel.weights,
            parallel.gathered,
            parallel.activations,
            max(parallel.recomputed, parallel.loss_head),
        )
    )


@pytest.mark.parametrize("name", ["emu3_8b", "chameleon_34b"])
def test_a_dense_block_is_the_sum_of_its_operations(name: str) -> None:
    """Published sizes under FSDP2 and flash-attention: bfloat16 numbers of a token, counted from the block's text."""
    config = load(name)
    flash = OmnigramConfig(**{**config.to_diff_dict(), "attn_implementation": "flash_attention_2"})
    width, inner, queries = config.hidden_size, config.intermediate_size, config.num_attention_heads * 128
    keys, layers = 8 * 128, config.num_hidden_layers
    block = 2 * (4 + 2) * width + 8  # two norms: wide, normalised, and the statistic
    block += 2 * 2 * width  # inputs of attention and feed-forward
    block += 2 * (2 * queries + 2 * keys) + 4 * config.num_attention_heads  # query, output, key, value, denominators
    block += 2 * 4 * inner  # gate, silu, up, product
    if config.qk_norm == "layer":
        block += (queries + keys) * 4 + (config.num_attention_heads + 8) * 8
    if config.residual_dropout:
        block += 2 * width
    shared = 16 + 2 * 128 * 2 + 6 * width + 4
    assert kept_bytes(flash, BFLOAT16, 4096, checkpointing=False) == layers * block + shared
    assert kept_bytes(flash, BFLOAT16, 4096, checkpointing=True) == layers * 2 * width + shared
