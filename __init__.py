"""Omnigram: train image tokenizers, and decoder-only transformers on their codes and text.

Importing it makes transformers' Auto classes know the decoder: `AutoModelForCausalLM.from_pretrained(export)`.
"""

from .model import register as _register

__version__ = "0.1.0"
__all__ = ["__version__"]

_register.register()
