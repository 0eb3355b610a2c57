"""The command line: what it offers, and that a mistake is one line, the right exit code and nothing written."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from omnigram.data.document import Document, Segment
from omnigram.data.shards import write_shard
from omnigram.train import pretrain, shards
from omnigram.train.cli import main
from omnigram.train.step_commands import STEPS

COMMANDS = (*STEPS, "sweep", "sample", "complete", "joint", "again", "caption", "score", "plan", "report", "codebook")
COMMANDS += ("through-decoder", "compare")
COMMANDS += ("validate", "version")


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
        (["sample"], "nothing to draw: give WORDS, or --unconditional"),
        (["sample", "a", "--rank-by", "words"], "--rank-by has no effect without --best-of"),
        (["caption"], "nothing to name: give PICTURE, or --unconditional"),
        (["caption", "a.png", "--unconditional"], "PICTURE and --unconditional contradict each other"),
        (["caption", "a.png", "-n", "2"], "-n has no effect without --unconditional"),
        (["caption", "--unconditional", "-n", "0"], "-n 0 must be 1 or more"),
        (["caption", "--unconditional", "--example", "a", "b"], "--example shows how pictures are named"),
        (["sample", "a", "--unconditional"], "WORDS and --unconditional contradict each other"),
        (["sample", "--unconditional", "--best-of", "3"], "--best-of has no effect with --unconditional"),
        (["sample", "--unconditional", "--style", "b"], "--style has no effect with --unconditional"),
        (["sample", "--unconditional", "--guidance", "2"], "--guidance has no effect with --unconditional"),
        (["sample", "--unconditional", "--example", "a", "b"], "--example has no effect with --unconditional"),
        (["sample", " "], "the prompt is empty"),
        (["sample", "a", "-n", "0"], "-n 0 must be 1 or more"),
        (["sample", "a", "--best-of", "0"], "--best-of 0 must be 1 or more"),
        (["sample", "a", "--batch-size", "0"], "--batch-size 0 must be 1 or more"),
        (["sample", "a", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["sample", "a", "--window", "4"], "--window has no effect without --speculation jacobi"),
        (["sample", "a", "--draft", "b"], "--draft has no effect without --speculation draft"),
        (
            ["sample", "a", "--speculation", "jacobi", "--draft-length", "2"],
            "--draft-length has no effect without --speculation draft",
        ),
        (["sample", "a", "--speculation", "draft"], "a smaller model: name its export with --draft"),
        (["sample", "a", "--guidance-schedule", "1"], "'1' is no schedule: write place:share"),
        (["sample", "a", "--picture-guidance", "2"], "--picture-guidance has no effect without --example"),
        (["complete", "a.png"], "the following arguments are required: --rows"),
        (["complete", "a.png", "--rows", "0"], "--rows 0 must be 1 or more"),
        (["complete", "a.png", "--rows", "1", "--style", "b"], "--style has no effect without --words"),
        (["complete", "a.png", "--rows", "1", "--guidance", "2"], "--guidance has no effect without --words"),
        (["joint", "--picture-first", "--guidance", "2"], "--guidance has no effect with --picture-first"),
        (["joint", "a"], "unknown option 'a' of joint"),
        (["caption", "a.png", "--max-tokens", "1"], "--max-tokens 1 must be 2 or more"),
        (["score", "a.json", "b"], "a.json is a whole document: score it alone"),
        (["score", " "], "a segment is empty"),
        (["score", "none.png"], "none.png: No such file or directory"),
        (["score", "words.png"], "words.png: picture cannot be decoded: unknown format"),
        (["score", "none.json"], "none.json: No such file or directory"),
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
        (["sample", "a", "--model", "nowhere"], "nowhere is not an export of Omnigram: there is no such folder"),
        (["sample", "a", "--model", ".", "--device", "tpu"], "device='tpu' is unknown"),
        (["caption", "none.png"], "none.png: No such file or directory"),
        (["caption", "words.png"], "words.png: picture cannot be decoded: unknown format"),
        (["report", "nowhere"], "nowhere is no run: it holds neither run.json nor curves.csv"),
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


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "omnigram.train.cli", "pretrain", "modle=micro"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "omnigram: unknown key 'modle': did you mean model?\n"
