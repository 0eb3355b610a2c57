"""Each benchmark runs, its ratio is that of the figures it prints, and what it compares is the same work."""

import gc
import importlib
import re
import shlex
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from omnigram.data.document import Document, Segment
from omnigram.data.shards import shard_name, write_shard

ROOT = Path(__file__).resolve().parents[1]
# those that take turns with a peer; the others are run by the tests of what they measure
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "report(" in path.read_text())
MIX = "--model nano --peer llama --mode mix --tokens 512 --length 512 --vocabulary omnigram"
SMALLEST = {
    "train_step.py": f"{MIX} --optimizer adamw".split(),
    "packing.py": ["--model", "nano", "--rows", "1", "--length", "256", "--mean", "64"],
    "loader.py": ["--workers", "1"],
    "published_tokenizer.py": ["--side", "16", "--batch", "1", "--what", "decode", "--width", "32"],
}
ONCE = ["--rounds", "1", "--steps", "1", "--threads", "1"]
SAMPLING = [*ONCE, "--model", "tiny", "--side", "4", "--batches", "1", "3", "--vocabularies", "omnigram"]


def run(script: str) -> str:
    options = [*ONCE, *SMALLEST.get(script, [])]
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


def table(printed: str) -> dict[tuple[str, int, str], dict[str, float]]:
    """The numbers of sampling.py by kind, batch and contestant."""
    pattern = r"^(guided|plain) +(\d+) +(\w+) +([\d,.]+) +[\d,.]+ \.\. [\d,.]+ +([\d,.]+) +([\d.]+|-) *([\d.]*)$"
    found = {}
    for kind, batch, name, *rest in re.findall(pattern, printed, re.MULTILINE):
        rate, seconds, peak, ratio = (float(text.replace(",", "") or "nan") for text in rest)
        found[kind, int(batch), name] = {"rate": rate, "seconds": seconds, "peak": peak, "ratio": ratio}
    return found


def test_sampling_measures_both_peers_at_each_batch_size(
    benchmark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = benchmark("sampling")
    monkeypatch.setattr(sampling, "in_own_process", lambda function, *args: function(*args))
    sampling.main([*SAMPLING, "--profile"])
    printed = capsys.readouterr().out
    found = table(printed)
    assert set(found) == {
        (kind, batch, name) for kind in ("guided", "plain") for batch in (1, 3) for name in ("ours", "peer")
    }
    tokens = 4 * (4 + 1) + 2
    assert f"4 x 4 codes a picture, {tokens} tokens behind its size" in printed
    for (kind, batch, _), figures in found.items():
        assert figures["seconds"] == pytest.approx(tokens / figures["rate"], rel=2e-3)
        peer = found[kind, batch, "peer"]["rate"]
        assert found[kind, batch, "ours"]["ratio"] == pytest.approx(found[kind, batch, "ours"]["rate"] / peer, rel=2e-3)
    assert "the same by all for 8 prompts" in printed
    assert f"repeat   .venv/bin/python benchmarks/sampling.py {' '.join(SAMPLING)} --profile" in printed
    shares = [
        float(share) for share in re.findall(r"^.+ (\d+\.\d)% +\d", printed.partition("ours, guided")[2], re.MULTILINE)
    ]
    assert sum(shares) == pytest.approx(200, abs=2)  # of two batch sizes


@pytest.mark.parametrize("cheat", ["a code", "no guidance"])
def test_sampling_exits_with_1_when_the_codes_differ(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cheat: str
) -> None:
    sampling = benchmark("sampling")
    honest = sampling.Emu3Generate.draw

    def draw(self: Any, words: list[str], guidance: float, greedy: bool = False) -> list[Any]:
        if cheat == "no guidance":
            return honest(self, words, 1.0, greedy)
        pictures = honest(self, words, guidance, greedy)
        pictures[-1][3, 3] ^= 1
        return pictures

    monkeypatch.setattr(sampling.Emu3Generate, "draw", draw)
    with pytest.raises(SystemExit) as ended:
        sampling.main(SAMPLING)
    # sys.exit of a text prints it and gives 1
    assert re.match(r"\d of \d guided pictures have other codes when peer draws them", str(ended.value.code))
    assert "ratio" not in capsys.readouterr().out


def test_memory_is_what_work_needs_at_its_peak(benchmark: Any) -> None:
    memory = benchmark("timing.memory")
    # a process of its own: one that has worked before may have as much memory free, and grows by nothing
    list_, zeros = memory.in_own_process(memory.growths, [list, partial(bytearray, 64 << 20)])
    if sys.platform == "linux":
        assert list_ < 16
        assert zeros == pytest.approx(64, abs=8)


@pytest.fixture
def speculation(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, and the options of a tiny run of it, with a draft by the same weights."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/model"))
    export = importlib.import_module("made_exports").tiny_export()
    export.save_pretrained(tmp_path / "export")
    texts = [Segment("text", f"{colour} apple, twemoji") for colour in ("red", "green", "blue", "yellow")]
    write_shard(
        tmp_path / shard_name("train", 0),
        [Document(f"{n}", (text,), "made", "CC0-1.0") for n, text in enumerate(texts)],
    )
    folders = ["--export", str(tmp_path), "--draft", str(tmp_path / "export"), "--data", str(tmp_path)]
    return benchmark("speculation"), [*ONCE, *folders, "--batches", "1", "4"]


def test_speculation_counts_what_guesses_save(speculation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script, options = speculation
    script.main(options)
    printed = capsys.readouterr().out
    line = re.compile(
        r"^(temperature [01]|its own) +([14]) +(plain|jacobi \d+|draft \d+) +([\d.]+) +(?:([\d.]+)% )? *[\d.]+ +"
        r"([\d.]+)? +(\d+)$",
        re.MULTILINE,
    )
    found = {match[:3]: match[3:] for match in line.findall(printed)}
    assert len(found) == 3 * 2 * 7
    for (_, _, method), (step, confirmed, ratio, others) in found.items():
        assert others == "0"
        assert (ratio == "") == (method == "plain")
        if method == "plain":
            assert float(step) == 1
        elif method.startswith("draft"):  # by the very same weights: always right, and 9 codes in so many forwards
            assert float(confirmed) == 100
            assert float(step) == pytest.approx(9 / -(-9 // (1 + int(method.split()[1]))), abs=0.005)
        else:
            assert 0 <= float(confirmed) < 100
            assert float(step) >= 1
    assert "the same 90 of 90 pictures" in printed
    assert printed.rstrip().endswith(" ".join(options))


def test_speculation_that_changes_pictures_is_found(
    speculation: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, options = speculation
    honest = script.methods

    def cheat(*exports: Any) -> dict[str, Any]:
        samplers = honest(*exports)
        samplers["jacobi 8"].model = importlib.import_module("made_exports").tiny_export(seed=1).model
        return samplers

    monkeypatch.setattr(script, "methods", cheat)
    with pytest.raises(SystemExit, match="15 of 90 pictures have other codes than plain sampling draws"):
        script.main(options)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_both_load_the_same_documents(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loader = benchmark("loader")
    for name, value in {"SHARDS": 2, "DOCUMENTS": 11, "BATCH": 4}.items():
        monkeypatch.setattr(loader, name, value)
    folders = [tmp_path / "first", tmp_path / "second"]
    datasets = [loader.made_tokens(folder, seed) for seed, folder in enumerate(folders)]
    made = [dataset[index] for dataset in datasets for index in range(22)]
    codes = [tuple(code for segment in document.segments for code in segment.codes.flat) for document in made]
    epoch = [row for _, batch in islice(loader.peer(folders, 0), 11) for row in batch.tolist()]
    gc.collect()  # or it would be said in another test
    assert sorted(tuple(code for code in row if code >= 0) for row in epoch) == sorted(codes)
    batches = loader.ours(folders, 0)
    assert {number for batch in islice(batches, 3) for number in batch.sources.tolist()} == set(range(44))


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


def test_full_rows_are_the_documents_end_to_end(benchmark: Any) -> None:
    train_step = benchmark("train_step")
    config = train_step.compose_config(["device=cpu", "loader.rows=2", "loader.length=256"])
    vocabulary = train_step.Vocabulary.appended(2048, codebooks={"image": 1024})
    collator = train_step.Collator(vocabulary, 2, 256)
    steps = train_step.dense_rows(vocabulary, config, steps=3)
    packed = [collator.collate(rows) for rows in steps]
    assert [(batch.fill, batch.num_pairs) for batch in packed] == [(1.0, 2 * 256 * 257 // 2)] * 3
    [[first, _]] = train_step.made_documents(vocabulary, config, steps=1)
    start = first[0].ids.tolist()
    assert packed[0].ids[0].tolist()[: len(start)] == start
    peer = train_step.padded([row[0] for row in steps[0]], collator.pad)
    assert peer.mask is None
    assert peer.num_tokens == packed[0].num_tokens


@pytest.mark.parametrize("peer", ["llama", "emu3", "qwen3"])
def test_the_peer_computes_what_ours_does(benchmark: Any, peer: str) -> None:
    train_step = benchmark("train_step")
    llama = importlib.import_module("peers.llama")
    config = train_step.compose_config(["device=cpu", "model=nano"])
    vocabulary = train_step.made_vocabulary("omnigram", config)
    ours = train_step.made_model(config, vocabulary, qk_norm=llama.HEAD_NORMS[peer]).eval()
    theirs = llama.peer_model(peer, ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-4)


HEAD = ["--tokens", "300", "--width", "16", "--vocabulary", "2000", "--codes", "500", "--threads", "1"]


@pytest.mark.parametrize("fault", [None, "loss", "gradient of the head"])
def test_the_loss_head_is_torchs_or_the_run_fails(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str | None
) -> None:
    script = benchmark("loss_head")
    monkeypatch.setattr(script, "in_own_process", lambda function, *args: function(*args))
    monkeypatch.setattr(script, "ALLOWED", float("inf"))  # in this process much memory is free already
    monkeypatch.setattr(script, "growths", lambda works: [100.0 for work in works if work() is None])
    honest = script.weighted_cross_entropy

    def cheat(hidden: Any, head: Any, *args: Any) -> Any:
        parts = honest(hidden, head if fault != "gradient of the head" else head * 1.5 - head.detach() * 0.5, *args)
        return parts._replace(loss=parts.loss * 1.5) if fault == "loss" else parts

    monkeypatch.setattr(script, "weighted_cross_entropy", cheat)
    if fault is None:
        script.main(HEAD)
    else:
        with pytest.raises(SystemExit, match=f"the {fault} is"):
            script.main(HEAD)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:5]] == ["plain", "chunked", "partitioned"]
    assert printed.rstrip().endswith(" ".join(HEAD))


def test_training_memory_is_that_of_three_processes(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("training_memory").main([*ONCE, *MIX.split()])
    rows = re.findall(r"^(peer|ours|muon) +([\d,]+) MiB, ([\d.]+) of", capsys.readouterr().out, re.MULTILINE)
    peaks = {name: float(peak.replace(",", "")) for name, peak, _ in rows}
    assert set(peaks) == {"peer", "ours", "muon"}
    for name, _, ratio in rows:
        assert float(ratio) == pytest.approx(peaks[name] / peaks["peer"], abs=0.02)
    if sys.platform == "linux":
        assert min(peaks.values()) > 4 * 1.6e6 * 4 / 2**20  # weights, gradients and AdamW's two, of 1.6 M parameters
