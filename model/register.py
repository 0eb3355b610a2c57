"""Makes the Auto classes of transformers know the decoder."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration import OmnigramConfig
from .decoder import OmnigramForCausalLM, OmnigramModel


def register() -> None:
    """After this, `AutoModelForCausalLM.from_pretrained(folder)` loads an export. Calling it again changes nothing."""
    AutoConfig.register(OmnigramConfig.model_type, OmnigramConfig, exist_ok=True)
    AutoModel.register(OmnigramConfig, OmnigramModel, exist_ok=True)
    AutoModelForCausalLM.register(OmnigramConfig, OmnigramForCausalLM, exist_ok=True)
