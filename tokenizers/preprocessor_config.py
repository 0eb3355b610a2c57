"""preprocessor_config.json of transformers' image processors of Chameleon and Emu3 -> `Preprocessing`, and back."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from .preprocessing import CHAMELEON_TRANSFORMERS, EMU3, EMU3_TRANSFORMERS, FILTERS, RGB, Preprocessing

_KINDS = {  # by the name of the class that a preprocessor_config.json asks for
    "ChameleonImageProcessor": CHAMELEON_TRANSFORMERS,
    "Emu3ImageProcessor": EMU3_TRANSFORMERS,
    "Emu3VisionVQImageProcessor": EMU3,
}


def _colours(value: Any) -> RGB:
    red, green, blue = [value] * 3 if isinstance(value, int | float) else value
    return float(red), float(green), float(blue)


_HF_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # key of the file -> field, and how its value is read
    "resample": ("resample", lambda value: Image.Resampling(value).name.lower()),
    "size": ("side", lambda value: int(value["shortest_edge"])),
    "crop_size": ("crop", lambda value: (int(value["height"]), int(value["width"]))),
    "min_pixels": ("min_pixels", int),
    "max_pixels": ("max_pixels", int),
    "spatial_factor": ("multiple", int),
    "rescale_factor": ("scale", float),
    "image_mean": ("mean", _colours),
    "image_std": ("std", _colours),
}
_HF_SWITCHES: dict[str, dict[str, Any]] = {  # what a step that is switched off leaves behind
    "do_resize": {"resize": "keep", "side": None, "multiple": None, "min_pixels": None, "max_pixels": None},
    "do_center_crop": {"crop": None},
    "do_rescale": {"scale": 1.0},
    "do_normalize": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
}


def read_preprocessor_config(config: Mapping[str, Any]) -> Preprocessing:
    """Of the contents of a preprocessor_config.json of Chameleon's or Emu3's kind; what it leaves out is default.

    ValueError in one line, naming the key, for another kind and for what cannot be said here.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise ValueError(f"preprocessor_config: image_processor_type={kind!r} is none of {', '.join(_KINDS)}")
    default, changes = _KINDS[kind], {}
    for key, (name, read) in _HF_KEYS.items():
        value = config.get(key)
        if value is None or getattr(default, name) is None:  # of the other kind
            continue
        try:
            changes[name] = read(value)
        except (TypeError, ValueError, KeyError):
            raise ValueError(f"preprocessor_config: {key}={value!r} is not supported for a {kind}") from None
    if config.get("do_convert_rgb") is False:
        raise ValueError("preprocessor_config: do_convert_rgb=false is not supported; pixels have three colours")
    for key, without in _HF_SWITCHES.items():
        if config.get(key) is False:
            changes.update(without)
    return replace(default, **changes)


def write_preprocessor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """The contents of a preprocessor_config.json with which transformers computes the same pixels.

    ValueError, naming the fields, for what its processors cannot do.
    """
    kind = {"area_range": "Emu3ImageProcessor"}.get(preprocessing.resize, "ChameleonImageProcessor")
    default, fixed = _KINDS[kind], ["transparency", "precision", "min_side", "max_ratio"]
    if preprocessing.resize != "keep":
        fixed.append("resize")
    if default.crop is None:
        fixed.append("crop")
    other = [name for name in fixed if getattr(preprocessing, name) != getattr(default, name)]
    if other:
        ours, theirs = (", ".join(f"{name}={getattr(of, name)!r}" for name in other) for of in (preprocessing, default))
        raise ValueError(f"{kind} of transformers cannot do {ours}, only {theirs}; use one of those")
    config: dict[str, Any] = {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": preprocessing.resize != "keep",
        "resample": int(FILTERS[preprocessing.resample]),
        "do_rescale": True,
        "rescale_factor": preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.resize == "area_range":
        return config | {
            "min_pixels": preprocessing.min_pixels,
            "max_pixels": preprocessing.max_pixels,
            "spatial_factor": preprocessing.multiple,
            "do_pad": True,
        }
    if preprocessing.side is not None:
        config["size"] = {"shortest_edge": preprocessing.side}
    if preprocessing.crop is not None:
        config["crop_size"] = dict(zip(("height", "width"), preprocessing.crop, strict=True))
    return config | {"do_center_crop": preprocessing.crop is not None}
