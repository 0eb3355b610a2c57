"""What the README says is run here: its shell commands at tiny size, and its Python."""

import json
import re
import shlex
from pathlib import Path

import pytest

from omnigram.train.cli import main
from omnigram.train.step_commands import STEPS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
CONFIGURED = (*STEPS, "sweep")  # commands that take settings

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about how they are written


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    shlex.split(line, comments=True)
    for block in blocks("sh")
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
MADE = [command for command in COMMANDS if command[0] == "make"]
RANKS = ["torchrun", "--nproc-per-node", "8", "-m", "omnigram.train.cli"]  # `omnigram`, once a GPU
COMMANDS = [["omnigram", *c[5:]] if c[:5] == RANKS else c for c in COMMANDS]
TYPED = [command for command in COMMANDS if command[0] == "omnigram"]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `omnigram pretrain experiment=tiny` was run, as the README says."""
    assert ["omnigram", "pretrain", "experiment=tiny"] in TYPED
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["pretrain", "experiment=tiny"]) == 0
    return folder


def test_every_command_is_make_or_omnigram() -> None:
    assert len(MADE) + len(TYPED) == len(COMMANDS) > 15


@pytest.mark.parametrize("command", MADE, ids=" ".join)
def test_targets_are_there_and_take_what_is_given(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, target, *given = command
    assert target in TARGETS
    if given:
        [settings] = (text.removeprefix("ARGS=") for text in given)
        assert target in CONFIGURED
        assert main([target, *shlex.split(settings), "--show-config"]) == 0
        assert "tokenizer:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in TYPED if c[1] in CONFIGURED], ids=" ".join)
def test_settings_are_known(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command[1:], *([] if "--show-config" in command else ["--show-config"])]) == 0
    assert "tokenizer:" in capsys.readouterr().out


def test_a_model_is_asked_as_the_readme_says(
    road: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(road)
    published = [command for command in TYPED if "imported" in str(command)]  # tests/model/test_conversion_readme.py
    asked = [command for command in TYPED if command[1] not in CONFIGURED and command not in published]
    drawing = {"sample", "caption", "complete", "joint", "score", "again"}
    assert {command[1] for command in asked} == {*drawing, "validate", "report"}
    for _, name, *arguments in asked:  # in order: later ones read what earlier ones drew
        there = ["datasets/tiny"] if name == "validate" else arguments
        assert main([name, *there]) == 0, (name, capsys.readouterr().err)
        if "--out" in arguments:
            assert Path(arguments[arguments.index("--out") + 1]).stat().st_size > 0
    [python] = blocks("python")
    namespace: dict[str, object] = {}
    exec(compile(python, "README.md", "exec"), namespace)
    assert isinstance(namespace["page"], list)


def test_a_finished_run_is_measured_again(road: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(road)
    before = (road / "runs/pretrain/latest/metrics.json").stat().st_mtime_ns
    sizes = ["evaluation.queries=3", "evaluation.heldout_queries=3", "evaluation.features=false"]
    assert main(["evaluate", "evaluate.run=runs/pretrain/latest", *sizes]) == 0
    assert json.loads((road / "runs/pretrain/latest/metrics.json").read_text())["retrieval_queries"] == 3
    assert (road / "runs/pretrain/latest/metrics.json").stat().st_mtime_ns > before
