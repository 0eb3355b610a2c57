"""Export: a model of Omnigram becomes a folder that transformers loads as one of a published architecture."""

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...data.artefact import check_free, publish_folder
from ...tokenizers.pixel_tokenizer import CONFIG, WEIGHTS, PixelTokenizer, image_tokenizer_class
from ...tokenizers.preprocessing import CHAMELEON_TRANSFORMERS, EMU3_TRANSFORMERS, Preprocessing
from ...tokenizers.preprocessor_config import write_preprocessor_config
from ...tokenizers.published import CHAMELEON_NAMES, IMAGE_PLACEHOLDER, chameleon_code_name
from ...tokenizers.published_text import TEXT_MODEL, TOKENIZER_JSON, load_text_tokenizer
from ...tokenizers.vocabulary import Vocabulary
from ..card import Card
from ..codec import CARD, IMAGE_MODEL, SOURCE, VOCABULARY, read_card, reserved_ids
from ..configuration import OmnigramConfig
from .chameleon import Chameleon
from .downloads import read_json
from .emu3 import Emu3
from .family import (
    GENERATION,
    PREPROCESSOR,
    Family,
    check_says_the_same,
    differences,
    on_meta,
    parse,
    settings_of,
)
from .identity import image_identity
from .importing import Progress, common_dtype, counted
from .llama import Llama
from .rules import KEEP, EachHead, Operation, Rule, check_all_used, planned
from .safetensors_files import SHARD_BYTES, Planned, read_file, read_folder, write_folder
from .sources import FAMILIES, decoder_tensors, token_names
from .stored import keyed

_PROCESSORS = {Chameleon.name: CHAMELEON_TRANSFORMERS, Emu3.name: EMU3_TRANSFORMERS}
_OF_THE_PROCESSOR = ("transparency", "precision", "resize", "min_side", "max_ratio")  # which no file can change


def export_checkpoint(
    folder: Path | str,
    format: str,
    out: Path | str,
    *,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Make a folder for transformers out of an export of Omnigram; memory stays near its largest tensor.

    format: chameleon, emu3 or llama. What was imported from that architecture goes out as it came in: every tensor, and
    the small files. Otherwise configuration and tokenizer files are written anew.

    ValueError or OSError, in one line, for a model that the architecture cannot hold, for a folder that is no export or
    is damaged, and for an `out` that is not empty. Warns of what is left out.
    """
    folder, out = Path(folder), Path(out)
    if format not in FAMILIES:
        raise ValueError(f"format {format!r} is not known: choose one of {', '.join(FAMILIES)}")
    family = FAMILIES[format]
    check_free(out)
    card, vocabulary = read_card(folder)
    ours = _configuration(folder)
    image = None if isinstance(family, Llama) else _image(folder)
    names = _names(folder, vocabulary, None if image is None else family.reserved)
    try:
        theirs = family.compose(ours, image, names)
        check_says_the_same(family, ours, theirs)
    except ValueError as fault:
        raise ValueError(f"{folder}: {fault}") from None

    _check_identities(folder, card.identities, vocabulary, image)
    tensors = _plan(folder, family, ours, theirs, image)
    if theirs.dtype is None:
        theirs.dtype = common_dtype(tensors)
    advance, total = counted(tensors, progress)
    with publish_folder(out, total) as made:
        write_folder(made, tensors, advance, shard_bytes)
        _write_small_files(made, folder, family, theirs, card, names)


def _plan(
    folder: Path, family: Family, ours: OmnigramConfig, theirs: PreTrainedConfig, image: PixelTokenizer | None
) -> list[Planned]:
    """All tensors under their names. ValueError for weights that are not those of the export's config.json."""
    checkpoint = read_folder(folder)
    per_head = copy.deepcopy(ours)
    per_head.qk_norm_per_head = ours.qk_norm != "none"  # as transformers' Chameleon stores it
    decoder = decoder_tensors(per_head)
    rules = [Rule(family.decoder_key(name, theirs), (name,), _operation(name, ours)) for name in decoder]
    targets = {family.decoder_key(name, theirs): tensor for name, tensor in decoder.items()}
    inside = family.image(theirs)
    if image is not None and inside is not None:
        kept = inside.state_dict()
        weights = read_file(folder / IMAGE_MODEL / WEIGHTS)
        left_out = [name for name in image.state_dict() if name not in kept]
        if left_out:
            warnings.warn(
                f"transformers' {family.name} has no image decoder: {len(left_out)} tensors of it are left out",
                stacklevel=3,
            )
        checkpoint |= keyed("image", {name: stored for name, stored in weights.items() if name not in left_out})
        rules += [Rule(family.image_key(name), (f"image:{name}",)) for name in kept]
        targets |= {family.image_key(name): tensor for name, tensor in kept.items()}
    elif (folder / IMAGE_MODEL).is_dir():
        warnings.warn(f"transformers' {family.name} has no image tokenizer: that of {folder} is left out", stacklevel=3)
    check_all_used(rules, checkpoint, str(folder / CONFIG))
    return planned(rules, targets, checkpoint, folder, str(folder / CONFIG))


def _operation(name: str, config: OmnigramConfig) -> Operation:
    """One norm for all heads is repeated for each."""
    if config.qk_norm == "none" or config.qk_norm_per_head:
        return KEEP
    assert config.num_key_value_heads is not None
    if ".q_norm." in name:
        return EachHead(config.num_attention_heads)
    return EachHead(config.num_key_value_heads) if ".k_norm." in name else KEEP


def _configuration(folder: Path) -> OmnigramConfig:
    """Of the decoder. ValueError, naming the file, if it is none of ours."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not an export of Omnigram: {CONFIG} is missing")
    kind = read_json(path).get("model_type")
    if kind != OmnigramConfig.model_type:
        raise ValueError(f"{path} is of a model of type {kind!r}, not of an export of Omnigram: import it first")
    try:
        return OmnigramConfig.from_pretrained(folder)
    except Exception as fault:  # transformers' checks raise many kinds
        raise ValueError(f"{path} is not the configuration of an export: {' '.join(str(fault).split())}") from None


def _image(folder: Path) -> PixelTokenizer | None:
    """The image tokenizer of an export, if there is one. ValueError if its configuration is damaged."""
    folder = folder / IMAGE_MODEL
    return on_meta(lambda: image_tokenizer_class(folder).from_config(folder)) if folder.is_dir() else None


def _check_identities(
    folder: Path, recorded: Mapping[str, str], vocabulary: Vocabulary, image: PixelTokenizer | None
) -> None:
    """ValueError, naming the file, for one that is not what the card says the weights were trained with.

    image: the tokenizer that goes out, if one does.
    """
    there = {"vocabulary": (folder / VOCABULARY, vocabulary.identity)}
    if "text" in recorded:
        text = load_text_tokenizer(folder, reserved_ids(vocabulary))
        file = TEXT_MODEL if (folder / TEXT_MODEL).is_file() else TOKENIZER_JSON
        there["text"] = (folder / file, text.identity)
    if image is not None:
        weights = folder / IMAGE_MODEL / WEIGHTS
        there["image"] = (weights, image_identity(image, read_file(weights)))
    for name, (file, found) in there.items():
        if recorded.get(name, found) != found:
            raise ValueError(
                f"{file} is not what the model was trained with ({name} {found[:12]}, in {CARD} "
                f"{recorded[name][:12]}): put back the file that belongs to it, or make the export again"
            )


def _names(folder: Path, vocabulary: Vocabulary, reserved: str | None) -> dict[str, int]:
    """Tokens by name; of a model without a tokenizer.json those of the marks and codes, as Chameleon calls them.

    reserved: the token that becomes transformers' placeholder for codes, where that has none.
    """
    if (folder / TOKENIZER_JSON).is_file():
        names = token_names(folder / TOKENIZER_JSON)
    elif (folder / SOURCE / CONFIG).is_file():
        names = dict(read_json(folder / SOURCE / CONFIG).get("vocabulary_map") or {})
    else:
        names = {}
    if "image" not in vocabulary.modalities:
        return names
    if not names:
        names = {CHAMELEON_NAMES.get(name, f"<{name}>"): id_ for name, id_ in vocabulary.specials.items()}
        ids = vocabulary.encode("image", range(vocabulary.range("image").size))
        names |= {chameleon_code_name(code): int(id_) for code, id_ in enumerate(ids)}
    if reserved is not None and reserved in names and IMAGE_PLACEHOLDER not in names:
        names[IMAGE_PLACEHOLDER] = names.pop(reserved)
    return names


def _write_small_files(
    made: Path, folder: Path, family: Family, theirs: PreTrainedConfig, card: Card, names: Mapping[str, int]
) -> None:
    kept = folder / SOURCE
    came_from = kept / CONFIG
    back = came_from.is_file() and read_json(came_from).get("model_type") == theirs.model_type
    files = [file for file in sorted(kept.iterdir()) if file.name != CONFIG] if back else []
    if (folder / GENERATION).is_file():
        files.insert(0, folder / GENERATION)
    for file in files:
        shutil.copyfile(file, made / file.name)
    if back and _same(family, parse(family, came_from), theirs):
        shutil.copyfile(came_from, made / CONFIG)
    else:
        theirs.save_pretrained(made)
    if not (folder / TOKENIZER_JSON).is_file():
        return
    if IMAGE_PLACEHOLDER in names and IMAGE_PLACEHOLDER not in token_names(folder / TOKENIZER_JSON):
        assert family.reserved is not None
        text = (folder / TOKENIZER_JSON).read_text(encoding="utf-8")
        (made / TOKENIZER_JSON).write_text(_renamed(text, family.reserved, IMAGE_PLACEHOLDER), encoding="utf-8")
    else:
        shutil.copyfile(folder / TOKENIZER_JSON, made / TOKENIZER_JSON)
    for name, content in family.processor_files(card, names).items():
        if not back:
            (made / name).write_text(json.dumps(content, indent=2) + "\n")
    if card.preprocessing is not None and not back and family.reserved is not None:
        (made / PREPROCESSOR).write_text(json.dumps(_preprocessor(family, card.preprocessing), indent=2) + "\n")


def _same(family: Family, one: PreTrainedConfig, other: PreTrainedConfig) -> bool:
    """Whether two of their configurations are of one model, with weights of one type."""
    if type(one) is not type(other) or differences(family.decoder(one), family.decoder(other)):
        return False
    images = [family.image(config) for config in (one, other)]
    settings = [image.settings if image else None for image in images]
    maps = [settings_of(getattr(config, "vocabulary_map", None)) for config in (one, other)]
    dtypes = {config.dtype for config in (one, other)} - {None}
    return settings[0] == settings[1] and maps[0] == maps[1] and len(dtypes) < 2


def _preprocessor(family: Family, preprocessing: Preprocessing) -> dict[str, Any]:
    """For transformers' image processor, which may only come near. Warns if so."""
    try:
        return write_preprocessor_config(preprocessing)
    except ValueError as fault:
        near = {name: getattr(_PROCESSORS[family.name], name) for name in _OF_THE_PROCESSOR}
        reason = str(fault).partition(";")[0]
        warnings.warn(f"{PREPROCESSOR} only comes near to the model's own pixels: {reason}", stacklevel=4)
        return write_preprocessor_config(replace(preprocessing, **near))


def _renamed(text: str, old: str, new: str) -> str:
    """A tokenizer.json in which a token has another name."""
    fields = json.loads(text)
    vocab = fields["model"]["vocab"]
    fields["model"]["vocab"] = {new if name == old else name: id_ for name, id_ in vocab.items()}
    for token in fields.get("added_tokens") or []:
        if token["content"] == old:
            token["content"] = new
    return json.dumps(fields, ensure_ascii=False)
