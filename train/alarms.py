"""Alarms while training: a warning and an incident, once an episode, for what announces that a run goes wrong.

Each looks at one number a step. What is usual is the median of the steps before and their median absolute deviation
(MAD), which a few outliers do not move. The bars were set on the default runs, which come nowhere near them, see
docs/watching.md. Growth of the outputs before a divergence: Chameleon (https://arxiv.org/abs/2405.09818), section 2.2.
"""

import math
import warnings
from collections import deque
from statistics import median
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..data.stream_state import Seen, streams_of
from .incidents import Incidents
from .steps import StepModule

WINDOW = 100  # steps that say what is usual
# by kind of quantizer, what keeps its codes in use; each setting is one that the kind has
MORE_USAGE = {
    "ema": "raise tokenizer.quantizer.dead_code_threshold or lower tokenizer.optimizer.learning_rate",
    "multi": "raise tokenizer.quantizer.dead_code_threshold or lower tokenizer.optimizer.learning_rate",
    "gradient": "raise tokenizer.quantizer.commitment or lower tokenizer.optimizer.learning_rate",
    "simvq": "raise tokenizer.quantizer.commitment or lower tokenizer.optimizer.learning_rate",
    "ibq": "raise tokenizer.quantizer.entropy or lower tokenizer.optimizer.learning_rate",
    "gumbel": "raise tokenizer.quantizer.kl or lower tokenizer.optimizer.learning_rate",
    "lfq": "raise tokenizer.quantizer.entropy or lower tokenizer.quantizer.codebook_size",
    "fsq": "give fewer tokenizer.quantizer.scalar_levels or lower tokenizer.optimizer.learning_rate",
}


class Rule(Protocol):
    """One number, watched step by step."""

    def see(self, value: float) -> str | None:
        """What is wrong, when an episode begins; None before, during and after it."""
        ...

    def state(self) -> dict[str, Any]:
        """Numbers and lists of numbers, from which `load` goes on."""
        ...

    def load(self, state: dict[str, Any]) -> None: ...


class Spike:
    """The median of the last five values is far above the hundred before them, or one is out of all proportion.

    deviations: how many deviations above the median are far; a deviation is 1.4826 MAD, and at least 2 % of the median.
    proportion: how many times the median a single value has to be; None looks at five together alone.
    """

    TOGETHER, LEAST_DEVIATION, CALM = 5, 0.02, 20

    def __init__(self, name: str, deviations: float = 4.0, proportion: float | None = None) -> None:
        self.name, self.deviations, self.proportion = name, deviations, proportion
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._last: deque[float] = deque(maxlen=self.TOGETHER)
        self._calm = self.CALM  # steps since the last one that was too high, up to CALM
        self._since = 0  # steps since the episode began

    def see(self, value: float) -> str | None:
        if not math.isfinite(value):
            return None  # such a step is left out, and told as that
        if len(self._last) == self.TOGETHER and self._calm >= self.CALM:
            self._usual.append(self._last[0])  # an episode is not usual
        self._last.append(value)
        if len(self._usual) < WINDOW:
            return None
        middle = median(self._usual)
        spread = 1.4826 * median(abs(number - middle) for number in self._usual)
        bar = middle + self.deviations * max(spread, self.LEAST_DEVIATION * abs(middle))
        alone = self.proportion is not None and value > self.proportion * abs(middle)
        if self._calm >= self.CALM:
            level = value if alone else median(self._last)
            if not (alone or level > bar):
                return None
            self._calm = self._since = 0
            return f"{self.name} {level:.4g} is far above the {middle:.4g} of the {WINDOW} steps before"
        self._since += 1
        self._calm = 0 if value > bar else self._calm + 1
        if self._since >= 2 * WINDOW:  # it stays there: this is usual from now on
            self._usual.clear()
            self._calm = self.CALM
        return None

    def state(self) -> dict[str, Any]:
        return {"usual": list(self._usual), "last": list(self._last), "calm": self._calm, "since": self._since}

    def load(self, state: dict[str, Any]) -> None:
        self._usual.extend(state["usual"])
        self._last.extend(state["last"])
        self._calm, self._since = state["calm"], state["since"]


class Growth:
    """The median of the last hundred values rises above a bar, then above each of its doublings."""

    def __init__(self, name: str, bar: float, consequence: str) -> None:
        self.name, self.bar, self.consequence = name, bar, consequence
        self._last: deque[float] = deque(maxlen=WINDOW)

    def see(self, value: float) -> str | None:
        if math.isfinite(value):
            self._last.append(value)
        if len(self._last) < WINDOW or (level := median(self._last)) <= self.bar:
            return None
        told = f"{self.name} has grown to {level:.3g}, above {self.bar:g}: {self.consequence}"
        while self.bar < level:
            self.bar *= 2
        return told

    def state(self) -> dict[str, Any]:
        return {"last": list(self._last), "bar": self.bar}

    def load(self, state: dict[str, Any]) -> None:
        self._last.extend(state["last"])
        self.bar = state["bar"]


class Fall:
    """The median of the last hundred values falls below half of the highest that it was, then below half of that."""

    def __init__(self, name: str, consequence: str) -> None:
        self.name, self.consequence = name, consequence
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._highest = 0.0

    def see(self, value: float) -> str | None:
        if math.isfinite(value):
            self._last.append(value)
        if len(self._last) < WINDOW:
            return None
        level = median(self._last)
        before, self._highest = self._highest, max(self._highest, level)
        if level >= before / 2:
            return None
        self._highest = level
        return f"{self.name} has fallen from {before:.3g} to {level:.3g}: {self.consequence}"

    def state(self) -> dict[str, Any]:
        return {"last": list(self._last), "highest": self._highest}

    def load(self, state: dict[str, Any]) -> None:
        self._last.extend(state["last"])
        self._highest = state["highest"]


class Rise:
    """A count has begun to rise: told at its first rise, then whenever it has doubled since, or at every rise."""

    def __init__(self, what: str, every: bool = False) -> None:
        self.what, self.every = what, every
        self._told = 0.0

    def see(self, value: float) -> str | None:
        if value < max(1, self._told + 1 if self.every else 2 * self._told):
            return None
        self._told = value
        return self.what.format(int(value))

    def state(self) -> dict[str, Any]:
        return {"told": self._told}

    def load(self, state: dict[str, Any]) -> None:
        self._told = state["told"]


def pretraining_rules() -> dict[str, Rule]:
    """By the name in `StepModule.watched`; skipped and data are counts of `Alarms`."""
    return {
        "loss": Spike("the loss"),
        "gradient_norm": Spike("the gradient's norm", deviations=6.0, proportion=10.0),
        "log_z": Growth(
            "the output norm (log Z)",
            40.0,  # of 32 on bfloat16 has steps of .25; default runs end at 20
            "the logits lose precision; set loss.z_loss=1e-5 or model.qk_norm=rms, or lower the learning rate",
        ),
        **_counts(),
    }


def tokenizer_rules(quantizer: str) -> dict[str, Rule]:
    """By the name in `StepModule.watched`, for a kind of quantizer."""
    return {
        "loss": Spike("the loss"),
        "gradient_norm": Spike("the gradient's norm", deviations=6.0, proportion=20.0),
        "usage": Fall("the share of codes in use", MORE_USAGE[quantizer]),
        "adversary": Rise(
            "the adversary is switched off, {:,} times by now, as reconstruction has become far worse since it began: "
            "lower tokenizer.discriminator.weight or tokenizer.discriminator.learning_rate, or raise "
            "tokenizer.discriminator.warmup_steps",
            every=True,
        ),
        **_counts(),
    }


def _counts() -> dict[str, Rule]:
    return {
        "skipped": Rise("{:,} steps are left out by now, for loss or gradient was not a finite number"),
        "data": Rise("{:,} parts of the data are left out by now"),
    }


class Alarms(Callback):
    """The rules, applied to what each step leaves in `watched`; on the first rank, to its numbers.

    One read of the device a step: a step reads whether its numbers are finite anyway.
    """

    def __init__(self, rules: dict[str, Rule], incidents: Incidents) -> None:
        self.rules, self.incidents = rules, incidents

    def state_dict(self) -> dict[str, Any]:
        return {name: rule.state() for name, rule in self.rules.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in state_dict.items():
            if name in self.rules:  # a checkpoint of another version may know others
                self.rules[name].load(state)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        if not pl_module.world.is_first:
            return
        watched = {**pl_module.watched, "skipped": pl_module.steps_skipped}
        numbers = torch.stack([torch.as_tensor(n).detach().double() for n in watched.values()]).tolist()
        values = dict(zip(watched, numbers, strict=True)) | {"data": float(left_out(pl_module.data_state))}
        for kind, rule in self.rules.items():
            if kind in values and (told := rule.see(values[kind])):
                told += _reasons(pl_module.data_state) if kind == "data" else ""
                self.incidents.add(pl_module.step, kind, told)
                if kind != "skipped":  # which has a warning of its own
                    warnings.warn(f"step {pl_module.step:,}: {told}", stacklevel=2)


def _reasons(state: Any) -> str:
    """Why parts of the data were left out, as a loader's state counts them."""
    seen = Seen.of(state)
    counts = dict(sorted(seen.damaged.items())) | ({"longer than a row": seen.dropped} if seen.dropped else {})
    return ": " + ", ".join(f"{number:,} {reason}" for reason, number in counts.items())


def left_out(state: Any) -> int:
    """Parts of the data that a loader's state counts as damaged or dropped; 0 for the state of another kind of data."""
    if state is None or not all("seen" in stream for stream in streams_of(state)):
        return 0
    seen = Seen.of(state)
    return seen.dropped + sum(seen.damaged.values())
