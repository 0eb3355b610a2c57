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

from ...tokenizers.movqgan import MoVQGAN
from ...tokenizers.pixel_tokenizer import CONFIG, PixelTokenizer
from ...tokenizers.preprocessing import CHAMELEON_TRANSFORMERS, EMU3_TRANSFORMERS
from ...tokenizers.published import CHAMELEON_NAMES, chameleon_code_name
from ...tokenizers.published_text import TOKENIZER_JSON
from ...tokenizers.vocabulary import Vocabulary
from ...tokenizers.vqgan import VQGAN
from ..card import Card
from ..codec import IMAGE_MODEL, read_card
from ..configuration import OmnigramConfig
from .family import Family, check_says_the_same, differences, on_meta, parse, read_json, settings_of
from .importing import SOURCE, Progress, common_dtype, counted
from .new_folder import check_free, new_folder
from .rules import KEEP, EachHead, Operation, Rule, check_all_used, planned
from .safetensors_files import SHARD_BYTES, WEIGHTS, Planned, read_file, read_folder, write_folder
from .sources import FAMILIES, PREPROCESSOR, decoder_tensors, token_names
from .stored import keyed

RESERVED_IMAGE = "<reserved08707>"  # Meta's name of the token that transformers calls "<image>"


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
    ours = OmnigramConfig.from_pretrained(folder)
    image = _image(folder) if format != "llama" else None
    names = _names(folder, vocabulary)
    try:
        theirs = family.compose(ours, image, names)
        check_says_the_same(family, ours, theirs)
    except ValueError as fault:
        raise ValueError(f"{folder}: {fault}") from None

    tensors = _plan(folder, family, ours, theirs, image)
    if theirs.dtype is None:
        theirs.dtype = common_dtype(tensors)
    advance, total = counted(tensors, progress)
    with new_folder(out, total) as made:
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
    check_all_used(rules, checkpoint, str(folder / "config.json"))
    return planned(rules, targets, checkpoint, folder, str(folder / "config.json"))


def _operation(name: str, config: OmnigramConfig) -> Operation:
    """One norm for all heads is repeated for each."""
    if config.qk_norm == "none" or config.qk_norm_per_head:
        return KEEP
    assert config.num_key_value_heads is not None
    if ".q_norm." in name:
        return EachHead(config.num_attention_heads)
    return EachHead(config.num_key_value_heads) if ".k_norm." in name else KEEP


def _image(folder: Path) -> PixelTokenizer | None:
    """The image tokenizer of an export, on the meta device. ValueError if no published architecture has its kind."""
    if not (folder / IMAGE_MODEL).is_dir():
        return None
    settings = read_json(folder / IMAGE_MODEL / CONFIG)
    kind = settings.pop("kind", None)
    classes: Mapping[str, type[PixelTokenizer]] = {each.kind: each for each in (VQGAN, MoVQGAN)}
    if kind not in classes:
        raise ValueError(
            f"{folder / IMAGE_MODEL} is of kind {kind or 'vqvae'}, which no published architecture holds: "
            "only the decoder can go out, as llama"
        )
    try:
        return on_meta(lambda: classes[kind].from_settings(settings))
    except (TypeError, KeyError, ValueError) as fault:
        path = folder / IMAGE_MODEL / CONFIG
        raise ValueError(f"{path} is not the configuration of an image tokenizer: {fault}") from None


def _names(folder: Path, vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens by name; of a model without a tokenizer.json those of the marks and codes, as Chameleon calls them."""
    if (folder / TOKENIZER_JSON).is_file():
        names = token_names(folder / TOKENIZER_JSON)
    elif (folder / SOURCE / "config.json").is_file():
        names = dict(read_json(folder / SOURCE / "config.json").get("vocabulary_map") or {})
    else:
        names = {}
    if "image" not in vocabulary.modalities:
        return names
    if not names:
        names = {CHAMELEON_NAMES.get(name, f"<{name}>"): id_ for name, id_ in vocabulary.specials.items()}
        ids = vocabulary.encode("image", range(vocabulary.range("image").size))
        names |= {chameleon_code_name(code): int(id_) for code, id_ in enumerate(ids)}
    if CHAMELEON_NAMES["image"] not in names and RESERVED_IMAGE in names:
        names[CHAMELEON_NAMES["image"]] = names.pop(RESERVED_IMAGE)
    return names


def _write_small_files(
    made: Path, folder: Path, family: Family, theirs: PreTrainedConfig, card: Card, names: Mapping[str, int]
) -> None:
    kept = folder / SOURCE
    came_from = kept / "config.json"
    back = came_from.is_file() and read_json(came_from).get("model_type") in family.model_types
    files = [file for file in sorted(kept.iterdir()) if file.name != "config.json"] if back else []
    if (folder / "generation_config.json").is_file():
        files.insert(0, folder / "generation_config.json")
    for file in files:
        shutil.copyfile(file, made / file.name)
    if back and _same(family, parse(family, came_from), theirs):
        shutil.copyfile(came_from, made / "config.json")
    else:
        theirs.save_pretrained(made)
    if not (folder / TOKENIZER_JSON).is_file():
        return
    text = (folder / TOKENIZER_JSON).read_text(encoding="utf-8")
    if family.name == "chameleon" and RESERVED_IMAGE in text and CHAMELEON_NAMES["image"] in names:
        (made / TOKENIZER_JSON).write_text(_with_image_token(text), encoding="utf-8")
    else:
        shutil.copyfile(folder / TOKENIZER_JSON, made / TOKENIZER_JSON)
    for name, content in family.processor_files(card, names).items():
        if not back:
            (made / name).write_text(json.dumps(content, indent=2) + "\n")
    if card.preprocessing is not None and not back and family.name != "llama":
        (made / PREPROCESSOR).write_text(json.dumps(_preprocessor(family, card), indent=2) + "\n")


def _same(family: Family, one: PreTrainedConfig, other: PreTrainedConfig) -> bool:
    """Whether two of their configurations are of one model, with weights of one type."""
    if type(one) is not type(other) or differences(family.decoder(one), family.decoder(other)):
        return False
    images = [family.image(config) for config in (one, other)]
    settings = [image.settings if image else None for image in images]
    maps = [settings_of(getattr(config, "vocabulary_map", None)) for config in (one, other)]
    dtypes = {config.dtype for config in (one, other)} - {None}
    return settings[0] == settings[1] and maps[0] == maps[1] and len(dtypes) < 2


def _preprocessor(family: Family, card: Card) -> dict[str, Any]:
    """For transformers' image processor, which may only come near. Warns if so."""
    assert card.preprocessing is not None
    try:
        return card.preprocessing.to_hf()
    except ValueError as fault:
        default = CHAMELEON_TRANSFORMERS if family.name == "chameleon" else EMU3_TRANSFORMERS
        same = ("side", "crop", "multiple", "min_pixels", "max_pixels", "resample")
        near = replace(default, **{name: getattr(card.preprocessing, name) for name in same})
        reason = str(fault).partition(";")[0]
        warnings.warn(f"{PREPROCESSOR} only comes near to the model's own pixels: {reason}", stacklevel=4)
        return near.to_hf()


def _with_image_token(text: str) -> str:
    """A tokenizer.json in which Meta's reserved token has the name that transformers gives it."""
    fields = json.loads(text)
    image = CHAMELEON_NAMES["image"]
    vocab = fields["model"]["vocab"]
    fields["model"]["vocab"] = {image if name == RESERVED_IMAGE else name: id_ for name, id_ in vocab.items()}
    for token in fields.get("added_tokens") or []:
        if token["content"] == RESERVED_IMAGE:
            token["content"] = image
    return json.dumps(fields, ensure_ascii=False)
