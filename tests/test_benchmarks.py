"""Each benchmark runs, its ratio is that of the figures it prints, and what it compares is the same work."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# those that take turns with a peer; the others are run by the tests of what they measure
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "in_turns(" in path.read_text())
SMALLEST = {"train_step.py": ["--model", "nano"], "sampling.py": ["--model", "nano", "--pictures", "3"]}


def run(script: str) -> str:
    options = ["--rounds", "1", "--steps", "1", "--threads", "1", *SMALLEST.get(script, [])]
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figure(name: str, printed: str) -> tuple[float, float]:
    """The number at the beginning of a line, and half a unit of its last digit."""
    [text] = re.findall(rf"^{name} +([\d,]*\d(?:\.\d+)?)", printed, re.MULTILINE)
    return float(text.replace(",", "")), 0.5 * 10.0 ** -len(text.partition(".")[2])


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_ratio_is_that_of_the_figures(script: str) -> None:
    printed = run(script)
    (ours, of_ours), (peer, of_peer), (ratio, of_ratio) = (figure(name, printed) for name in ("ours", "peer", "ratio"))
    assert min(ours, peer, ratio) > 0
    rounding = of_ratio + ratio * (of_ours / ours + of_peer / peer) * 1.01
    assert ratio == pytest.approx(ours / peer, rel=0, abs=rounding)
    [command] = re.findall(r"^repeat +(.+)$", printed, re.MULTILINE)
    assert shlex.split(command)[:2] == [".venv/bin/python", f"benchmarks/{script}"]
    assert command.endswith(" ".join(["--rounds 1 --steps 1 --threads 1", *SMALLEST.get(script, [])]))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, with its folder first on the path as when it is run."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_turns_count_work_by_time_and_leave_the_warm_up_out(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = benchmark("timing.rounds")
    clock, order = [0.0], []

    def contestant(name: str, seconds: float) -> Any:
        def step(number: int) -> float:
            order.append((name, number))
            clock[0] += 100.0 if len(order) <= 4 else seconds  # the warm-up is slow
            return 3.0

        return step

    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])
    rates = rounds.in_turns({"ours": contestant("ours", 0.5), "peer": contestant("peer", 2.0)}, rounds=2, steps=2)
    assert rates == {"ours": [6.0, 6.0], "peer": [1.5, 1.5]}
    assert [name for name, number in order if number == 0] == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_sampling_exits_with_1_when_the_codes_differ(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = benchmark("sampling")
    honest = sampling.Peer.draw

    def cheat(self: Any, words: list[str]) -> list[Any]:
        pictures = honest(self, words)
        pictures[1][7, 7] ^= 1
        return pictures

    monkeypatch.setattr(sampling.Peer, "draw", cheat)
    with pytest.raises(SystemExit) as ended:
        sampling.main(["--rounds", "1", "--steps", "1", "--threads", "1", "--model", "nano", "--pictures", "2"])
    assert str(ended.value.code).startswith("1 of 2 pictures")  # sys.exit of a text prints it and gives 1
    assert "ratio" not in capsys.readouterr().out


def test_both_train_on_the_same_tokens(benchmark: Any) -> None:
    train_step = benchmark("train_step")
    config = train_step.compose_config(["device=cpu"])
    vocabulary = train_step.Vocabulary.appended(2048, codebooks={"image": 1024})
    collator = train_step.Collator(vocabulary, config.loader.rows, config.loader.length)
    [rows] = train_step.made_documents(vocabulary, config, steps=1)
    packed = collator.collate(rows)
    padded = train_step.padded([document for row in rows for document in row], collator.pad)
    assert packed.fill > 0.95
    assert packed.ids[packed.document >= 0].tolist() == padded.ids[padded.mask == 1].tolist()
    # transformers shifts the labels: what it predicts is what our targets are
    shifted = padded.labels[:, 1:]
    assert packed.targets[packed.targets >= 0].tolist() == shifted[shifted >= 0].tolist()
