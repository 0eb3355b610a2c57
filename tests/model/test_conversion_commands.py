"""The commands `import` and `export`: mistakes in one line, what they print, full disks and busy folders."""

import errno
import shutil
from pathlib import Path

import pytest
from made_checkpoints import (
    NOT_DRAWN,
    emu3_names,
    made_vqgan,
    save_published,
    save_tokenizer,
    save_vqgan,
)
from made_exports import tiny_export

from omnigram.data.artefact import FolderBusyError
from omnigram.model.conversion import FAMILIES, import_checkpoint
from omnigram.model.conversion.sources import GRAMMARS
from omnigram.train import conversion_commands
from omnigram.train.cli import main

pytestmark = pytest.mark.filterwarnings(NOT_DRAWN)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "nowhere", "--out", "out"], "nowhere is no folder"),
        (["import", "empty", "--out", "out"], "empty holds no model: neither config.json"),
        (["import", "one", "--out", "full"], "full exists already: remove it or choose another name"),
        (["import", "one", "--out", "one/config.json"], "one/config.json exists already"),
        (["import", "one", "--out", "one/config.json/out"], "/config.json is a file): choose another one"),
        (["import", "one", "--out", "/proc/none"], "cannot be made (No such file or directory): choose another one"),
        (["import", "in", "--out", "out"], "in is an export of Omnigram already: give it to the other commands as"),
        (["import", "one", "--out", "out", "--text-tokenizer", "nowhere"], "nowhere is no file"),
        (["import", "one", "--out", "out", "--text-tokenizer", "emu3.json"], "emu3.json is of another model"),
        (["import", "one", "--out", "out", "--image-tokenizer", "one"], "model_type 'chameleon' is no image tokenizer"),
        (["import", "llama", "--out", "out", "--image-tokenizer", "vq"], "is of a model without pictures: leave"),
        (["import", "one"], "the following arguments are required: --out"),
        (["export", "one", "--format", "chameleon", "--out", "out"], "one is not an export of Omnigram: "),
        (
            ["export", "mine", "--format", "chameleon", "--out", "out"],
            "of kind vqgan, and here is one of kind vqvae: export it to another format, llama holds",
        ),
        (["export", "mine", "--format", "gpt", "--out", "out"], "invalid choice: 'gpt'"),
        (["export", "mine", "--format", "llama", "--out", "full"], "full exists already"),
        (["export", "in", "--format", "llama", "--out", "out"], "in: a llama model has qk_norm 'none', not 'layer'"),
        (
            ["export", "in", "--format", "emu3", "--out", "out"],
            "in: an emu3 model holds an image tokenizer of kind movq",
        ),
        (["export", "text", "--format", "chameleon", "--out", "out"], "kind vqgan, and here is no image tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_at_the_command_line(
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "llama"):
        Path(name).symlink_to(published / name)
    for name in ("empty", "full", "vq"):
        Path(name).mkdir()
    Path("full/mine.txt").write_text("kept")
    save_tokenizer(Path("emu3.json"), emu3_names())
    save_vqgan(Path("vq"), made_vqgan())
    if "mine" in arguments:
        tiny_export().save_pretrained("mine")
    if "in" in arguments:
        import_checkpoint("one", "in")
    if "text" in arguments:
        import_checkpoint("llama", "text")
    before = sorted(path for path in Path().rglob("*"))
    capsys.readouterr()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("omnigram: ")
    assert message in shown.err.splitlines()[-1]
    assert sorted(path for path in Path().rglob("*")) == before


def test_the_commands_print_what_they_made(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/in").mkdir(parents=True)  # an empty folder is filled
    assert main(["import", str(published / "one"), "--out", "models/in"]) == 0
    assert main(["export", "models/in", "--format", "chameleon", "--out", "back"]) == 0
    assert capsys.readouterr().out.splitlines() == ["models/in", "back"]
    assert sorted(path.name for path in Path().iterdir()) == ["back", "models"]


def test_a_full_disk_is_told_before_anything_is_written(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"out needs \S+ GB, and the disk has 1e-06 GB free: free some space") as told:
        import_checkpoint(published / "one", tmp_path / "made" / "out")
    assert told.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_what_fails_midway_leaves_nothing(published: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        assert (tmp_path / ".out.partial").is_dir()
        assert not (tmp_path / "out").exists()
        if done > total / 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="the disk is full: free some space"):
        import_checkpoint(published / "one", tmp_path / "out", progress=fail)
    assert not list(tmp_path.iterdir())


def test_two_do_not_fill_one_folder(published: Path, tmp_path: Path) -> None:
    def again(done: int, total: int) -> None:
        if done == total:
            with pytest.raises(FolderBusyError, match=r"another run is filling .*out: wait for it, or choose another"):
                import_checkpoint(published / "one", tmp_path / "out")

    import_checkpoint(published / "one", tmp_path / "out", progress=again)
    assert (tmp_path / "out" / "omnigram.json").is_file()


def test_the_choices_of_the_command_line_are_those_there_are() -> None:
    """They stand there again, so that the help does not import what converts."""
    assert set(conversion_commands.FORMATS) == set(FAMILIES)
    assert set(conversion_commands.GRAMMARS) == set(GRAMMARS)
