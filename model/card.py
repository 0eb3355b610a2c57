"""`omnigram.json` of an export: how prompts are worded, blocks written, ids drawn, and what belongs to the weights."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tokenizers.grammar import BlockGrammar
from ..tokenizers.preprocessing import Preprocessing
from .generation.choice import Sampling

FORMAT_VERSION = 1


SAMPLING = {"text": Sampling(temperature=0.7, top_p=0.9), "image": Sampling(top_p=0.95, guidance=3.0)}


@dataclass(frozen=True)
class Card:
    """What a folder says of itself, beside weights and vocabulary.

    prompt_template: how captions were worded; holds {caption}, and {style} where there are styles
    styles: that a prompt may ask for; the first is meant where none is named
    sizes: grids (H, W) in codes that the model was trained on; the first is drawn where none is named
    grammars: how the blocks of each modality are written; those not named as their registered `Modality` says
    max_side: largest side of a block, in codes
    preprocessing: how a picture becomes pixels; None: over white, fitted to the nearest of `sizes`, -1 .. 1
    sampling: settings of each modality; those of the default that a model does not have say nothing
    identities: sha256 of the vocabulary and the tokenizers that the weights were trained with
    """

    prompt_template: str = "{caption}"
    styles: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ((8, 8),)
    grammars: Mapping[str, BlockGrammar] = field(default_factory=dict)
    max_side: int = 256
    preprocessing: Preprocessing | None = None
    sampling: Mapping[str, Sampling] = field(default_factory=lambda: dict(SAMPLING))
    identities: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "styles", tuple(self.styles))
        object.__setattr__(self, "sizes", tuple((int(height), int(width)) for height, width in self.sizes))
        if not self.sizes:
            raise ValueError("sizes is empty: name at least one grid (H, W) in codes")
        try:
            self.prompt_template.format(caption="", style="")
        except (KeyError, IndexError, ValueError):
            raise ValueError(
                f"prompt_template {self.prompt_template!r} may hold {{caption}} and {{style}} alone"
            ) from None
        if "{caption}" not in self.prompt_template:
            raise ValueError(f"prompt_template {self.prompt_template!r} must hold {{caption}}")
        if ("{style}" in self.prompt_template) != bool(self.styles):
            raise ValueError(f"prompt_template {self.prompt_template!r} does not go with styles {list(self.styles)}")

    def prompt(self, words: str, style: str | None = None) -> str:
        """Words as captions were worded. Without a style the first is meant, unless the words already name one.

        ValueError for no words, or for a style that the model does not know.
        """
        words = words.strip()
        if not words:
            raise ValueError("the prompt is empty: say in words what to draw")
        if style is None and self.styles:
            endings = [self.prompt_template.format(caption="", style=known) for known in self.styles]
            if self.prompt_template.startswith("{caption}") and words.endswith(tuple(endings)):
                return words
            style = self.styles[0]
        if style is not None and style not in self.styles:
            if not self.styles:
                raise ValueError(f"style {style!r}: this model has no styles, leave it out")
            near = difflib.get_close_matches(style, self.styles) or self.styles
            raise ValueError(f"unknown style {style!r}, did you mean {' or '.join(near)}?")
        return self.prompt_template.format(caption=words, style=style)

    def example(self, words: str, style: str | None) -> str:
        """`prompt` for words that stand in context: in the style that they name, else in `style`."""
        return self.prompt(words, None if self.prompt(words) == words.strip() and self.styles else style)

    def sampling_of(self, modalities: Sequence[str]) -> dict[str, Sampling]:
        """The settings of those modalities. ValueError for settings of others, but for the default ones."""
        for modality, setting in self.sampling.items():
            if modality not in modalities and setting != SAMPLING.get(modality):
                raise ValueError(
                    f"sampling of the card has settings of {modality!r}, and the modalities are "
                    f"{', '.join(modalities)}: leave {modality!r} out of its sampling"
                )
        return {modality: setting for modality, setting in self.sampling.items() if modality in modalities}

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Inverse of `to_json`. ValueError if the text is not of this format, or names what it does not know."""
        try:
            fields: dict[str, Any] = dict(json.loads(text))
            version = fields.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version {version}, this Omnigram reads {FORMAT_VERSION}")
            for name, kind in (("grammars", BlockGrammar), ("sampling", Sampling)):
                fields[name] = {modality: kind(**values) for modality, values in fields.get(name, {}).items()}
            if fields.get("preprocessing") is not None:
                fields["preprocessing"] = Preprocessing(**fields["preprocessing"])
            return cls(**fields)
        except (TypeError, AttributeError, json.JSONDecodeError) as fault:
            raise ValueError(f"not the card of an export: {fault}") from None
