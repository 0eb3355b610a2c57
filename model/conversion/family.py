"""A published architecture: how its config.json and the names of its tensors say what ours say."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ...tokenizers.preprocessing import Preprocessing
from ...tokenizers.vocabulary import Vocabulary
from ..card import Card
from ..configuration import OmnigramConfig
from .downloads import read_json
from .stored import Checkpoint

PREPROCESSOR, GENERATION = "preprocessor_config.json", "generation_config.json"
# what both configurations call the same
SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_parameters",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "tie_word_embeddings",
    "initializer_range",
    "use_cache",
)
SPECIALS = ("pad_token_id", "bos_token_id", "eos_token_id")
# options that change what is computed: an export must be able to say them
COMPUTED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "qk_norm",
    "norm_order",
    "num_experts",
    "modality_norms",
    "modality_key_value",
)


class Family(ABC):
    """`name` is what `--format` calls it, `model_types` what its config.json may.

    reserved: the token that transformers gives the name of its placeholder for codes, where one is needed.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    reserved: ClassVar[str | None] = None

    @abstractmethod
    def parse(self, fields: Mapping[str, Any]) -> PreTrainedConfig:
        """transformers' configuration of a config.json, with the defaults of what it leaves out."""

    @abstractmethod
    def decoder(self, theirs: PreTrainedConfig) -> OmnigramConfig:
        """Our configuration of the decoder. ValueError for what it cannot say."""

    def image(self, theirs: PreTrainedConfig) -> PixelTokenizer | None:
        """The image tokenizer that is among the tensors, without memory for its weights."""
        return None

    @abstractmethod
    def compose(self, ours: OmnigramConfig, image: PixelTokenizer | None, names: Mapping[str, int]) -> PreTrainedConfig:
        """transformers' configuration of our model. ValueError for an image tokenizer that has no place in it."""

    @abstractmethod
    def vocabulary(self, theirs: OmnigramConfig, names: Mapping[str, int]) -> Vocabulary:
        """Of the tokens by name. ValueError for those of another model."""

    @abstractmethod
    def card(self, image: PixelTokenizer | None, preprocessing: Preprocessing | None) -> Card:
        """How pictures are written and drawn. ValueError for pixels that the image tokenizer does not take."""

    def own_pixels(self, image: PixelTokenizer) -> Preprocessing | None:
        """How its authors make pixels, for a source that does not say; None where nothing has to be said."""
        return None

    def decoder_key(self, name: str, theirs: PreTrainedConfig) -> str:
        """Their name of a tensor of our decoder."""
        return name

    def image_key(self, name: str) -> str:
        """Their name of a tensor of the image tokenizer."""
        return name

    def tidied(self, checkpoint: Checkpoint) -> Checkpoint:
        """The tensors under the names that transformers gives them today, without those that are computed anyway."""
        return checkpoint

    def processor_files(self, card: Card, names: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """JSON files of tokenizer and processor, for a model that did not come with them."""
        return {}


def shared(config: PreTrainedConfig) -> dict[str, Any]:
    """The arguments that both have by the same names. ValueError for another activation than SwiGLU's."""
    if (act := getattr(config, "hidden_act", "silu")) != "silu":
        raise ValueError(f"hidden_act {act!r} is not supported: the feed-forward is SwiGLU, with silu")
    values = {name: getattr(config, name) for name in (*SHARED, *SPECIALS, "dtype")}
    rope = dict(values["rope_parameters"])
    rope.pop("type", None)  # the old name of rope_type, which is there as well
    return values | {"rope_parameters": rope}


def check_says_the_same(family: Family, ours: OmnigramConfig, theirs: PreTrainedConfig) -> None:
    """ValueError, naming the option, if a model of their configuration would compute something else."""
    said = family.decoder(theirs)
    for name in differences(ours, said):
        raise ValueError(
            f"a {family.name} model has {name} {getattr(said, name)!r}, not {getattr(ours, name)!r} as this one: "
            "export it to another format"
        )


def differences(one: OmnigramConfig, other: OmnigramConfig) -> list[str]:
    """The options by which two configurations compute different things."""
    return [name for name in COMPUTED if getattr(one, name) != getattr(other, name)]


def on_meta(build: Callable[[], PixelTokenizer]) -> PixelTokenizer:
    """An image tokenizer without memory for its weights."""
    with torch.device("meta"):
        return build()


def settings_of(value: PreTrainedConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """A nested configuration as a mapping."""
    return value.to_dict() if isinstance(value, PreTrainedConfig) else dict(value or {})


def parse(family: Family, path: Path) -> PreTrainedConfig:
    """Their configuration in a file. ValueError, naming the file, if it is none."""
    fields = read_json(path)
    try:
        return family.parse(fields)
    except ZeroDivisionError:  # transformers divides before it looks
        raise ValueError(
            f"{path}: a width or a number of heads is 0: take the configuration that belongs to the weights"
        ) from None
    except Exception as fault:  # transformers' checks raise many kinds
        raise ValueError(f"{path} is no configuration of a {family.name}: {' '.join(str(fault).split())}") from None
