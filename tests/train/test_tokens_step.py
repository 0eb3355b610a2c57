"""`make tokens`: the right codes at the right places, the same bytes however often it is stopped, plain refusals."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from omnigram.data.artefact import atomic_write_json, file_sha256, identity
from omnigram.data.document import Document, Segment
from omnigram.data.encoding import DocumentEncoder
from omnigram.data.fitting import Fitting
from omnigram.data.record import DOCUMENTS
from omnigram.data.shards import read_token_shard, shard_name, write_shard
from omnigram.data.tokens import TokenDataset
from omnigram.data.validate import validate
from omnigram.model.codec import Codec
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.pixel_tokenizer import PixelTokenizer
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary
from omnigram.train import token_shards, tokens
from omnigram.train.tokens import make_tokens, write_tokens

QUIET = Console(file=io.StringIO())
NETWORK = ConvolutionalConfig(stem=8, channels=[8], encoder_blocks=[1], decoder_blocks=[1], spatial_norm=False)
QUANTIZER = MovingAverageConfig(
    codebook_size=16, codebook_dim=4, decay=0.9, commitment=0.25, cosine=True, dead_code_threshold=0.0
)


class MeanTokenizer:
    """The code of a patch is its mean brightness; remembers the sizes of the batches."""

    codebook_size, patch = 256, 8

    def __init__(self, name: str = "mean") -> None:
        self.identity = hashlib.sha256(name.encode()).hexdigest()
        self.batches: list[tuple[int, ...]] = []

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        assert -1 <= float(pixels.min()) <= float(pixels.max()) <= 1
        self.batches.append(tuple(pixels.shape))
        return ((torch.nn.functional.avg_pool2d(pixels, 8).mean(1) + 1) * 127.5).round().long()


def png(grey: int, width: int = 32, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), grey).save(file, "PNG")
    return file.getvalue()


def document(number: int, width: int = 32, height: int = 32) -> Document:
    caption = Segment("text", f"grey {number}", (f"grau {number}", f"gris {number}"))
    shade = Segment("image", png(number * 7 % 256, width, height), suffix=".png")
    return Document(f"d{number:03d}", (caption, shade), "made", "CC0", {"family": str(number % 3)})


def source(folder: Path, splits: dict[str, list[list[Document]]]) -> Path:
    """A folder as `make data` leaves it."""
    record: dict = {"format": DOCUMENTS, "name": folder.name, "license": "CC0", "attribution": "nobody"}
    record |= {"prompt_template": "{caption}", "styles": ["grey"], "splits": {}}
    for split, shards in splits.items():
        listed = []
        for index, documents in enumerate(shards):
            path = write_shard(folder / shard_name(split, index), documents)
            listed.append({"file": path.name, "documents": len(documents), "sha256": file_sha256(path)})
        record["splits"][split] = {"documents": sum(map(len, shards)), "shards": listed}
    record["identity"] = identity(record["splits"])
    atomic_write_json(folder / "dataset.json", record)
    return folder


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    with pytest.warns(UserWarning, match="text pieces"):
        return TextTokenizer.train((f"grey {n} grau gris" for n in range(50)), 400)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = {"train": [[document(n) for n in range(7)], [document(n) for n in range(7, 10)]], "val": [[document(20)]]}
    return source(tmp_path / "shades", shards)


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    record = json.loads(files.pop("dataset.json"))
    del record["provenance"]  # has the time in it
    return files | {"dataset.json": json.dumps(record).encode()}


def write(
    folder: Path,
    text: TextTokenizer,
    image: MeanTokenizer | None = None,
    side: int = 16,
    ratio: float = 1,
    share: float = 1,
) -> Path:
    image = image or MeanTokenizer()
    vocabulary = Vocabulary.appended(text.size, codebooks={"image": image.codebook_size})
    codec = Codec(vocabulary, text, cast(PixelTokenizer, image))
    return write_tokens(folder, codec, Fitting(image.patch, side, ratio), batch_size=4, share=share, console=QUIET)


def test_every_document_has_the_codes_of_its_text_and_picture(folder: Path, text: TextTokenizer) -> None:
    made = write(folder, text)
    assert made.parent == folder.parent
    assert made.name.startswith("shades-")
    assert len(made.name) == len("shades-") + 12
    train = TokenDataset(made, "train")
    assert train.shard_sizes == (7, 3)
    for number in range(10):
        caption, shade = train[number].segments
        assert train[number].key == f"d{number:03d}"
        assert train[number].fields == {"family": str(number % 3)}
        assert (train[number].source, train[number].license) == ("made", "CC0")
        assert text.decode(caption.codes.tolist()) == f"grey {number}"
        assert [text.decode(other.tolist()) for other in caption.alternatives] == [f"grau {number}", f"gris {number}"]
        assert shade.codes.tolist() == [[number * 7] * 2] * 2
    assert TokenDataset(made, "val")[0].key == "d020"
    assert train.vocabulary.size == text.size + 8 + 256
    assert train.record["splits"]["train"]["grids"] == {"2x2": 10}
    assert train.record["splits"]["train"]["codes"]["image"] == 40
    grammar = train.grammar()
    segments = [(segment.modality, segment.codes) for segment in train[4].segments]
    (_, words), (_, codes) = grammar.read(grammar.write(segments))
    assert (text.decode(words.tolist()), codes.tolist()) == ("grey 4", [[28, 28]] * 2)
    assert validate(made).faults == []


def test_a_share_has_whole_concepts_and_a_folder_of_its_own(tmp_path: Path, text: TextTokenizer) -> None:
    def drawn(number: int, style: str) -> Document:
        made = document(number)
        return replace(made, key=f"{made.key}{style}", fields={"concept": f"Shade {number}", "style": style})

    shards = [[drawn(number, style) for style in "ab" for number in range(first, first + 20)] for first in (0, 20)]
    folder = source(tmp_path / "shades", {"train": shards, "val": [[drawn(50, "a")]]})
    whole, half, quarter = (write(folder, text, share=share) for share in (1.0, 0.5, 0.25))
    assert len({whole, half, quarter}) == 3
    of_half, of_quarter = (
        {
            document.key
            for document in map(TokenDataset(made, "train").__getitem__, range(len(TokenDataset(made, "train"))))
        }
        for made in (half, quarter)
    )
    assert of_quarter < of_half
    for keys, about in ((of_half, 40), (of_quarter, 20)):
        assert 0.5 * about < len(keys) < 1.5 * about
        assert {key[:-1] + style for key in keys for style in "ab"} == keys  # both styles or none
    validate(half)
    with pytest.raises(ValueError, match=r"tokens.share=1e-09 leaves no document of the train split"):
        write(folder, text, share=1e-9)


def test_pictures_are_encoded_in_batches_of_one_size(tmp_path: Path, text: TextTokenizer) -> None:
    sizes = [(32, 32), (64, 32), (32, 64)]  # width, height
    image = MeanTokenizer()
    documents = [document(n, *sizes[n % 3]) for n in range(20)]
    made = write(source(tmp_path / "mixed", {"train": [documents]}), text, image, side=24, ratio=2)
    assert {shape[2:] for shape in image.batches} == {(24, 24), (16, 32), (32, 16)}
    assert max(shape[0] for shape in image.batches) == 4
    assert sum(shape[0] for shape in image.batches) == 20
    assert len(image.batches) <= 20 // 4 + 3
    for number, token_document in enumerate(read_token_shard(made / "train-000000.tar")):
        grid = token_document.segments[1].codes
        assert grid.shape == {0: (3, 3), 1: (2, 4), 2: (4, 2)}[number % 3]
        assert (grid == number * 7).all()


def test_a_finished_data_set_is_left_alone_and_made_alike_anywhere(
    folder: Path, text: TextTokenizer, tmp_path: Path
) -> None:
    made = write(folder, text)
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    image = MeanTokenizer()
    assert write(folder, text, image) == made
    assert image.batches == []
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before
    again = made.rename(tmp_path / "first")
    assert contents(write(folder, text)) == contents(again)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stopped_run_goes_on_behind_its_finished_shards(
    folder: Path, text: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = write(folder, text).rename(tmp_path / "whole")
    original, written = token_shards.write_shard, list[str]()

    def write_some(path: Path, documents: list) -> Path:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, documents)

    with monkeypatch.context() as patched:
        patched.setattr(token_shards, "write_shard", write_some)
        with pytest.raises(KeyboardInterrupt):
            write(folder, text)
    (stopped,) = folder.parent.glob("shades-*")
    with pytest.raises(FileNotFoundError, match="no finished data set"):
        TokenDataset(stopped, "train")
    kept = {name: (stopped / name).stat().st_ino for name in written}
    image = MeanTokenizer()
    assert write(folder, text, image) == stopped
    assert {name: (stopped / name).stat().st_ino for name in written} == kept
    assert sum(shape[0] for shape in image.batches) == [11, 4, 1][after]
    assert contents(stopped) == contents(whole)


def test_a_damaged_shard_of_a_stopped_run_is_made_again(
    folder: Path, text: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(folder, text).rename(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(tokens, "atomic_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(folder, text)
    (stopped,) = folder.parent.glob("shades-*")
    (stopped / "train-000001.tar").write_bytes(b"cut")
    (stopped / "train-000009.tar").write_bytes(b"of an earlier making")
    write(folder, text)
    assert contents(stopped) == contents(whole)


def test_other_tokenizers_and_other_fitting_go_to_other_folders(folder: Path, text: TextTokenizer) -> None:
    made = {write(folder, text), write(folder, text, MeanTokenizer("other")), write(folder, text, side=24)}
    made.add(write(folder, text, side=16, ratio=2))
    assert len(made) == 4


def spoil(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        record = json.loads((folder / "dataset.json").read_text())
        change(record)
        atomic_write_json(folder / "dataset.json", record)

    return apply


class TestRefusals:
    def test_tokens_of_another_making_of_the_data_set(self, folder: Path, text: TextTokenizer) -> None:
        write(folder, text)
        spoil(lambda record: record.update(identity="other"))(folder)
        with pytest.raises(ValueError, match="another making of 'shades'"):
            write(folder, text)

    def test_a_shard_that_is_not_the_one_described(self, folder: Path, text: TextTokenizer) -> None:
        write_shard(folder / "train-000001.tar", [document(3)])
        with pytest.raises(ValueError, match=r"train-000001.tar is not the shard that .*dataset.json describes"):
            write(folder, text)

    def test_a_missing_shard_or_data_set(self, folder: Path, text: TextTokenizer, tmp_path: Path) -> None:
        (folder / "val-000000.tar").unlink()
        with pytest.raises(ValueError, match=r"val-000000.tar is missing"):
            write(folder, text)
        with pytest.raises(FileNotFoundError, match="no finished data set"):
            write(tmp_path / "nothing", text)

    def test_tokens_as_input(self, folder: Path, text: TextTokenizer) -> None:
        with pytest.raises(ValueError, match="describes 'omnigram-tokens', not 'omnigram-documents'"):
            write(write(folder, text), text)

    def test_a_picture_that_cannot_be_read_is_named(self, tmp_path: Path, text: TextTokenizer) -> None:
        broken = Document("bad", (Segment("image", b"no picture", suffix=".png"),), "made", "CC0")
        with pytest.raises(ValueError, match=r"train-000000.tar: sample 'bad': segment 0: picture cannot be decoded"):
            write(source(tmp_path / "broken", {"train": [[document(1), broken]]}), text)

    def test_a_modality_without_tokenizer(self, tmp_path: Path, text: TextTokenizer) -> None:
        sound = Document("loud", (Segment("audio", b"wave", suffix=".flac"),), "made", "CC0")
        with pytest.raises(ValueError, match="sample 'loud': there is no tokenizer for audio"):
            write(source(tmp_path / "sounds", {"train": [[sound]]}), text)

    def test_settings(self, text: TextTokenizer) -> None:
        with pytest.raises(ValueError, match="batch_size=0"):
            DocumentEncoder(text, MeanTokenizer(), Fitting(8, 16), batch_size=0)


def test_the_step_reads_a_tokenizer_run(
    folder: Path, text: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnigram.train.tokens.make_shards", lambda config: Path(config.data.folder))  # they are there
    run = tmp_path / "run"
    options = {
        "tokenizer": str(run),
        "resolution": 16,
        "max_ratio": 1.0,
        "batch_size": 8,
        "workers": 1,
        "share": 1.0,
        "device": "cpu",
        "engine": "local",
        "processes": None,
    }
    config = OmegaConf.create({"data": {"folder": str(folder)}, "tokens": options, "model": {}, "tokenizer": {}})
    with pytest.raises(FileNotFoundError, match=r"text.model is missing: name a finished run"):
        make_tokens(config)
    torch.manual_seed(0)
    image = ImageTokenizer(NETWORK, QUANTIZER)
    image.save_pretrained(run / "image")
    text.save(run / "text.model")
    dataset = TokenDataset(make_tokens(config), "train")
    codes = np.stack([dataset[number].segments[1].codes for number in range(10)])
    assert codes.shape[1:] == (16 // image.patch, 16 // image.patch)
    assert dataset.record["made_from"]["image_tokenizer"] == image.identity
    config.tokens.update(resolution=None, max_ratio=None)  # as the run was trained
    (run / "config.yaml").write_text("tokenizer: {pictures: {resolution: 32, max_ratio: 1.0}}\n")
    larger = TokenDataset(make_tokens(config), "train")
    assert larger[0].segments[1].codes.shape == (32 // image.patch, 32 // image.patch)
    config.tokens.device = "gpu"
    with pytest.raises(ValueError, match=r"tokens\.device='gpu' is unknown: choose of auto, cpu, cuda"):
        make_tokens(config)
