"""Damage in what `make data` reads: shards of others, pictures, the network; what is left out is named and counted."""

import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_damage import QUICK, member
from made_pictures import data_config, fill_folder, picture, tar_of
from made_server import served, told
from PIL import Image, PngImagePlugin

from omnigram.data.address_errors import AddressError
from omnigram.data.pictures import verify
from omnigram.data.record import DATASET
from omnigram.data.sources import OTHER, REASONS
from omnigram.data.sources.folder import FolderSource
from omnigram.data.sources.webdataset import WebDatasetSource
from omnigram.train.shards import make_shards


def pairs(*numbers: int) -> list[tuple[str, bytes]]:
    return [p for i in numbers for p in ((f"{i:04d}.jpg", picture(kind="JPEG")), (f"{i:04d}.txt", b"no %d" % i))]


def test_a_cut_shard_of_others_keeps_what_is_before_the_cut(tmp_path: Path) -> None:
    for shard in range(3):
        tar_of(tmp_path / f"cc-{shard}.tar", pairs(0, 1, 2))
    cut = tmp_path / "cc-1.tar"
    cut.write_bytes(cut.read_bytes()[: member(cut, "0002.jpg").offset + 700])
    source = WebDatasetSource(f"{tmp_path}/cc-{{0..2}}.tar", max_skipped=0.4)
    with told(
        r"cc-1\.tar: shard is cut short after sample '0002': unexpected end of data: what comes behind it is lost"
    ):
        keys = [document.key for document in source]
    assert keys == [f"cc-{s}/000{n}" for s in range(3) for n in range(3) if (s, n) != (1, 2)]
    assert source.skipped.by_reason == {"shard is cut short": 1}
    assert source.skipped.first == [{"key": str(cut), "reason": "shard is cut short"}]
    with pytest.raises(
        ValueError, match=r"cc-1\.tar: shard is cut .* 1 of 3 shards, more than data.source.max_skipped=0.3"
    ):
        list(WebDatasetSource(f"{tmp_path}/cc-{{0..2}}.tar", max_skipped=0.3))


def test_an_empty_shard_is_said(tmp_path: Path) -> None:
    tar_of(tmp_path / "cc-0.tar", [])
    tar_of(tmp_path / "cc-1.tar", pairs(0))
    with told(r"the shard .*cc-0\.tar holds no samples"):
        assert [document.key for document in WebDatasetSource(f"{tmp_path}/cc-{{0..1}}.tar")] == ["cc-1/0000"]


def test_the_same_keys_in_two_shards_and_in_one_lose_nothing(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        tar_of(tmp_path / place / "cc.tar", [*pairs(0, 1, 0), ("0000__2.jpg", picture()), ("0000__2.txt", b"its own")])
    keys = [document.key for document in WebDatasetSource([f"{tmp_path}/a/cc.tar", f"{tmp_path}/b/cc.tar"])]
    assert keys == [f"{s}/{key}" for s in ("000000", "000001") for key in ("0000", "0001", "0000__2", "0000__2__2")]


def test_links_and_devices_are_refused_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number, kind in enumerate((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE)):
            text = tarfile.TarInfo(f"{number}.txt")
            text.size = 1
            archive.addfile(text, io.BytesIO(b"x"))
            image = tarfile.TarInfo(f"{number}.png")
            image.type, image.linkname = kind, "/etc/passwd"
            image.size = len(picture()) if kind == tarfile.REGTYPE else 0
            archive.addfile(image, io.BytesIO(picture()))
    source = WebDatasetSource(str(path), max_skipped=0.7)
    assert [document.key for document in source] == ["a/0"]
    assert source.skipped.by_reason == {"member is a link": 1, "member is a device": 1}


def test_make_data_prints_what_is_lost_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar_of(tmp_path / "a.tar", [*pairs(*range(20)), ("x.jpg", b"no picture"), ("x.txt", b"x")])
    tar_of(tmp_path / "b.tar", pairs(*range(20)))
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:-10240])
    source = {
        "_target_": "omnigram.data.sources.webdataset.WebDatasetSource",
        "urls": f"{tmp_path}/{{a,b}}.tar",
        "max_skipped": 0.5,
    }
    config = data_config("", tmp_path / "set")
    config.data.source = source
    with told(r"b\.tar: shard is cut short"):
        make_shards(config)
    printed = capsys.readouterr().err
    assert "skipped 1: picture cannot be decoded: unknown format (first a/x)" in printed
    assert f"skipped 1: shard is cut short (first {tmp_path}/b.tar)" in printed
    skipped = json.loads((tmp_path / "set" / DATASET).read_text())["skipped"]
    assert skipped["count"] == 2
    assert [entry["key"] for entry in skipped["first"]] == ["a/x", f"{tmp_path}/b.tar"]


def test_a_source_at_an_address_survives_the_network(tmp_path: Path) -> None:
    tar_of(tmp_path / "cc-0.tar", pairs(0, 1))
    tar_of(tmp_path / "cc-1.tar", pairs(2, 3))
    with served(tmp_path) as faulty:
        faulty.faults = [503, ("drop", 700), ("stall", 900), "shut", ("drop", 2000)]
        source = WebDatasetSource(faulty.base + "/cc-{0..1}.tar", network=QUICK)
        with told("attempt"):
            assert [document.segments[0].text for document in source] == ["no 0", "no 1", "no 2", "no 3"]
        assert not source.skipped.count
        with pytest.raises(AddressError, match=r"none\.tar cannot be read: 404"):
            list(WebDatasetSource(faulty.base + "/none.tar", network=QUICK))


def test_as_many_reasons_as_samples_are_not_all_kept(tmp_path: Path) -> None:
    source = FolderSource(fill_folder(tmp_path / "few", 1))
    for number in range(500):
        source.skipped.add(str(number), f"reason {number}")
    assert len(source.skipped.by_reason) == REASONS + 1
    assert source.skipped.by_reason[OTHER] == 500 - REASONS
    assert source.skipped.count == 500


def test_a_file_that_is_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    for name in ("huge.png", "good.png"):
        (tmp_path / name).write_bytes(picture())
        (tmp_path / name).with_suffix(".txt").write_text("x")
    os.truncate(tmp_path / "huge.png", 2**41)  # holes, no disk is filled
    source = FolderSource(tmp_path, max_skipped=0.6)
    assert [document.key for document in source] == ["good"]
    assert source.skipped.by_reason == {"the file has more than 1,073,741,824 bytes": 1}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_whose_notes_unpack_to_a_hundred_megabytes(name: bytes) -> None:
    """Refused, or read without its notes; Pillow's own limits hold."""
    packed = zlib.compress(bytes(100_000_000), 9)
    heads = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}
    plain = picture()
    bomb = plain[:33] + chunk(name, heads[name] + packed) + plain[33:]
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 1 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"picture cannot be decoded: .*[Tt]oo large"):
        verify(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PSD", "PCX"])
def test_formats_that_nobody_asked_for_are_not_opened(kind: str) -> None:
    """EPS starts Ghostscript."""
    if kind == "PSD":
        data = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 16, 16, 8, 3) + bytes(12) + bytes(2 + 16 * 16 * 3)
    else:
        file = io.BytesIO()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, kind)
        data = file.getvalue()
    assert Image.open(io.BytesIO(data)).size == (16, 16)  # Pillow would
    with pytest.raises(ValueError, match="picture cannot be decoded: unknown format"):
        verify(data)
