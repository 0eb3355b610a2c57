"""Memory of a conversion stays near its largest tensor; and the benchmark that measures it at six gigabytes."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_checkpoints import NOT_DRAWN, llama, llama_names, save
from made_checkpoints import weights as read_weights
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PEAK = """
import sys
from omnigram.model.conversion import export_checkpoint, import_checkpoint

def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

import_checkpoint(sys.argv[1], sys.argv[2] + "/small")
before = peak()
import_checkpoint(sys.argv[3], sys.argv[2] + "/in", shard_bytes=10**8)
export_checkpoint(sys.argv[2] + "/in", "llama", sys.argv[2] + "/out", shard_bytes=10**8)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux tells it")
def test_the_peak_is_far_below_the_model(tmp_path: Path) -> None:
    """A model of 300 MB, its largest tensor 8 MB."""
    small = save(llama(), tmp_path / "source", llama_names())
    large = save(llama(intermediate_size=65_536, num_hidden_layers=1), tmp_path / "wide", llama_names())
    state = read_weights(large)
    layer = {name: tensor for name, tensor in state.items() if ".layers.0." in name}
    for number in range(1, 12):
        state |= {name.replace(".0.", f".{number}.", 1): tensor.clone() for name, tensor in layer.items()}
    save_file(state, large / "model.safetensors", {"format": "pt"})
    config = (large / "config.json").read_text()
    (large / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 12'))
    size, largest = (large / "model.safetensors").stat().st_size, 65_536 * 32 * 4
    assert size > 300e6
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(small), str(tmp_path / "made"), str(large)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 4 * largest < size / 8
    assert len(list((tmp_path / "made/out").glob("*.safetensors"))) == 4


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, which converts in this process and has its peaks from us."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "conversion", raising=False)
    script = importlib.import_module("conversion")
    peaks = iter([1e9, 1.25e9, 2.5e9, 3.5e9])

    def measure(work: str, *arguments: Path) -> tuple[float, float]:
        monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
        exec(work, {"sys": sys})
        return next(peaks), 2.0 if arguments else 1.0

    monkeypatch.setattr(script, "measure", measure)
    return script


@pytest.mark.filterwarnings(NOT_DRAWN)
def test_the_benchmark_makes_what_it_measures(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="out of bounds"):
        benchmark.main(["--gigabytes", "0.03"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["idle", "ours", "ours", "ours", "worst", "repeat"]
    assert [float(re.split(" +", line)[1]) for line in lines[:5]] == [1.0, 0.25, 1.5, 2.5, 2.5]
    sizes = [float(re.findall(r"([\d.]+) GB$", line)[0]) for line in lines[1:4]]
    assert all(size >= 0.03 for size in sizes)
    assert lines[-1] == "repeat   .venv/bin/python benchmarks/conversion.py --gigabytes 0.03"


def test_the_benchmark_starts_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "conversion", raising=False)
    measure = importlib.import_module("conversion").measure
    small, _ = measure("data = b''")
    large, seconds = measure("data = b'1' * 10**8")
    assert 0.9e8 < large - small < 1.2e8
    assert seconds > 0
