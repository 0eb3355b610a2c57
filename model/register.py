"""Makes the Auto classes of transformers know the decoder and its processor."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

from .configuration import OmnigramConfig
from .decoder import OmnigramForCausalLM, OmnigramModel
from .processor import OmnigramProcessor


def register() -> None:
    """After this, `AutoModelForCausalLM` and `AutoProcessor` load an export. Calling it again changes nothing."""
    AutoConfig.register(OmnigramConfig.model_type, OmnigramConfig, exist_ok=True)
    AutoModel.register(OmnigramConfig, OmnigramModel, exist_ok=True)
    AutoModelForCausalLM.register(OmnigramConfig, OmnigramForCausalLM, exist_ok=True)
    AutoProcessor.register(OmnigramConfig, OmnigramProcessor, exist_ok=True)
