"""Both stages from end to end at tiny size, in one process, and what the artefacts say of themselves."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from made_road import draw_pictures, overrides, run
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModelForCausalLM

from omnigram.model.bundle import Omnigram
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.train.cli import main
from omnigram.train.compose import compose_config
from omnigram.train.curves import read_curves
from omnigram.train.evaluate import evaluate
from omnigram.train.incidents import read_incidents
from omnigram.train.pretrain import pretrain
from omnigram.train.pretraining import Pretraining
from omnigram.train.tokenizer import make_tokenizer
from omnigram.train.tokens import make_tokens

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about how they are written


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DictConfig]:
    """The folder of a finished road and its configuration."""
    folder = tmp_path_factory.mktemp("road")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = compose_config(overrides(draw_pictures(folder / "pictures")))
        run = pretrain(config)
        return folder / run, config


def contents(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


def test_each_step_leaves_what_the_design_says(road: tuple[Path, DictConfig]):
    run, _ = road
    root = run.parent.parent.parent
    tokenizer = root / "runs/tokenizer/latest"
    for name in ("text.model", "image/config.json", "image/model.safetensors", "reconstructions.png", "config.yaml"):
        assert (tokenizer / name).is_file(), name
    for name in (
        "export/config.json",
        "export/model.safetensors",
        "samples.png",
        "metrics.json",
        "config.yaml",
        "report.html",
    ):
        assert (run / name).is_file(), name
    assert (root / "runs/pretrain/latest").resolve() == run.resolve()
    assert not list(root.rglob("*.partial"))
    numbers = json.loads((tokenizer / "metrics.json").read_text())
    assert {"psnr", "ssim", "codebook_usage", "codebook_perplexity", "train_seconds", "seed"} <= numbers.keys()
    assert 0 < numbers["codebook_usage"] <= 1
    numbers = json.loads((run / "metrics.json").read_text())
    wanted = {
        "bits_per_picture",
        "bits_per_character",
        "retrieval_top1_train",
        "retrieval_top5_train",
        "retrieval_chance",
        "caption_exact_train",
        "train_seconds",
        "tokens_per_second",
        "parameters",
        "train_flops",
        "mfu",
        "data_wait",
        "peak_memory_gib",
        "pad_share",
        "steps_skipped",
    }
    assert wanted <= numbers.keys()


def test_the_same_command_changes_nothing(road: tuple[Path, DictConfig], monkeypatch: pytest.MonkeyPatch):
    run, config = road
    root = run.parent.parent.parent
    before = contents(root)
    monkeypatch.chdir(root)
    assert (root / pretrain(config)).resolve() == run.resolve()
    assert contents(root) == before


def test_the_curves_hold_every_step_that_was_logged(road: tuple[Path, DictConfig]):
    run, _ = road
    rows = read_curves(run / "curves.csv")
    assert {name for _, name, _ in rows} >= {"train/loss", "train/bits_image", "val/bits_image"}
    assert all(value == value for _, _, value in rows)


def test_the_export_loads_by_transformers_and_draws_the_same_pictures(road: tuple[Path, DictConfig]):
    run, _ = road
    plain = AutoModelForCausalLM.from_pretrained(run / "export")
    model = Omnigram.from_pretrained(run / "export")
    for (name, first), (_, second) in zip(plain.named_parameters(), model.model.named_parameters(), strict=True):
        assert torch.equal(first, second), name
    first = model.draw("red circle 0", n=2, seed=3)
    again = Omnigram.from_pretrained(run / "export").draw("red circle 0", n=2, seed=3)
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]
    assert first[0].size == (64, 64)


def test_tokens_of_another_tokenizer_are_another_data_set(road: tuple[Path, DictConfig]):
    run, _ = road
    root = run.parent.parent.parent
    tokens = [path for path in (root / "datasets").iterdir() if path.name.startswith("tiny-")]
    assert len(tokens) == 1
    made_from = json.loads((tokens[0] / "dataset.json").read_text())["made_from"]
    image = ImageTokenizer.from_pretrained(root / "runs/tokenizer/latest/image")
    assert made_from["image_tokenizer"] == image.identity


def test_other_settings_are_another_run(road: tuple[Path, DictConfig], monkeypatch: pytest.MonkeyPatch):
    run, _ = road
    root = run.parent.parent.parent
    monkeypatch.chdir(root)
    first = (root / "runs/tokenizer/latest").resolve()
    changed = compose_config(
        [*overrides(root / "pictures"), "tokenizer=movqgan", "tokenizer.discriminator.start_step=2"]
    )
    second = root / make_tokenizer(changed)
    assert second.resolve() != first
    assert json.loads((second / "metrics.json").read_text())["psnr"] > 0
    with Image.open(second / "reconstructions.png") as page:
        assert page.width > page.height > 64


@pytest.fixture
def before_pretraining(
    road: tuple[Path, DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """A folder with the tokens and the tokenizers of the road, and what to ask for there."""
    run, _ = road
    root = run.parent.parent.parent
    for part in ("datasets", "runs/tokenizer"):
        shutil.copytree(root / part, tmp_path / part, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path, overrides(root / "pictures")


def test_a_row_that_holds_no_picture_is_refused_before_a_run_is_made(before_pretraining: tuple[Path, list[str]]):
    folder, asked = before_pretraining
    with pytest.raises(ValueError, match=r"loader\.length=60 holds no picture of 8 x 8 codes: set \d+ or more"):
        pretrain(compose_config([*asked, "loader.length=60"]))
    assert not (folder / "runs/pretrain").exists()


def test_a_damaged_shard_of_tokens_is_named_from_within_the_training(before_pretraining: tuple[Path, list[str]]):
    folder, asked = before_pretraining
    [shard] = folder.glob("datasets/tiny-*/train-000000.tar")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(
        ValueError,
        match=r"of tiny-\w+ are damaged, .*train-000000\.tar: shard is cut short",
    ):
        pretrain(compose_config(asked))


def test_a_run_that_diverges_is_stopped(before_pretraining: tuple[Path, list[str]]):
    folder, asked = before_pretraining
    faulty = r"the (loss and )?gradient of step \d is not a finite number"
    with (
        pytest.warns(UserWarning, match=f"{faulty}: the step is left out"),
        pytest.raises(ValueError, match=rf"{faulty}, as 4 steps before it: lower optimizer\.learning_rate="),
    ):
        pretrain(compose_config([*asked, "optimizer.learning_rate=1e30", "trainer.max_skipped_steps=4"]))
    [checkpoint] = folder.glob("runs/pretrain/*/checkpoints/step-*")  # of a step in the row
    dcp_to_torch_save(checkpoint, folder / "one-file.pt")
    state = torch.load(folder / "one-file.pt", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in state.values())


UNFINISHED = {"run.json", "config.yaml", "curves.csv", "incidents.jsonl", ".lock", "tensorboard"}


@pytest.mark.parametrize("part", ["training_step", "configure_optimizers"])
def test_a_gpu_that_is_full_is_one_line_and_leaves_nothing_half_made(
    part: str,
    before_pretraining: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    folder, asked = before_pretraining
    monkeypatch.setattr(Pretraining, part, full)
    assert main(["pretrain", *asked]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("omnigram: out of memory: 2 rows at once of loader.length=384: about 0.0 GiB of the ")
    assert line.endswith("; others may hold the rest: free it, or raise trainer.accumulation to 2")
    [run] = folder.glob("runs/pretrain/*")
    assert {path.name for path in run.iterdir()} <= UNFINISHED


def test_a_machine_that_is_full_is_one_line_and_leaves_nothing_half_made(before_pretraining: tuple[Path, list[str]]):
    folder, asked = before_pretraining
    large = ["loader.rows=3000", "loader.lookahead=8", "loader.prefetch=0", "logger=[csv]"]
    done = run("pretrain", [*asked, *large], folder, memory=6 * 2**30)
    assert done.returncode == 2, done.stderr
    assert re.match(
        r"omnigram: out of memory: 3000 rows at once of loader\.length=384: about [67]\.\d GiB of the 6\.0 there are "
        r"\(activations and loss \d+%, weights, gradients and optimizer 0%\): set trainer\.accumulation=2, with "
        r"which this run goes on$",
        done.stderr.splitlines()[-1],
    )
    [left] = folder.glob("runs/pretrain/*")
    assert {path.name for path in left.iterdir()} <= UNFINISHED
    [stopped] = read_incidents(left / "incidents.jsonl")
    assert "can't allocate memory" in stopped.message


def test_an_interruption_stays_one(before_pretraining: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch):
    _, asked = before_pretraining
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Pretraining, "training_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        pretrain(compose_config(asked))
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_damaged_checkpoint_is_passed_over(road: tuple[Path, DictConfig], before_pretraining: tuple[Path, list[str]]):
    whole, _ = road
    folder, asked = before_pretraining
    run = folder / "runs/pretrain" / whole.name
    shutil.copytree(whole / "checkpoints", run / "checkpoints")
    os.truncate(run / "checkpoints/step-00000008/__0_0.distcp", 5000)
    with pytest.warns(UserWarning, match=r"step-00000008 is damaged and is passed over: __0_0\.distcp has not its"):
        assert pretrain(compose_config(asked)).name == whole.name
    weights = [load_file(folder / "export/model.safetensors") for folder in (whole, run)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.page=0", r"evaluation\.page=0 must be 1 or more"),
        ("mixture={a:{tokens:null,weight:0}}", r"mixture: the weight of every source is 0 at document 0"),
        ("trainer.compile=true", r"needs a C\+\+ compiler, and there is no no-compiler: install one"),
        ("model.bos_token_id=3", r"model\.bos_token_id=3, in the tokens bos is \d+: set null"),
    ],
)
def test_what_cannot_end_well_is_said_before_a_run_is_made(
    setting: str, message: str, before_pretraining: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
):
    folder, asked = before_pretraining
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.raises(ValueError, match=message):
        pretrain(compose_config([*asked, setting]))
    assert not (folder / "runs/pretrain").exists()


def test_an_export_is_trained_on(before_pretraining: tuple[Path, list[str]]):
    _, asked = before_pretraining
    first = pretrain(compose_config([*asked, "seed=3"]))
    again = [*asked, "seed=3", "model=export", f"model.path={first}/export", "trainer.max_steps=4"]
    second = pretrain(compose_config([*again, "model.residual_dropout=0.1"]))
    assert second.name.startswith("tiny-export-")
    records = [json.loads((run / "run.json").read_text())["made_from"] for run in (first, second)]
    assert records[0]["tokens"] == records[1]["tokens"]
    assert [name for name, _ in records[1]["model"]["start"]] == ["model.safetensors"]
    curves = [read_curves(run / "curves.csv") for run in (first, second)]
    losses = [[value for _, name, value in rows if name == "train/loss"] for rows in curves]
    assert losses[1][0] < losses[0][0]  # it begins where the first ended, not anew
    before, after = (Omnigram.from_pretrained(run / "export") for run in (first, second))
    assert before.vocabulary == after.vocabulary
    assert [of.model.config.residual_dropout for of in (before, after)] == [0.0, 0.1]
    changed = [not torch.equal(*pair) for pair in zip(before.model.parameters(), after.model.parameters(), strict=True)]
    assert all(changed)
    with pytest.raises(FileNotFoundError, match=r"nothing is not an export of Omnigram: "):
        pretrain(compose_config([*asked, "model=export", "model.path=nothing"]))


def test_a_mixture_is_read_by_a_process_and_on_by_a_thread(before_pretraining: tuple[Path, list[str]]):
    _, asked = before_pretraining
    tokens = make_tokens(compose_config(asked))
    asked += [f"mixture={{own:{{tokens:null}},again:{{tokens:'{tokens}',weight:[[0,0.5],[9000,0]]}}}}"]
    run = pretrain(compose_config([*asked, "loader.workers=1"]))
    numbers = json.loads((run / "metrics.json").read_text())
    assert numbers["train_epochs"]["own"] > numbers["train_epochs"]["again"] > 0
    assert 0.5 < numbers["train_fill"] <= 1
    assert numbers["train_documents_damaged"] == {}
    weights = load_file(run / "export/model.safetensors")
    shutil.rmtree(run / "export")
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoints/step-00000008")
    assert pretrain(compose_config(asked)) == run, "who reads is no part of what a run is"
    again = load_file(run / "export/model.safetensors")
    assert all(weights[name].equal(again[name]) for name in weights)


def test_modalities_get_layers_of_their_own_from_the_vocabulary(before_pretraining: tuple[Path, list[str]]):
    _, asked = before_pretraining
    run = pretrain(compose_config([*asked, "model.modality_norms=true", "model.num_experts=2", "seed=4"]))
    decoder = Omnigram.from_pretrained(run / "export")
    codes = decoder.vocabulary.range("image")
    assert decoder.model.config.modality_ranges == [[codes.start, codes.size]]
    assert decoder.model.config.num_experts == 2


def test_bfloat16_trains_and_draws(before_pretraining: tuple[Path, list[str]]):
    _, asked = before_pretraining
    run = pretrain(compose_config([*asked, "precision=bf16-mixed", "seed=1", "tokens.tokenizer=runs/tokenizer/latest"]))
    assert (run / "samples/step-00000008.png").is_file()


def test_a_tokenizer_is_not_measured_on_other_pictures(before_pretraining: tuple[Path, list[str]]):
    folder, _ = before_pretraining
    assert evaluate(compose_config(["evaluate.run=runs/tokenizer/latest"]))["psnr"] > 0
    path = folder / "datasets/tiny/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": "another"}))
    with pytest.raises(ValueError, match=r"datasets/tiny is not the data set that runs/tokenizer/latest was made from"):
        evaluate(compose_config(["evaluate.run=runs/tokenizer/latest"]))
