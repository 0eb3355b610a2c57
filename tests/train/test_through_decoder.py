"""Tokenizers judged through the decoder: what the table and the page say, what is refused, and the road."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_road import draw_pictures, overrides
from PIL import Image
from rich.console import Console

from omnigram.model.codec import read_card
from omnigram.train.cli import main
from omnigram.train.comparison import OF_DECODER, OF_TOKENIZER, PIXELS, compare
from omnigram.train.compose import compose_config

QUIET = Console(file=io.StringIO())
SETTINGS = {"loader": {"rows": 1}, "trainer": {"max_steps": 4}, "seed": 0}
CONFIG = """data: {name: made, folder: datasets/made}
tokenizer: {name: made, runs: tokenizers}
tokens: {tokenizer: NAMED}
"""


def judged(folder: Path, export: Path, number: int, **changes: Any) -> Path:
    """A run as a decoder leaves it, and the tokenizer's in `tokenizers/t<number>`."""
    run, tokenizer = folder / f"run{number}", folder / "tokenizers" / f"t{number}"
    (run / "export").mkdir(parents=True)
    tokenizer.mkdir(parents=True)
    for name in ("omnigram.json", "vocabulary.json"):
        shutil.copy(export / name, run / "export" / name)
    identity = read_card(export)[0].identities["image"]
    own = {"psnr": 20.0 + number, "codebook_usage": 0.5, "identity_of_image_tokenizer": identity}
    (tokenizer / "metrics.json").write_text(json.dumps(own))
    Image.new("RGB", (160, 80), (250, 0, number)).save(tokenizer / "reconstructions.png")
    Image.new("RGB", (80, 160), (0, 250, number)).save(run / "samples.png")
    (run / "config.yaml").write_text(CONFIG.replace("NAMED", str(tokenizer)))
    metrics: dict[str, Any] = {name: 100.0 + number + place for place, name in enumerate(OF_DECODER)}
    metrics |= {"made_from": {**SETTINGS, "tokens": f"of {number}"}, "own_caption_wins": 0.75, **changes}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)


@pytest.mark.usefixtures("within")
def test_the_table_has_a_column_a_tokenizer(exports: Path, tmp_path: Path) -> None:
    runs = [judged(tmp_path, exports / "model", number) for number in (2, 1)]
    printed = io.StringIO()
    out = compare([*runs, runs[0]], tmp_path / "side", Console(file=printed, width=80))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (out / "comparison.md").read_text().splitlines()
    ]
    assert lines[0] == ["", "t2", "t1"]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert rows["PSNR of unseen pictures, dB"] == ["22.00", "21.00"]
    assert rows["codes used"] == ["50%", "50%"]
    assert rows["bits a training picture"] == ["104.0", "103.0"]
    assert rows["... cheaper after its own"] == ["75%", "75%"]  # the last of this name: held-out
    assert "bits a training picture" in printed.getvalue()
    numbers = json.loads((out / "comparison.json").read_text())
    assert [one["tokenizer"] for one in numbers] == ["t2", "t1"]
    assert numbers[1]["bits_first_code"] == json.loads((runs[1] / "metrics.json").read_text())["bits_first_code"]


@pytest.mark.usefixtures("within")
def test_the_page_shows_both_pages_of_each(exports: Path, tmp_path: Path) -> None:
    runs = [judged(tmp_path, exports / "model", number) for number in (1, 2, 3)]
    (tmp_path / "tokenizers/t3/reconstructions.png").unlink()
    page = np.array(Image.open(compare(runs, tmp_path / "side", QUIET) / "comparison.png"))
    for number in (1, 2, 3):
        seen = [int((page == colour).all(-1).sum()) for colour in ((250, 0, number), (0, 250, number))]
        assert seen == [0 if number == 3 else 720 * 360, 720 * 1440]
        columns = np.flatnonzero((page == (0, 250, number)).all(-1).any(0))
        assert columns.tolist() == list(range(columns[0], columns[0] + 720))


@pytest.mark.usefixtures("within")
def test_many_tokenizers_stand_in_several_rows(exports: Path, tmp_path: Path) -> None:
    few, many = (
        np.array(Image.open(compare(runs, tmp_path / f"side{len(runs)}", QUIET) / "comparison.png"))
        for every in [[judged(tmp_path, exports / "model", number) for number in range(7)]]
        for runs in (every[:5], every)
    )
    assert many.shape == (2 * few.shape[0], *few.shape[1:])
    assert (many[: len(few)] == few).all()
    for number in (5, 6):
        assert (many[len(few) :] == (0, 250, number)).all(-1).sum() == 720 * 1440


@pytest.mark.usefixtures("within")
def test_what_is_not_known_is_left_open(exports: Path, tmp_path: Path) -> None:
    run = judged(tmp_path, exports / "model", 1, bits_per_picture=None)
    (tmp_path / "tokenizers/t1/metrics.json").write_text("{}")
    text = (compare([run], tmp_path / "side", QUIET) / "comparison.md").read_text()
    identity = read_card(exports / "model")[0].identities["image"]
    assert f"made {identity[:8]}" in text
    open_rows = [line.split("|")[1].strip() for line in text.splitlines() if line.endswith(" - |")]
    unknown = [*OF_TOKENIZER.values(), PIXELS["pixels_per_picture"], OF_DECODER["bits_per_picture"]]
    assert open_rows == [words for words, _ in unknown]


@pytest.mark.usefixtures("within")
def test_a_tokenizer_is_found_where_none_is_named(exports: Path, tmp_path: Path) -> None:
    run = judged(tmp_path, exports / "model", 1)
    (run / "config.yaml").write_text(CONFIG.replace("NAMED", "null"))
    assert "t1" in (compare([run], tmp_path / "side", QUIET) / "comparison.md").read_text()


@pytest.mark.usefixtures("within")
def test_what_cannot_be_compared_is_refused(exports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = judged(tmp_path, exports / "model", 1)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([], tmp_path / "side")
    with pytest.raises(ValueError, match="is no finished run"):
        compare([tmp_path], tmp_path / "side")
    longer = judged(tmp_path, exports / "model", 2, made_from={**SETTINGS, "trainer": {"max_steps": 8}})
    with pytest.raises(ValueError, match=r"run2 was not trained as .*run1, trainer differs"):
        compare([first, longer], tmp_path / "side")
    elsewhere = judged(tmp_path, exports / "model", 3)
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace("datasets/made", "datasets/other"))
    with pytest.raises(ValueError, match="data differs"):
        compare([first, elsewhere], tmp_path / "side")
    of_a_part = judged(tmp_path, exports / "model", 4)
    config = of_a_part / "config.yaml"
    config.write_text(config.read_text().replace("tokens: {", "tokens: {share: 0.25, "))
    with pytest.raises(ValueError, match=r"tokens\.share differs"):
        compare([first, of_a_part], tmp_path / "side")
    older = json.loads((first / "metrics.json").read_text())
    del older["bits_first_code"]
    (first / "metrics.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="no number 'bits_first_code': run `omnigram evaluate"):
        compare([first], tmp_path / "side")
    assert not (tmp_path / "side").exists()
    for command, message in (
        (["compare", "nowhere"], "nowhere is no finished run"),
        (["through-decoder", "nowhere"], "nowhere/text.model is missing"),
        (["through-decoder", "seed=1"], "no tokenizer to judge"),
        (["through-decoder", "a", "experiment=tiny"], "experiment=tiny has no place here"),
        (["through-decoder", "a", "tokenizer.name=b"], "tokenizer.name=b has no place here"),
        (["through-decoder", "a", "tokenizer/quantizer=fsq"], "tokenizer/quantizer=fsq has no place here"),
        (["through-decoder", "a", "+tokenizer@x=vqvae"], "+tokenizer@x=vqvae has no place here"),
    ):
        assert main(command) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1


def test_every_tokenizer_gets_the_same_training() -> None:
    config = compose_config(["experiment=through_decoder"])
    assert (config.model_name, config.loader.rows, config.loader.length) == ("nano", 1, 512)
    assert (config.trainer.max_steps, config.tokens.share) == (1600, 0.25)
    assert {name: weight for name, weight in config.loader.kinds.items() if weight} == {"words_to_picture": 1.0}
    assert config.pretrain.runs != compose_config([]).pretrain.runs  # `latest` stays the run that is sampled from


@pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about how they are written
@pytest.mark.usefixtures("within")
def test_the_road(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer, one with twice the codes a picture, and the first renumbered, judged in one command."""
    source = overrides(draw_pictures(tmp_path / "pictures"))
    few = ["tokenizer.quantizer.codebook_size=32", "tokenizer.quantizer.dead_code_threshold=0"]
    folders = []
    for quantizer in ("ema", "residual"):
        assert main(["tokenizer", *source, f"tokenizer/quantizer={quantizer}", *few]) == 0
        folders.append(capsys.readouterr().out.strip())
    assert main(["codebook", "remap", folders[0], "--by", "frequency", "--out", "runs/tokenizer/mapped"]) == 0
    assert main(["evaluate", "evaluate.run=runs/tokenizer/mapped", "threads=1"]) == 0
    before, after = (json.loads(Path(f, "metrics.json").read_text()) for f in (folders[0], "runs/tokenizer/mapped"))
    assert after["psnr"] == before["psnr"]
    capsys.readouterr()
    short = ["model=tiny", "loader.length=384", "trainer.max_steps=2", "trainer.compile=false"]
    short += [text for text in source if text.startswith(("data", "threads"))]
    short += ["evaluation.queries=3", "evaluation.heldout_queries=3", "evaluation.page=2"]
    assert main(["through-decoder", *folders, "runs/tokenizer/mapped", *short]) == 0
    out = Path(capsys.readouterr().out.strip().splitlines()[-1])
    numbers = json.loads((out / "comparison.json").read_text())
    assert [one["tokenizer"] for one in numbers] == [*(Path(folder).name for folder in folders), "mapped"]
    assert numbers[1]["codes_per_picture"] == 2 * numbers[0]["codes_per_picture"]
    assert numbers[2]["psnr"] == numbers[0]["psnr"]
    assert [one["pixels_per_picture"] for one in numbers] == 3 * [64**2]
    assert [one["perceptual_hed"] is None for one in numbers] == [True, True, False]  # the last has been evaluated
    assert all(one["bits_first_code_train"] > 0 for one in numbers)
    runs = [one["run"] for one in numbers]
    assert main(["compare", *runs, "--out", "again"]) == 0
    assert (Path("again") / "comparison.md").read_text() == (out / "comparison.md").read_text()
