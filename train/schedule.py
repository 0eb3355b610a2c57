"""Learning rate over steps: a straight warm-up, then half a cosine down to a share of the peak."""

import math


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, final_ratio: float) -> float:
    """Factor on the peak learning rate at `step` (0-based): rises to 1 in `warmup_steps`, ends at `final_ratio`.

    >>> [round(warmup_cosine(step, 2, 6, 0.0), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
