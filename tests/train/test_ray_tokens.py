"""`tokens.engine=ray`: the local engine's bytes, whichever worker is killed and wherever the command is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_road import command, draw_pictures, run

from omnigram.data.shards import read_token_shard
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.text import TextTokenizer
from omnigram.train import ray_tokens
from omnigram.train.ray_tokens import RayEngine

pytest.importorskip(
    "ray.data", reason="Ray is half a gigabyte that `make install` leaves out: pip install 'omnigram[ray]'"
)

NETWORK = ConvolutionalConfig(stem=8, channels=[8], encoder_blocks=[1], decoder_blocks=[1], spatial_norm=False)
QUANTIZER = MovingAverageConfig(
    codebook_size=64, codebook_dim=4, decay=0.9, commitment=0.25, cosine=True, dead_code_threshold=0.0
)
MARK = "OMNIGRAM_TEST"  # in the environment of what a test starts


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of two pictures each, and tokenizers."""
    folder = tmp_path_factory.mktemp("ray")
    draw_pictures(folder / "pictures")
    torch.manual_seed(0)
    image = ImageTokenizer(NETWORK, QUANTIZER)
    image.quantize(torch.rand(64, 3, 64, 64) * 2 - 1)  # which gives it its codebook
    image.eval().save_pretrained(folder / "tokenizers" / "image")
    with pytest.warns(UserWarning, match="text pieces"):
        TextTokenizer.train((f"red square {n} circle" for n in range(50)), 400).save(
            folder / "tokenizers" / "text.model"
        )
    return folder


@pytest.fixture(scope="module")
def settings(road: Path) -> list[str]:
    source = ["data=folder", f"data.source.path={road / 'pictures'}", "data.name=tiny", "data.samples_per_shard=2"]
    # large enough that a shard takes a while
    return [*source, f"tokens.tokenizer={road / 'tokenizers'}", "tokens.resolution=384", "threads=1"]


@pytest.fixture(scope="module")
def expected(road: Path, settings: list[str]) -> dict[str, bytes]:
    """What the local engine makes."""
    done = run("tokens", settings, road)
    assert done.returncode == 0, done.stderr
    made = road / done.stdout.strip()
    files = contents(made)
    assert len(files) > 20
    made.rename(road / "local")
    return files


@pytest.fixture
def tokens(road: Path, expected: dict[str, bytes]) -> Path:
    """Where the tokens go, empty; kept if a test makes them."""
    name = json.loads((road / "local" / "dataset.json").read_text())["name"]
    folder = road / "datasets" / name
    if folder.exists():
        folder.rename(road / f"made-{time.monotonic_ns()}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    record = json.loads(files.pop("dataset.json"))
    del record["provenance"]  # has the time in it
    return files | {"dataset.json": json.dumps(record).encode()}


def start(road: Path, settings: list[str], mark: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command("tokens", [*settings, "tokens.engine=ray", "tokens.processes=2"]),
        cwd=road,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes(mark: str) -> dict[int, str]:
    """What runs with this mark in its environment: number and title."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended, or is another user's
            continue
    return found


def until(holds: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def busy_worker(mark: str) -> int | None:
    """A worker that has a shard at hand, stopped there."""
    for number, title in processes(mark).items():
        if "EncodeShard" in title and ".submit" in title:
            os.kill(number, signal.SIGSTOP)
            if ".submit" in processes(mark).get(number, ""):
                return number
            os.kill(number, signal.SIGCONT)
    return None


def shards(folder: Path) -> dict[str, int]:
    """The finished shards, and the number of each file."""
    records = (folder / ".records").glob("*.json")
    return {record.stem: (folder / record.stem).stat().st_ino for record in records}


def test_the_codes_are_worth_comparing(road: Path, expected: dict[str, bytes]) -> None:
    """A tokenizer that says the same of all pictures would make equal shards of anything."""
    pictures = [sample.segments[-1].codes for sample in read_token_shard(road / "local" / "train-000000.tar")]
    pictures += [sample.segments[-1].codes for sample in read_token_shard(road / "local" / "train-000001.tar")]
    assert all(len(np.unique(codes)) > 3 for codes in pictures)
    assert len({codes.tobytes() for codes in pictures}) == len(pictures)


def test_one_worker_is_killed_and_nothing_is_lost(
    road: Path, settings: list[str], expected: dict[str, bytes], tokens: Path
) -> None:
    with start(road, settings, "worker") as process:
        until(lambda: len(shards(tokens)) >= 2, process)
        victims: list[int] = []
        until(lambda: victims.extend(filter(None, [busy_worker("worker")])) or victims, process)
        assert len(shards(tokens)) < len(expected) - 3, "there was nothing left to lose"
        os.kill(victims[0], signal.SIGKILL)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == f"datasets/{tokens.name}\n"
    assert contents(tokens) == expected
    assert not list(tokens.glob(".*.partial"))
    until(lambda: not processes("worker"))


def test_a_killed_command_goes_on_and_a_fault_is_one_line(
    road: Path, settings: list[str], expected: dict[str, bytes], tokens: Path
) -> None:
    with start(road, settings, "command") as process:
        until(lambda: len(shards(tokens)) >= 2, process)
        process.kill()
    until(lambda: not processes("command"))  # its workers end with it
    kept = shards(tokens)
    assert 2 <= len(kept) < len(expected) - 2

    *_, last = sorted((road / "datasets/tiny").glob("train-*.tar"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-512] + bytes(511) + b"\1")
    with start(road, settings, "command") as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("tokens")]
    assert len(lines) == 1, err
    assert f"{last.name} is not the shard that " in lines[0]

    last.write_bytes(whole)
    with start(road, settings, "command") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert contents(tokens) == expected
    assert {name: (tokens / name).stat().st_ino for name in kept} == kept


class TestRefusals:
    def test_a_device_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"tokens\.device='gpu' is unknown"):
            RayEngine("gpu")

    def test_ray_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray.data", None)
        with pytest.raises(ValueError, match=r"pip install 'omnigram\[ray\]', or set tokens.engine=local"):
            RayEngine("auto")

    def test_no_shards_need_no_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_tokens.RayEngine, "_cluster", None)
        assert list(RayEngine("cpu")(None, [], None, print)) == []  # pyright: ignore[reportArgumentType]
