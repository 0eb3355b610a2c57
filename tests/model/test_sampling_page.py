"""The Python of docs/sampling.md runs, in its order, on a tiny export; its tables name what is there."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_exports import tiny_export
from PIL import Image

from omnigram.model.generation import Sampling

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_export().save_pretrained(tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for code in blocks:
        exec(compile(code, PAGE.name, "exec"), names)
    assert len(names["pictures"]) == 4
    assert len(names["wholes"]) == 2
    assert len(names["pairs"]) == 4
    assert sum(isinstance(part, Image.Image) for part in names["page"]) == 2
    assert all(isinstance(part, str) for part in names["text"])
    [plain] = names["omnigram"].draw("red apple", sampling=names["by_chance"])
    assert np.array_equal(np.asarray(names["same"]), np.asarray(plain))
    assert Path("begun.png").is_file()
    printed = capsys.readouterr().out
    assert printed.count("finished:") == 3
    assert "confirmed=" in printed


def test_settings_of_the_field_are_settings_here() -> None:
    """Every call in backticks that names fields of Sampling, alone or in a list, is a possible one."""
    known = {field.name for field in fields(Sampling)}
    table = TEXT.partition("What the published models sample with")[2].partition("\n## ")[0]
    named = [text for text in re.findall(r"`([^`]+)`", table) if "=" in text and "+" not in text]
    assert len(named) >= 8
    for text in named:
        setting = eval(f"dict({text})")
        assert set(setting) <= known
        Sampling(**setting)


def test_every_setting_has_its_row() -> None:
    table = TEXT.partition("## Settings")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    defaults = Sampling()
    for field in fields(Sampling):
        assert f"`{field.name}`" in rows
    for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p"):
        [none] = re.findall(rf"^\| `{name}` \| (\S+) \|", rows, re.MULTILINE)
        assert float(none) == getattr(defaults, name)
