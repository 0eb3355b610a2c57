"""The loop of sampling: rows ask, the model answers, rows grow, and one that is done makes room for the next."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ...tokenizers.automaton import Allowed
from ...tokenizers.vocabulary import TEXT, Vocabulary
from .choice import Noise, Sampling, choose, penalised
from .forward import Step, evaluating
from .predictor import Predictor
from .row import Choice, Row
from .speculation import Draft, DraftGuesser, Guesser, Jacobi, JacobiGuesser, Speculation


@dataclass
class Statistics:
    """What a call has cost so far.

    forwards: times that all rows were fed to the model, those that read prompts included
    tokens: ids written, those that were forced included
    choices: ids that the grammar did not force; guessed, confirmed: codes guessed ahead, and how many were right
    seconds: of the steps, without what a reader of the stream does between them
    """

    forwards: int = 0
    tokens: int = 0
    choices: int = 0
    guessed: int = 0
    confirmed: int = 0
    seconds: float = 0.0


class Engine:
    """Everything that one call of the sampler needs, and nothing that outlives it."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        settings: Mapping[str, Sampling],
        speculation: Speculation | None,
        step_of: Callable[[PreTrainedModel], Step | None],
    ) -> None:
        """settings: of each modality; step_of: the compiled step of a model, see `Lanes`."""
        self.statistics = Statistics()
        self._model, self._vocabulary, self._settings = model, vocabulary, settings
        self._speculation, self._step_of = speculation, step_of
        self._noise = Noise()

    def run(self, rows: Iterable[Row], batch_size: int) -> Iterator[Row]:
        """Yields each row when it begins, and whenever it has grown: for the last time when it is done."""
        waiting, live = deque(rows), list[Row]()
        lanes = min(batch_size, len(waiting)) * max(setting.branches for setting in self._settings.values())
        length = max((row.tokens for row in waiting), default=0)
        target = self._predictor(self._model, lanes, length)
        guesser = self._guesser(lanes, length)
        while waiting or live:
            while waiting and len(live) < batch_size:
                row = waiting.popleft()
                self.statistics.tokens += len(row.ids) - row.given
                yield row
                if not row.done:
                    live.append(row)
            if live:
                begun = time.perf_counter()
                with self._evaluating():
                    self._step(live, target, guesser)
                self.statistics.seconds += time.perf_counter() - begun
                yield from live
                live = [row for row in live if not row.done]

    def _step(self, live: Sequence[Row], target: Predictor, guesser: Guesser | None) -> None:
        """All rows are asked once, and take what is answered."""
        statistics = self.statistics
        if guesser is not None:
            guesser.guess(live)
        target.feed(live)
        statistics.forwards += 1
        answers = iter(self._answer(target, [(row, choice) for row in live for choice in row.choices]))
        for row in live:
            ids = [next(answers) for _ in row.choices]
            written = len(row.ids)
            kept, hold = row.take(ids)
            statistics.tokens += len(row.ids) - written
            statistics.choices += kept
            if guesser is not None:
                statistics.guessed += len(ids) - 1
                statistics.confirmed += kept - 1
                target.hold(row, hold)
                guesser.learn(row, ids, kept, hold)
        done = [row for row in live if row.done]
        target.drop(done)
        if guesser is not None:
            guesser.drop(done)

    def _answer(self, predictor: Predictor, asked: Sequence[tuple[Row, Choice]]) -> list[int]:
        """The id chosen at each choice."""
        groups: dict[Allowed, list[int]] = defaultdict(list)
        for number, (_, choice) in enumerate(asked):
            groups[choice.allowed].append(number)
        answers = [0] * len(asked)
        for allowed, numbers in groups.items():
            modality = allowed.modality or next(iter(allowed.begun), TEXT)  # marks and sizes are drawn as text is
            setting, members = self._settings[modality], [asked[number] for number in numbers]
            logits, ids = predictor.logits(members, allowed), predictor.head.ids(allowed)
            if setting.repetition_penalty != 1:
                held = torch.zeros(len(members), self._vocabulary.size, dtype=torch.bool)
                for row_held, (row, choice) in zip(held, members, strict=True):
                    row_held[row.held_at(choice)] = True
                repeated = held[:, torch.from_numpy(ids)].to(logits.device)
                logits = penalised(logits, repeated, setting.repetition_penalty)
            noise = None
            if not setting.is_greedy:
                noise = self._noise([(row.seed, choice.number) for row, choice in members], len(ids)).to(logits)
            chosen = ids[choose(logits, setting, noise).cpu().numpy()].tolist()
            for number, id_ in zip(numbers, chosen, strict=True):
                answers[number] = id_
        return answers

    def _predictor(self, model: PreTrainedModel, lanes: int, length: int) -> Predictor:
        return Predictor(model, self._vocabulary, self._settings, lanes, length, self._step_of(model))

    def _guesser(self, lanes: int, length: int) -> Guesser | None:
        if isinstance(self._speculation, Draft):
            predictor = self._predictor(self._speculation.model, lanes, length)
            return DraftGuesser(predictor, self._speculation.length, self._answer)
        if isinstance(self._speculation, Jacobi):
            return JacobiGuesser(self._speculation.window)
        return None

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """For one step: between steps whoever reads a stream may go on training, but keeps the model in shape."""
        with evaluating(self._model), contextlib.ExitStack() as drafting:
            if isinstance(self._speculation, Draft):
                drafting.enter_context(evaluating(self._speculation.model))
            yield
