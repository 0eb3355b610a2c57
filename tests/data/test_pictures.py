"""Pictures of every awkward kind become RGB of the right colour and way round, or are refused with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omnigram.data.pictures import aspect_buckets, buckets_of, decode, fit, verify


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def colour(data):
    image = decode(data)
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


def test_transparency_shows_white():
    assert colour(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))) == (255, 255, 255)
    assert colour(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 128)))) == pytest.approx((255, 127, 127), abs=1)
    assert colour(encoded(Image.new("LA", (16, 16), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert colour(encoded(palette)) == (255, 0, 0)
    assert colour(encoded(palette, transparency=0)) == (255, 255, 255)


def test_other_colour_models():
    assert colour(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")) == pytest.approx((255, 0, 0), abs=4)
    assert colour(encoded(Image.new("1", (16, 16), 1))) == (255, 255, 255)
    assert colour(encoded(Image.new("L", (16, 16), 77))) == (77, 77, 77)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (0x8000, 128), (0xFFFF, 255)])
def test_sixteen_bits_keep_their_brightness(value, grey):
    image = Image.fromarray(np.full((16, 16), value, np.uint16))
    assert colour(encoded(image)) == (grey,) * 3
    assert colour(encoded(image, "TIFF")) == (grey,) * 3


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    assert colour(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)
    assert colour(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)) == (255, 0, 0)


def test_the_cameras_orientation_is_applied():
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = decode(encoded(image, exif=exif))
    assert turned.size == (16, 32)
    assert turned.getpixel((8, 4)) == (255, 0, 0)
    assert turned.getpixel((8, 28)) == (255, 255, 255)


GOOD = encoded(Image.effect_noise((64, 64), 50).convert("RGB"))
GOOD_JPEG = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be decoded"),
        (b"no picture at all", "cannot be decoded: unknown format"),
        (GOOD[:-200], "cannot be decoded"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "cannot be decoded"),
        (GOOD[:100] + b"\0" * 50 + GOOD[150:], "cannot be decoded"),
        (encoded(Image.new("RGB", (1, 64))), "side of fewer than 8 pixels"),
        (encoded(Image.new("F", (16, 16)), "TIFF"), "floating-point"),
        (bomb(10_000, 10_000), "more than 50,000,000 pixels"),  # Pillow warns
        (bomb(60_000, 60_000), "more than 50,000,000 pixels"),  # Pillow raises
        (bomb(7_100, 7_100), "more than 50,000,000 pixels"),  # Pillow would decode it
    ],
)
def test_what_cannot_be_a_training_picture_is_refused_alike(data, reason):
    for read in (verify, decode):
        with pytest.raises(ValueError, match=reason) as caught:
            read(data)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)


def test_verify_gives_height_and_width():
    assert verify(encoded(Image.new("RGB", (40, 24)))) == (24, 40)
    assert verify(encoded(Image.new("RGB", (400, 240)), "JPEG")) == (240, 400)


def test_a_square_budget_has_one_bucket():
    assert aspect_buckets(64 * 64, 8) == [(64, 64)]


@given(st.integers(1, 40), st.sampled_from([1, 8, 16]), st.floats(1, 4))
def test_buckets_hold_the_budget(cells, multiple, max_ratio):
    area = cells * multiple * multiple
    buckets = aspect_buckets(area, multiple, max_ratio)
    assert any(h == w for h, w in buckets)
    for h, w in buckets:
        assert h % multiple == w % multiple == 0
        assert h * w <= area
        assert 1 / max_ratio <= h / w <= max_ratio or h == w
        assert (w, h) in buckets
        assert min(h, w) * (max(h, w) + multiple) > area or h == w  # no longer side would fit
    assert [h / w for h, w in buckets] == sorted(h / w for h, w in buckets)


def test_buckets_refuse_the_impossible():
    with pytest.raises(ValueError, match="area_pixels=63"):
        aspect_buckets(63, 8)
    with pytest.raises(ValueError, match=r"max_ratio=0\.5"):
        aspect_buckets(64, 8, 0.5)


@pytest.mark.parametrize(
    ("resolution", "near"), [(60, "to 56 or 64"), (65, "to 64 or 72"), (4, "to 8"), (0, "to 8"), (-64, "to 8")]
)
def test_a_resolution_is_whole_codes(resolution, near):
    assert buckets_of(64, 8, 2.0) == aspect_buckets(64 * 64, 8, 2.0)
    with pytest.raises(
        ValueError, match=rf"pictures of {resolution} pixels .*tokenizer\.pictures\.resolution.* {near}$"
    ):
        buckets_of(resolution, 8)


def test_fit_takes_the_nearest_shape_and_cuts_evenly():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (100, 0, 200, 100))
    square = fit(image, [(64, 64)])
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert (square[:, 8:56] == [255, 0, 0]).all()  # the middle third is what is left
    buckets = aspect_buckets(64 * 64, 8, 2.0)
    assert fit(image, buckets).shape == (*buckets[0], 3)
    assert fit(image.rotate(90, expand=True), buckets).shape == (*buckets[-1], 3)
