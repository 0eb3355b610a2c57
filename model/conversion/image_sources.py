"""Image tokenizers that are published by themselves: Meta's vqgan.ckpt, and BAAI's Emu3-VisionTokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ...tokenizers.checkpoint_names import from_emu3, taming_state
from ...tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from ...tokenizers.pixel_tokenizer import CONFIG, PixelTokenizer
from ...tokenizers.vqgan import FIXED, VQGAN, VQGANConfig, require
from . import pickle_files
from .downloads import check_downloaded, read_json
from .family import PREPROCESSOR, on_meta
from .rules import KEEP, Flatten, Rule
from .safetensors_files import read_folder
from .stored import Checkpoint, keyed

CHECKPOINT, SETTINGS = "vqgan.ckpt", "vqgan.yaml"
BAAI_MODEL_TYPE = "Emu3VisionVQ"
# ours -> BAAI's
_BAAI = {name: name for name in ("codebook_size", "embed_dim", "temporal_downsample_factor", "num_res_blocks")}
_BAAI |= {"base_channels": "ch", "channel_multiplier": "ch_mult", "attn_resolutions": "attn_resolutions"}


@dataclass(frozen=True)
class ImageSource:
    """An image tokenizer without memory for its weights, and where these are.

    rules: of all its tensors. config: the file that gave its shape. files: small ones to keep.
    """

    tokenizer: PixelTokenizer
    checkpoint: Checkpoint
    rules: tuple[Rule, ...]
    config: Path
    files: tuple[Path, ...]


def read_image_source(path: Path) -> ImageSource:
    """The tokenizer in a folder, or of a vqgan.ckpt. FileNotFoundError or ValueError if there is none."""
    if path.is_file() or (path / CHECKPOINT).is_file():
        return _vqgan(path if path.is_file() else path / CHECKPOINT)
    if (path / CONFIG).is_file():
        fields = read_json(path / CONFIG)
        if fields.get("model_type") == BAAI_MODEL_TYPE:
            return _movqgan(path, fields)
        raise ValueError(
            f"{path / CONFIG}: model_type {fields.get('model_type')!r} is no image tokenizer that is known: "
            f"name a folder of {BAAI_MODEL_TYPE}, or a {CHECKPOINT}"
        )
    raise FileNotFoundError(f"{path} holds no image tokenizer: neither {CHECKPOINT} nor {CONFIG} is there")


def _vqgan(path: Path) -> ImageSource:
    settings = path.with_suffix(".yaml")
    if not settings.is_file():
        raise FileNotFoundError(f"{settings} is missing, which says what {path.name} is: download it as well")
    check_downloaded(settings)
    try:
        config = VQGANConfig.from_taming(yaml.safe_load(settings.read_text())["model"]["params"])
    except (yaml.YAMLError, KeyError, TypeError) as fault:
        raise ValueError(f"{settings} is no configuration of a VQGAN: {' '.join(str(fault).split())}") from None
    except ValueError as fault:
        raise ValueError(f"{settings}: {fault}") from None
    checkpoint = pickle_files.read_file(path, taming_state)
    tokenizer = on_meta(lambda: VQGAN(config))
    rules = tuple(Rule(name, (f"{path.name}:{name}",)) for name in tokenizer.state_dict())
    return ImageSource(tokenizer, keyed(path.name, checkpoint), rules, settings, (settings,))


def _movqgan(folder: Path, fields: Mapping[str, Any]) -> ImageSource:
    path = folder / CONFIG
    try:
        require(fields, FIXED_BAAI)
        config = MoVQGANConfig(**{ours: fields[theirs] for ours, theirs in _BAAI.items() if theirs in fields})
        require(fields, {"z_channels": config.embed_dim})
    except (ValueError, TypeError) as fault:
        raise ValueError(f"{path} is no configuration of a {BAAI_MODEL_TYPE}: {fault}") from None
    tokenizer = on_meta(lambda: MoVQGAN(config))
    checkpoint = read_folder(folder)
    theirs: dict[str, Rule] = {}
    for name, stored in checkpoint.items():
        [(ours, renamed)] = from_emu3({name: torch.empty(stored.shape, device="meta")}).items()
        operation = KEEP if renamed.shape == stored.shape else Flatten()
        theirs[ours] = Rule(ours, (f"image:{name}",), operation)
    rules = tuple(theirs.get(name) or Rule(name, (f"image:{name}",)) for name in tokenizer.state_dict())
    preprocessing = [file for file in (folder / PREPROCESSOR,) if file.is_file()]
    return ImageSource(tokenizer, keyed("image", checkpoint), rules, path, tuple(preprocessing))


FIXED_BAAI = {"in_channels": FIXED["in_channels"], "out_channels": FIXED["out_channels"], "double_z": False}
