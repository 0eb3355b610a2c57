"""Omnigram: train image tokenizers, and decoder-only transformers on their codes and text.

Importing it makes transformers' Auto classes know the decoder: `AutoModelForCausalLM.from_pretrained(export)`.
"""

from functools import partial as _partial
from importlib import import_module as _import_module

import wrapt as _wrapt

__version__ = "0.1.0"
__all__ = ["__version__"]

# Each of ours registers its classes when it is imported. That is when transformers needs it, and not now: it takes
# seconds, which `omnigram --help` can do without.
for _theirs, _ours in (("configuration", "configuration"), ("modeling", "decoder"), ("processing", "processor")):
    _wrapt.register_post_import_hook(
        _partial(lambda name, _: _import_module(name), f"{__name__}.model.{_ours}"),
        f"transformers.models.auto.{_theirs}_auto",
    )
