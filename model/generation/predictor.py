"""What a model expects at the choices of rows: it keeps the lanes of each row, one for each branch of guidance.

The main lane of a row is its document. While a guided block is written there is a lane for each other beginning that
guidance compares with: `bos`, or a negative prompt, and that block; with three branches also the document's pictures
and that block. Dropping captions in training taught the model to go on from those.

Dimensions: N choices, K ids allowed, M ids fed, D width of the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from ...tokenizers.automaton import Allowed
from ...tokenizers.vocabulary import Vocabulary
from .choice import Sampling
from .forward import Step
from .guidance import guide, scaled, share_at
from .head import Head
from .lanes import Feed, Lane, Lanes
from .row import Choice, OpenBlock, Row

Context = tuple[int, ...]


@dataclass(eq=False)
class _Branch:
    """A lane whose ids are a context and then those of the row from `start` on."""

    lane: Lane
    context: Context = ()
    start: int = 0
    origin: int = 0  # the hidden state of the row's id p is in row `origin + p` of the last forward

    @property
    def shift(self) -> int:
        """Place of the row's id p in the lane, minus p."""
        return len(self.context) - self.start

    def pending(self, ids: Sequence[int]) -> Sequence[int]:
        """What is to be fed that the lane may hold all of the row's `ids`."""
        length = self.lane.length
        if length < len(self.context):
            return (*self.context[length:], *ids[self.start :])
        return ids[length - self.shift :]


@dataclass(eq=False)
class _Held:
    """The lanes of a row."""

    full: _Branch
    block: OpenBlock | None = None  # that the others belong to
    others: dict[Context | None, _Branch] = field(default_factory=dict)


class Predictor:
    """Feeds rows to a model, and gives logits at their choices."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        settings: Mapping[str, Sampling],
        lanes: int,
        length: int,
        step: Step | None = None,
    ) -> None:
        """settings: of each modality; lanes, length: that room is made for at once, and more when it is needed.

        step: see `Lanes`.
        """
        self.head = Head(model, vocabulary)
        self._settings = settings
        self._guided = {name for name, setting in settings.items() if setting.is_guided}
        self._lanes = Lanes(model, lanes, length, step)
        self._held: dict[Row, _Held] = {}

    def feed(self, rows: Iterable[Row]) -> None:
        """One forward for all that the rows have written or guessed since they were fed last."""
        feeds: list[Feed] = []
        fed: list[tuple[_Branch, int]] = []
        for row in rows:
            held = self._held.get(row)
            if held is None:
                held = self._held[row] = _Held(_Branch(self._lanes.open()))
            if held.block is not row.block:
                self._change_block(held, row.block)
            ids = row.ids + row.ahead if row.ahead else row.ids
            for branch in (held.full, *held.others.values()):
                fed.append((branch, branch.lane.length))
                feeds.append((branch.lane, branch.pending(ids)))
        self._hidden: Float[Tensor, "m d"] = self._lanes.forward(feeds)
        for branch, length in fed:
            branch.origin = branch.lane.base - length + branch.shift

    def logits(self, asked: Sequence[tuple[Row, Choice]], allowed: Allowed) -> Float[Tensor, "n k"]:
        """Of the ids allowed at choices that allow the same; guided, where a code of a guided block is due."""
        if allowed.modality not in self._guided:
            return self._logits(asked, allowed, None)[0]
        setting = self._settings[allowed.modality]
        schedule = setting.guidance_schedule  # without one no place is looked up, which costs more than the share
        shares = [share_at(schedule, row.place(choice)) if schedule else 1.0 for row, choice in asked]
        pictures, picture_scale = None, None
        if setting.picture_guidance is None:
            full, without = self._logits(asked, allowed, None, "without")
        else:
            full, without, pictures = self._logits(asked, allowed, None, "without", "pictures")
            picture_scale = scaled(setting.picture_guidance, shares)
        return guide(full, without, scaled(setting.guidance, shares), pictures, picture_scale, setting.guidance_space)

    def hold(self, row: Row, length: int) -> None:
        """Only the first `length` ids of a row still hold: what was fed behind them is taken back."""
        if (held := self._held.get(row)) is not None:
            for branch in (held.full, *held.others.values()):
                branch.lane.length = min(branch.lane.length, length + branch.shift)

    def drop(self, rows: Iterable[Row]) -> None:
        """The rows are done."""
        helds = [self._held.pop(row) for row in rows if row in self._held]
        lanes = [branch.lane for held in helds for branch in (held.full, *held.others.values())]
        for lane in sorted(lanes, key=lambda lane: -lane.slot):  # the last need not be moved
            self._lanes.close(lane)

    def _logits(
        self, asked: Sequence[tuple[Row, Choice]], allowed: Allowed, *branches: str | None
    ) -> tuple[Float[Tensor, "n k"], ...]:
        """Of each branch; where a row has none of that name, of its own document."""
        places = []
        for branch in branches:
            for row, choice in asked:
                held = self._held[row]
                context = getattr(row.block, branch) if branch and row.block else None
                places.append(held.others.get(context, held.full).origin + choice.length - 1)
        return self.head.logits(self._hidden[torch.tensor(places)], allowed).chunk(len(branches))

    def _change_block(self, held: _Held, block: OpenBlock | None) -> None:
        """Other lanes than the row's own are those of its open block."""
        for branch in held.others.values():
            self._lanes.close(branch.lane)
        held.block, held.others = block, {}
        if block is not None and block.modality in self._guided:
            three = self._settings[block.modality].picture_guidance is not None
            for context in {block.without, block.pictures} if three else {block.without}:
                if context != block.before:  # else the row's own lane is that branch
                    held.others[context] = _Branch(self._lanes.open(), context, block.start)
