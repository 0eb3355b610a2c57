"""The head of a model, of which only the rows that the grammar allows are computed.

Dimensions: N choices, K ids allowed, D width of the model.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...tokenizers.automaton import Allowed
from ...tokenizers.vocabulary import Vocabulary


class Head:
    """The rows of the head that may be needed, and no other. Made anew for each call, as weights may change between."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary):
        """ValueError for a head that is more than one matrix, as an adapter or a quantized one is."""
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise ValueError(
                f"the head of the model is {type(head).__name__}, and only the rows of a plain Linear can be taken: "
                "merge adapters into it, or sample with generate"
            )
        self._weight = head.weight
        self._vocabulary = vocabulary
        self._rows: dict[Allowed, tuple[np.ndarray, Tensor]] = {}

    def ids(self, allowed: Allowed) -> np.ndarray:
        """Ids allowed, rising: the columns of `logits`."""
        return self._of(allowed)[0]

    def logits(self, hidden: Float[Tensor, "n d"], allowed: Allowed) -> Float[Tensor, "n k"]:
        """float32 logits (or wider) of the ids allowed, computed in the model's own precision as its head does.

        In bfloat16 many logits are equal: noise decides between them, and at temperature 0 the lowest id.
        """
        logits = hidden @ self._of(allowed)[1].T
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _of(self, allowed: Allowed) -> tuple[np.ndarray, Tensor]:
        if allowed not in self._rows:
            ids = allowed.all_ids(self._vocabulary)
            contiguous = ids[-1] - ids[0] + 1 == len(ids)
            rows = (
                self._weight[ids[0] : ids[-1] + 1]
                if contiguous
                else self._weight[torch.from_numpy(ids).to(self._weight.device)]
            )
            self._rows[allowed] = ids, rows
        return self._rows[allowed]
