"""Pixels of pictures: equal to transformers' processors and to restatements of the other sources; laws; bad input."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

from omnigram.tokenizers.preprocessing import (
    CHAMELEON,
    CHAMELEON_TRANSFORMERS,
    EMU3,
    EMU3_5,
    EMU3_TRANSFORMERS,
    Preprocessing,
)
from omnigram.tokenizers.preprocessor_config import read_preprocessor_config, write_preprocessor_config

PRESETS = {
    "chameleon": CHAMELEON,
    "chameleon of transformers": CHAMELEON_TRANSFORMERS,
    "emu3": EMU3,
    "emu3 of transformers": EMU3_TRANSFORMERS,
    "emu3.5": EMU3_5,
}
SIZES = [(1, 12), (9, 1), (17, 513), (640, 333), (512, 512), (1201, 1100)]  # width, height
MODES = ["RGB", "RGBA", "LA", "L", "P", "P with transparency", "RGB with transparency", "L with transparency"]
MODES += ["CMYK", "1", "I;16"]
PICTURES = [(mode, size) for mode in ("RGB", "RGBA") for size in SIZES] + [(mode, (137, 90)) for mode in MODES]


def noise(mode: str, width: int, height: int) -> Image.Image:
    """A picture of noise, with alphas from 0 to 255 where it has any."""
    generator = np.random.default_rng(width * 7919 + height)
    values = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    kind, _, extra = mode.partition(" with ")
    if kind == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 3)
    if kind == "CMYK":
        return Image.fromarray(values, "CMYK")
    picture = Image.fromarray({"RGBA": values, "LA": values[..., 2:], "P": values[..., 0]}.get(kind, values[..., :3]))
    if kind == "P":
        picture.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
    if extra:
        picture.info["transparency"] = bytes(range(256)) if kind == "P" else picture.getpixel((0, 0))
    return picture.convert(kind)


def of_transformers(processor: ChameleonImageProcessorPil | Emu3ImageProcessor, picture: Image.Image) -> torch.Tensor:
    # it takes an array 1 or 3 pixels high for one with the colours in front, unless told
    told: Any = {} if isinstance(processor, ChameleonImageProcessorPil) else {"input_data_format": "channels_last"}
    return processor(picture, return_tensors="pt", **told)["pixel_values"][0]


@pytest.mark.parametrize(("mode", "size"), PICTURES)
def test_pixels_are_those_of_transformers(mode: str, size: tuple[int, int]):
    picture = noise(mode, *size)
    for preset, processor in (
        (CHAMELEON_TRANSFORMERS, ChameleonImageProcessorPil()),
        (EMU3_TRANSFORMERS, Emu3ImageProcessor()),
    ):
        ours, theirs = preset(picture), of_transformers(processor, picture)
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(70, 90), (33, 500), (1, 3), (64, 64), (900, 9)])
def test_pixels_are_those_of_transformers_with_other_options(size: tuple[int, int]):
    picture = noise("RGBA", *size)
    for processor in (
        ChameleonImageProcessorPil(
            size={"shortest_edge": 65}, crop_size={"height": 40, "width": 81}, resample=Image.Resampling.BICUBIC
        ),
        ChameleonImageProcessorPil(do_resize=False, do_center_crop=False),  # Lumina-mGPT's
        ChameleonImageProcessorPil(do_resize=False, crop_size={"height": 41, "width": 200}),
        ChameleonImageProcessorPil(do_rescale=False, do_normalize=False, size={"shortest_edge": 31}),
        ChameleonImageProcessorPil(rescale_factor=1 / 99, image_mean=[0.1, 0.2, 0.3], image_std=[0.7, 3.0, 1.1]),
        Emu3ImageProcessor(min_pixels=1_000, max_pixels=4_000, spatial_factor=16, resample=Image.Resampling.LANCZOS),
        Emu3ImageProcessor(do_resize=False, do_normalize=False),
        Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, max_pixels=300_000),  # BAAI's
    ):
        preset = read_preprocessor_config(processor.to_dict())
        assert torch.equal(preset(picture).float(), of_transformers(processor, picture).float())


def as_meta(picture: Image.Image) -> np.ndarray:
    """Chameleon's own, in words of ours: white below, Lanczos to 512, the middle, -1 .. 1."""
    if picture.mode == "RGB":
        opaque = np.array(picture)
    else:
        colours = np.array(picture.convert("RGBA")).astype(float)
        share = colours[..., 3:] / 255.0
        opaque = np.floor(255 * (1 - share) + colours[..., :3] * share).astype(np.uint8)
    height, width, _ = opaque.shape
    zoom = 512 / min(height, width)
    resized = Image.fromarray(opaque).resize((round(width * zoom), round(height * zoom)), Image.Resampling.LANCZOS)
    top, left = (resized.height - 512) // 2, (resized.width - 512) // 2
    return (np.array(resized)[top : top + 512, left : left + 512] / 255.0 * 2 - 1).astype(np.float32)


@pytest.mark.parametrize(("mode", "size"), PICTURES)
def test_chameleon_is_as_meta_has_it(mode: str, size: tuple[int, int]):
    picture = noise(mode, *size)
    assert np.array_equal(CHAMELEON(picture).permute(1, 2, 0).numpy(), as_meta(picture))


def test_the_two_chameleons_differ():
    picture = noise("RGBA", 300, 200)
    assert float(CHAMELEON(Image.new("L", (9, 9), 255)).max()) == 1
    assert float(CHAMELEON_TRANSFORMERS(Image.new("L", (9, 9), 255)).max()) == pytest.approx(0.989)
    same_scale = replace(CHAMELEON_TRANSFORMERS, scale=CHAMELEON.scale)
    assert not torch.allclose(CHAMELEON(picture), same_scale(picture), atol=1e-3)  # the alphas are cut or rounded
    assert CHAMELEON.resized(1000, 667) == (768, 512)
    assert CHAMELEON_TRANSFORMERS.resized(1000, 667) == (767, 512)


@pytest.mark.parametrize("size", [(8, 40), (17, 85), (640, 333), (1201, 1100)])
def test_emu3_of_baai_is_that_of_transformers_with_its_mean_for_opaque_pictures(size: tuple[int, int]):
    picture = noise("RGB", *size)
    processor = Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert torch.equal(EMU3(picture), of_transformers(processor, picture))


@pytest.mark.parametrize("preset", [EMU3, EMU3_5], ids=["emu3", "emu3.5"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P with transparency"])
def test_baai_ignores_transparency(preset: Preprocessing, mode: str):
    picture = noise(mode, 40, 50)
    assert torch.equal(preset(picture), preset(picture.convert("RGBA").convert("RGB")))


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 1024), (1024, 1024)), ((100, 60), (1328, 800)), ((3000, 1000), (1776, 592))]
)
def test_emu3_5_is_as_baai_has_it(size: tuple[int, int], expected: tuple[int, int]):
    """The second size by hand: 1024 * sqrt(60 / 100) is 793, 793 * 100 / 60 is 1321; the nearest sixteens are these."""
    picture = noise("RGB", *size)
    resized = np.array(picture.resize(expected, Image.Resampling.BICUBIC))
    pixels = EMU3_5(picture)
    assert EMU3_5.output_size(*reversed(size)) == tuple(reversed(expected)) == tuple(pixels.shape[1:])
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), (resized / 127.5 - 1.0).astype(np.float32))


def test_emu3_5_rounds_halves_up():
    assert replace(EMU3_5, max_pixels=24 * 24).output_size(10, 10) == (32, 32)
    assert replace(EMU3_5, max_pixels=23 * 23).output_size(10, 10) == (16, 16)
    assert replace(EMU3_5, max_pixels=4 * 4).output_size(10, 10) == (16, 16)


sides = st.integers(1, 4_000)


@given(height=sides, width=sides)
def test_short_sides_obey_their_rule(height: int, width: int):
    for preset in (CHAMELEON, CHAMELEON_TRANSFORMERS):
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError, match="max_ratio"):
                preset.resized(height, width)
            continue
        short, long = sorted(preset.resized(height, width))
        assert short == 512
        assert abs(long - 512 * max(height, width) / min(height, width)) < 1
        assert preset.output_size(height, width) == (512, 512)


@given(height=sides, width=sides)
def test_areas_obey_their_rule(height: int, width: int):
    for preset, multiple, ratio in ((EMU3, 8, 5), (EMU3_TRANSFORMERS, 8, 200), (EMU3_5, 16, 200)):
        if max(height, width) > ratio * min(height, width) or min(height, width) < preset.min_side:
            with pytest.raises(ValueError, match=r"max_ratio|min_side"):
                preset.output_size(height, width)
            continue
        h, w = preset.output_size(height, width)
        assert h % multiple == w % multiple == 0
        if preset is EMU3_5:
            ideal = (1024**2 * height / width) ** 0.5, (1024**2 * width / height) ** 0.5
            assert abs(h - ideal[0]) <= 9
            assert abs(w - ideal[1]) <= 10 + width / height  # its height is cut first
        else:
            assert 512**2 <= h * w <= 1024**2


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@given(data=st.data())
def test_a_picture_that_needs_no_resize_comes_back(preset: Preprocessing, data: st.DataObject):
    width, height = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    kept = replace(
        preset,
        resize="keep",
        side=None,
        multiple=None,
        min_pixels=None,
        max_pixels=None,
        crop=None,
        min_side=1,
        max_ratio=40,
    )
    picture = noise("RGB", width, height)
    assert np.array_equal(np.array(kept.invert(kept(picture))), np.array(picture))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_picture_of_the_right_size_comes_back(preset: Preprocessing):
    side = 1024 if preset is EMU3_5 else 512
    picture = noise("RGB", side, side)
    assert np.array_equal(np.array(preset.invert(preset(picture))), np.array(picture))


def test_inverted_pixels_are_clamped_and_rounded():
    pixels = torch.tensor([-3.0, -1.0, 0.001, 1.0, 3.0]).expand(3, 1, 5)
    assert np.array(CHAMELEON.invert(pixels))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert np.array(CHAMELEON.invert(pixels.bfloat16()))[0, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preprocessing_is_data(preset: Preprocessing):
    assert Preprocessing(**json.loads(json.dumps(asdict(preset)))) == preset
    assert hash(preset) == hash(replace(preset))


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        ("ChameleonImageProcessor", CHAMELEON_TRANSFORMERS),
        ("ChameleonImageProcessorFast", CHAMELEON_TRANSFORMERS),
        ("ChameleonImageProcessorPil", CHAMELEON_TRANSFORMERS),
        ("Emu3ImageProcessor", EMU3_TRANSFORMERS),
        ("Emu3ImageProcessorFast", EMU3_TRANSFORMERS),
        ("Emu3VisionVQImageProcessor", EMU3),
    ],
)
def test_kinds_of_preprocessor_config(kind: str, preset: Preprocessing):
    assert read_preprocessor_config({"image_processor_type": kind}) == preset
    assert read_preprocessor_config({"feature_extractor_type": kind, "image_processor_type": None}) == preset


def test_files_as_published_are_read():
    """The keys of the files of facebook/chameleon-7b and BAAI/Emu3-VisionTokenizer."""
    chameleon = {
        "crop_size": {"height": 512, "width": 512},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_processor_type": "ChameleonImageProcessor",
        "image_std": [1.0, 1.0, 1.0],
        "processor_class": "ChameleonProcessor",
        "resample": 1,
        "rescale_factor": 0.0078,
        "size": {"shortest_edge": 512},
    }
    assert read_preprocessor_config(chameleon) == CHAMELEON_TRANSFORMERS
    emu3 = {
        "auto_map": {"AutoImageProcessor": "image_processing_emu3visionvq.Emu3VisionVQImageProcessor"},
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Emu3VisionVQImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_pixels": 1048576,
        "min_pixels": 262144,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"max_pixels": 1048576, "min_pixels": 262144},
        "spatial_factor": 8,
    }
    assert read_preprocessor_config(emu3) == EMU3


@pytest.mark.parametrize(
    "preset",
    [
        CHAMELEON_TRANSFORMERS,
        EMU3_TRANSFORMERS,
        replace(EMU3, transparency="composite", min_side=1, max_ratio=200),
        replace(CHAMELEON_TRANSFORMERS, side=40, crop=(32, 48), resample="bicubic", std=(0.5, 0.25, 2)),
        replace(CHAMELEON_TRANSFORMERS, side=40, crop=None),
        replace(CHAMELEON_TRANSFORMERS, resize="keep", side=None, crop=(20, 90)),
        replace(EMU3_TRANSFORMERS, multiple=4, min_pixels=900, max_pixels=2_000, scale=1 / 99, mean=(0.1, 0.2, 0.3)),
    ],
)
def test_transformers_loads_what_is_written(preset: Preprocessing):
    config = json.loads(json.dumps(write_preprocessor_config(preset)))
    assert read_preprocessor_config(config) == preset
    chameleon = config["image_processor_type"] == "ChameleonImageProcessor"
    processor = (ChameleonImageProcessorPil if chameleon else Emu3ImageProcessor).from_dict(config)
    assert isinstance(processor, ChameleonImageProcessorPil | Emu3ImageProcessor)
    for picture in (noise("RGBA", 61, 83), noise("P with transparency", 120, 40)):
        assert torch.equal(preset(picture), of_transformers(processor, picture))
    assert read_preprocessor_config(processor.to_dict()) == preset


CHAMELEON_FILE = {"image_processor_type": "ChameleonImageProcessor"}
FAULTS: dict[str, Callable[[], object]] = {
    "a picture of 0 x 5 pixels is empty": lambda: EMU3(Image.new("RGB", (0, 5))),
    "a picture of 7 x 9 pixels: no side may be below min_side=8": lambda: EMU3(Image.new("L", (7, 9))),
    "a picture of 41 x 8 pixels: one side may be max_ratio=5 times": lambda: EMU3(Image.new("L", (41, 8))),
    "a picture of 1 x 201 pixels: one side may be max_ratio=200": lambda: CHAMELEON(Image.new("L", (1, 201))),
    "resample='cubic' is none of nearest, ": lambda: replace(EMU3, resample="cubic"),
    "resize='longest' is none of keep, ": lambda: replace(EMU3, resize="longest"),
    "transparency='black' is none of ignore, ": lambda: replace(EMU3, transparency="black"),
    "precision='float16' is none of float32, ": lambda: replace(EMU3, precision="float16"),
    "side=512 with resize='area_range': set it to None": lambda: replace(EMU3, side=512),
    "side=None with resize='short_side': set it to a positive": lambda: replace(CHAMELEON, side=None),
    "multiple=0 with resize='area': set it to a positive number": lambda: replace(EMU3_5, multiple=0),
    "min_pixels=262144 is more than max_pixels=9": lambda: replace(EMU3, max_pixels=9),
    r"crop=\(512,\) must be a height and a width": lambda: Preprocessing(**{**asdict(CHAMELEON), "crop": [512]}),
    r"std=\(1, 1, 0\): three colours": lambda: replace(EMU3, std=(1, 1, 0)),
    "image_processor_type='CLIPImageProcessor' is none of ": lambda: read_preprocessor_config(
        {"image_processor_type": "CLIPImageProcessor"}
    ),
    "image_processor_type='None' is none of ": lambda: read_preprocessor_config({}),
    "size={'height': 9, 'width': 9} is not supported": lambda: read_preprocessor_config(
        CHAMELEON_FILE | {"size": {"height": 9, "width": 9}}
    ),
    "resample=77 is not supported": lambda: read_preprocessor_config(CHAMELEON_FILE | {"resample": 77}),
    r"image_mean=\[1.0\] is not supported": lambda: read_preprocessor_config(CHAMELEON_FILE | {"image_mean": [1.0]}),
    "do_convert_rgb=false is not supported": lambda: read_preprocessor_config(
        CHAMELEON_FILE | {"do_convert_rgb": False}
    ),
    "ChameleonImageProcessor of transformers cannot do transparency='blend', precision='float64', resize='short_side', "
    "only transparency='composite', precision='float32', resize='short_side_floor'": lambda: write_preprocessor_config(
        CHAMELEON
    ),
    "Emu3ImageProcessor of transformers cannot do transparency='ignore', min_side=8, max_ratio=5, only": lambda: (
        write_preprocessor_config(EMU3)
    ),
    r"Emu3ImageProcessor of transformers cannot do crop=\(8, 8\), only crop=None": lambda: write_preprocessor_config(
        replace(EMU3_TRANSFORMERS, crop=(8, 8))
    ),
    "cannot do transparency='ignore', precision='float64', resize='area'": lambda: write_preprocessor_config(EMU3_5),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_faults_are_told_in_one_line(reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        FAULTS[reason]()
    assert "\n" not in str(caught.value)
