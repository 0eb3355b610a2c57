"""The Python of docs/interoperability.md runs, in its order, on a tiny export."""

import re
from pathlib import Path
from typing import Any

import pytest
from made_exports import tiny_export

from omnigram.model.bundle import Omnigram

PAGE = Path(__file__).parents[2] / "docs" / "interoperability.md"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_export().save_pretrained(tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for code in blocks:
        exec(compile(code, PAGE.name, "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("export", "grown", "tuned"),
        *("a red apple.png", "a yellow lemon.png"),
    }
    before, after = Omnigram.from_pretrained("grown"), Omnigram.from_pretrained("tuned")
    assert before.vocabulary == after.vocabulary
    assert after.draw("a red apple")[0].size == before.draw("a red apple")[0].size
