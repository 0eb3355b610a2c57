"""The whole judgement: perfect where nothing is lost, written whole, and asked for from the command line."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_evaluation import world
from made_judged import Greys, patches, picture_set, scenes, subject, write_pictures
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from omnigram.model.bundle import Omnigram
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig
from omnigram.train import picture_features
from omnigram.train.cli import main
from omnigram.train.compose import compose_config
from omnigram.train.judge import fidelity, judgement
from omnigram.train.judge.fidelity import Fidelity
from omnigram.train.judge.judgement import JudgeSettings, judge
from omnigram.train.judge.subject import Subject
from omnigram.train.retrieval import pixels_16

QUIET = Console(file=io.StringIO())


def mean_error(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A distance that is not the perceptual one, but of its shape."""
    return (first - second).abs().mean((1, 2, 3))


@pytest.fixture(autouse=True)
def quick_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "picture_features", lambda device, console: pixels_16)
    monkeypatch.setattr(judgement, "perceptual_distance", lambda device, console: mean_error)


def test_where_nothing_is_lost_every_number_is_perfect() -> None:
    judged = judge(subject(), picture_set(patches(20)), JudgeSettings((), batch_size=8), QUIET)
    numbers = judged.numbers
    assert numbers["psnr"] == 60
    assert numbers["ssim"] == pytest.approx(1, abs=1e-5)
    assert numbers["perceptual_hed"] == 0
    assert numbers["rfid_efficientnet"] == pytest.approx(0, abs=1e-6)
    assert numbers["kid_efficientnet"] == pytest.approx(0, abs=1e-9)
    assert numbers["kid_efficientnet_error"] == pytest.approx(0, abs=1e-9)
    assert numbers["drift"] == numbers["drift_5"] == 0
    assert numbers["bits_per_pixel"] == pytest.approx(4 / 16)  # 16 codes, of 4 x 4 pixels each
    assert numbers["bytes_per_picture"] == 32
    assert numbers["codebook_usage"] == 1
    assert numbers["codebook_perplexity"] == pytest.approx(16, rel=0.05)
    entropy = numbers["bits_per_pixel_entropy_coded"]
    assert entropy is not None
    assert 0.25 < entropy < 0.27  # the codes are drawn evenly, and the table has to be learnt


def test_every_codec_gets_the_bytes_of_the_codes_and_the_same_measures() -> None:
    told = io.StringIO()
    judged = judge(subject(64), picture_set(scenes(12)), JudgeSettings(), Console(file=told))
    for codec, numbers in judged.baselines.items():
        assert numbers is not None, codec
        budget, used = judged.numbers["bytes_per_picture"], numbers["bytes_per_picture"]
        assert used is not None
        assert budget is not None
        assert 0.5 * budget < used <= budget == 128
        assert numbers.keys() >= {"psnr", "ssim", "perceptual_hed", "rfid_efficientnet", "kid_efficientnet", "quality"}
    assert judged.page.width > 4 * 64
    assert told.getvalue() == ""


def test_a_codec_that_is_too_large_is_told_and_not_shown() -> None:
    judged = judge(subject(16), picture_set(scenes(1, 16)), JudgeSettings(("avif",)), QUIET)
    assert judged.baselines == {"avif": None}
    told = io.StringIO()
    judged.print(Console(file=told, width=100))
    assert "avif: its smallest files take more bytes than the codes" in told.getvalue()
    assert judged.numbers["rfid_efficientnet"] is None, "one picture has no distribution"


def test_measures_do_not_depend_on_the_batches() -> None:
    pictures = picture_set([*scenes(5, 32), *scenes(4, 16)])
    judged = [judge(subject(), pictures, JudgeSettings((), batch_size=size), QUIET).numbers for size in (1, 4, 64)]
    for numbers in judged[1:]:
        assert numbers == pytest.approx(judged[0], rel=1e-4, abs=1e-5)


def test_blur_and_noise_are_further_away_the_stronger_they_are() -> None:
    batch = torch.from_numpy(np.stack(scenes(12)))
    measure = Fidelity([batch], pixels_16, mean_error, torch.device("cpu")).measure
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
    little, much = (measure([(batch + noise * by).clamp(0, 255).to(torch.uint8)]) for by in (4, 40))
    for name, better in (("psnr", 1), ("ssim", 1), ("perceptual_hed", -1), ("rfid_efficientnet", -1)):
        values = little[name], much[name]
        assert values[0] is not None
        assert values[1] is not None
        assert better * values[0] > better * values[1], name


def test_weights_that_are_no_numbers_are_told() -> None:
    damaged = Greys().eval()
    damaged.greys.data[3] = float("nan")
    with pytest.raises(
        ValueError, match=r"the image tokenizer in greys decodes to NaN or infinity: its weights are da"
    ):
        judge(Subject(Path("greys"), damaged, subject().fitting), picture_set(patches(4)), JudgeSettings(()), QUIET)


def test_what_is_not_installed_is_one_line_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "picture_features", fidelity.picture_features)
    monkeypatch.setattr(picture_features, "MODEL", "no_such_model")
    told = io.StringIO()
    numbers = judge(subject(), picture_set(patches(4)), JudgeSettings(()), Console(file=told)).numbers
    assert numbers["rfid_efficientnet"] is numbers["kid_efficientnet"] is None
    [line] = told.getvalue().splitlines()
    assert line.startswith("judged without rFID and KID: no_such_model is not installed: pip install")


def evaluate(*overrides: str) -> int:
    return main(["evaluate", "threads=1", "device=cpu", *overrides])


@pytest.fixture
def asked(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with an export, `model`, and pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)
    shutil.copytree(exports / "model", tmp_path / "model")
    write_pictures(tmp_path / "pictures", scenes(6, 32))
    return tmp_path


def test_an_export_is_judged_on_a_folder(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("evaluate.run=model", "evaluate.pictures=pictures", "evaluate.baselines=[webp]") == 0
    record = json.loads((asked / "model/evaluation-pictures.json").read_text())
    assert record["pictures"]["count"] == 6
    assert record["tokenizer"]["identity"] == Omnigram.from_pretrained("model").image_tokenizer.identity
    assert record["numbers"]["psnr"] > 0
    assert record["seed"] == record["config"]["seed"] == 0
    assert record["config"]["evaluate"]["pictures"] == "pictures"
    assert "revision" in record["provenance"]
    with Image.open(asked / "model/evaluation-pictures.png") as page:
        assert page.width > 100
    shown = capsys.readouterr()
    assert "psnr" in shown.out
    assert "webp" in shown.out
    assert "see model/evaluation-pictures.json and model/evaluation-pictures.png" in shown.err
    Omnigram.from_pretrained("model")  # is whole still


def test_a_tokenizer_alone_is_judged_at_a_size(asked: Path) -> None:
    Omnigram.from_pretrained("model").image_tokenizer.save_pretrained("alone")
    given = ["evaluate.run=alone", "evaluate.pictures=pictures", "evaluate.baselines=[]"]
    assert evaluate(*given, "evaluate.resolution=32") == 0
    record = json.loads((asked / "alone/evaluation-pictures.json").read_text())
    assert record["tokenizer"]["resolution"] == 32
    assert record["numbers"]["bits_per_pixel"] == pytest.approx(4 / 64)


def test_a_run_is_judged_on_its_own_data(asked: Path) -> None:
    world(asked / "datasets/made")
    image = Omnigram.from_pretrained("model").image_tokenizer
    image.save_pretrained("run/image")
    config = compose_config(["data.name=made", "tokenizer.pictures.resolution=16"])
    Path("run/config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    identity = json.loads(Path("datasets/made/dataset.json").read_text())["identity"]
    Path("run/metrics.json").write_text(json.dumps({"psnr": -1, "made_from": {"dataset": identity}}))
    Path("run/run.json").write_text("{}")
    assert evaluate("evaluate.run=run", "evaluate.baselines=[jpeg]", "evaluate.max_pictures=3") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["psnr"] > 0
    assert metrics["pictures"] > metrics["pictures_judged"] == 3
    assert metrics["made_from"] == {"dataset": identity}
    assert {"drift_5", "rfid_efficientnet", "bits_per_pixel", "codes_kept_shift_1", "split"} <= metrics.keys()
    record = json.loads(Path("run/evaluation-made-test.json").read_text())
    assert record["pictures"]["dataset"] == identity
    assert record["pictures"]["count"] == 3
    before = Path("run/metrics.json").read_bytes()
    assert evaluate("evaluate.run=run", "evaluate.pictures=pictures", "evaluate.baselines=[]") == 0
    assert Path("run/metrics.json").read_bytes() == before, "other pictures are no metrics of the run"
    first = Path("run/evaluation-pictures.json").read_bytes()
    assert evaluate("evaluate.run=run", "evaluate.pictures=pictures", "evaluate.baselines=[]") == 0
    assert evaluate("evaluate.run=run", "evaluate.pictures=pictures", "evaluate.resolution=32") == 0
    records = sorted(Path("run").glob("evaluation-pictures*.json"))
    assert len(records) == 2
    assert json.loads(first)["pictures"] == json.loads(records[1].read_text())["pictures"]
    larger = json.loads(records[0].read_text())
    assert larger["tokenizer"]["resolution"] == 32
    assert records[0].stem == f"evaluation-pictures-{larger['pictures']['identity'][:8]}"
    assert records[0].with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.run=model"], "model has no data of its own: set evaluate.pictures= to a folder, or to photographs"),
        (["evaluate.run=model", "evaluate.pictures=nowhere"], "evaluate.pictures=nowhere is no folder"),
        (["evaluate.run=model", "evaluate.pictures=model"], "evaluate.pictures=model holds no pictures"),
        (["evaluate.run=alone", "evaluate.pictures=pictures"], "alone does not say how large its pictures are: set ev"),
        (["evaluate.run=blind", "evaluate.pictures=pictures"], "blind: this image tokenizer has no decoder"),
        (
            ["evaluate.run=model", "evaluate.pictures=pictures", "evaluate.resolution=30"],
            "evaluate.resolution=30 is not cut into codes of 8 pixels: set 24 or 32",
        ),
        (["evaluate.run=model", "evaluate.pictures=pictures", "evaluate.baselines=[gif]"], "evaluate.baselines holds "),
        (["evaluate.run=model", "evaluate.max_pictures=0"], "evaluate.max_pictures=0 must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    overrides: list[str], message: str, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Omnigram.from_pretrained("model").image_tokenizer.save_pretrained("alone")
    small = VQGANConfig(4, 16, 4, 16, base_channels=32, channel_multiplier=(1, 1), num_res_blocks=1, decoder=False)
    VQGAN(small).save_pretrained("blind")
    capsys.readouterr()
    assert evaluate(*overrides) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"omnigram: {message}")
    assert shown.count("\n") == 1
