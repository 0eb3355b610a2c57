"""Writing several codes of a picture in one forward: guesses that are confirmed or put right, with nothing changed.

The noise of each choice is fixed before anything is known of it (see `choice.Noise`), so the next code is a function of
the codes before it. A guess is right if that function gives it; then the next one was asked with right codes before
it, and so on. What is written is, id for id, what one code at a time would have been: exact in distribution because
exact in every draw. This is the fixed point of https://arxiv.org/abs/2002.09928, where `Jacobi` guesses by the last
round's answers, as in https://arxiv.org/abs/2410.01699; with `Draft` it is speculative decoding
(https://arxiv.org/abs/2211.17192) whose two models are coupled by their noise, https://arxiv.org/abs/2408.07978.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from .predictor import Predictor
from .row import Choice, Row


@dataclass(frozen=True)
class Jacobi:
    """Guesses by the model itself: what it answered behind the first wrong guess of the last round.

    window: codes guessed ahead, 1 or more. Where the last round did not reach, a guess is the code above, or in the
        first row the code before.
    """

    window: int = 8

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window {self.window} must be 1 code or more")


@dataclass(frozen=True, eq=False)
class Draft:
    """Guesses by a smaller model of the same vocabulary, which writes `length` codes ahead, 1 or more."""

    model: PreTrainedModel
    length: int = 4

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length {self.length} must be 1 code or more")


Speculation = Jacobi | Draft


class Answer(Protocol):
    """Ids chosen at choices of rows, by what a predictor has been fed."""

    def __call__(self, predictor: Predictor, asked: Sequence[tuple[Row, Choice]]) -> list[int]: ...


class Guesser(Protocol):
    """Guesses for rows before each forward, and learns what the model answered."""

    def guess(self, rows: Sequence[Row]) -> None: ...

    def learn(self, row: Row, ids: Sequence[int], kept: int, hold: int) -> None:
        """ids: what the model answered at the choices of a row, of which `kept` were taken; see `Row.take`."""

    def drop(self, rows: Sequence[Row]) -> None:
        """Rows that are done."""


class JacobiGuesser:
    """See `Jacobi`."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._left: dict[Row, list[int]] = {}  # answers that were not taken

    def guess(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if room := min(self._window, row.room):
                width = row.block_state.sizes[-1]
                left = self._left.get(row, [])[:room]
                codes = row.codes
                written = len(codes)
                codes += left
                while len(codes) < written + room:
                    if not codes:
                        break  # nothing is known yet: the first code is asked for alone
                    codes.append(codes[-width] if len(codes) >= width else codes[-1])
                row.guess(codes[written:])

    def learn(self, row: Row, ids: Sequence[int], kept: int, hold: int) -> None:
        self._left[row] = list(ids[kept:]) if row.block is not None else []

    def drop(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._left.pop(row, None)


class DraftGuesser:
    """See `Draft`."""

    def __init__(self, predictor: Predictor, length: int, answer: Answer) -> None:
        self._predictor, self._length, self._answer = predictor, length, answer

    def guess(self, rows: Sequence[Row]) -> None:
        drafting: dict[Row, list[int]] = {row: [] for row in rows if row.room}
        for _ in range(self._length):
            drafting = {row: codes for row, codes in drafting.items() if len(codes) < row.room}
            if not drafting:
                return
            self._predictor.feed(drafting)
            answers = self._answer(self._predictor, [(row, row.choices[-1]) for row in drafting])
            for (row, codes), id_ in zip(drafting.items(), answers, strict=True):
                codes.append(id_)
                row.guess(codes)

    def learn(self, row: Row, ids: Sequence[int], kept: int, hold: int) -> None:
        self._predictor.hold(row, hold)

    def drop(self, rows: Sequence[Row]) -> None:
        self._predictor.drop(rows)
