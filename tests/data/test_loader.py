"""The loader: exact resume from anywhere, every document once an epoch, ranks that share nothing."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_tokens import captioned, token_folder

from omnigram.data.evaluation_batches import EvaluationBatches
from omnigram.data.loader import Loader, LoaderConfig, PackedStream, reshard
from omnigram.data.packing import PackedBatch
from omnigram.data.tokens import TokenDataset

TENSORS = ("ids", "targets", "weights", "modality", "partition", "document", "position", "sources")
KINDS = {"words_to_picture": 2.0, "picture_to_words": 1.0, "page": 1.0, "text": 1.0}
CONFIG = LoaderConfig(rows=2, length=40, seed=3, kinds=KINDS, lookahead=6, group_shards=2, prefetch=0)
PLAIN = replace(CONFIG, kinds={"words_to_picture": 1.0}, caption_dropout=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("tokens")
    sizes = [4, 5, 3]
    numbers = iter(range(sum(sizes)))
    shards = [
        [captioned(n, f"family {n % 2}", wordings=2, length=2 + n % 5) for n in islice(numbers, size)] for size in sizes
    ]
    return TokenDataset(token_folder(folder, shards), "train")


def stream(dataset: TokenDataset, config: LoaderConfig = CONFIG, **rest: object) -> PackedStream:
    return PackedStream(dataset, dataset.grammar(), config, **rest)  # pyright: ignore[reportArgumentType]


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.state == other.state


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    length=st.sampled_from([9, 20, 33, 64]),
    lookahead=st.integers(1, 9),
    group_shards=st.integers(1, 4),
    world=st.integers(1, 3),
)
def test_a_stream_rebuilt_from_its_state_goes_on_alike(
    dataset: TokenDataset, cuts: list[int], seed: int, length: int, lookahead: int, group_shards: int, world: int
) -> None:
    """Lengths below that of a picture drop and split documents, so their pieces are in the state too."""
    config = replace(CONFIG, seed=seed, length=length, lookahead=lookahead, group_shards=group_shards)
    rank = world - 1
    unbroken = stream(dataset, config, rank=rank, world=world)
    broken = stream(dataset, config, rank=rank, world=world)
    for cut in cuts:
        for _ in range(cut):
            assert_same(broken.next_batch(), unbroken.next_batch())
        state = json.loads(json.dumps(broken.state))
        fresh = TokenDataset(dataset.folder, "train", hold=1)
        broken = stream(fresh, config, rank=rank, world=world, state=state)
        assert broken.state == state
    for _ in range(4):
        assert_same(broken.next_batch(), unbroken.next_batch())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_together_read_every_document_once_an_epoch(dataset: TokenDataset, world: int) -> None:
    counts: Counter[int] = Counter()
    positions = []
    for rank in range(world):
        part = stream(dataset, PLAIN, rank=rank, world=world)
        for _ in range(12):
            counts.update(part.next_batch().sources.tolist())
        waiting = [position for position, _ in part.state["waiting"]]
        counts.subtract(part._order.locate(position)[1] for position in range(rank, part.state["next"], world))
        counts.update(part._order.locate(position)[1] for position in waiting)
        positions += range(rank, part.state["next"], world)
    assert not any(counts.values()), "batches and waiting documents are exactly the positions that were passed"
    assert len(set(positions)) == len(positions), "no two ranks share a position"


def test_an_epoch_in_one_stream_is_the_data_set(dataset: TokenDataset) -> None:
    part = stream(dataset, replace(PLAIN, lookahead=1, rows=1, length=30))  # a buffer of one keeps the order
    seen: list[int] = []
    while len(seen) < 3 * len(dataset):
        seen += part.next_batch().sources.tolist()
    epochs = [seen[start : start + len(dataset)] for start in range(0, 3 * len(dataset), len(dataset))]
    assert all(sorted(epoch) == list(range(len(dataset))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_written_documents_are_read_back_by_the_grammar(dataset: TokenDataset) -> None:
    grammar, part = dataset.grammar(), stream(dataset, replace(CONFIG, length=128))
    forms = Counter()
    for _ in range(10):
        batch = part.next_batch()
        for number in range(len(batch.sources)):
            segments = grammar.read(batch.ids[batch.document == number].numpy())
            forms["-".join(modality for modality, _ in segments)] += 1
    assert set(forms) >= {"text-image", "image-text", "image", "text", "text-image-text-image"}


def test_rows_are_full_where_documents_allow_it(dataset: TokenDataset) -> None:
    part = stream(dataset, replace(CONFIG, rows=4, length=256, lookahead=64))
    for _ in range(20):
        part.next_batch()
    assert part.seen.fill > 0.99
    assert part.seen.places == 20 * 4 * 256
    assert part.seen.fill == part.seen.tokens / part.seen.places
    assert part.seen.dropped == part.seen.split == 0


def test_what_is_too_long_is_counted(dataset: TokenDataset) -> None:
    part = stream(dataset, replace(PLAIN, length=10))  # no picture fits, its caption does
    batch = part.next_batch()
    assert not (batch.modality == 1).any()
    assert part.seen.dropped == part.seen.documents > 0
    only_pictures = replace(PLAIN, length=10, caption_dropout=1.0)
    with pytest.raises(ValueError, match=r"length=10: no document of .* fits"):
        stream(dataset, only_pictures).next_batch()


@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 1), (1, 2)])
def test_a_changed_number_of_ranks_loses_and_repeats_nothing(dataset: TokenDataset, old: int, new: int) -> None:
    config = replace(PLAIN, length=60)
    ranks = [stream(dataset, config, rank=rank, world=old) for rank in range(old)]
    trained: list[int] = []
    for number, rank in enumerate(ranks):
        for _ in range(1 + 2 * number):  # as unevenly as packing may leave them
            trained += rank.next_batch().sources.tolist()
    states = json.loads(json.dumps(reshard([rank.state for rank in ranks], new)))
    renewed = [stream(dataset, config, rank=rank, world=new, state=state) for rank, state in enumerate(states)]
    for rank in renewed:
        trained += rank.next_batch().sources.tolist()
    waiting = [position for rank in renewed for position in [*rank.state["queued"]]]
    waiting += [position for rank in renewed for position, _ in rank.state["waiting"]]
    stop = max(rank.state["next"] for rank in renewed)
    waiting += [position for rank in renewed for position in range(rank.state["next"], stop, new)]
    locate = renewed[0]._order.locate
    assert Counter(trained + [locate(p)[1] for p in waiting]) == Counter(locate(p)[1] for p in range(stop))
    assert sum(rank.seen.documents for rank in renewed) == stop - len(set(waiting)) + sum(
        len(rank.state["waiting"]) for rank in renewed
    )


def test_a_state_that_does_not_belong_here_is_refused(dataset: TokenDataset) -> None:
    state = stream(dataset, rank=0, world=2).state
    with pytest.raises(ValueError, match="other data, seed, kinds or length"):
        stream(dataset, replace(CONFIG, seed=4), rank=0, world=2, state=state)
    with pytest.raises(ValueError, match="another rank"):
        stream(dataset, rank=1, world=2, state=state)
    with pytest.raises(ValueError, match="reshard"):
        stream(dataset, rank=0, world=1, state=state)
    with pytest.raises(ValueError, match="rank=2"):
        stream(dataset, rank=2, world=2)


class TestLoader:
    @pytest.mark.parametrize("prefetch", [0, 1, 3])
    def test_batches_made_ahead_are_the_same_and_their_states_exact(self, dataset: TokenDataset, prefetch: int) -> None:
        config = replace(CONFIG, prefetch=prefetch)
        expected = stream(dataset)
        loader = Loader(dataset, dataset.grammar(), config)
        batches: Iterator[PackedBatch] = iter(loader)
        for batch in islice(batches, 5):
            assert_same(batch, expected.next_batch())
            assert loader.state == batch.state
        assert loader.seen.places == loader.state["seen"]["places"] == 5 * 2 * 40
        resumed = Loader(dataset, dataset.grammar(), config, state=json.loads(json.dumps(loader.state)))
        following = [expected.next_batch() for _ in range(3)]
        for one, again, other in zip(batches, resumed, following, strict=False):
            assert_same(one, other)
            assert_same(again, other)

    def test_iterating_again_goes_on(self, dataset: TokenDataset) -> None:
        loader = Loader(dataset, dataset.grammar(), replace(CONFIG, prefetch=2))
        expected = stream(dataset)
        for _ in range(3):
            for batch in islice(loader, 2):
                assert_same(batch, expected.next_batch())

    def test_the_thread_ends_with_the_iterator(self, dataset: TokenDataset) -> None:
        batches = iter(Loader(dataset, dataset.grammar(), replace(CONFIG, prefetch=1)))
        next(batches)
        assert any(thread.name == "omnigram-loader" for thread in threading.enumerate())
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert not any(thread.name == "omnigram-loader" for thread in threading.enumerate())

    def test_a_fault_in_the_thread_is_raised_where_batches_are_taken(
        self, dataset: TokenDataset, tmp_path: Path
    ) -> None:
        folder = token_folder(tmp_path, [[captioned(n) for n in range(4)] for _ in range(2)])
        loader = Loader(TokenDataset(folder, "train"), dataset.grammar(), replace(CONFIG, prefetch=2, group_shards=1))
        for shard in folder.glob("*.tar"):
            shard.unlink()
        with pytest.raises(ValueError, match=r"train-00000\d.tar is missing"):
            next(iter(loader))


class TestEvaluationBatches:
    @pytest.mark.parametrize(("kind", "form"), [("words_to_picture", "text-image"), ("picture_to_words", "image-text")])
    def test_each_document_once_in_order_and_whole(self, dataset: TokenDataset, kind: str, form: str) -> None:
        grammar = dataset.grammar()
        batches = EvaluationBatches(dataset, grammar, kind, rows=5)
        given_: list[int] = []
        for batch in batches:
            assert batch.ids.shape == (5, batches.length)
            for number, index in enumerate(batch.sources.tolist()):
                segments = grammar.read(batch.ids[batch.document == number].numpy())
                assert "-".join(modality for modality, _ in segments) == form
                by_modality = dict(segments)
                for segment in dataset[index].segments:
                    assert by_modality[segment.modality].tolist() == segment.codes.tolist()
            given_ += batch.sources.tolist()
        assert given_ == batches.indices == list(range(len(dataset)))
        assert len(list(batches)) == len(batches) == 3
        assert (list(batches)[-1].document[2:] == -1).all()
        assert batches.too_long == 0

    def test_ranks_and_limits(self, dataset: TokenDataset) -> None:
        def indices(limit: int | None = None, rank: int = 0, world: int = 1) -> list[int]:
            grammar = dataset.grammar()
            return EvaluationBatches(dataset, grammar, "text", 2, limit=limit, rank=rank, world=world).indices

        assert indices(limit=5) == [0, 1, 2, 3, 4]
        assert sorted(indices(rank=0, world=2) + indices(rank=1, world=2)) == list(range(len(dataset)))

    def test_what_does_not_fit_or_is_not_of_the_kind_is_left_out(self, dataset: TokenDataset) -> None:
        short = EvaluationBatches(dataset, dataset.grammar(), "words_to_picture", 2, length=21)
        assert 0 < short.too_long < len(dataset)
        assert short.too_long + len(short.indices) == len(dataset)
        assert list(EvaluationBatches(dataset, dataset.grammar(), "interleaved", 2)) == []
