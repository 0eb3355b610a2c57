"""Which parameters AdamW and Muon train, what a step of each does, and when there is none."""

import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.multiprocessing.spawn import spawn

from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig
from omnigram.tokenizers.quantizers.sim import SimConfig
from omnigram.train.muon import Muon
from omnigram.train.optimizer import build_optimizers, hidden_matrices, scale_learning_rates
from omnigram.train.steps import StepModule
from omnigram.train.world import World


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


@pytest.mark.parametrize("quantizer", [GumbelConfig(8, 4, 5e-4, 1.0, 0.1, True), SimConfig(16, 4, 0.25)])
def test_muon_trains_no_codes(quantizer: QuantizerConfig) -> None:
    """A map of all codes, and the layer that makes logits of vectors, are no hidden layers."""
    tokenizer = ImageTokenizer(ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False), quantizer)
    names = {id(p): name for name, p in tokenizer.named_parameters()}
    assert any(isinstance(m, nn.Linear) for m in tokenizer.quantizer.modules())
    assert not [names[id(p)] for p in hidden_matrices(tokenizer) if names[id(p)].startswith("quantizer")]


def step_of(rows: int, columns: int, **changed: float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights before, gradient, change of the weights) of a layer whose matrix the last optimizer trains."""
    torch.manual_seed(0)
    layer = nn.Linear(columns, rows, bias=False)
    before = layer.weight.detach().clone()
    optimizer = build_optimizers(layer, settings(**changed), torch.device("cpu"))[-1]
    gradient = torch.randn(rows, columns) * torch.logspace(-0.5, 0.5, columns)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    return before, gradient, layer.weight.detach() - before


def unevenness(matrix: torch.Tensor) -> float:
    """The largest singular value over the middle one."""
    values = torch.linalg.svdvals(matrix)
    return float(values.max() / values.median())


@pytest.mark.parametrize(("rows", "columns"), [(64, 256), (256, 64), (64, 64)])
def test_an_update_of_muon_evens_out_the_gradient_at_a_fifth_of_adamws_length(rows: int, columns: int) -> None:
    _, gradient, muon = step_of(rows, columns, muon_learning_rate=0.05)
    _, _, adamw = step_of(rows, columns, learning_rate=0.05, muon_learning_rate=None)
    assert unevenness(muon) - 1 < 0.5 * (unevenness(gradient) - 1)
    ratio = muon.square().mean().sqrt() / adamw.square().mean().sqrt()  # AdamW's first step is sign(gradient) * rate
    assert 0.1 < ratio < 0.25


def by_singular_values(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Newton-Schulz by the book: its polynomial of each singular value."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values /= values.norm()
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize(("quick", "tolerance"), [(False, 1e-4), (True, 0.05)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("together", [1, 2**24])
def test_muon_is_its_definition_and_torchs_over_two_steps(
    quick: bool, tolerance: float, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnigram.train.muon.TOGETHER", together)
    for kind in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{kind}_supported", lambda: quick)
    torch.manual_seed(0)
    shapes = [(24, 40), (40, 24), (24, 24), (24, 40)]
    before = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([nn.Parameter(x.clone()) for x in before] for _ in range(2))
    defined, means = [x.double() for x in before], [torch.zeros(shape).double() for shape in shapes]
    muon = Muon(ours, lr=0.1, weight_decay=0.2, ns_steps=3)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        for index, shape in enumerate(shapes):
            gradient = torch.randn(shape)
            ours[index].grad, theirs[index].grad = gradient.clone(), gradient.clone()
            means[index] = 0.95 * means[index] + 0.05 * gradient
            update = by_singular_values(0.05 * gradient + 0.95 * means[index], 3)
            defined[index] = defined[index] * (1 - 0.1 * 0.2) - 0.1 * 0.2 * max(shape) ** 0.5 * update
        muon.step()
        reference.step()
    for mine, torchs, wanted in zip(ours, theirs, defined, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=0, atol=tolerance)
        torch.testing.assert_close(mine, torchs, rtol=0, atol=0.05)  # which is in bfloat16
    reference.load_state_dict(muon.state_dict())  # a run may go on with either


@pytest.mark.parametrize("rate", [None, 0.05])
def test_both_decay_matrices_by_their_own_rate(rate: float | None) -> None:
    before, _, kept = step_of(32, 64, muon_learning_rate=rate)
    _, _, decayed = step_of(32, 64, muon_learning_rate=rate, weight_decay=0.2)
    assert torch.allclose(decayed - kept, -(rate or 0.1) * 0.2 * before, atol=1e-5)


def test_rates_follow_the_schedule_each_from_its_peak() -> None:
    made = build_optimizers(decoder(tied=True), settings(), torch.device("cpu"))
    for factor in (0.5, 0.25):
        scale_learning_rates(made, factor)
        assert [group["lr"] for optimizer in made for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor, 0.05 * factor]
        )


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_before_an_update(number: float) -> None:
    sound, faulty = torch.tensor(1.0), torch.tensor(number)
    assert StepModule().may_update("a.rate=3", loss=sound, gradient=sound)
    for numbers, named in (
        ({"loss": sound, "gradient": faulty}, "the gradient"),
        ({"loss": faulty, "gradient": faulty}, "the loss and gradient"),
    ):
        with pytest.raises(ValueError, match=rf"{named} of step 1 is not a finite number: lower a\.rate=3"):
            StepModule().may_update("a.rate=3", **numbers)


def test_so_many_steps_in_a_row_may_be_left_out() -> None:
    module, sound, faulty = StepModule(max_skipped=2), torch.tensor(1.0), torch.tensor(float("nan"))
    for numbers in ([faulty, faulty, sound], [faulty, sound], [faulty, faulty]):
        for number in numbers:
            if number is sound:
                assert module.may_update("a.rate=3", loss=number)
            else:
                with pytest.warns(UserWarning, match="the loss of step 1 is not a finite number: the step is left out"):
                    assert not module.may_update("a.rate=3", loss=number)
    assert module.steps_skipped == 5
    with pytest.raises(ValueError, match=r"is not a finite number, as 2 steps before it: lower a\.rate=3"):
        module.may_update("a.rate=3", loss=faulty)
    with pytest.raises(ValueError, match="max_skipped_steps=-1 must be 0"):
        StepModule(-1)


def _update_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module, told = StepModule(max_skipped=1, world=World(rank, 2)), list[bool]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for faulty in (None, 1, None):  # the rank whose loss is no number
            loss = torch.tensor(float("nan") if rank == faulty else 1.0)
            told.append(module.may_update("a.rate=3", loss=loss))
    Path(folder, str(rank)).write_text(f"{told} {int(module.steps_skipped)}")
    torch.distributed.destroy_process_group()


def test_a_step_is_left_out_on_all_ranks_alike(tmp_path: Path) -> None:
    spawn(_update_on, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[True, False, True] 1"] * 2
