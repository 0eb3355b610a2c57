"""Emu3, as transformers and BAAI have it: the decoder, with or without the MoVQGAN. https://arxiv.org/abs/2409.18869

transformers' folders hold both (model_type emu3) or the decoder alone (emu3_text_model); BAAI's hold the decoder alone
under Llama's names (Emu3), and have the image tokenizer in a repository of its own.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import Emu3Config, Emu3TextConfig, PreTrainedConfig

from ...tokenizers.movqgan import MoVQGAN, MoVQGANConfig
from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ...tokenizers.preprocessing import EMU3, Preprocessing
from ...tokenizers.published import EMU3_GRAMMAR, EMU3_NAMES, EMU3_RESERVED, IMAGE_PLACEHOLDER, emu3_vocabulary
from ...tokenizers.vocabulary import Vocabulary
from ..card import Card
from ..configuration import OmnigramConfig
from ..generation.choice import Sampling
from .family import Family, on_meta, settings_of, shared
from .stored import Checkpoint

SAMPLING = {"text": Sampling(temperature=0.7, top_p=0.9), "image": Sampling(top_k=2048, guidance=3.0)}
SIDE = 720  # pixels a side of what it draws, where nothing else is asked for
MAX_SIDE = 512  # codes: 4,096 pixels, which thin pictures reach
# Names in memory -> those in files, which transformers has kept as they were first published.
IN_FILES = (
    (re.compile(r"^model\.text_model\."), "text_model.model."),
    (re.compile(r"^lm_head\."), "text_model.lm_head."),
    (re.compile(r"^model\.vqmodel\."), "vqmodel."),
)


class Emu3(Family):
    name = "emu3"
    model_types = ("emu3", "emu3_text_model", "Emu3")
    reserved = EMU3_RESERVED

    def parse(self, fields: Mapping[str, Any]) -> PreTrainedConfig:
        if fields["model_type"] == "emu3":
            return Emu3Config(**fields)
        return Emu3TextConfig(**fields)

    def decoder(self, theirs: PreTrainedConfig) -> OmnigramConfig:
        text: Any = theirs.text_config if isinstance(theirs, Emu3Config) else theirs
        options: dict[str, Any] = shared(text) | {"head_dim": getattr(text, "head_dim", None)}
        options |= {"tie_word_embeddings": theirs.tie_word_embeddings, "dtype": theirs.dtype or text.dtype}
        return OmnigramConfig(**options)

    def image(self, theirs: PreTrainedConfig) -> PixelTokenizer | None:
        if not isinstance(theirs, Emu3Config):
            return None
        config = MoVQGANConfig.from_hf(settings_of(theirs.vq_config))
        return on_meta(lambda: MoVQGAN(config))

    def compose(self, ours: OmnigramConfig, image: PixelTokenizer | None, names: Mapping[str, int]) -> PreTrainedConfig:
        text: dict[str, Any] = shared(ours) | {"head_dim": ours.head_dim}
        if image is None:
            return Emu3TextConfig(**text, architectures=["Emu3ForCausalLM"])
        if not isinstance(image, MoVQGAN):
            raise ValueError(
                f"an emu3 model holds an image tokenizer of kind movqgan, and here is one of kind {image.kind}: export "
                "it to another format, llama holds the decoder alone"
            )
        return Emu3Config(
            text_config=text,
            vq_config=image.config.to_hf(),
            vocabulary_map=dict(names),
            tie_word_embeddings=ours.tie_word_embeddings,
            dtype=ours.dtype,
            architectures=["Emu3ForConditionalGeneration"],
        )

    def vocabulary(self, theirs: OmnigramConfig, names: Mapping[str, int]) -> Vocabulary:
        return emu3_vocabulary(names, theirs.vocab_size)

    def card(self, image: PixelTokenizer | None, preprocessing: Preprocessing | None) -> Card:
        side = min(SIDE // (image.patch if image else EMU3.multiple or 1), MAX_SIDE)
        return Card(
            sizes=((side, side),),
            grammars={"image": EMU3_GRAMMAR},
            max_side=MAX_SIDE,
            preprocessing=preprocessing,
            sampling=SAMPLING,
        )

    def own_pixels(self, image: PixelTokenizer) -> Preprocessing | None:
        """BAAI's: transformers' processor has the mean and deviation of CLIP where no file says otherwise."""
        return EMU3

    def decoder_key(self, name: str, theirs: PreTrainedConfig) -> str:
        return f"text_model.{name}" if isinstance(theirs, Emu3Config) else name

    def image_key(self, name: str) -> str:
        return f"vqmodel.{name}"

    def tidied(self, checkpoint: Checkpoint) -> Checkpoint:
        if not any(key.startswith("model.text_model.") for key in checkpoint):
            return checkpoint
        renamed: Checkpoint = {}
        for key, stored in checkpoint.items():
            for pattern, in_files in IN_FILES:
                key = pattern.sub(in_files, key)
            renamed[key] = stored
        return renamed

    def processor_files(self, card: Card, names: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        marks = {"boi_token": "boi", "eoi_token": "eoi", "image_wrapper_token": "img", "eof_token": "eof"}
        specials = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad"}
        tokens = {token: EMU3_NAMES[name] for token, name in marks.items()}
        return {
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "extra_special_tokens": tokens
                | ({"image_token": IMAGE_PLACEHOLDER} if IMAGE_PLACEHOLDER in names else {}),
                **{token: EMU3_NAMES[name] for token, name in specials.items()},
            },
            "processor_config.json": {"processor_class": "Emu3Processor"},
        }
