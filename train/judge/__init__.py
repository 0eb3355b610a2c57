"""What an image tokenizer is worth, and generated pictures, beside honest baselines (docs/evaluation.md)."""
