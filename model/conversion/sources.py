"""What is imported: the folder of a published model, read but for the contents of its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...tokenizers.pixel_tokenizer import CONFIG, PixelTokenizer
from ...tokenizers.preprocessing import Preprocessing
from ...tokenizers.preprocessor_config import read_preprocessor_config
from ...tokenizers.published_text import TOKENIZER_JSON
from ...tokenizers.vqgan import VQGAN
from ..configuration import OmnigramConfig
from ..size import build_on_meta
from .chameleon import Chameleon
from .downloads import read_json
from .emu3 import Emu3
from .family import GENERATION, PREPROCESSOR, Family, parse
from .image_sources import CHECKPOINT, ImageSource, read_image_source
from .llama import Llama
from .lumina import Lumina
from .meta import CONSOLIDATE, PARAMS, TEXT_TOKENIZER, read_meta
from .rules import KEEP, Rule
from .safetensors_files import read_folder
from .stored import Checkpoint

FAMILIES: dict[str, Family] = {family.name: family for family in (Chameleon(), Emu3(), Llama())}
GRAMMARS: dict[str, Family] = {"lumina": Lumina()}  # how a model of a family writes pictures, if not as it does
# small files that are kept, for the export to give them back
KEPT = (
    CONFIG,
    GENERATION,
    PREPROCESSOR,
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)


@dataclass(frozen=True)
class Source:
    """config: ours, still without dtype and specials. image: on the meta device, None if there is none.

    decoder_rules, image_rules: of all our tensors, out of `checkpoint`.
    config_file, image_config_file: what gave the tensors their shapes.
    vocabulary_map: tokens by name as config.json has them, {} if it does not.
    text_tokenizer: the tokenizer.json, if there is one.
    files: small ones that are kept.
    """

    folder: Path
    family: Family
    config: OmnigramConfig
    image: PixelTokenizer | None
    checkpoint: Checkpoint
    decoder_rules: Sequence[Rule]
    image_rules: Sequence[Rule]
    config_file: Path
    image_config_file: Path
    vocabulary_map: Mapping[str, int]
    text_tokenizer: Path | None
    preprocessing: Preprocessing | None
    files: Sequence[Path]


def decoder_tensors(config: OmnigramConfig) -> dict[str, Tensor]:
    """The tensors of our decoder as files have them, on the meta device: a tied head is not there."""
    tensors = build_on_meta(config).state_dict()
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return tensors


def read_source(folder: Path, image_tokenizer: Path | None = None, text_tokenizer: Path | None = None) -> Source:
    """Read a folder of transformers' or of Meta's kind, with what is not in it.

    image_tokenizer: a folder of it, or a vqgan.ckpt. text_tokenizer: a tokenizer.json.
    FileNotFoundError, NotADirectoryError or ValueError, in one line, for what is missing or not known.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: name that of a published model")
    if text_tokenizer is not None and not text_tokenizer.is_file():
        raise FileNotFoundError(f"{text_tokenizer} is no file: name a {TOKENIZER_JSON}")
    if (folder / CONFIG).is_file():
        return _of_transformers(folder, image_tokenizer, text_tokenizer)
    if (folder / PARAMS).is_file():
        return _of_meta(folder, image_tokenizer, text_tokenizer)
    raise FileNotFoundError(
        f"{folder} holds no model: neither {CONFIG} (as transformers saves it) nor {PARAMS} (as Meta does) is there"
    )


def _of_transformers(folder: Path, image_tokenizer: Path | None, text_tokenizer: Path | None) -> Source:
    path = folder / CONFIG
    fields = read_json(path)
    kind = fields.get("model_type")
    if kind == OmnigramConfig.model_type:
        raise ValueError(f"{folder} is an export of Omnigram already: give it to the other commands as it is")
    family = next((family for family in FAMILIES.values() if kind in family.model_types), None)
    if family is None:
        known = ", ".join(name for family in FAMILIES.values() for name in family.model_types)
        raise ValueError(f"{path}: model_type {kind!r} is not known; those that are: {known}")
    theirs = parse(family, path)
    try:
        config, image = family.decoder(theirs), family.image(theirs)
    except (ValueError, TypeError, KeyError, ArithmeticError) as fault:
        raise ValueError(f"{path}: {fault}") from None
    checkpoint = family.tidied(read_folder(folder))
    decoder_rules = [Rule(name, (family.decoder_key(name, theirs),)) for name in decoder_tensors(config)]
    image_rules = [Rule(name, (family.image_key(name),)) for name in image.state_dict()] if image else []
    files = [folder / name for name in KEPT if (folder / name).is_file()]
    text_tokenizer = text_tokenizer or folder / TOKENIZER_JSON
    found = Source(
        folder=folder,
        family=family,
        config=config,
        image=image,
        checkpoint=checkpoint,
        decoder_rules=decoder_rules,
        image_rules=image_rules,
        config_file=path,
        image_config_file=path,
        vocabulary_map=_vocabulary_map(path, fields),
        text_tokenizer=text_tokenizer if text_tokenizer.is_file() else None,
        preprocessing=_preprocessing(folder / PREPROCESSOR),
        files=files,
    )
    return found if image_tokenizer is None else _with_image(found, read_image_source(image_tokenizer))


def _of_meta(folder: Path, image_tokenizer: Path | None, text_tokenizer: Path | None) -> Source:
    model, family = read_meta(folder), FAMILIES[Chameleon.name]
    places = [folder / "tokenizer", folder.parent / "tokenizer", folder.parent.parent / "tokenizer"]
    beside = next((place for place in places if place.is_dir()), places[-1])
    image = read_image_source(image_tokenizer or beside / CHECKPOINT)
    text_tokenizer = text_tokenizer or beside / TEXT_TOKENIZER
    if not text_tokenizer.is_file():
        raise FileNotFoundError(f"{text_tokenizer} is missing: name the file of the text tokenizer")
    if not isinstance(image.tokenizer, VQGAN):
        raise ValueError(f"{image.config} is of an image tokenizer that is not Chameleon's: name its {CHECKPOINT}")
    files = [folder / name for name in (PARAMS, CONSOLIDATE) if (folder / name).is_file()]
    return Source(
        folder=folder,
        family=family,
        config=model.config,
        image=image.tokenizer,
        checkpoint=model.checkpoint | image.checkpoint,
        decoder_rules=model.rules(list(decoder_tensors(model.config))),
        image_rules=image.rules,
        config_file=folder / PARAMS,
        image_config_file=image.config,
        vocabulary_map={},
        text_tokenizer=text_tokenizer,
        preprocessing=family.own_pixels(image.tokenizer),
        files=(*files, *image.files),
    )


def _with_image(source: Source, image: ImageSource) -> Source:
    """The source with an image tokenizer from elsewhere, which may have the decoder that the one in it lacks.

    ValueError if it has another place already, or none.
    """
    rules = list(image.rules)
    if isinstance(source.family, Llama):
        raise ValueError(f"{source.config_file} is of a model without pictures: leave the image tokenizer out")
    if isinstance(source.image, VQGAN) and isinstance(image.tokenizer, VQGAN):
        if replace(image.tokenizer.config, decoder=False, dropout=0.0) != replace(source.image.config, dropout=0.0):
            raise ValueError(f"{image.config} is not of the image tokenizer that {source.config_file} describes")
        there = {rule.target: rule.sources for rule in source.image_rules}
        rules = [Rule(rule.target, (*there.get(rule.target, ()), *rule.sources), KEEP) for rule in rules]
    elif source.image is not None:
        raise ValueError(f"{source.folder} has an image tokenizer, of kind {source.image.kind}: name no other one")
    elif source.family.name != "emu3" or isinstance(image.tokenizer, VQGAN):
        raise ValueError(f"{image.config} is no image tokenizer of an {source.family.name} model")
    elsewhere = next((file for file in image.files if file.name == PREPROCESSOR), None)
    preprocessing = source.preprocessing or (_preprocessing(elsewhere) if elsewhere else None)
    return replace(
        source,
        image=image.tokenizer,
        checkpoint=source.checkpoint | image.checkpoint,
        image_rules=rules,
        image_config_file=image.config,
        preprocessing=preprocessing,
        files=(*source.files, *(file for file in image.files if source.folder / file.name not in source.files)),
    )


def _vocabulary_map(path: Path, fields: Mapping[str, Any]) -> dict[str, int]:
    found = fields.get("vocabulary_map") or {}
    if not isinstance(found, dict) or not all(isinstance(id_, int) for id_ in found.values()):
        raise ValueError(f"{path}: vocabulary_map is not tokens by name with an id each: download it again")
    return found


def _preprocessing(path: Path) -> Preprocessing | None:
    if not path.is_file():
        return None
    try:
        return read_preprocessor_config(read_json(path))
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from None


def token_names(path: Path) -> dict[str, int]:
    """The tokens of a tokenizer.json by name. ValueError if it is none."""
    fields = read_json(path)
    try:
        added = {token["content"]: token["id"] for token in fields.get("added_tokens") or []}
        return {**fields["model"]["vocab"], **added}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no {TOKENIZER_JSON} of Hugging Face's tokenizers: it has no model.vocab") from None
