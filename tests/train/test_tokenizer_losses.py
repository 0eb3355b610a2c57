"""A step of the image tokenizer: its losses by definition, what a faulty one changes, an adversary gone wild, ranks."""

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_world import run_distributed
from omegaconf import DictConfig
from torch import Tensor, nn

from omnigram.data.picture_batches import PictureBatch
from omnigram.tokenizers.image import ImageTokenizer, to_pixels
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.networks.dvae import DVAEConfig
from omnigram.tokenizers.networks.movqgan import MoVQGANNetworkConfig
from omnigram.tokenizers.networks.network import NetworkConfig
from omnigram.tokenizers.networks.queries import QueriesConfig
from omnigram.tokenizers.networks.vit import ViTConfig
from omnigram.tokenizers.networks.vqgan import VQGANNetworkConfig
from omnigram.tokenizers.quantizers import quantizer_config
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.quantizers.quantizer import places
from omnigram.train import image_tokenizer
from omnigram.train.adversary import DiscriminatorLoss
from omnigram.train.compose import compose_config
from omnigram.train.image_tokenizer import ImageTokenizerTraining
from omnigram.train.perceptual import PerceptualDistance
from omnigram.train.world import World, join_world

SMALL = [
    "tokenizer=movqgan",
    "tokenizer.quantizer.codebook_size=16",
    "tokenizer.quantizer.codebook_dim=4",
    "tokenizer.discriminator.channels=8",
    "tokenizer.discriminator.layers=2",
    "tokenizer.discriminator.start_step=1",
    "tokenizer.optimizer.muon_learning_rate=null",
    "tokenizer.optimizer.warmup_steps=0",
    "tokenizer.trainer.flip=false",
]
QUANTIZERS = {
    "ema": [],
    "cosine": [],
    "gradient": [],
    "ibq": [],
    "simvq": [],
    "gumbel": [],
    "residual": ["tokenizer.quantizer.codebooks=2"],
}


NETWORK = ConvolutionalConfig(2, (8, 8), (1, 1), (1, 1), True)
BATCH_NORMS = MoVQGANNetworkConfig(32, (1, 1, 1), 1, (), temporal_downsample_factor=2)
NETWORKS: dict[str, NetworkConfig] = {
    "convolutional": NETWORK,
    "vqgan": VQGANNetworkConfig(32, (1, 1, 1), 1, (2,), latent_channels=8),
    "movqgan": BATCH_NORMS,
    "dvae": DVAEConfig(32, (1, 1, 1), 1, 16),
    "vit": ViTConfig(4, 32, 2, 1, 1),
    "queries": QueriesConfig(16, 4, 16, 32, 2, 1, 1, causal=True, tail_dropout=0.5),
}


class Alone(ImageTokenizerTraining):
    """Without a trainer around it."""

    def __init__(self, settings: DictConfig, world: World | None = None, network: NetworkConfig = NETWORK) -> None:
        torch.manual_seed(0)
        super().__init__(ImageTokenizer(network, quantizer_config(settings.quantizer)), settings, world)
        self.tokenizer.train()
        self.start_from(to_pixels(batch(0, 16)))
        self.made = self.configure_optimizers()

    def every_optimizer(self) -> list[Any]:
        return self.made

    def manual_backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        loss.backward()

    def go(self, pictures: Tensor) -> None:
        self.training_step(PictureBatch(pictures, {}), 0)
        self.steps_done += 1

    def whole_state(self) -> dict[str, Any]:
        """Copied, but for the counts of steps."""
        state = {name: t for name, t in self.state_dict().items() if "step" not in name and "skipped" not in name}
        optimizers = [optimizer.state_dict()["state"] for optimizer in self.made]
        return copy.deepcopy({"module": state, "optimizers": optimizers})


def batch(seed: int, size: int = 4) -> Tensor:
    """Pictures [B, 16, 16, 3] of a few colours."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (size, 4, 4, 3), dtype=torch.uint8, generator=draw)
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)


@cache
def settings(*changed: str, quantizer: str = "ema") -> DictConfig:
    small = [key for key in SMALL if "codebook" not in key or quantizer not in ("fsq", "lfq")]
    if quantizer in ("ema", "cosine", "residual"):
        small.append("tokenizer.quantizer.dead_code_threshold=0")
    return compose_config([*small, f"tokenizer/quantizer={quantizer}", *changed]).tokenizer


def made_distance() -> PerceptualDistance:
    torch.manual_seed(1)
    block = [[(torch.randn(4, 3, 3, 3), torch.randn(4))]]
    return PerceptualDistance("made", block, [torch.rand(4)], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_every_gradient_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """All terms at once, written out again from the papers' formulas: VQ-VAE, VQGAN, hinge, LeCam."""
    monkeypatch.setattr(image_tokenizer, "perceptual_distance", lambda path: made_distance())
    weights = {"l1": 0.3, "l2": 0.7, "perceptual": 0.5, "quantizer": 0.4}
    chosen = [f"tokenizer.loss.{name}={weight}" for name, weight in weights.items()]
    chosen += [
        f"tokenizer.discriminator.{key}" for key in ("weight=0.6", "max_weight=50", "lecam=0.2", "warmup_steps=3")
    ]
    module = Alone(settings(*chosen, "tokenizer.optimizer.gradient_clip=1e9"))
    module.go(batch(1))
    module.go(batch(2))
    assert module.adversary is not None
    module.adversary.scores.copy_(torch.tensor([0.3, -0.1]))
    before = copy.deepcopy(module)
    module.go(batch(3))

    pixels, tokenizer = to_pixels(batch(3)), before.tokenizer
    vectors = tokenizer.encoder(pixels)
    ids = torch.cdist(vectors.movedim(1, -1).flatten(0, 2), tokenizer.quantizer.codebook).argmin(1)  # pyright: ignore
    codes = tokenizer.quantizer.codebook[ids].view(4, 4, 4, 4).movedim(-1, 1)  # pyright: ignore
    decoded = tokenizer.decoder(vectors + (codes - vectors).detach())
    away = decoded - pixels
    perceived = made_distance()(decoded, pixels).mean()
    reconstruction = 0.3 * away.abs().mean() + 0.7 * away.square().mean() + 0.5 * perceived
    commitment = 0.25 * (vectors - codes).square().mean()
    assert before.adversary is not None
    judge = before.adversary.discriminator
    adversarial = -judge(decoded).mean()
    layer = tokenizer.decoder.last_layer
    pull, push = (torch.autograd.grad(t, layer, retain_graph=True)[0].norm() for t in (reconstruction, adversarial))
    weight = 2 / 3 * 0.6 * pull / push  # the second of three steps of its warm-up
    loss = reconstruction + 0.4 * commitment + weight.detach() * adversarial
    parameters = dict(tokenizer.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()))
    found = dict(module.tokenizer.named_parameters())
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name].grad, gradient, rtol=1e-3, atol=1e-6, msg=name)

    real, fake = judge(pixels), judge(decoded.detach())
    hinge = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    lecam = (real + 0.1).clamp(min=0).square().mean() + (0.3 - fake).clamp(min=0).square().mean()
    expected = torch.autograd.grad(hinge + 0.2 * lecam, list(judge.parameters()))
    for parameter, gradient in zip(module.adversary.discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    means = torch.stack([real.mean(), fake.mean()])
    torch.testing.assert_close(module.adversary.scores, 0.99 * torch.tensor([0.3, -0.1]) + 0.01 * means.detach())
    torch.testing.assert_close(module.watched["loss"], (reconstruction + 0.4 * commitment).detach())


def test_the_perceptual_loss_is_loaded_only_where_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(image_tokenizer, "perceptual_distance", lambda path: asked.append(path) or made_distance())
    assert Alone(settings()).perceptual is None
    assert Alone(settings("tokenizer.loss.perceptual=0.1", "tokenizer.loss.vgg16=/w.pth")).perceptual is not None
    assert asked == ["/w.pth"]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("muon", ["null", "5e-3"])
def test_every_network_is_trained(network: NetworkConfig, muon: str) -> None:
    """With an adversary: every weight of the tokenizer has a gradient, and moves."""
    module = Alone(settings(f"tokenizer.optimizer.muon_learning_rate={muon}"), network=network)
    moved: dict[str, bool] = {}
    for seed in range(4):
        before = {name: p.detach().clone() for name, p in module.tokenizer.named_parameters()}
        module.go(batch(seed, 8))
        for name, parameter in module.tokenizer.named_parameters():
            moved[name] = moved.get(name, False) or not torch.equal(parameter, before[name])
    assert int(module.steps_skipped) == 0
    assert [name for name, did in moved.items() if not did] == []


@pytest.mark.filterwarnings("ignore:.*is not a finite number:UserWarning")
@pytest.mark.parametrize(
    ("quantizer", "where"),
    [
        *((name, "vectors") for name in (*QUANTIZERS, "fsq", "lfq")),
        ("ema", "pixels"),
        ("ema", "pixels that batch norms see"),
        ("ema", "scores"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(quantizer: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(*QUANTIZERS.get(quantizer, []), quantizer=quantizer)
    network = BATCH_NORMS if "batch norms" in where else NETWORK
    module, control = (Alone(chosen, network=network) for _ in range(2))
    assert module.adversary is not None
    for seed in range(3):
        for each in (module, control):
            torch.manual_seed(seed)
            each.go(batch(seed))
    before = module.whole_state()
    assert module.adversary.takes_part
    with monkeypatch.context() as faulty:
        if where.startswith("pixels"):
            faulty.setattr(image_tokenizer, "to_pixels", lambda pictures: to_pixels(pictures) * torch.nan)
        else:
            part: nn.Module = module.tokenizer.encoder if where == "vectors" else module.adversary.discriminator
            forward = part.forward
            faulty.setattr(part, "forward", lambda *given: forward(*given) * torch.nan)
        module.go(batch(3))
    assert same(module.whole_state(), before)
    assert (int(module.steps_skipped), int(module.skipped_in_a_row)) == (1, 1), "once, though two networks were faulty"
    module.steps_done -= 1
    for each in (module, control):
        torch.manual_seed(4)
        each.go(batch(4))
    assert same(module.whole_state(), control.whole_state()), "nothing of the faulty step is left"
    assert int(module.skipped_in_a_row) == 0


@pytest.mark.filterwarnings("ignore:.*is not a finite number:UserWarning")
def test_faulty_scores_alone_stop_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Alone(settings("tokenizer.trainer.max_skipped_steps=3"))
    module.go(batch(0))
    module.go(batch(1))
    assert module.adversary is not None
    original = module.adversary.loss

    def faulty(*given: Tensor) -> DiscriminatorLoss:
        told = original(*given)
        return told._replace(loss=told.loss * torch.nan)

    monkeypatch.setattr(module.adversary, "loss", faulty)
    for seed in range(2, 5):
        module.go(batch(seed))
    with pytest.raises(ValueError, match="the discriminator's loss and discriminator's gradient of step 6 is not"):
        module.go(batch(5))


WILD = [
    "tokenizer.discriminator.start_step=40",
    "tokenizer.discriminator.weight=60",
    "tokenizer.discriminator.max_weight=1000",
    "tokenizer.discriminator.warmup_steps=0",
    "tokenizer.discriminator.lecam=0",
    "tokenizer.discriminator.learning_rate=1e-2",
    "tokenizer.discriminator.guard_steps=5",
]


def errors(module: Alone, steps: int) -> list[float]:
    """The mean squared error of the same pictures, there and back, every ten steps."""
    pixels, found = to_pixels(batch(0, 16)), []
    for step in range(steps):
        module.go(batch(step % 16, 8))
        if step % 10 == 9:
            with torch.no_grad():
                found.append(
                    float(F.mse_loss(module.tokenizer.decoder(module.tokenizer.quantize(pixels).codes), pixels))
                )
    return found


def test_the_guard_saves_what_a_wild_adversary_would_ruin() -> None:
    """A weight of 60 and a learning rate of 1e-2 ruin the reconstruction, unless the adversary is switched off."""
    guarded = Alone(settings(*WILD))
    settled = errors(guarded, 40)[-1]
    unguarded = copy.deepcopy(guarded)
    assert unguarded.adversary is not None
    assert guarded.adversary is not None
    unguarded.adversary.guard.ratio = math.inf
    assert min(errors(unguarded, 100)[-3:]) > 4 * settled
    saved = errors(guarded, 100)
    assert max(saved) > 2 * settled, "there was something to save"
    assert saved[-1] < 1.5 * settled
    assert int(guarded.adversary.guard.switched_off) == guarded.watched["adversary"] == 1
    assert not unguarded.adversary.guard.switched_off


def step_with_both_networks(folder: str) -> None:
    world = join_world(torch.device("cpu"))
    chosen = [f"tokenizer.discriminator.{key}" for key in ("lecam=0.5", "start_below=100", "max_weight=50")]
    module = Alone(settings(*chosen), world)
    for seed in range(3):
        module.go(batch(seed, 8).chunk(world.size)[world.rank])
    assert module.adversary is not None
    assert module.adversary.takes_part
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    told = {name: world.mean(value.clone().float()) for name, value in module.watched.items()}
    if world.is_first:
        torch.save({"gradients": gradients, "told": told, **module.whole_state()}, Path(folder) / f"of-{world.size}.pt")


def test_two_ranks_make_the_step_of_one_with_both_batches(tmp_path: Path) -> None:
    step_with_both_networks(str(tmp_path))
    run_distributed(step_with_both_networks, 2, str(tmp_path))
    one, two = (torch.load(tmp_path / f"of-{size}.pt", weights_only=True) for size in (1, 2))
    assert any("discriminator" in name for name in one["gradients"])
    for part in ("gradients", "told"):
        assert one[part].keys() == two[part].keys()
        for name, tensor in one[part].items():
            torch.testing.assert_close(tensor, two[part][name], rtol=1e-3, atol=1e-5, msg=name)
    for name in ("scores", "guard.average", "guard.level", "guard.taken"):
        torch.testing.assert_close(one["module"][f"adversary.{name}"], two["module"][f"adversary.{name}"])
    assert one["module"]["adversary.scores"].abs().min() > 0


def revive_from_two_sizes(folder: str) -> None:
    """Each rank has pictures of another shape, and so another number of places."""
    world = join_world(torch.device("cpu"))
    torch.manual_seed(0)
    quantizer = MovingAverageConfig(32, 4, 0.5, 0.25, False, 10.0).build().train()
    quantizer.ranks = world
    grid = ((6, 10), (8, 8))[world.rank]
    vectors = torch.randn(2, 4, *grid, generator=torch.Generator().manual_seed(world.rank)) + 5
    quantizer(vectors)
    quantizer.update_codebook()
    left = {"codebook": quantizer.state_dict()["codebook"], "vectors": places(vectors)}
    torch.save(left, Path(folder) / f"rank-{world.rank}.pt")


def test_ranks_with_pictures_of_other_shapes_revive_the_same_codes(tmp_path: Path) -> None:
    run_distributed(revive_from_two_sizes, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["codebook"], second["codebook"])
    of_first, of_second = (
        torch.cdist(first["codebook"], rank["vectors"]).min(1).values < 1e-4 for rank in (first, second)
    )
    assert of_first.sum() > 5
    assert of_second.sum() > 5
