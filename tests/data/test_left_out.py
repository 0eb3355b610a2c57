"""Documents that cannot be read are left out and counted, up to a share."""

import json
from dataclasses import replace

import pytest
from made_tokens import captioned, token_folder

from omnigram.data.document import TokenDocument
from omnigram.data.loader import Loader
from omnigram.data.shards import DamagedSample
from omnigram.data.stream import LoaderConfig, PackedStream
from omnigram.data.tokens import TokenDataset

PLAIN = LoaderConfig(rows=2, length=40, seed=3, caption_dropout=0.0, lookahead=6, group_shards=2, prefetch=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("tokens")
    shards = [[captioned(n, length=2 + n % 5) for n in range(first, first + 4)] for first in (0, 4, 8)]
    return TokenDataset(token_folder(folder, shards), "train")


def test_what_is_damaged_is_left_out_and_counted_by_reason(dataset: TokenDataset) -> None:
    config = replace(PLAIN, max_damaged=0.5)
    damaged = Damaged(dataset, {2: "its codes.npy cannot be read", **dict.fromkeys((7, 8), "shard is cut short")})
    part = PackedStream(damaged, damaged.grammar(), config)
    trained = [number for _ in range(15) for number in part.next_batch().sources.tolist()]
    assert set(trained) == set(range(12)) - {2, 7, 8}
    counted = part.seen.damaged
    assert set(counted) == {"its codes.npy cannot be read", "shard is cut short"}
    assert counted["shard is cut short"] >= 2 * (counted["its codes.npy cannot be read"] - 1) > 0
    assert part.seen.documents + sum(counted.values()) == part.state["next"]
    again = PackedStream(damaged, damaged.grammar(), config, state=json.loads(json.dumps(part.state)))
    assert again.seen == part.seen
    following, expected = again.next_batch(), part.next_batch()
    assert following.ids.equal(expected.ids)
    assert following.state == expected.state


def test_too_much_damage_ends_the_run_naming_shard_and_sample(dataset: TokenDataset) -> None:
    config = replace(PLAIN, max_damaged=0.004)
    damaged = Damaged(dataset, {5: "shard is cut short"})
    loader = Loader(damaged, dataset.grammar(), config)
    with pytest.raises(ValueError, match=r"5 of the last \d+ documents of .* are damaged") as told:
        list(loader)
    assert "allows 4 of 1000; the last one is train-000001.tar: sample 'doc0005': shard is cut" in str(told.value)
    assert "\n" not in str(told.value)
    assert loader.seen.damaged == {"shard is cut short": 4}
    again = Loader(damaged, dataset.grammar(), config, state=json.loads(json.dumps(loader.state)))
    with pytest.raises(ValueError, match="5 of the last"):
        next(iter(again))


def test_where_all_is_damaged_nothing_hangs(dataset: TokenDataset) -> None:
    damaged = Damaged(dataset, dict.fromkeys(range(12), "shard is cut short"))
    with pytest.raises(ValueError, match="1000 of the last 1000 documents"):
        PackedStream(damaged, damaged.grammar(), replace(PLAIN, max_damaged=1.0)).next_batch()


class Damaged(TokenDataset):
    """A data set some of whose documents cannot be read."""

    def __init__(self, whole: TokenDataset, reasons: dict[int, str]) -> None:
        super().__init__(whole.folder, "train")
        self.reasons = reasons

    def __getitem__(self, index: int) -> TokenDocument:
        if index in self.reasons:
            raise DamagedSample(self.reasons[index], "train-000001.tar", f"doc{index:04d}")
        return super().__getitem__(index)
