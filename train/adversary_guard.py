"""When the adversary of the image tokenizer may take part: not before reconstruction has settled, not while it is lost.

An adversary that is too strong ruins what the other losses have learnt. The guard looks at the reconstruction error
alone: it holds the adversary back while that is high, switches it off when it has risen far above what it was when the
adversary began, and lets it begin again, with half the weight, once what was lost is won back.
"""

import math

import torch
from torch import Tensor, nn

AVERAGED = 20  # steps, about, that the short average is of


class AdversaryGuard(nn.Module):
    """What it has seen are buffers, so that a resumed run decides as an undisturbed one.

    Arguments:
        start_step: steps before the adversary may take part. The first begins without it, as it is decided after each
            step whether it takes part in the next one: 0 is as 1.
        start_below: the average reconstruction error must not be above this to begin; None: it may be anything.
        ratio: the adversary is switched off when the average is above so many times its level at the beginning ...
        steps: ... in so many steps that follow one another. ratio None: never.
    """

    taken: Tensor  # steps since the adversary began; -1 where it takes no part
    average: Tensor  # of the reconstruction error, over AVERAGED steps; infinite before the first
    level: Tensor  # the average when the adversary began last; infinite before
    high: Tensor  # steps in a row in which the average was too high
    switched_off: Tensor  # how often

    def __init__(self, start_step: int, start_below: float | None, ratio: float | None, steps: int) -> None:
        super().__init__()
        if ratio is not None and ratio <= 1:
            raise ValueError(f"tokenizer.discriminator.guard_ratio={ratio} must be above 1, or null for no guard")
        self.start_step = start_step
        self.start_below = math.inf if start_below is None else start_below
        self.ratio = math.inf if ratio is None else ratio
        self.steps = steps
        self.register_buffer("taken", torch.tensor(-1))
        self.register_buffer("average", torch.tensor(math.inf))
        self.register_buffer("level", torch.tensor(math.inf))
        self.register_buffer("high", torch.tensor(0))
        self.register_buffer("switched_off", torch.tensor(0))

    @property
    def takes_part(self) -> bool:
        """Whether the adversary does, in the step that comes."""
        return int(self.taken) >= 0

    def share(self, warmup_steps: int) -> Tensor:
        """Of its weight in this step: rises to 1 over `warmup_steps`; half of that after each switching off."""
        ramp = ((self.taken + 1) / max(1, warmup_steps)).clamp(max=1)
        return ramp * 0.5**self.switched_off

    def see(self, reconstruction: Tensor, steps_done: int) -> None:
        """Decide for the next step, after one that was sound.

        reconstruction: its error, the same on all ranks. steps_done: of the training, this one included.
        """
        average, error = float(self.average), float(reconstruction)
        average = error if math.isinf(average) else average + (error - average) / AVERAGED
        self.average.fill_(average)
        level = float(self.level)
        if not self.takes_part:
            if steps_done >= self.start_step and average <= min(level, self.start_below):
                self.taken.zero_()
                self.level.fill_(average)
            return
        self.taken += 1
        self.high.fill_(int(self.high) + 1 if average > self.ratio * level else 0)
        if self.high >= self.steps:
            self.taken.fill_(-1)
            self.high.zero_()
            self.switched_off += 1
