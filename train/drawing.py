"""What was asked of a model in full, so that it can be asked again; and carrying it out, up to an interruption.

Dimensions: H rows and W columns of codes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ..model.bundle import Omnigram
from ..model.generation import tasks
from ..model.generation.choice import Sampling
from ..model.generation.events import Finished
from ..model.generation.prompts import Prompt, Sample
from ..model.generation.ranking import RANK_BY, best_of
from ..model.generation.sampler import Sampler
from .drawing_progress import DrawingProgress

T = TypeVar("T")
SAMPLE, COMPLETE, JOINT = "sample", "complete", "joint"


class Asked(NamedTuple):
    """A picture to draw. With `best_of` k its samples have the seeds from `seed` to `seed + k - 1`."""

    words: str | None
    seed: int


class Drawn(NamedTuple):
    """A picture, which of those asked for it is, and the seed that drew it; `words` of `joint` are drawn as well."""

    number: int
    words: str | None
    seed: int
    picture: Image.Image


class Outcome(NamedTuple):
    """Pictures in order, whether these are all, and how many others were drawn but neither ranked nor decoded."""

    drawn: list[Drawn]
    whole: bool
    waiting: int


@dataclass(frozen=True, eq=False)
class Drawing:
    """Pictures that are drawn in the same way.

    command: "sample", "complete" or "joint"
    asked: words as captions were worded
    grid: (H, W) of all pictures
    sampling: all settings of each modality that is drawn
    negative, examples: of `sample`; examples are (words, codes [H, W])
    best_of, rank_by: of `sample`: samples for each picture, and what makes one the best
    kept: of `complete`: the codes [rows, W] it begins with
    words_first, max_tokens: of `joint`
    columns: of the page that shows them; None makes it nearly square
    """

    command: str
    asked: tuple[Asked, ...]
    grid: tuple[int, int]
    sampling: Mapping[str, Sampling]
    negative: str = ""
    examples: tuple[tasks.Example, ...] = ()
    best_of: int = 1
    rank_by: str = RANK_BY
    kept: tasks.Codes | None = None
    words_first: bool = True
    max_tokens: int = 48
    columns: int | None = None

    def prompts(self, sampler: Sampler) -> list[Prompt]:
        """`best_of` for each picture asked for. ValueError for what cannot be drawn."""
        made = {words: self._prompt(sampler, words) for words in {asked.words for asked in self.asked}}
        return [
            prompt
            for asked in self.asked
            for prompt in tasks.seeded(made[asked.words], range(asked.seed, asked.seed + self.best_of))
        ]

    def _prompt(self, sampler: Sampler, words: str | None) -> Prompt:
        if self.command == COMPLETE:
            assert self.kept is not None
            return tasks.to_complete(sampler, self.kept, size=self.grid, words=words)
        if self.command == JOINT:
            return tasks.to_joint(sampler, size=self.grid, words_first=self.words_first, max_tokens=self.max_tokens)
        return tasks.to_draw(sampler, words, size=self.grid, negative=self.negative, examples=self.examples)

    def to_record(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """JSON of the pictures drawn, each by its own seed: what `from_record` reads."""
        record: dict[str, Any] = {
            "command": self.command,
            "pictures": [{"words": one.words, "seed": one.seed} for one in drawn],
            "grid": list(self.grid),
            "columns": self.columns if len(drawn) == len(self.asked) else None,
            "sampling": {modality: dataclasses.asdict(setting) for modality, setting in self.sampling.items()},
        }
        if self.command == SAMPLE:
            examples = [{"words": words, "codes": _written(codes)} for words, codes in self.examples]
            record |= {"negative": self.negative, "examples": examples}
            record |= {"best_of": self.best_of, "rank_by": self.rank_by}
        elif self.command == COMPLETE:
            record["kept"] = _written(self.kept)
        else:
            record |= {"words_first": self.words_first, "max_tokens": self.max_tokens}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Drawing":
        """The drawing of just these pictures. ValueError if the record does not tell."""
        try:
            command = record["command"]
            if command not in (SAMPLE, COMPLETE, JOINT):
                raise ValueError(f"command {command!r}")
            height, width = record["grid"]
            if not record["pictures"]:
                raise ValueError("no pictures")
            return cls(
                command,
                tuple(Asked(one["words"], int(one["seed"])) for one in record["pictures"]),
                (int(height), int(width)),
                {modality: Sampling(**settings) for modality, settings in record["sampling"].items()},
                negative=record.get("negative", ""),
                examples=tuple((one["words"], _read(one["codes"])) for one in record.get("examples", ())),
                kept=_read(record["kept"]) if command == COMPLETE else None,
                words_first=record.get("words_first", True),
                max_tokens=record.get("max_tokens", 48),
                columns=record.get("columns"),
            )
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"the record does not tell how it was drawn: {fault}") from None


def carry_out(omnigram: Omnigram, drawing: Drawing, batch_size: int) -> Outcome:
    """Draw the samples, of several take the best one, decode: an interruption ends the stage that is running.

    The next ones go on with what it finished. `tasks.draw` and the like, which draw and rank in one call, would give
    all or nothing.
    """
    prompts, k = drawing.prompts(omnigram.sampler), drawing.best_of
    finished, all_drawn = _until_interrupted(_samples(omnigram, drawing, prompts, batch_size))
    samples = dict(finished)
    numbers = [n for n in range(len(drawing.asked)) if all(k * n + i in samples for i in range(k))]
    chosen, all_ranked = _until_interrupted(_best(omnigram, drawing, numbers, samples, batch_size))
    drawn, all_decoded = _until_interrupted(_decoded(omnigram, drawing, prompts, chosen))
    return Outcome(drawn, all_drawn and all_ranked and all_decoded, len(numbers) - len(drawn))


def _until_interrupted(stage: Iterator[T]) -> tuple[list[T], bool]:
    """What a stage finishes, and whether it came to its end."""
    finished: list[T] = []
    try:
        for one in stage:
            finished.append(one)  # one by one: the list has to outlive the interruption
    except KeyboardInterrupt:
        return finished, False
    return finished, True


def _samples(
    omnigram: Omnigram, drawing: Drawing, prompts: Sequence[Prompt], batch_size: int
) -> Iterator[tuple[int, Sample]]:
    """Each sample with the number of its prompt, as it is finished."""
    tokens = None if drawing.command == JOINT else prompts[0].limits["max_tokens"]  # words end where they like
    with DrawingProgress(f"omnigram {drawing.command}", len(prompts), tokens) as progress:
        for event in omnigram.sampler.stream(prompts, drawing.sampling, batch_size):
            if isinstance(event, Finished):
                yield event.prompt, event.sample
            progress(event)


def _best(
    omnigram: Omnigram, drawing: Drawing, numbers: Sequence[int], samples: Mapping[int, Sample], batch_size: int
) -> Iterator[tuple[int, int, Sample]]:
    """(picture, prompt, sample): of each picture the one sample, or the best one, ranked about `batch_size` at once."""
    k = drawing.best_of
    at_once = max(1, batch_size // k)
    for start in range(0, len(numbers), at_once):
        part = numbers[start : start + at_once]
        candidates = [k * number + i for number in part for i in range(k)]
        if k > 1:
            words = [drawing.asked[number].words or "" for number in part]
            codes = [samples[prompt].blocks()[-1] for prompt in candidates]
            candidates = [candidates[place] for place in best_of(omnigram.sampler, words, codes, k, drawing.rank_by)]
        for number, prompt in zip(part, candidates, strict=True):
            yield number, prompt, samples[prompt]


def _decoded(
    omnigram: Omnigram, drawing: Drawing, prompts: Sequence[Prompt], chosen: Sequence[tuple[int, int, Sample]]
) -> Iterator[Drawn]:
    for number, prompt, sample in chosen:
        words = sample.text.strip() if drawing.command == JOINT else drawing.asked[number].words
        yield Drawn(number, words, prompts[prompt].seed, omnigram.codec.picture(sample.blocks()[-1]))


def _written(codes: Any) -> list[str]:
    """A line for each row, which JSON then shows as one."""
    return [" ".join(map(str, row)) for row in np.asarray(codes).tolist()]


def _read(lines: Sequence[str]) -> tasks.Codes:
    return np.array([[int(code) for code in line.split()] for line in lines], dtype=np.int64)
