"""Which parameters AdamW and Muon train, and what a step of each does."""

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.train.optimizer import build_optimizers, hidden_matrices, scale_learning_rates


def settings(**changed: float | None) -> DictConfig:
    usual = {"learning_rate": 0.1, "muon_learning_rate": 0.05, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    return OmegaConf.create({**usual, "weight_decay": 0.0, **changed})


def decoder(tied: bool) -> OmnigramForCausalLM:
    return OmnigramForCausalLM(
        OmnigramConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rate", [None, 0.05])
def test_every_parameter_has_one_optimizer(tied: bool, rate: float | None) -> None:
    model = decoder(tied)
    made = build_optimizers(model, settings(muon_learning_rate=rate), torch.device("cpu"))
    trained = [p for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))
    assert len(made) == (1 if rate is None else 2)


def test_muon_trains_the_matrices_of_the_layers_alone() -> None:
    model = decoder(tied=False)
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(model)}
    assert chosen == {n for n in names.values() if n.startswith("model.layers.") and n.endswith("_proj.weight")}
    assert len(chosen) == 2 * 7


def test_an_update_of_muon_is_nearly_orthogonal_and_as_long_as_one_of_adamw() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 64, bias=False)
    before = layer.weight.detach().clone()
    *_, muon = build_optimizers(layer, settings(), torch.device("cpu"))
    layer.weight.grad = torch.randn(64, 24) @ torch.diag(torch.linspace(0.5, 2, 24))
    muon.step()
    update = (before - layer.weight.detach()).double()
    lengths = torch.linalg.svdvals(update) / (0.05 * 0.2 * 64**0.5)
    assert lengths.min() > 0.4
    assert lengths.max() < 1.4
    assert torch.linalg.cond(update) < 0.8 * torch.linalg.cond(layer.weight.grad.double())


def test_rates_follow_the_schedule_each_from_its_peak() -> None:
    made = build_optimizers(decoder(tied=True), settings(), torch.device("cpu"))
    for factor in (0.5, 0.25):
        scale_learning_rates(made, factor)
        assert [group["lr"] for optimizer in made for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor, 0.1 * factor, 0.05 * factor]
        )
