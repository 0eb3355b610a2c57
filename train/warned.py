"""Warnings as one line, without the place in the code; Lightning sets a form of its own when it is imported."""

import warnings


def warn_in_one_line() -> None:
    """From now on."""
    warnings.formatwarning = lambda message, *_, **__: f"omnigram: warning: {' '.join(str(message).split())}\n"
