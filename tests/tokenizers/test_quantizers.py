"""The quantizers: one behaviour of all, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from made_quantizers import EMA, SMALL, made
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from omnigram.tokenizers.kinds import kind_settings
from omnigram.tokenizers.quantizers import KINDS, quantizer_config
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.quantizer import QuantizerConfig

CONF = Path(__file__).parents[2] / "conf" / "tokenizer" / "quantizer"
every = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


def test_every_kind_has_settings_that_ship_and_is_tested_here():
    shipped: dict[str, Any] = {file.stem: OmegaConf.load(file) for file in CONF.glob("*.yaml")}
    merged = {
        name: OmegaConf.merge(*(shipped[base] for base in settings.get("defaults", []) if base != "_self_"), settings)
        for name, settings in shipped.items()
    }
    kinds = {}
    for name, settings in merged.items():
        plain: Any = OmegaConf.to_container(settings)
        plain.pop("defaults", None)
        kinds[name] = quantizer_config(plain)
        assert quantizer_config(kind_settings(kinds[name])) == kinds[name]
    assert {config.kind for config in kinds.values()} == set(KINDS) == {config.kind for config in SMALL.values()}
    sizes = {name: config.num_codes for name, config in kinds.items()}
    assert sizes.pop("residual") == sizes.pop("product") == 2 * 1024
    assert sizes.pop("fsq") == 8 * 5 * 5 * 5
    assert set(sizes.values()) == {1024}


@every
@given(batch=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 4))
def test_ids_name_codes_and_codes_are_looked_up(config: QuantizerConfig, batch: int, height: int, width: int):
    quantizer = made(config).eval()
    quantized = quantizer(torch.randn(batch, config.dim, height, width))
    assert quantized.codes.shape == (batch, config.dim, height, width)
    assert quantized.ids.shape == (batch, height, width * config.levels)
    assert quantized.ids.dtype == torch.int64
    assert 0 <= int(quantized.ids.min()) <= int(quantized.ids.max()) < config.num_codes
    assert quantized.loss.shape == ()
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.codes, rtol=1e-5, atol=1e-6)
    counts = torch.bincount(quantized.ids.flatten(), minlength=config.num_codes)
    torch.testing.assert_close(quantized.stats["usage"], (counts > 0).float().mean())
    share = counts[counts > 0] / counts.sum()
    torch.testing.assert_close(quantized.stats["perplexity"], (-(share * share.log()).sum()).exp())


@every
def test_what_is_evaluated_changes_nothing_and_does_not_depend_on_its_batch(config: QuantizerConfig):
    quantizer = made(config).eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    vectors = torch.randn(5, config.dim, 3, 3)
    together = quantizer(vectors).ids
    assert torch.equal(together, torch.cat([quantizer(vector[None]).ids for vector in vectors]))
    quantizer.update_codebook()
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


@every
def test_gradients_reach_the_vectors(config: QuantizerConfig):
    quantizer = made(config).train()
    vectors = torch.randn(2, config.dim, 3, 3, requires_grad=True)
    quantized = quantizer(vectors)
    quantized.codes.square().sum().backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
    assert vectors.grad.abs().sum() > 0


class FloatingProducts(TorchDispatchMode):
    """Refuses products of integer matrices, which CUDA does not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            assert args[0].is_floating_point(), func
        return func(*args, **(kwargs or {}))


@every
def test_no_integer_matrices_are_multiplied(config: QuantizerConfig):
    quantizer = made(config).train()
    with FloatingProducts():
        quantizer.lookup(quantizer(torch.randn(2, config.dim, 3, 3)).ids)
        quantizer.update_codebook()


@every
def test_gradients_of_vectors_far_away_are_finite(config: QuantizerConfig):
    """Where probabilities are zeros and ones."""
    quantizer = made(config).train()
    vectors = (1000 * torch.randn(2, config.dim, 3, 3)).requires_grad_()
    quantized = quantizer(vectors)
    (quantized.codes.sum() + quantized.loss).backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in quantizer.parameters())


LEARNT = {name: config for name, config in SMALL.items() if name not in ("fsq", "lfq") and "cosine" not in name}


@pytest.mark.parametrize("config", LEARNT.values(), ids=LEARNT)
def test_training_makes_the_codes_fit_the_vectors(config: QuantizerConfig):
    """Not only those of the start: of vectors elsewhere, which the codes have to go to."""
    quantizer = made(config).train()
    torch.manual_seed(1)
    vectors = 0.5 * torch.randn(8, config.dim, 4, 4) + 0.5
    optimizer = torch.optim.Adam([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(()))], 0.02)

    def error() -> Tensor:
        return F.mse_loss(quantizer.eval()(vectors).codes, vectors)

    with torch.no_grad():
        before = error()
    for step in range(200):
        quantizer.train().set_progress(step / 200)
        quantized = quantizer(vectors.requires_grad_())
        optimizer.zero_grad()
        (F.mse_loss(quantized.codes, vectors.detach()) + quantized.loss).backward()
        optimizer.step()
        quantizer.update_codebook()
    with torch.no_grad():
        assert error() < before


def test_a_setting_with_a_default_may_be_missing_in_a_file():
    settings = kind_settings(EMA)
    assert settings.pop("rate") == 0
    assert quantizer_config(settings) == EMA


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "magic"}, r"quantizer\.kind=magic is unknown: there is ema, "),
        ({}, r"quantizer\.kind=None is unknown"),
        ({**kind_settings(EMA), "levels": 3}, r"quantizer\.levels is no setting of ema, which takes codebook_size, "),
        ({"kind": "simvq", "codebook_size": 4}, r"quantizer\.codebook_dim is missing: simvq needs it"),
        ({**kind_settings(EMA), "codebook_size": 1}, r"codebook_size=1 must be 2 or more"),
        ({**kind_settings(SMALL["ibq"]), "codebook_size": 1}, r"codebook_size=1 must be 2 or more"),
        ({**kind_settings(SMALL["gumbel"]), "codebook_size": 1}, r"codebook_size=1 must be 2 or more"),
        ({**kind_settings(EMA), "codebook_dim": 0}, r"codebook_dim=0 must be 1 or more"),
        ({**kind_settings(EMA), "decay": 1}, r"decay=1 must lie between 0 and 1"),
        ({"kind": "fsq", "scalar_levels": [8, 2]}, r"scalar_levels=\[8,2\] must be numbers of 3 or more"),
        ({"kind": "fsq", "scalar_levels": []}, r"scalar_levels=\[\] must be"),
        ({**kind_settings(SMALL["lfq"]), "codebook_size": 1000}, r"=1000 must be a power of 2 for lfq: 512 or 1024"),
        ({**kind_settings(SMALL["lfq"]), "codebook_size": 1}, r"codebook_size=1 must be a power of 2 for lfq: 2 or 4"),
        ({**kind_settings(SMALL["lfq"]), "temperature": 0}, r"temperature=0 must be above 0"),
        (
            {**kind_settings(SMALL["gumbel"]), "final_temperature": 2},
            r"final_temperature=2 must be above 0 and",
        ),
        ({**kind_settings(SMALL["product"]), "codebook_dim": 5}, r"codebook_dim=5 cannot be shared out among"),
        ({**kind_settings(SMALL["residual"]), "cosine": True}, r"cosine=true has no residual"),
        ({**kind_settings(SMALL["residual"]), "codebook_size": 1}, r"codebook_size=1 must be 2 or more"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        quantizer_config(settings)
    assert "\n" not in str(caught.value)


def test_a_codebook_of_a_million_codes_works():
    vectors = torch.randn(1, 20, 2, 2, requires_grad=True)
    quantizer = LookupFreeConfig(2**20, 0.25, 0.1, 1.0, 1.0).build().train()
    quantized = quantizer(vectors)
    quantized.loss.backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
    assert (vectors.grad != 0).all()
    assert int(quantized.ids.max()) < 2**20
    assert torch.equal(quantizer.eval().lookup(quantized.ids), torch.where(vectors > 0, 1.0, -1.0))
    learnt = MovingAverageConfig(2**20, 2, 0.9, 0.25, False, 0.0).build().eval()
    ids = learnt(torch.randn(1, 2, 2, 2)).ids
    assert int(ids.max()) < 2**20


@every
def test_constant_vectors_leave_numbers_finite(config: QuantizerConfig):
    quantizer = config.build().train()
    for step in range(3):
        quantized = quantizer(torch.full((1, config.dim, 2, 2), 0.3))
        quantizer.update_codebook()
        assert torch.isfinite(quantized.codes).all(), step
        assert torch.isfinite(quantized.loss)
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())
