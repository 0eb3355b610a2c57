"""Chameleon, as transformers has it: the decoder, and the VQGAN without its decoder. https://arxiv.org/abs/2405.09818"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import ChameleonConfig, PreTrainedConfig

from ...tokenizers.pixel_tokenizer import PixelTokenizer
from ...tokenizers.preprocessing import CHAMELEON, Preprocessing
from ...tokenizers.published import CHAMELEON_GRAMMAR, CHAMELEON_NAMES, CHAMELEON_RESERVED, chameleon_vocabulary
from ...tokenizers.vocabulary import Vocabulary
from ...tokenizers.vqgan import VQGAN, VQGANConfig
from ..card import Card
from ..configuration import OmnigramConfig
from ..generation.choice import Sampling
from .family import Family, on_meta, settings_of, shared

HEAD_NORM_EPS = 1e-5  # of the query and key norms, whatever the configuration says of the others
SAMPLING = {
    "text": Sampling(temperature=0.7, top_p=0.9),
    "image": Sampling(temperature=0.7, top_p=0.9, guidance=3.0),
}


class Chameleon(Family):
    name = "chameleon"
    model_types = ("chameleon",)
    reserved = CHAMELEON_RESERVED

    def parse(self, fields: Mapping[str, Any]) -> PreTrainedConfig:
        return ChameleonConfig(**fields)

    def decoder(self, theirs: PreTrainedConfig) -> OmnigramConfig:
        check_eps(theirs.rms_norm_eps)
        return OmnigramConfig(
            **shared(theirs),
            qk_norm="layer",
            qk_norm_per_head=True,
            norm_order="swin" if theirs.swin_norm else "pre",
        )

    def image(self, theirs: PreTrainedConfig) -> PixelTokenizer:
        config = VQGANConfig.from_hf(settings_of(theirs.vq_config))
        return on_meta(lambda: VQGAN(config))

    def compose(self, ours: OmnigramConfig, image: PixelTokenizer | None, names: Mapping[str, int]) -> PreTrainedConfig:
        if not isinstance(image, VQGAN):
            kind = "no image tokenizer" if image is None else f"one of kind {image.kind}"
            raise ValueError(
                f"a chameleon model holds an image tokenizer of kind vqgan, and here is {kind}: export it to another "
                "format, llama holds the decoder alone"
            )
        return ChameleonConfig(
            **shared(ours),
            swin_norm=ours.norm_order == "swin",
            vq_config=image.config.to_hf(),
            vocabulary_map=dict(names),
            architectures=["ChameleonForConditionalGeneration"],
        )

    def vocabulary(self, theirs: OmnigramConfig, names: Mapping[str, int]) -> Vocabulary:
        return chameleon_vocabulary(names, theirs.vocab_size)

    def card(self, image: PixelTokenizer | None, preprocessing: Preprocessing | None) -> Card:
        assert isinstance(image, VQGAN)
        side = image.config.resolution
        height, width = (preprocessing and preprocessing.crop) or (side, side)
        if height % image.patch or width % image.patch:
            raise ValueError(
                f"pictures of {height} x {width} pixels: sides must be multiples of {image.patch}; correct it"
            )
        grid = (height // image.patch, width // image.patch)
        grammar = replace(CHAMELEON_GRAMMAR, fixed_size=grid)
        return Card(sizes=(grid,), grammars={"image": grammar}, preprocessing=preprocessing, sampling=SAMPLING)

    def own_pixels(self, image: PixelTokenizer) -> Preprocessing | None:
        """Meta's, on which the weights were trained; transformers' own come near."""
        assert isinstance(image, VQGAN)
        side = image.config.resolution
        return replace(CHAMELEON, side=side, crop=(side, side))

    def image_key(self, name: str) -> str:
        return f"model.vqmodel.{name}"

    def processor_files(self, card: Card, names: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        marks = {"image_token": "image", "boi_token": "boi", "eoi_token": "eoi"}
        specials = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "sep_token": "eot"}
        height, width = card.sizes[0]
        return {
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "extra_special_tokens": {token: CHAMELEON_NAMES[name] for token, name in marks.items()},
                **{token: CHAMELEON_NAMES[name] for token, name in specials.items() if CHAMELEON_NAMES[name] in names},
            },
            "processor_config.json": {
                "processor_class": "ChameleonProcessor",
                "image_seq_length": height * width,
                "image_token": CHAMELEON_NAMES["image"],
            },
        }


def check_eps(eps: float) -> None:
    """ValueError for an epsilon with which ours would not compute what theirs does."""
    if eps != HEAD_NORM_EPS:
        raise ValueError(
            f"rms_norm_eps {eps} is not supported: the query and key norms of Chameleon have {HEAD_NORM_EPS}, "
            "and ours have that of all norms"
        )
