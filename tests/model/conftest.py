"""What tests of generation share."""

from typing import Any

import pytest
from made_samplers import Recorded
from torch import Tensor

from omnigram.model.generation.predictor import Predictor
from omnigram.tokenizers.automaton import Allowed


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    logits, kept = Predictor.logits, []

    def record(self: Predictor, asked: Any, allowed: Allowed) -> Tensor:
        found = logits(self, asked, allowed)
        kept.extend(
            (row.held_at(choice), allowed, one.clone()) for (row, choice), one in zip(asked, found, strict=True)
        )
        return found

    monkeypatch.setattr(Predictor, "logits", record)
    return kept
