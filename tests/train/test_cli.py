"""The command line: what it offers, and that a mistake is one line, the right exit code and nothing written."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from PIL import Image

from omnigram.data.document import Document, Segment
from omnigram.data.shards import write_shard
from omnigram.model.bundle import Omnigram
from omnigram.model.card import Card
from omnigram.model.generation.choice import Sampling
from omnigram.train import pretrain, shards
from omnigram.train.cli import STEPS, main

COMMANDS = (*STEPS, "sweep", "sample", "caption", "complete", "validate", "version")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"    {command}" in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert f"examples:\n  omnigram {command}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretian"], "unknown command 'pretian': did you mean pretrain?"),
        (["zzz"], "unknown command 'zzz': choose of data, tokenizer"),
        (["pretrain", "model=mico"], "unknown model 'mico': did you mean micro"),
        (["pretrain", "trainer.max_stps=3"], "did you mean trainer.max_steps?"),
        (["pretrain", "--multrun"], "unknown option '--multrun' of pretrain: did you mean --multirun?"),
        (["pretrain", "model=nano,micro"], "add -m"),
        (["sweep", "model=nano,big"], "unknown model 'big'"),
        (["sweep", "tokenizer=vqvae,movqgan"], "a sweep compares decoders on the same tokens, but tokenizer differs"),
        (["sweep", "seed=0,1"], "on the same tokens, but seed differs"),
        (["pretrain", "trainer.max_steps=0"], "trainer.max_steps=0 must be 1 or more"),
        (["pretrain", "model=nano", "model.num_attention_heads=3"], "model: num_key_value_heads 4 does not divide"),
        (["pretrain", "model.qk_norm=none", "model.qk_norm_per_head=true"], "model: qk_norm_per_head needs qk_norm"),
        (["pretrain", "loader.length=4096"], "loader.length=4096 is more than model.max_position_embeddings=2048"),
        (
            ["pretrain", "tokenizer.pictures.resolution=60"],
            "set tokenizer.pictures.resolution (or tokens.",
        ),
        (["tokenizer", "tokenizer.network.channels=[64]"], "need one number a level each"),
        (["tokenizer", "device=gpu"], "device='gpu' is unknown: choose of auto, cpu, cuda"),
        (["evaluate", "model=nano"], "model=nano has no effect on a run that is finished: `evaluate` takes "),
        (["evaluate", "evaluate.run=nowhere"], "nowhere is no finished run (metrics.json is missing)"),
        (["data", "data=folder"], "data=folder needs data.name=… and data.source.path=…"),
        (["data", "data=folder", "data.name=a", "data.source.path=nowhere"], "nowhere"),
        (["sample"], "the following arguments are required: WORDS"),
        (["sample", " "], "the prompt is empty"),
        (["sample", "a", "-n", "0"], "-n 0 must be 1 or more"),
        (["sample", "a", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["sample", "a", "-n", "few"], "invalid int value: 'few'"),
        (["sample", "a", "--size", "big"], "'big' is no size: write height x width"),
        (["sample", "a", "--stile", "b"], "did you mean --style"),
        (["sample", "a", "--out", "a.foo"], "pictures are not written as '.foo', use .png"),
        (["sample", "a", "--out", "."], "--out . is a folder"),
        (
            ["sample", "a", "--out", "words.png/a.png"],
            "words.png/a.png cannot be written: words.png is no folder",
        ),
        (["sample", "a", "--out", "words.png/b/a.png"], "cannot be written: words.png is no folder"),
        (
            ["sample", "a", "--out", "/dev/null/a.png"],
            "a.png cannot be written: /dev/null is no folder",
        ),
        (["sample", "a", "--out", "/proc/none/a.png"], "--out /proc/none/a.png cannot be written: "),
        (["sample", "a"], "run `omnigram pretrain` here first, or name an export with --model"),
        (["sample", "a", "--model", "nowhere"], "nowhere is not an export of Omnigram: omnigram.json is missing"),
        (["sample", "a", "--model", ".", "--device", "tpu"], "device='tpu' is unknown"),
        (["caption", "none.png"], "none.png: No such file or directory"),
        (["caption", "words.png"], "words.png: picture cannot be decoded: unknown format"),
        (["complete", "words.png"], "the following arguments are required: --rows"),
        (["validate", "nowhere"], "nowhere is neither a data set's folder nor a shard"),
        (["version", "x"], "unknown option 'x' of version"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.png").write_text("no picture")
    before = sorted(Path().iterdir())
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("omnigram: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert sorted(Path().iterdir()) == before


def failing(error: BaseException):
    def step(config: Any) -> Path:
        raise error

    return step


def test_errors_of_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shards, "make_shards", failing(OSError("the disk is full:\n free some space")))
    assert main(["data"]) == 2
    assert capsys.readouterr().err == "omnigram: the disk is full: free some space\n"
    monkeypatch.setattr(shards, "make_shards", failing(KeyboardInterrupt()))
    assert main(["data"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(shards, "make_shards", failing(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError):
        main(["data"])


def test_an_interrupt_that_was_swallowed_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow(config: Any) -> Path:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(shards, "make_shards", swallow)
    assert main(["data"]) == 130
    assert capsys.readouterr().err == "omnigram: interrupted; the same command goes on from here\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGRAM_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown model"):
        main(["data", "model=mico"])


def test_a_step_gets_its_configuration_and_prints_its_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int, int]] = []

    def step(config: Any) -> Path:
        seen.append((config.model_name, config.trainer.max_steps, config.seed))
        return Path("runs") / config.model_name

    monkeypatch.setattr(pretrain, "pretrain", step)
    assert main(["pretrain", "model=nano", "--", "trainer.max_steps=3"]) == 0
    assert capsys.readouterr().out == "runs/nano\n"
    assert main(["pretrain", "model=nano,micro", "-m", "trainer.max_steps=3", "seed=1,2"]) == 0
    assert capsys.readouterr().out == "runs/nano\nruns/nano\nruns/micro\nruns/micro\n"
    assert seen == [("nano", 3, 0), ("nano", 3, 1), ("nano", 3, 2), ("micro", 3, 1), ("micro", 3, 2)]


def test_show_config_prints_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "make_shards", failing(AssertionError()))
    assert main(["data", "seed=5", "--show-config"]) == 0
    assert "seed: 5\n" in capsys.readouterr().out
    assert main(["sweep", "--show-config"]) == 0
    assert capsys.readouterr().out.count("\nmodel_name: ") == 3


@pytest.mark.parametrize(
    ("metrics", "config", "message"),
    [
        ("{", "seed: 0", "run/metrics.json is damaged: remove it, then run the step again"),
        ("{}", None, "run/config.yaml is missing"),
        ("{}", "{", "run/config.yaml cannot be read: "),
        ("{}", "[]", "run/config.yaml is no configuration"),
        ("{}", "seed: 0", "run holds neither export/ nor image/"),
    ],
)
def test_a_damaged_run_is_not_measured(
    metrics: str, config: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/metrics.json").write_text(metrics)
    if config is not None:
        Path("run/config.yaml").write_text(config)
    assert main(["evaluate", "evaluate.run=run"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"omnigram: {message}")
    assert shown.count("\n") == 1


def test_validate_names_faults(capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(Path("good.tar"), [Document("a", (Segment("text", "words"),), "made", "CC0")])
    assert main(["validate", "good.tar"]) == 0
    assert capsys.readouterr().out == "good.tar: 1 shards, 1 documents, 0 token documents: valid\n"
    Path("bad.tar").write_bytes(Path("good.tar").read_bytes()[:700])
    assert main(["validate", "bad.tar"]) == 1
    assert capsys.readouterr().out.startswith("bad.tar: ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("omnigram ")
    assert "\ntorch " in shown


class Drawn:
    """Stands for a trained model: remembers what it is asked for, and draws squares."""

    asked: ClassVar[list[tuple[Any, ...]]] = []
    card = Card(prompt_template="{caption}, {style}", styles=("twemoji", "openmoji"))
    sampler = SimpleNamespace(sampling={"image": Sampling(top_k=5, guidance=3.0), "text": Sampling()})

    def draw(self, words: list[str], style: str | None, n: int, *, size: Any, seed: int, sampling: Any) -> list[Any]:
        texts = [self.card.prompt(text, style) for text in words]
        self.asked.append((texts, n, size, seed, sampling))
        return [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(n * len(words))]

    def caption(self, picture: Image.Image) -> str:
        return "x".join(map(str, picture.size))

    def complete(
        self, picture: Image.Image, rows: int, words: str | None, style: str | None, *, seed: int, sampling: Any
    ) -> Image.Image:
        self.asked.append((rows, words, style, seed, sampling))
        return picture


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the model is asked for."""
    monkeypatch.setattr(Omnigram, "from_pretrained", lambda folder, *, device: Drawn())
    monkeypatch.setattr(Drawn, "asked", [])
    return Drawn.asked


def test_sample_writes_a_sheet(model: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", "a red apple", "--style", "openmoji", "-n", "8", "--out", "deep/apple.png", "--model", "m"]
    assert main([*arguments, "--seed", "3", "--size", "64x128", "--temperature", "0.5", "--top-p", "0.9"]) == 0
    assert capsys.readouterr().out == "deep/apple.png\n"
    sampling = {"image": Sampling(temperature=0.5, top_k=5, top_p=0.9, guidance=3.0)}
    assert model == [(["a red apple, openmoji"], 8, (64, 128), 3, sampling)]
    with Image.open("deep/apple.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * 128 > sheet.width // 2
    assert os.listdir("deep") == ["apple.png"]


def test_sample_writes_single_files_and_several_prompts(
    model: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "cat", "dog", "-n", "2", "--separate", "--out", "it.webp", "--model", "m"]) == 0
    assert capsys.readouterr().out.split() == ["it-1.webp", "it-2.webp", "it-3.webp", "it-4.webp"]
    with Image.open("it-4.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
    assert model == [(["cat, twemoji", "dog, twemoji"], 2, None, 0, None)]
    assert main(["sample", "cat", "dog", "-n", "3", "--model", "m"]) == 0
    with Image.open("sample.png") as sheet:
        assert sheet.height > 2 * (128 + 13)  # a captioned row for each prompt


def test_an_unknown_style_is_one_line(model: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "cat", "--style", "openmojy", "--model", "m"]) == 2
    assert capsys.readouterr().err == "omnigram: unknown style 'openmojy', did you mean openmoji?\n"
    assert main(["sample", "cat", "--top-p", "2", "--model", "m"]) == 2
    assert capsys.readouterr().err == "omnigram: top_p 2.0 must be above 0 and at most 1\n"


def test_caption_and_complete(model: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (20, 30)).save("a.png")
    Image.new("L", (40, 30)).save("b.jpg")
    assert main(["caption", "a.png", "--model", "m"]) == 0
    assert main(["caption", "a.png", "b.jpg", "--model", "m"]) == 0
    assert capsys.readouterr().out == "20x30\na.png: 20x30\nb.jpg: 40x30\n"
    assert main(["complete", "a.png", "--rows", "4", "--words", "cat", "--model", "m"]) == 0
    assert model == [(4, "cat", None, 0, None)]
    with Image.open("complete.png") as picture:
        assert picture.size == (20, 30)


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "omnigram.train.cli", "pretrain", "modle=micro"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "omnigram: unknown key 'modle': did you mean model?\n"
