"""notebooks/generate.ipynb runs from top to bottom, on an export of random weights, and shows its pictures."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from omnigram.model.bundle import Omnigram
from omnigram.model.card import Card
from omnigram.model.codec import Codec
from omnigram.model.configuration import OmnigramConfig
from omnigram.model.decoder import OmnigramForCausalLM
from omnigram.tokenizers.image import ImageTokenizer
from omnigram.tokenizers.networks.convolutional import ConvolutionalConfig
from omnigram.tokenizers.quantizers.moving_average import MovingAverageConfig
from omnigram.tokenizers.text import TextTokenizer
from omnigram.tokenizers.vocabulary import Vocabulary

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "generate.ipynb"

pytestmark = pytest.mark.filterwarnings("ignore")  # of Jupyter's own event loops and sockets


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Everything an export holds, at 4 x 4 codes of 16."""
    torch.manual_seed(0)
    text = TextTokenizer.train(["red apple, openmoji", "cat face, twemoji"] * 4, 300)
    image = ImageTokenizer(
        ConvolutionalConfig(4, (8, 8), (1, 1), (1, 1), False), MovingAverageConfig(16, 4, 0.9, 1.0, False, 0)
    )
    image.start_from(torch.rand(8, 3, 32, 32) * 2 - 1)
    vocabulary = Vocabulary.appended(text.size, codebooks={"image": 16})
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    heads: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    model = OmnigramForCausalLM(OmnigramConfig(vocab_size=vocabulary.size, **shape, **heads)).eval()
    card = Card(prompt_template="{caption}, {style}", styles=("openmoji", "twemoji"), sizes=((4, 4),))
    Omnigram(model, Codec(vocabulary, text, image.eval(), card)).save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def test_the_notebook_runs_from_top_to_bottom(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGRAM_EXPORT", str(export))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 9
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
