"""Import: a published model becomes an export of Omnigram, tensor by tensor."""

import dataclasses
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ...data.artefact import check_free, publish_folder
from ...tokenizers.pixel_tokenizer import CONFIG, WEIGHTS
from ...tokenizers.published_text import TOKENIZER_JSON, PublishedText
from ...tokenizers.vocabulary import Vocabulary
from ..card import Card
from ..codec import CARD, IMAGE_MODEL, SOURCE, VOCABULARY, Codec, reserved_ids
from .family import GENERATION, PREPROCESSOR
from .identity import image_identity
from .rules import check_all_used, planned
from .safetensors_files import SHARD_BYTES, Planned, read_file, write_file, write_folder
from .sources import GRAMMARS, Source, decoder_tensors, read_source, token_names

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def import_checkpoint(
    source: Path | str,
    out: Path | str,
    *,
    image_tokenizer: Path | str | None = None,
    text_tokenizer: Path | str | None = None,
    grammar: str | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Make an export of Omnigram out of a published model; memory stays near its largest tensor.

    source: a folder of transformers (model_type chameleon, emu3, emu3_text_model, llama, or Emu3 as BAAI has it), or of
        Meta's Chameleon (consolidated.*.pth beside params.json).
    out: the folder that is made; it is whole or not there.
    image_tokenizer: what the source lacks, a vqgan.ckpt (with vqgan.yaml beside it) or a folder of one tokenizer.
    text_tokenizer: a tokenizer.json in place of the source's.
    grammar: how the model writes pictures, if not as its architecture was published: "lumina" for a chameleon.
    progress: is told bytes done and bytes in all.
    shard_bytes: weights beyond it go into several files.

    Every tensor keeps its type and its bits. Warns of what the export will not do.

    ValueError or OSError, in one line that names file, tensor and remedy, for a source that is damaged, contradicts
    itself or is not known, and for an `out` that is not empty.
    """
    out = Path(out)
    check_free(out)
    read = read_source(
        Path(source),
        None if image_tokenizer is None else Path(image_tokenizer),
        None if text_tokenizer is None else Path(text_tokenizer),
    )
    if grammar is not None:
        if grammar not in GRAMMARS or not isinstance(GRAMMARS[grammar], type(read.family)):
            raise ValueError(f"grammar {grammar!r} is not known for a {read.family.name}: leave it out")
        read = dataclasses.replace(read, family=GRAMMARS[grammar])
    decoder = planned(
        read.decoder_rules, decoder_tensors(read.config), read.checkpoint, read.folder, str(read.config_file)
    )
    image: list[Planned] = []
    if read.image is not None:
        targets = read.image.state_dict()
        image = planned(read.image_rules, targets, read.checkpoint, read.folder, str(read.image_config_file))
    check_all_used([*read.decoder_rules, *read.image_rules], read.checkpoint, str(read.config_file))
    vocabulary, text = _languages(read)
    card = _card(read)
    _warn_of_what_is_not_there(read, vocabulary, text, card)
    advance, total = counted([*decoder, *image], progress)
    with publish_folder(out, total) as folder:
        write_folder(folder, decoder, advance, shard_bytes)
        if read.image is not None:
            (folder / IMAGE_MODEL).mkdir()
            write_file(folder / IMAGE_MODEL / WEIGHTS, image, advance)
        _write_small_files(folder, read, vocabulary, text, card, common_dtype(decoder))


def counted(tensors: Sequence[Planned], progress: Progress | None) -> tuple[Callable[[int], None], int]:
    """What is called with the bytes of each tensor written, and the bytes of all."""
    total, done = sum(tensor.num_bytes for tensor in tensors), 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    return advance, total


def common_dtype(tensors: Sequence[Planned]) -> torch.dtype:
    """The type of most bytes."""
    count: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        count[tensor.dtype] += tensor.num_bytes
    return count.most_common(1)[0][0]


def _languages(source: Source) -> tuple[Vocabulary, PublishedText | None]:
    """The vocabulary and the text tokenizer. ValueError, naming the file, if they are of another model."""
    names = dict(source.vocabulary_map)
    path, file = source.config_file, source.text_tokenizer
    if file is not None:
        listed, names = names, token_names(file)
        for name, id_ in listed.items():
            if names.get(name, id_) != id_ or name not in names:
                there = names.get(name, "missing")
                raise ValueError(
                    f"{file} is of another model: {name!r} is {there}, in the vocabulary_map of {path} {id_}; "
                    "take the file that belongs to the model"
                )
        path = file
    try:
        vocabulary = source.family.vocabulary(source.config, names)
    except ValueError as fault:
        if names:
            raise ValueError(f"{path}: {fault}") from None
        raise ValueError(
            f"{source.folder} names no tokens: neither {TOKENIZER_JSON} nor a vocabulary_map in {CONFIG} is there; "
            "give the file of a text tokenizer"
        ) from None
    if source.image is not None and source.image.codebook_size != (size := vocabulary.range("image").size):
        raise ValueError(f"{path} names {size} image codes, {source.image_config_file} {source.image.codebook_size}")
    if file is None:
        return vocabulary, None
    try:
        return vocabulary, PublishedText(file.read_bytes(), reserved_ids(vocabulary))
    except ValueError as fault:
        raise ValueError(f"{file}: {fault}") from None


def _card(source: Source) -> Card:
    """What the export says of itself. Warns where the source does not say how pixels are made."""
    preprocessing, file = source.preprocessing, source.folder / PREPROCESSOR
    if preprocessing is None and source.image is not None:
        preprocessing = source.family.own_pixels(source.image)
        if preprocessing is not None:
            warnings.warn(f"{file} is missing: pixels are those of the published {source.family.name}", stacklevel=3)
    try:
        return source.family.card(source.image, preprocessing)
    except ValueError as fault:
        raise ValueError(f"{file}: {fault}") from None


def _warn_of_what_is_not_there(source: Source, vocabulary: Vocabulary, text: PublishedText | None, card: Card) -> None:
    """Warns of an export that Omnigram itself cannot load, and of one that cannot draw."""
    reason = f"no {TOKENIZER_JSON} is there, so that it has no words"
    if text is not None:
        try:
            Codec(vocabulary, text, None, card)
            reason = None
        except ValueError as fault:
            reason = str(fault).partition(";")[0]
    if reason is not None:
        file = source.folder if text is None else source.config_file
        warnings.warn(
            f"{file}: {reason}: AutoModelForCausalLM and `omnigram export` take what is made, but sampling with it and "
            "training on from it are not possible",
            stacklevel=3,
        )
    if source.image is not None and not source.image.can_decode:
        warnings.warn(
            f"{source.folder}: pictures can be read but not drawn, for its image tokenizer has no decoder: "
            "give --image-tokenizer vqgan.ckpt",
            stacklevel=3,
        )


def _write_small_files(
    folder: Path,
    source: Source,
    vocabulary: Vocabulary,
    text: PublishedText | None,
    card: Card,
    dtype: torch.dtype,
) -> None:
    """Everything but the decoder's weights, the card last: a folder without it is unfinished."""
    config = source.config
    config.dtype = dtype
    config.architectures = ["OmnigramForCausalLM"]
    for name in ("pad", "bos", "eos"):
        said, id_ = getattr(config, f"{name}_token_id"), vocabulary.specials.get(name)
        if not isinstance(said, list):  # of several ids that end a text, as Llama 3 has them, all stay
            setattr(config, f"{name}_token_id", id_)
    config.save_pretrained(folder)
    (folder / VOCABULARY).write_text(vocabulary.to_json() + "\n")
    identities = {"vocabulary": vocabulary.identity}
    if text is not None:
        text.save(folder / TOKENIZER_JSON)
        identities["text"] = text.identity
    if source.image is not None:
        source.image.save_config(folder / IMAGE_MODEL)
        identities["image"] = image_identity(source.image, read_file(folder / IMAGE_MODEL / WEIGHTS))
    (folder / SOURCE).mkdir()
    for file in source.files:
        shutil.copyfile(file, folder / SOURCE / file.name)
        if file.name == GENERATION:
            shutil.copyfile(file, folder / file.name)
    (folder / CARD).write_text(dataclasses.replace(card, identities=identities).to_json())
