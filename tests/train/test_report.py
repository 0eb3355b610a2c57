"""The report of a run: one file that parses, needs nothing from elsewhere, and says what the run's files say."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnigram.train.cli import main
from omnigram.train.incidents import Incident
from omnigram.train.report import write_report
from omnigram.train.report_charts import MARKS, PANELS, charts_of, one_page

VOID = {"meta", "img", "br", "path", "use", "rect", "line"}
METRICS: dict[str, Any] = {
    "parameters": 1_234_567,
    "bits_per_picture": 402.25,
    "mfu": 0.4321,
    "data_wait": 0.0123,
    "peak_memory_gib": 5.678,
    "psnr": None,
    "sampling_guidance_space": "log<its",
    "made_from": {"tokens": "0f29"},
}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers texts and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(folder: Path, metrics: dict[str, Any] | None = None) -> Path:
    """A run of 300 logged steps with every curve that a panel knows, samples and incidents."""
    folder.mkdir()
    names = ["train/loss", "train/bits_text", "train/bits_image", "train/gradient_norm", "train/log_z"]
    names += ["train/learning_rate", "train/muon_learning_rate", "speed/tokens_per_second", "train/steps_skipped"]
    names += ["speed/tokens_per_second_image", "speed/mfu", "speed/data_wait", "speed/elsewhere", "speed/step_seconds"]
    names += ["speed/peak_memory_gib", "codes/used_image", "codes/perplexity_image", "train/pad_share"]
    lines = ["step,name,value"]
    for step in range(1, 3001, 10):
        lines += [f"{step},{name},{(place + 1) * math.exp(-step / 1000)}" for place, name in enumerate(names)]
    lines += [f"{step},val/bits_image,{5 - step / 1000}" for step in (1000, 2000)]
    (folder / "curves.csv").write_text("\n".join(lines) + "\n2990,train/lo")  # a row cut by a kill
    (folder / "config.yaml").write_text("trainer:\n  max_steps: 4000\nname: <b>bold</b>\n")
    provenance = {"revision": "abc123", "versions": {"torch": "2.13.0"}, "created": "2026-11-28T00:53:12Z"}
    (folder / "run.json").write_text(
        json.dumps({"made_from": {"model": {}, "tokens": "0f29"}, "provenance": provenance})
    )
    found = [Incident(700, "2026-11-28T01:00:00Z", "loss", "the loss 9 is <far> above the 3 before")]
    found += [Incident(900, "2026-11-28T01:10:00Z", "stopped", "SIGTERM; the step that was running is saved")]
    (folder / "incidents.jsonl").write_text("".join(json.dumps(i._asdict()) + "\n" for i in found))
    (folder / "samples").mkdir()
    for step in range(100, 2100, 100):
        Image.new("RGB", (20, 20), (step % 255, 0, 0)).save(folder / "samples" / f"step-{step:08d}.png")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
        Image.new("RGB", (40, 40), "red").save(folder / "samples.png")
    return folder


def test_the_page_of_a_finished_run_says_it_all(tmp_path: Path) -> None:
    run = make_run(tmp_path / "emoji-<mini>", METRICS)
    text = write_report(run).read_text()
    page = Page(text)
    for shown in ("emoji-<mini>", "finished, begun 2026-11-28T00:53:12Z", "1,234,567", "402.25", "43.2%", "0.4321"):
        assert shown in page.text, shown
    for shown in (
        "1.2%",
        "5.68",
        "log<its",
        "abc123",
        "2.13.0",
        "0f29",
        "name: <b>bold</b>",
        "psnr",
        "max_steps: 4000",
    ):
        assert shown in page.text, shown
    assert "the loss 9 is <far> above the 3 before" in page.text
    assert "SIGTERM; the step that was running is saved" in page.text
    assert "Step 100" in page.text
    assert "Step 2,000" in page.text
    assert page.tags.count("img") == 9 + 1  # of twenty grids nine, and the last page
    titles = {"Loss", "Bits of a target: image", "Model FLOPs utilisation", "Output norm", "Steps left out", "Pads"}
    assert titles <= set(re.findall(r">\s*([^<>]+?)\s*<", text))
    assert page.tags.count("svg") == 15
    assert "held-out concepts" in page.text


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run", METRICS)).read_text()
    page = Page(text)
    assert "http" not in re.sub(r"data:image/png;base64,[^']*", "", text)
    for address in page.addresses:
        assert address.startswith(("data:image/png;base64,", "#"))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_page_holds_no_secret_of_an_address(tmp_path: Path) -> None:
    """It is sent to others; config.yaml stays whole."""
    run = make_run(tmp_path / "run", METRICS)
    config = run / "config.yaml"
    config.write_text(
        "mixture:\n  web: {tokens: 'https://me:secret@host/tokens?X-Signature=secret', weight: 1}\n"
        "data: {source: {urls: ['pipe:curl -H \"Authorization: secret\" https://host/a.tar', 'b-{000..009}.tar']}}\n"
    )
    text = write_report(run).read_text()
    assert "secret" not in text
    for kept in ("tokens: https://host/tokens", "weight: 1", "pipe:curl … a.tar", "b-{000..009}.tar"):
        assert kept in Page(text).text
    assert config.read_text().count("secret") == 3


def test_a_run_that_is_not_finished_tells_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = Page((run / "report.html").read_text())
    assert "not finished: step 2,991 of 4,000" in page.text
    assert "Final numbers" not in page.text
    with Image.open(run / "report.png") as picture:
        assert picture.width > 1200
        assert picture.height > 1200


def test_a_run_that_has_just_begun_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = Page(write_report(tmp_path).read_text())
    assert page.text.count("none yet") == 2
    assert not (tmp_path / "report.png").exists()


def test_what_is_no_run_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run: it holds neither run\.json nor curves\.csv"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        write_report(tmp_path)


def test_every_panel_has_its_own_curves() -> None:
    steps = np.arange(5)
    names = [
        "train/loss",
        "train/bits_text",
        "val/bits_text",
        "train/bits_audio",
        "train/tokens_per_second",
        "val/psnr",
    ]
    charts = charts_of(dict.fromkeys(names, (steps, steps + 1.0)))
    assert [(chart.title, [line.label for line in chart.lines]) for chart in charts] == [
        ("Loss", ["loss"]),
        ("Bits of a target: text", ["training", "held-out concepts"]),
        ("Bits of a target: audio", ["training"]),
        ("PSNR of held-out pictures", ["PSNR"]),
        ("Throughput", ["all"]),
    ]
    titles = [(panel.title, panel.unit) for panel in PANELS]
    assert len(titles) == len(set(titles))
    none = charts_of({"train/steps_skipped": (steps, steps * 0.0), "train/loss": (steps, steps * math.nan)})
    assert none == []


def test_incidents_are_marked_where_they_happened_and_a_flood_does_not_hide_the_curve() -> None:
    steps = np.arange(1, 2001)
    [chart] = charts_of({"train/loss": (steps, np.full(2000, 2.0))})
    incidents = [Incident(10 * place, "", "loss", "") for place in range(MARKS + 10)]
    [axes] = one_page([chart], incidents, "a run").axes
    marked = [float(np.asarray(line.get_xdata())[0]) for line in axes.lines if len(np.asarray(line.get_xdata())) == 2]
    assert marked == [10 * place for place in range(10, MARKS + 10)]
    [curve] = [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]
    assert len(np.asarray(curve.get_xdata())) == 100  # means of neighbours
