"""Omnigram: train image tokenizers, and decoder-only transformers on their codes and text."""

__version__ = "0.1.0"
