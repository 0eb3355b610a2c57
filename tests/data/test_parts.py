"""What each rank of a pre-training is given, through the loader as pre-training builds it."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from made_tokens import captioned, token_folder

from omnigram.data.mixture import Mixture
from omnigram.data.packing import PackedBatch
from omnigram.data.tokens import TokenDataset
from omnigram.train.compose import compose_config
from omnigram.train.pretrain import _Batches
from omnigram.train.world import World


def test_each_part_of_a_batch_is_of_its_own_documents_and_shared_by_who_shares_matrices(tmp_path: Path) -> None:
    """Four ranks, of which each two share matrices; then one alone goes on."""
    documents = [[captioned(10 * shard + number) for number in range(10)] for shard in range(4)]
    mixture = Mixture.of(TokenDataset(token_folder(tmp_path, documents), "train"))
    config = compose_config(["loader.rows=4", "loader.length=48", "loader.lookahead=4", "loader.prefetch=0"])

    def batches(rank: int, states: list[Any] | None = None, size: int = 4, tensor: int = 2) -> Iterator[PackedBatch]:
        module: Any = SimpleNamespace(world=World(rank, size, tensor=tensor), resumed_states=states)
        return iter(_Batches(mixture, config, module))

    running = [batches(rank) for rank in range(4)]
    made: list[PackedBatch] = []
    for _ in range(2):
        made = [next(part) for part in running]
        assert [part.ids.shape for part in made] == [(2, 48)] * 4
        assert made[0].ids.equal(made[1].ids)
        assert made[2].ids.equal(made[3].ids)
        assert not set(made[0].sources.tolist()) & set(made[2].sources.tolist())
    states = [made[0].state, made[2].state]
    again, alone = next(batches(2, states)), next(batches(0, states, size=1, tensor=1))
    assert again.ids.equal(next(running[2]).ids)
    assert alone.ids.shape == (4, 48)
    assert not set(alone.sources.tolist()) & {n for part in (made[0], made[2]) for n in part.sources.tolist()}
