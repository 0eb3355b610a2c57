"""Finishes documents: any prompt of text, pictures and half a picture, always within the grammar.

Each row of a batch has its own automaton, noise and length, so rows may write different modalities and sizes at once;
one that is done makes room for the next prompt. Ids that the grammar forces are never drawn: they are fed together with
the id before them, so a block of 8 x 8 codes costs 64 forwards, not 90, and fewer with `speculation`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ...tokenizers.document_grammar import DocumentGrammar
from ...tokenizers.published_text import PublishedText
from ...tokenizers.text import TextTokenizer
from ...tokenizers.vocabulary import TEXT
from .choice import Sampling
from .compiled import CompiledRun
from .engine import Engine, Statistics
from .events import Event, Finished, Watch
from .forward import Step, evaluating
from .prompts import Block, Prompt, Sample, Writer
from .row import Beginning, Row
from .speculation import Draft, Speculation
from .telling import Teller


class Sampler:
    """Prompts -> finished documents.

    sampling: settings of each modality; those not named are drawn at temperature 1 without guidance
    compile: run the steps through torch.compile, which takes half a minute to a minute when it first meets a model
    speculation: guess codes of pictures ahead of their turn, `Jacobi()` or `Draft(model)`; what is drawn stays the same
    statistics: of the last call
    """

    def __init__(
        self,
        model: PreTrainedModel,
        grammar: DocumentGrammar,
        text_tokenizer: TextTokenizer | PublishedText,
        sampling: Mapping[str, Sampling] | None = None,
        *,
        compile: bool = False,
        speculation: Speculation | None = None,
    ):
        """ValueError for a model, or one that drafts, of another vocabulary."""
        self.model, self.grammar, self.vocabulary = model, grammar, grammar.vocabulary
        self._check_vocabulary(model, "the model")
        self.writer = Writer(grammar, text_tokenizer)
        self.sampling = self._with({modality: Sampling() for modality in (TEXT, *grammar.blocks)}, sampling)
        self.compile, self.speculation, self.statistics = compile, speculation, Statistics()
        self._compiled: dict[PreTrainedModel, CompiledRun] = {}

    @property
    def context(self) -> int:
        """Longest document, in tokens."""
        return self.model.config.max_position_embeddings

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Mapping[str, Sampling] | None = None,
        batch_size: int = 64,
        watch: Watch | None = None,
    ) -> list[Sample]:
        """Finish each prompt, `batch_size` of them at a time.

        sampling: replaces the sampler's own settings of the modalities it names. watch: is told each event. ValueError,
        in one line, for a prompt that cannot be written, or that leaves no room in the context for what has to follow.
        """
        samples: dict[int, Sample] = {}
        if watch is None:
            with evaluating(self.model):
                for row in self._run(prompts, sampling, batch_size):
                    if row.done:
                        samples[row.number] = row.sample()
        else:
            for event in self.stream(prompts, sampling, batch_size):
                if isinstance(event, Finished):
                    samples[event.prompt] = event.sample
                watch(event)
        return [samples[number] for number in range(len(prompts))]

    def stream(
        self, prompts: Sequence[Prompt], sampling: Mapping[str, Sampling] | None = None, batch_size: int = 64
    ) -> Iterator[Event]:
        """What `sample` does, as it happens: documents come in the order in which they are finished."""
        tellers: dict[Row, Teller] = {}
        for row in self._run(prompts, sampling, batch_size):
            if row not in tellers:
                tellers[row] = Teller(row, self.writer)
            yield from tellers[row].tell()
            if row.done:
                del tellers[row]

    def _run(
        self, prompts: Sequence[Prompt], sampling: Mapping[str, Sampling] | None, batch_size: int
    ) -> Iterator[Row]:
        """The rows of the prompts, as `Engine.run` yields them."""
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be 1 or more")
        if isinstance(self.speculation, Draft):
            self._check_vocabulary(self.speculation.model, "the model that drafts")
            context = self.speculation.model.config.max_position_embeddings
            if context < self.context:
                raise ValueError(
                    f"the model that drafts has a context of {context} tokens, the model {self.context}: "
                    "draft with one of at least the same"
                )
        settings = self._with(self.sampling, sampling)
        rows = self._rows(prompts, any(setting.is_guided for setting in settings.values()))
        engine = Engine(self.model, self.vocabulary, settings, self.speculation, self._step_of)
        self.statistics = engine.statistics
        yield from engine.run(rows, batch_size)

    def _rows(self, prompts: Sequence[Prompt], guided: bool) -> list[Row]:
        """A row for each prompt; what prompts with the very same segments and limits share is made once."""
        made: dict[tuple[int, int, str], Beginning] = {}
        rows = []
        for number, prompt in enumerate(prompts):
            if prompt.negative and not guided:
                raise ValueError(
                    f"negative prompt {prompt.negative!r} has no effect without guidance: "
                    "set guidance to another number than 1"
                )
            if prompt.stop and prompt.limits.get("min_blocks"):
                raise ValueError(
                    f"stop words end a document, but min_blocks={prompt.limits['min_blocks']} more blocks have to "
                    "come: give one of the two"
                )
            key = (id(prompt.segments), id(prompt.limits), prompt.negative)
            if key not in made:
                made[key] = self._begin(prompt)
            rows.append(Row(number, prompt, made[key], self.writer))
        return rows

    def _begin(self, prompt: Prompt) -> Beginning:
        ids, spans = self.writer.write(prompt.segments), self.writer.spans(prompt.segments)
        negative = self.writer.write([prompt.negative] if prompt.negative else ())
        begun = 0  # ids of a half-finished block, which follow the negative prompt as well
        if prompt.segments and isinstance(block := prompt.segments[-1], Block) and block.size is not None:
            begun = len(ids) - len(self.writer.write(prompt.segments[:-1]))
        given = max(len(ids), len(negative) + begun)
        asked, room = prompt.limits.get("max_tokens"), self.context - given
        limits: dict[str, Any] = {**prompt.limits, "max_tokens": room if asked is None else min(asked, room)}
        short = asked is None or asked > room
        too_long = f"a prompt of {given} tokens leaves no room in the context of {self.context} for what has to follow"
        if room < 1:
            raise ValueError(f"{too_long}: shorten it")
        try:
            automaton = self.grammar.automaton(**limits)
            state = automaton.after(ids)
        except ValueError as fault:
            reason = str(fault)
            if limits.get("min_blocks") and not {"sizes", "max_codes"} & set(limits):
                reason += "; blocks of any size may be that long: name their size, or max_codes"
            raise ValueError(f"{too_long}: {reason}" if short else reason) from None
        most = 0 if asked is None else limits["max_tokens"]
        return Beginning(tuple(ids.tolist()), automaton, state, spans, tuple(negative.tolist()), given, most)

    def _step_of(self, model: PreTrainedModel) -> Step | None:
        if not self.compile:
            return None
        if model not in self._compiled:
            self._compiled[model] = CompiledRun()
        return self._compiled[model].of_a_call()

    def _check_vocabulary(self, model: PreTrainedModel, name: str) -> None:
        if model.config.vocab_size != self.vocabulary.size:
            raise ValueError(
                f"{name} has {model.config.vocab_size} ids, the vocabulary {self.vocabulary.size}: "
                "they do not belong together"
            )

    def _with(self, settings: Mapping[str, Sampling], changes: Mapping[str, Sampling] | None) -> dict[str, Sampling]:
        """Settings with those of some modalities replaced. ValueError for what would have no effect."""
        for modality, setting in (changes or {}).items():
            if modality not in settings:
                raise ValueError(f"sampling has settings of {modality!r}; the modalities are {', '.join(settings)}")
            if modality == TEXT and setting.is_guided:
                scale = setting.guidance if setting.guidance != 1 else f"of pictures {setting.picture_guidance}"
                raise ValueError(f"guidance {scale} of text: only what text describes is guided; set it to 1")
        return {**settings, **(changes or {})}
