"""Run folders: one a configuration, one process at a time, finished only with metrics.json."""

import json
from pathlib import Path

import pytest

from omnigram.data.artefact import FolderBusyError
from omnigram.train.curves import CurveLogger, make_loggers, read_curves
from omnigram.train.runs import finished_run, open_run


def test_a_configuration_finds_its_folder_again(tmp_path: Path):
    with open_run(tmp_path, "emoji-micro", {"width": 2, "seed": 0}) as first:
        assert not first.finished
        first.finish({"psnr": 20.0})
    with open_run(tmp_path, "emoji-micro", {"seed": 0, "width": 2}) as again:
        assert again.folder == first.folder
        assert again.finished
    with open_run(tmp_path, "emoji-micro", {"width": 3, "seed": 0}) as other:
        assert other.folder != first.folder
    assert (tmp_path / "latest").resolve() == first.folder.resolve()
    metrics = finished_run(tmp_path / "latest")
    assert metrics["psnr"] == 20.0
    assert metrics["made_from"] == {"width": 2, "seed": 0}
    assert metrics["identity"].startswith(first.folder.name.rsplit("-", 1)[1])
    assert metrics["provenance"]["versions"]["python"]


def test_latest_is_the_newest_finished_run(tmp_path: Path):
    for width in (1, 2):
        with open_run(tmp_path, "run", {"width": width}) as run:
            run.finish({})
    assert (tmp_path / "latest").resolve() == run.folder.resolve()
    with open_run(tmp_path, "run", {"width": 1}) as first:  # the same command again
        assert first.finished
    assert (tmp_path / "latest").resolve() == first.folder.resolve()


def test_something_in_the_place_of_the_link_is_named_before_the_work(tmp_path: Path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(FileExistsError, match=r"/latest is in the place of the link"), open_run(tmp_path, "run", {}):
        pytest.fail("it must not begin")


def test_two_runs_in_one_folder_are_refused_in_one_line(tmp_path: Path):
    with (
        open_run(tmp_path, "run", {"a": 1}),
        pytest.raises(FolderBusyError, match="another run is working in") as caught,
        open_run(tmp_path, "run", {"a": 1}),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_an_unfinished_or_damaged_run_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no finished run \(metrics\.json is missing\)"):
        finished_run(tmp_path)
    for damaged in ("{", "[]"):
        (tmp_path / "metrics.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"metrics\.json is damaged: remove it, then run the step again"):
            finished_run(tmp_path)


def test_a_damaged_run_is_not_taken_for_a_finished_one(tmp_path: Path):
    with open_run(tmp_path, "run", {}) as run:
        (run.folder / "run.json").write_text("{")
    with open_run(tmp_path, "run", {}) as run:
        run.finish({"psnr": 20.0})
    assert finished_run(run.folder)["provenance"]
    (run.folder / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"), open_run(tmp_path, "run", {}):
        pass


def test_curves_are_cut_back_to_the_checkpoint_and_go_on(tmp_path: Path):
    logger = CurveLogger(tmp_path, 0)
    for step in range(1, 6):
        logger.log_metrics({"train/loss": 1 / step, "epoch": 0}, step)
    with logger.path.open("a") as file:
        file.write("6,train/lo")  # cut off by a kill
    again = CurveLogger(tmp_path, 3)
    again.log_metrics({"train/loss": 0.25}, 4)
    assert read_curves(logger.path) == [(step, "train/loss", 1 / step) for step in range(1, 5)]
    assert json.dumps(read_curves(logger.path))


def test_curves_that_end_anywhere_are_read_up_to_there(tmp_path: Path) -> None:
    """A power loss or a full disk cuts the file at any byte: no error, and no 1. or 1.2 for 1.25."""
    logger = CurveLogger(tmp_path, 0)
    for step in range(8, 13):
        logger.log_metrics({"train/loss": 1.25e-7 * step, "train/größe": 1.5}, step)
    whole, data = read_curves(logger.path), logger.path.read_bytes()
    assert len(whole) == 10
    for size in range(len(data) + 1):
        logger.path.write_bytes(data[:size])
        assert read_curves(logger.path) == whole[: max(0, data[:size].count(b"\n") - 1)]
    again = CurveLogger(tmp_path, 9)
    assert read_curves(again.path) == whole[:4]


@pytest.mark.parametrize(
    "row", ["60,train/loss,", "60,train/loss", "6x,train/loss,1", "60,train/loss,1.2e-", "\0\0", ""]
)
def test_a_row_that_is_none_is_named_with_its_file(row: str, tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text(f"step,name,value\n59,train/loss,1.5\n{row}\n61,train/loss,1.5\n")
    with pytest.raises(ValueError, match=r"/curves\.csv is damaged: '.*' is no row step,name,value: remove it$"):
        read_curves(tmp_path / "curves.csv")


def test_an_unknown_logger_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="logger 'wandby' is unknown: choose of csv, tensorboard, wandb"):
        make_loggers(["wandby"], tmp_path, 0)
