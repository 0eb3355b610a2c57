"""docs/cluster.md: its commands are known, and it says of the launchers what their files say."""

import re
import shlex
from pathlib import Path

import pytest

from omnigram.train.cli import main
from omnigram.train.compose import groups

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


def settings(line: str) -> list[str]:
    """What follows `omnigram`, however that is started."""
    words = shlex.split(line, comments=True)
    names = [n for n, word in enumerate(words) if word in ("omnigram", "omnigram.train.cli")]
    return words[names[0] + 1 :] if names else []


COMMANDS = [settings(line) for line in LINES if settings(line)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_settings_are_known(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--show-config"]) == 0
    assert "launcher:" in capsys.readouterr().out


def test_every_launcher_has_its_row() -> None:
    assert len(COMMANDS) >= 10
    assert re.findall(r"^\| `launcher=(\w+)`", PAGE, re.MULTILINE) == list(groups()["launcher"])
    named = set(re.findall(r"launcher\.(\w+)", PAGE))
    there = {
        key for file in (ROOT / "conf/launcher").iterdir() for key in re.findall(r"^(\w+):", file.read_text(), re.M)
    }
    assert named <= there
