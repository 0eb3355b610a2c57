"""What others do with our export: Auto classes, `generate`, LoRA of peft, checkpointing, compile, dtypes, shards."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from made_exports import VOCABULARY, tiny_export
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM, OmnigramModel
from omnigram.model.growth import add_modality
from omnigram.tokenizers.vocabulary import Vocabulary

PAD, OLD = VOCABULARY.id("pad"), VOCABULARY.size
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj"]
OPTIONS = {
    "plain": {},
    "chameleon_34b": {"qk_norm": "layer", "norm_order": "swin", "tie_word_embeddings": True},
    "experts": {"num_experts": 4, "modality_norms": True, "modality_ranges": [[OLD - 16, 16]]},
}


@pytest.fixture(scope="module", params=OPTIONS)
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_export(**OPTIONS[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    tiny_export().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:  # Any, for the stubs of transformers know `generate` of their own models
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def batch() -> dict[str, Tensor]:
    """Two rows of random ids, the first with five pads on the left."""
    ids = torch.randint(OLD, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.zero_grad()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def test_auto_classes_know_an_export(export: Path) -> None:
    assert type(AutoConfig.from_pretrained(export)) is OmnigramConfig
    assert type(AutoModel.from_pretrained(export)) is OmnigramModel
    model = load(export)
    assert type(model) is OmnigramForCausalLM
    assert not model.training
    built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(export))
    shapes = [{name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (model, built)]
    assert shapes[0] == shapes[1]


GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}


def test_a_padded_batch_generates_what_its_rows_do_alone(export: Path) -> None:
    model, inputs = load(export), batch()
    together = model.generate(**inputs, **GREEDY)
    assert together.shape == (2, 28)
    for row, pads in ((0, 5), (1, 0)):
        alone = model.generate(inputs["input_ids"][row : row + 1, pads:], **GREEDY)
        assert alone[0].tolist() == together[row, pads:].tolist()


@pytest.mark.parametrize("how", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_every_cache_generates_the_same(export: Path, how: dict[str, Any]) -> None:
    model, inputs = load(export), batch()
    assert torch.equal(model.generate(**inputs, **GREEDY, **how), model.generate(**inputs, **GREEDY))


def test_assisted_generation_is_greedy_generation(export: Path) -> None:
    model, row = load(export), batch()["input_ids"][1:]
    greedy = model.generate(row, **GREEDY)
    assistant = tiny_export(seed=1).model
    assistant.generation_config.num_assistant_tokens = 3
    assert torch.equal(model.generate(row, **GREEDY, assistant_model=assistant), greedy)
    assert torch.equal(model.generate(row, **GREEDY, prompt_lookup_num_tokens=2), greedy)


def test_beams_find_likelier_rows_than_greed(export: Path) -> None:
    model, row = load(export), batch()["input_ids"][1:]
    costs = []
    for beams in (1, 16):
        ids = model.generate(row, **{**GREEDY, "max_new_tokens": 4}, num_beams=beams)
        logits = model(ids).logits[:, row.shape[1] - 1 : -1].log_softmax(-1)
        costs.append(-logits.gather(2, ids[:, row.shape[1] :, None]).sum().item())
    assert costs[1] <= costs[0] + 1e-5


def test_sampling_follows_its_settings(export: Path) -> None:
    model, row = load(export), batch()["input_ids"][1:]
    torch.manual_seed(0)
    ids = model.generate(row, do_sample=True, top_k=4, top_p=0.95, max_new_tokens=1, num_return_sequences=64)
    likely = model(row).logits[0, -1].topk(4).indices.tolist()
    drawn = set(ids[:, -1].tolist())
    assert len(drawn) > 1
    assert drawn <= set(likely)


def test_generation_stops_at_eos(plain: Path) -> None:
    model, inputs = load(plain), batch()
    free = model.generate(**inputs, **GREEDY)[:, 16:]
    stop = int(free[0, 4])
    first = free[0].tolist().index(stop)
    ids = model.generate(**inputs, **{**GREEDY, "eos_token_id": stop})[:, 16:]
    assert ids[0].tolist() == [*free[0, : first + 1].tolist(), *[PAD] * (ids.shape[1] - first - 1)]


def test_gradient_checkpointing_changes_no_bit(export: Path) -> None:
    model = load(export).train()
    loss, gradients = loss_and_gradients(model)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.model.layers[0].self_attn.register_forward_hook(count)
    for reentrant in (False, True):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        calls = 0
        again, others = loss_and_gradients(model)
        assert calls == 2  # the block ran once more in the backward pass
        assert torch.equal(again, loss)
        assert set(others) == set(gradients)
        for name, gradient in gradients.items():
            assert torch.equal(others[name], gradient), name


@pytest.mark.parametrize("options", ["plain", "chameleon_34b"])
def test_a_compiled_model_is_one_graph_and_equal(options: str) -> None:
    """Up to the kernels, which are torch's own: inductor takes half a minute of C++ compiler here."""
    model: Any = tiny_export(**OPTIONS[options]).model
    loss, gradients = loss_and_gradients(model)
    again, others = loss_and_gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(again, loss)
    others = {name.removeprefix("_orig_mod."): gradient for name, gradient in others.items()}
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_come_in_the_dtype_asked_for(export: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    model, inputs = load(export, dtype=dtype), batch()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.device.type == "cpu"
    assert model.model.rotary_emb.inverse_frequency.dtype == torch.float32  # positions are exact in any dtype
    logits, exact = (one(**inputs).logits[:, 5:].double() for one in (model, load(export)))
    # on average, for a rounding can send a token to another expert
    assert (logits - exact).abs().mean() <= 4 * max(torch.finfo(dtype).eps, 1e-6) * exact.abs().mean()
    model.save_pretrained(tmp_path)
    assert load(tmp_path, dtype="auto").dtype == dtype


def test_shards_hold_the_same_weights(export: Path, tmp_path: Path) -> None:
    model = load(export)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {tmp_path / name for name in index["weight_map"].values()} == set(tmp_path.glob("model-*.safetensors"))
    loaded = load(tmp_path).state_dict()
    assert set(loaded) == set(model.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_saving_what_was_loaded_changes_no_byte(export: Path, tmp_path: Path) -> None:
    load(export).save_pretrained(tmp_path / "once")
    load(tmp_path / "once").save_pretrained(tmp_path / "twice")
    files = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "twice").iterdir()) == files
    for file in files:
        assert (tmp_path / "twice" / file).read_bytes() == (export / file).read_bytes(), file


class Adapted:
    """An export grown by a modality, with LoRA on its attention, and the new rows to be trained whole."""

    def __init__(self, tied: bool) -> None:
        self.model = tiny_export(tie_word_embeddings=tied).model
        self.vocabulary: Vocabulary = add_modality(self.model, VOCABULARY, "depth", 20, ("bod", "eod"))
        self.before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        new = list(range(OLD, self.vocabulary.size))
        rows = {"embed_tokens": new} | ({} if tied else {"lm_head": new})
        settings = peft.LoraConfig(r=4, target_modules=LAYERS, trainable_token_indices=rows, task_type="CAUSAL_LM")
        self.adapted: Any = peft.get_peft_model(self.model, settings)  # pyright: ignore[reportArgumentType]
        self.ids = torch.randint(OLD - 5, self.vocabulary.size, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def trained(request: pytest.FixtureRequest) -> Adapted:
    """After three steps, whose losses fall."""
    adapted = Adapted(request.param)
    model = adapted.adapted.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(adapted.ids, labels=adapted.ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    model.eval()
    return adapted


# peft asks transformers for what it has renamed
ignore_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@ignore_peft
def test_lora_trains_its_adapters_and_the_new_rows_alone(trained: Adapted) -> None:
    logits = trained.adapted(trained.ids).logits
    merged = trained.adapted.merge_and_unload()
    assert type(merged) is OmnigramForCausalLM
    torch.testing.assert_close(merged(trained.ids).logits, logits, rtol=1e-4, atol=1e-4)
    after = merged.state_dict()
    assert set(after) == set(trained.before)
    used = trained.ids.unique()
    used = used[used >= OLD] - OLD
    for name, before in trained.before.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(after[name][:OLD], before[:OLD]), name
            assert (after[name][OLD:] != before[OLD:]).any(dim=1)[used].all(), name
        else:
            assert torch.equal(after[name], before) != any(layer in name for layer in LAYERS), name


@ignore_peft
def test_adapters_are_saved_loaded_and_merged(trained: Adapted, tmp_path: Path) -> None:
    logits = trained.adapted(trained.ids).logits
    trained.adapted.save_pretrained(tmp_path / "adapter")
    fresh = Adapted(trained.model.config.tie_word_embeddings).adapted.unload()
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(loaded(trained.ids).logits, logits)
    merged: Any = loaded.merge_and_unload()  # pyright: ignore[reportCallIssue]
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged")(trained.ids).logits, logits, rtol=1e-4, atol=1e-4)


@ignore_peft
def test_our_own_loss_sees_the_adapters(trained: Adapted) -> None:
    """`training_loss` multiplies by the head's weight itself, so an adapter of the head could be passed by."""
    ids, model = trained.ids, trained.adapted
    model.zero_grad()
    expected = model(ids, labels=ids).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    loss = trained.model.training_loss(ids[:, :-1], ids[:, 1:], torch.ones(2, 23))
    (loss.loss / loss.weight).backward()
    torch.testing.assert_close(loss.loss / loss.weight, expected)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@ignore_peft
def test_an_adapted_model_generates(trained: Adapted) -> None:
    ids = trained.adapted.generate(**batch(), **GREEDY)
    plain = trained.adapted.merge_and_unload().generate(**batch(), **GREEDY)
    assert torch.equal(ids, plain)
