"""Held-out documents: each once, in order and whole."""

import pytest
from made_tokens import captioned, token_folder

from omnigram.data.evaluation_batches import EvaluationBatches
from omnigram.data.tokens import TokenDataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("tokens")
    shards = [[captioned(n, length=2 + n % 5) for n in range(first, first + 4)] for first in (0, 4, 8)]
    return TokenDataset(token_folder(folder, shards), "train")


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
