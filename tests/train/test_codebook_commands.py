"""`omnigram codebook` on the three kinds of folder: what it counts, what it leaves, and what it refuses in one line."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_evaluation import CODES, world
from made_export import made_export
from PIL import Image
from rich.console import Console

from omnigram.data.artefact import atomic_write_json
from omnigram.data.fitting import Fitting
from omnigram.data.record import DOCUMENTS, read_record
from omnigram.data.tokens import TokenDataset
from omnigram.model.bundle import Omnigram
from omnigram.model.generation import Sampling
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.pixel_tokenizer import load_image_tokenizer
from omnigram.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from omnigram.tokenizers.quantizers.gumbel import GumbelConfig
from omnigram.tokenizers.quantizers.multi_codebook import MultiCodebookConfig
from omnigram.tokenizers.quantizers.quantizer import places
from omnigram.tokenizers.vqgan import VQGAN, VQGANConfig
from omnigram.train.cli import main, make_parser
from omnigram.train.code_use import pixels_of
from omnigram.train.tokenizer import read_tokenizers
from omnigram.train.tokens import write_tokens

NETWORK = ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False)
GREEDY = {"image": Sampling(temperature=0)}
FAR = 1e3  # where no vector is
ACTIONS = ("inspect", "prune", "merge", "remap", "revive")


def counts_of(tokens: Path) -> Counter[int]:
    """By the token documents alone."""
    counts: Counter[int] = Counter()
    for split in ("train", "test", "heldout_style"):
        dataset = TokenDataset(tokens, split)
        for number in range(len(dataset)):
            for segment in dataset[number].segments:
                if segment.modality == "image":
                    counts.update(segment.codes.flatten().tolist())
    return counts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, tokens of two tokenizers, an export, a run and bare tokenizers; two of the codes are dead."""
    folder = tmp_path_factory.mktemp("codebooks")
    tokens = world(folder / "pictures")  # of another image tokenizer
    tokens.rename(folder / "foreign-tokens")
    model = made_export(folder / "unused")
    image = model.image_tokenizer
    assert isinstance(image, ImageTokenizer)
    with torch.no_grad():
        image.quantizer.start_from(
            places(image.encoder(torch.cat(list(pixels_of(folder / "pictures", Fitting(8, 16))))))
        )
    image.vector_quantizer.put(torch.tensor([3, 11]), torch.full((2, 4), FAR))
    codec = type(model.codec)(model.vocabulary, model.text_tokenizer, image, None)
    write_tokens(
        folder / "pictures", codec, Fitting(8, 16), batch_size=4, workers=1, console=Console(quiet=True)
    ).rename(folder / "tokens")
    unused = [code for code in range(CODES) if code not in counts_of(folder / "tokens")]
    with torch.no_grad():  # it never draws the dead codes
        model.model.lm_head.weight[model.vocabulary.encode("image", unused)] = 0
    card = model.card.__class__(**{**vars(model.card), "identities": {}})
    Omnigram(model.model, type(codec)(model.vocabulary, model.text_tokenizer, image, card)).save_pretrained(
        folder / "export"
    )
    run = folder / "run"
    image.save_pretrained(run / "image")
    model.text_tokenizer.save(run / "text.model")
    (run / "config.yaml").write_text(
        "data: {folder: pictures}\n"
        "tokenizer: {pictures: {resolution: 16, max_ratio: 1.0}, quantizer: {codebook_size: 16}}\n"
    )
    identity = read_record(folder / "pictures", DOCUMENTS)["identity"]
    atomic_write_json(run / "metrics.json", {"psnr": 1.0, "seed": 5, "made_from": {"dataset": identity}})
    image.save_pretrained(folder / "bare")
    for name, config in (
        ("fsq", FiniteScalarConfig((4, 3, 5))),
        ("multi", MultiCodebookConfig(2, True, 8, 4, 0.9, 0.25, False, 0.0)),
        ("gumbel", GumbelConfig(8, 4, 5e-4, 1.0, 0.1, True)),
    ):
        ImageTokenizer(NETWORK, config).save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def within(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMNIGRAM_DEBUG", raising=False)
    for folder in made.iterdir():
        (tmp_path / folder.name).symlink_to(folder)


@pytest.mark.parametrize("folder", ["run", "bare", "export"])
@pytest.mark.parametrize("data", ["pictures", "tokens"])
def test_what_is_counted_is_what_occurs(folder: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    size = [] if folder != "bare" else ["--resolution", "16"]
    assert main(["codebook", "inspect", folder, "--data", data, *size, "--out", "page.png"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    counts = counts_of(Path("tokens"))
    share = np.array(list(counts.values())) / counts.total()
    assert numbers["counted"] == counts.total()
    assert (numbers["codes"], numbers["used"], numbers["usage"]) == (CODES, len(counts), len(counts) / CODES)
    assert numbers["perplexity"] == pytest.approx(2 ** -(share * np.log2(share)).sum(), rel=1e-5)
    assert numbers["most_used"] == pytest.approx(share.max())
    assert json.loads(Path("page.json").read_text()) == numbers
    assert set(numbers["redundancy_by_grey_levels"]) == {"1", "2", "4", "8"}


def test_the_page_shows_the_most_used_code_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codebook", "inspect", "run"]) == 0  # the data of the run, and codebook.png
    counts = counts_of(Path("tokens"))
    most = max(counts, key=lambda code: (counts[code], -code))
    tokenizer = load_image_tokenizer("run/image")
    pixels = tokenizer.decode(torch.full((1, 3, 3), most))[0, :, 8:16, 8:16]
    corner = np.asarray(Image.open("codebook.png").convert("RGB"))[8:40, 8:40][2::4, 2::4]
    assert np.abs((pixels.permute(1, 2, 0).numpy() + 1) * 127.5 - corner).max() <= 0.51
    assert capsys.readouterr().err.endswith("see codebook.png\n")


def test_several_codes_a_place_are_counted_without_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codebook", "inspect", "multi", "--data", "pictures", "--resolution", "16"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["codes"] == 16
    assert "without pictures of the codes: " in shown.err
    assert not Path("codebook.png").exists()
    assert json.loads(Path("codebook.json").read_text()) == json.loads(shown.out)


def test_codes_without_a_decoder_are_compared_by_their_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    VQGAN(VQGANConfig(8, CODES, 8, 16, 32, (1, 2), 1, decoder=False)).save_pretrained("half")
    assert main(["codebook", "inspect", "half", "--data", "pictures", "--resolution", "16"]) == 0
    shown = capsys.readouterr()
    assert "without pictures of the codes: this image tokenizer has no decoder" in shown.err
    numbers = json.loads(Path("codebook.json").read_text())
    assert len(numbers["nearest_pairs_by_vectors"]) == 10
    assert "nearest_pairs_by_pixels" not in numbers


def test_codes_that_are_never_used_leave_an_export_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codebook", "prune", "export", "--data", "pictures", "--out", "pruned"]) == 0
    assert capsys.readouterr().out == "pruned\n"
    unused = [code for code in range(CODES) if code not in counts_of(Path("tokens"))]
    assert {3, 11} <= set(unused)
    old, new = (Omnigram.from_pretrained(folder) for folder in ("export", "pruned"))
    assert new.vocabulary.range("image").size == new.image_tokenizer.codebook_size == CODES - len(unused)
    assert new.model.config.vocab_size == new.vocabulary.size == old.vocabulary.size - len(unused)
    assert new.card.sizes == old.card.sizes
    assert new.card.identities["image"] == new.image_tokenizer.identity
    record = json.loads(Path("pruned/codebook.json").read_text())
    assert (record["action"], record["min_count"], record["from"]) == ("prune", 1, "export")
    became = np.array(record["became"])
    pictures = old.draw(["red apple, flat", "green pear, round"], n=4, sampling=GREEDY)
    again = new.draw(["red apple, flat", "green pear, round"], n=4, sampling=GREEDY)
    assert len({picture.tobytes() for picture in pictures}) > 1
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
    for pixels in pixels_of(Path("pictures"), Fitting(8, 16)):
        codes = old.image_tokenizer.encode(pixels).numpy()
        assert new.image_tokenizer.encode(pixels).tolist() == became[codes].tolist()


@pytest.mark.parametrize("by", ["frequency", "similarity"])
def test_an_export_that_is_renumbered_draws_the_same(by: str) -> None:
    assert main(["codebook", "remap", "export", "--data", "tokens", "--by", by, "--out", "mapped"]) == 0
    old, new = (Omnigram.from_pretrained(folder) for folder in ("export", "mapped"))
    assert new.vocabulary == old.vocabulary
    assert new.image_tokenizer.identity != old.image_tokenizer.identity
    pictures, again = (each.draw(["red apple", "big lemon"], n=4, sampling=GREEDY) for each in (old, new))
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in again]
    became = np.array(json.loads(Path("mapped/codebook.json").read_text())["became"])
    assert sorted(became) == list(range(CODES))
    assert new.codes(pictures[0]).tolist() == became[old.codes(pictures[0])].tolist()
    if by == "frequency":
        counts = counts_of(Path("tokens"))
        of_new = [counts[code] for code in became.argsort().tolist()]
        assert of_new == sorted(of_new, reverse=True)


def test_a_run_stays_a_run_that_tokens_can_be_made_with() -> None:
    assert main(["codebook", "merge", "run", "--share", "0.3", "--out", "merged"]) == 0
    old, new = (read_tokenizers(Path(folder)) for folder in ("run", "merged"))
    assert new.text_tokenizer.identity == old.text_tokenizer.identity
    assert 2 <= new.image_tokenizer.codebook_size <= CODES - 5
    assert new.vocabulary.range("image").size == new.image_tokenizer.codebook_size
    metrics = json.loads(Path("merged/metrics.json").read_text())
    assert "psnr" not in metrics  # of the tokenizer that it was
    assert metrics["made_from"]["dataset"] == read_record(Path("pictures"), DOCUMENTS)["identity"]
    assert f"codebook_size: {new.image_tokenizer.codebook_size}" in Path("merged/config.yaml").read_text()
    assert main(["codebook", "inspect", "merged"]) == 0


def test_a_bare_tokenizer_stays_one() -> None:
    command = ["codebook", "merge", "bare", "--share", "0.2", "--data", "pictures", "--resolution", "16"]
    assert main([*command, "--out", "fewer"]) == 0
    assert load_image_tokenizer("fewer").codebook_size < CODES
    assert sorted(path.name for path in Path("fewer").iterdir()) == [
        "codebook.json",
        "config.json",
        "model.safetensors",
    ]


def test_dead_codes_are_revived(capsys: pytest.CaptureFixture[str]) -> None:
    before = counts_of(Path("tokens"))
    assert main(["codebook", "revive", "run", "--out", "revived"]) == 0
    assert "a decoder trained on the old codes does not know them" in capsys.readouterr().err
    record = json.loads(Path("revived/codebook.json").read_text())
    assert record["revived"] == [code for code in range(CODES) if code not in before]
    assert main(["codebook", "inspect", "revived"]) == 0
    assert json.loads(capsys.readouterr().out)["used"] == CODES > len(before)
    assert main(["codebook", "revive", "revived", "--out", "again"]) == 2
    assert f"all {CODES} codes are used in pictures: there is none to revive" in capsys.readouterr().err


FAULTS: list[tuple[list[str], str]] = [
    (["inspect", "nowhere"], "nowhere is no folder: name a tokenizer run, an image tokenizer or an export"),
    (["inspect", "pictures"], "pictures holds no image tokenizer: neither omnigram.json nor image/ nor config.json"),
    (["inspect", "run", "--out", "page.json"], "--out page.json is the page, and its numbers go beside it as .json"),
    (["inspect", "bare", "--data", "nowhere"], "nowhere is no finished data set, make it first"),
    (["inspect", "run", "--data", "foreign-tokens"], "foreign-tokens holds tokens of the image tokenizer abababababab"),
    (["inspect", "run", "--data", "pictures", "--resolution", "12"], "pictures of 12 pixels are not cut into codes"),
    (["prune", "bare", "--out", "new"], "bare does not say what it was trained on: name a data set with --data"),
    (["prune", "run", "--out", "bare"], "bare exists already"),
    (["prune", "run", "--min-count", "0", "--out", "new"], "--min-count 0 must be 1 or more"),
    (["prune", "run", "--min-count", "9999", "--out", "new"], "0 of 16 codes would stay"),
    (
        ["prune", "fsq", "--data", "pictures", "--out", "new"],
        "codes of fsq cannot be taken out or put elsewhere: they are",
    ),
    (["merge", "multi", "--data", "pictures", "--share", "0.5", "--out", "new"], "codes of multi cannot be taken out"),
    (["merge", "run", "--closer-than", "-1", "--out", "new"], "--closer-than -1 must be above 0"),
    (
        ["merge", "gumbel", "--data", "pictures", "--resolution", "16", "--closer-than", "1e-9", "--out", "new"],
        "no two codes are closer than 1e-09",
    ),
    (["merge", "run", "--share", "2", "--out", "new"], "--share 2 must be above 0 and less than 1"),
    (["merge", "run", "--out", "new"], "one of the arguments --closer-than --share is required"),
    (["remap", "run", "--by", "colour", "--out", "new"], "invalid choice: 'colour'"),
    (["revive", "export", "--data", "pictures", "--out", "new"], "export is an export, whose decoder would not know"),
    (["revive", "gumbel", "--data", "pictures", "--out", "new"], "codes of gumbel cannot be put on vectors"),
    (["revive", "run", "--data", "tokens", "--out", "new"], "tokens/dataset.json describes 'omnigram-tokens'"),
    (["prune", "run"], "the following arguments are required: --out"),
    (["polish", "run"], "invalid choice: 'polish'"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    assert main(["codebook", *arguments]) == 2
    shown: Any = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.startswith("omnigram: ")
    assert shown.err.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_an_export_without_an_image_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from omnigram.model.card import Card
    from omnigram.model.codec import Codec
    from omnigram.tokenizers.vocabulary import Vocabulary

    words = read_tokenizers(Path("run")).text_tokenizer
    Codec(Vocabulary.appended(words.size), words, None, Card()).save(tmp_path / "blind")
    assert main(["codebook", "inspect", "blind"]) == 2
    assert "this model has no image tokenizer" in capsys.readouterr().err


def test_nothing_to_prune_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codebook", "prune", "run", "--out", "pruned"]) == 0
    assert main(["codebook", "prune", "pruned", "--out", "more"]) == 2
    assert "raise --min-count 1" in capsys.readouterr().err


def test_the_commands_of_the_page_are_known() -> None:
    page = (Path(__file__).parents[2] / "docs" / "codebooks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert {tuple(command[1:3]) for command in commands} >= {("codebook", action) for action in ACTIONS}
    parser, _ = make_parser()
    for command in commands:
        assert command[0] == "omnigram"
        assert callable(parser.parse_args(command[1:]).act)
