"""Omnigram: train image tokenizers, and decoder-only transformers on their codes and text.

Importing it makes transformers' Auto classes know the decoder: `AutoModelForCausalLM.from_pretrained(export)`.
"""

import sys as _sys
from functools import partial as _partial
from importlib import import_module as _import_module

import wrapt as _wrapt

__version__ = "0.1.0"
__all__ = ["__version__"]


def _tell(ours: str, _: object) -> None:
    """Import one of ours; not while what it is built of is being imported, transformers' layers or our block."""
    parts = {"transformers.modeling_layers": "GradientCheckpointingLayer", f"{__name__}.model.block": "DecoderBlock"}
    if all(name not in _sys.modules or hasattr(_sys.modules[name], part) for name, part in parts.items()):
        _import_module(f"{__name__}.model.{ours}")


# Each of ours registers its classes when it is imported. That is when transformers needs it, and not now: it takes
# seconds, which `omnigram --help` can do without.
for _theirs, _ours in (
    ("models.auto.configuration_auto", "configuration"),
    ("models.auto.modeling_auto", "decoder"),
    ("modeling_layers", "decoder"),
    ("models.auto.processing_auto", "processor"),
):
    _wrapt.register_post_import_hook(_partial(_tell, _ours), f"transformers.{_theirs}")
