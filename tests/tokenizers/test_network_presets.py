"""The presets of published tokenizers: tensors of the published shapes, codes of a picture, and what the page says."""

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig

from omnigram.data.pictures import buckets_of
from omnigram.tokenizers import quantizers
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks import KINDS, network_config
from omnigram.tokenizers.quantizers import quantizer_config
from omnigram.tokenizers.quantizers.lookup_free import LookupFreeQuantizer
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig
from omnigram.train.compose import compose_config, groups

PRESETS = [name for name in groups()["tokenizer"] if name not in ("vqvae", "movqgan")]
TAMING: dict[str, Any] = {"latent_channels": 256, "base_channels": 128, "resolution": 256, "attn_resolutions": (16,)}


@cache
def composed(*overrides: str) -> DictConfig:
    return compose_config(list(overrides)).tokenizer


def on_meta(*overrides: str) -> ImageTokenizer:
    """Its shapes without its weights."""
    settings = composed(*overrides)
    with torch.device("meta"):
        return ImageTokenizer(network_config(settings.network), quantizer_config(settings.quantizer))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def as_published(tokenizer: ImageTokenizer) -> dict[str, tuple[int, ...]]:
    """By the names of the published ones."""
    names = {}
    for name, shape in shapes(tokenizer).items():
        part, _, rest = name.partition(".")
        if part == "quantizer":
            names[f"quantize.{rest}"] = shape
        else:
            names[f"{part}.{rest.removeprefix('network.')}" if rest.startswith("network.") else rest] = shape
    return names


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("option", groups()["tokenizer/network"])
def test_every_network_that_ships_is_made(option: str):
    tokenizer = on_meta(f"tokenizer/network={option}")
    side = tokenizer.patch * (64 // tokenizer.patch)
    assert tokenizer.size(*tokenizer.grid(side, side)) == (side, side)


def test_every_kind_ships_under_its_name():
    assert set(KINDS) <= set(groups()["tokenizer/network"])
    for kind in KINDS:
        assert composed(f"tokenizer/network={kind}").network.kind == kind


# of the published tokenizer: pixels a code, codes, dimension
SIZES = {
    "taming": (16, 1024, 256),
    "chameleon": (16, 8192, 256),
    "llamagen": (16, 16384, 8),
    "llamagen_f8": (8, 16384, 8),
    "emu3": (8, 32768, 4),
    "ibq": (16, 16384, 256),
    "magvit2": (16, 2**18, 18),
    "dalle": (8, 8192, 128),
    "vit_vqgan": (8, 8192, 32),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_codes_are_as_many_and_as_large_as_published(preset: str):
    tokenizer, settings = on_meta(f"tokenizer={preset}"), composed(f"tokenizer={preset}")
    assert (tokenizer.patch, tokenizer.codebook_size, tokenizer.quantizer.config.dim) == SIZES[preset]
    side = settings.pictures.resolution
    assert tokenizer.grid(side, side) == (side // tokenizer.patch, side // tokenizer.patch)
    assert settings.name == preset


@pytest.mark.parametrize(
    "changes",
    [
        *((f"tokenizer={preset}",) for preset in PRESETS if preset != "magvit2"),  # whose codes are not learnt
        ("tokenizer=ibq", "tokenizer.quantizer.codebook_size=262144", "tokenizer.trainer.init_pictures=1024"),
    ],
)
def test_codes_begin_at_as_many_vectors_whatever_the_shapes_of_the_pictures(changes: tuple[str, ...]):
    tokenizer, settings = on_meta(*changes), composed(*changes)
    pictures = settings.pictures
    grids = [tokenizer.grid(*size) for size in buckets_of(pictures.resolution, tokenizer.patch, pictures.max_ratio)]
    fewest = min(rows * columns for rows, columns in grids)
    assert settings.trainer.init_pictures * fewest >= tokenizer.codebook_size


# perceptual loss and LeCam, as the sources that the heads name have them; of chameleon and emu3 it is taming's
WEIGHTS = {
    "taming": (1.0, 0.0),
    "chameleon": (1.0, 0.0),
    "emu3": (1.0, 0.0),
    "llamagen": (1.0, 0.0),
    "llamagen_f8": (1.0, 0.0),
    "ibq": (1.0, 2 * 0.05),  # beside the whole hinge loss, where they have half of it
    "magvit2": (1.0, 2 * 0.05),
    "dalle": (0.0, None),
    "vit_vqgan": (0.1, 0.0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_have_the_published_weights_and_heads_say_which_distance_it_is(preset: str):
    settings = composed(f"tokenizer={preset}")
    lecam = settings.discriminator and settings.discriminator.lecam
    assert (settings.loss.perceptual, lecam) == WEIGHTS[preset]
    text = (Path(__file__).parents[2] / "conf" / "tokenizer" / f"{preset}.yaml").read_text()
    said = " ".join(text.partition("\ndefaults")[0].replace("#", "").split())
    distance = "edge-VGG distance unless tokenizer.loss.vgg16 names torchvision's weights"
    assert (distance in said) == (settings.loss.perceptual > 0) or "llamagen.yaml" in said


def test_magvit2_has_the_probabilities_of_its_source():
    """Open-MAGVIT2's: softmax of 2 z c / .01, of vectors so near to the borders that both bits matter."""
    quantizer = quantizer_config({**composed("tokenizer=magvit2").quantizer, "codebook_size": 8}).build()
    assert isinstance(quantizer, LookupFreeQuantizer)
    vectors = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) / 100
    expected = torch.softmax(2 * vectors @ quantizer.codebook.T / 0.01, dim=1)
    entropies = -(expected * expected.log()).sum(1).mean()
    stats = quantizer.train()(vectors.T[None, :, None]).stats
    torch.testing.assert_close(stats["entropy_of_vectors"], entropies)


def test_chameleon_has_the_tensors_of_transformers_and_the_decoder_of_its_checkpoint():
    ours = as_published(on_meta("tokenizer=chameleon"))
    with torch.device("meta"):
        theirs, whole = shapes(ChameleonVQVAE(ChameleonVQVAEConfig())), shapes(VQGAN(VQGANConfig()))
    assert {name: shape for name, shape in ours.items() if name in theirs} == theirs
    assert ours == whole


def test_emu3_has_the_tensors_of_transformers():
    ours = as_published(on_meta("tokenizer=emu3"))
    with torch.device("meta"):
        assert ours == shapes(Emu3VQVAE(Emu3VQVAEConfig()))


@pytest.mark.parametrize(
    ("preset", "changes", "millions"),
    [
        ("llamagen", {"embed_dim": 8, "codebook_size": 16384, "normalise_codes": True}, 72),
        (
            "llamagen_f8",
            {"embed_dim": 8, "codebook_size": 16384, "channel_multiplier": (1, 2, 2, 4), "attn_resolutions": (32,)},
            70,
        ),
        ("taming", {"codebook_size": 1024}, None),
        ("ibq", {"codebook_size": 16384, "num_res_blocks": 4}, None),
    ],
)
def test_vqgans_have_the_tensors_of_the_published_shape(preset: str, changes: dict[str, Any], millions: int | None):
    """millions: of parameters, as LlamaGen's table says."""
    tokenizer = on_meta(f"tokenizer={preset}")
    with torch.device("meta"):
        peer = VQGAN(VQGANConfig(**TAMING | changes))
    ours, theirs = as_published(tokenizer), shapes(peer)
    if preset == "ibq":  # of which the codebook has another name
        ours["quantize.embedding.weight"] = ours.pop("quantize.codebook")
    assert ours == theirs
    if millions is not None:
        assert round(parameters(tokenizer) / 1e6) == millions


def test_dalle_has_the_blocks_of_its_code():
    """Counted by hand from its layers: four convolutions a block in a quarter of its width, eight blocks a side."""

    def conv(before: int, after: int, kernel: int) -> int:
        return before * after * kernel**2 + after

    def block(before: int, after: int, kernels: tuple[int, ...]) -> int:
        inner = after // 4
        widths = (before, inner, inner, inner, after)
        past = conv(before, after, 1) if before != after else 0
        return past + sum(conv(widths[i], widths[i + 1], kernels[i]) for i in range(4))

    tokenizer = on_meta("tokenizer=dalle")
    down, up = (3, 3, 3, 1), (1, 3, 3, 3)
    pairs = [(256, 256), (256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024), (1024, 2048), (2048, 2048)]
    encoder = conv(3, 256, 7) + sum(block(*pair, down) for pair in pairs)
    pairs = [(128, 2048), (2048, 2048), (2048, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 256), (256, 256)]
    decoder = sum(block(*pair, up) for pair in pairs)
    assert parameters(tokenizer.encoder) == encoder + conv(2048, 128, 1)
    assert parameters(tokenizer.decoder) == decoder + conv(128, 128, 1) + conv(256, 3, 1)
    assert shapes(tokenizer.quantizer)["codebook"] == (8192, 128)


def test_a_network_is_exchanged_under_a_preset():
    tokenizer = on_meta("tokenizer=llamagen", "tokenizer/network=vit")
    assert (tokenizer.network.kind, tokenizer.codebook_size) == ("vit", 16384)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_says_its_command_its_hardware_and_its_source(preset: str):
    text = (Path(__file__).parents[2] / "conf" / "tokenizer" / f"{preset}.yaml").read_text()
    assert f"tokenizer={preset} data=webdataset" in text
    assert "arxiv.org" in text or "llamagen.yaml" in text
    assert "Nobody has" in " ".join(text.replace("# ", "").split()) or "llamagen.yaml" in text


# docs/tokenizers.md

PAGE = (Path(__file__).parents[2] / "docs" / "tokenizers.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, list[str]]:
    """First cell, without its marks -> the others, of the table under a heading."""
    rows = re.findall(r"^\| (.*) \|$", PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0], re.MULTILINE)
    cells = [row.split(" | ") for row in rows[2:]]
    return {first.strip("`"): rest for first, *rest in cells}


def test_its_commands_are_understood():
    [block] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        command, _, *settings = line.split()
        assert command == "omnigram"
        config = composed(*(word for word in settings if not word.startswith("--")))
        assert network_config(config.network).patch > 1
        assert quantizer_config(config.quantizer).num_codes > 1


@pytest.mark.parametrize(("heading", "kinds"), [("Networks", KINDS), ("Quantizers", quantizers.KINDS)])
def test_the_page_names_every_kind_with_its_settings(heading: str, kinds: dict[str, Any]):
    rows = table(heading)
    assert set(rows) == set(kinds)
    for kind, (*_, settings) in rows.items():
        assert re.findall(r"`(\w+)`", settings) == [field.name for field in dataclasses.fields(kinds[kind])]


def test_the_page_shows_the_presets_as_they_are():
    rows = table("Published tokenizers")
    assert set(rows) == set(PRESETS)
    for preset, (network, quantizer, *numbers) in rows.items():
        tokenizer, settings = on_meta(f"tokenizer={preset}"), composed(f"tokenizer={preset}")
        assert (network, quantizer) == (settings.network.kind, settings.quantizer.kind)
        side = settings.pictures.resolution
        rows_, columns = tokenizer.grid(side, side)
        millions = f"{parameters(tokenizer) / 1e6:.1f} M"
        codes = f"{tokenizer.codebook_size:,} x {tokenizer.quantizer.config.dim}"
        assert numbers[:3] == [f"{side} px, {rows_} x {columns}", codes, millions], preset
