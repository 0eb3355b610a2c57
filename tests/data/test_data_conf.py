"""Each configuration of the group `data` is what its classes take, leaf by leaf; the documented samples are valid."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_class, instantiate
from made_pictures import fill_folder, picture, tar_of

from omnigram.data.document import Document, TokenDocument, TokenSegment
from omnigram.data.remote import Network
from omnigram.data.sources import Source
from omnigram.data.splits import Splits

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml"))


def composed(name, tmp_path):
    needed = {
        "emoji": [],
        "folder": ["data.name=mine", f"data.source.path={fill_folder(tmp_path / 'pictures', 2)}"],
        "webdataset": [
            "data.name=mine",
            f"data.source.urls={tar_of(tmp_path / 'a.tar', [('0.png', picture()), ('0.txt', b'x')])}",
        ],
    }
    with initialize_config_module("omnigram.conf", version_base="1.3"):
        return compose(overrides=[f"+data={name}", *needed[name]])


def test_the_configurations_are_the_ones_tested():
    assert NAMES == ["emoji", "folder", "webdataset"]


@pytest.mark.parametrize("name", NAMES)
def test_leaves_are_constructor_arguments(name, tmp_path):
    data = composed(name, tmp_path).data
    assert set(data) == {"name", "folder", "samples_per_shard", "source", "splits"}
    assert data.folder == f"datasets/{data.name}"
    for node in (data.source, data.splits):
        wanted = inspect.signature(get_class(node._target_)).parameters
        assert set(node) - {"_target_"} == set(wanted)
        for leaf, parameter in wanted.items():
            if parameter.default is not parameter.empty and leaf not in ("heldout_style", "urls", "path"):
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                if leaf == "network":
                    assert instantiate(node[leaf]) == Network()
                    continue
                assert node[leaf] == default, f"{leaf} differs from its default in code"
    assert isinstance(instantiate(data.splits), Splits)
    if name == "emoji":
        pytest.importorskip("emoji", reason="needs pip install 'omnigram[pictures]'")
    source = instantiate(data.source)
    assert isinstance(source, Source)
    assert next(iter(source)).segments[0].modality == "text"


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_has_its_comment(name):
    for line in (ROOT / "conf" / "data" / f"{name}.yaml").read_text().splitlines():
        is_leaf = re.match(r"\s*(?!_target_)\w+: ", line)
        assert not is_leaf or " # " in line, line


def test_the_documented_samples_are_what_the_code_writes():
    page = (ROOT / "docs" / "data-format.md").read_text()
    plain, tokens = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    document = Document.from_sample("k", {"json": json.dumps(plain).encode(), "1.png": picture()})
    assert json.loads(document.to_sample()["json"]) == plain
    codes = TokenDocument("k", (TokenSegment("text", np.arange(5 + 6 + 64)),)).to_sample()["codes.npy"]
    token_document = TokenDocument.from_sample("k", {"json": json.dumps(tokens).encode(), "codes.npy": codes})
    assert [s.codes.shape for s in token_document.segments] == [(5,), (8, 8)]
    assert token_document.segments[0].alternatives[0].shape == (6,)
    assert json.loads(token_document.to_sample()["json"]) == tokens
