"""`dataset.json`: what a finished data set says of itself, and what its files are called (docs/data-format.md)."""

import json
from pathlib import Path
from typing import Any

from .addresses import is_local, join, name_of, read_address
from .remote import Network

DATASET, VOCABULARY = "dataset.json", "vocabulary.json"
DOCUMENTS, TOKENS = "omnigram-documents", "omnigram-tokens"  # the two formats
FORMAT_VERSION = 1
MAX_RECORD = 1 << 28  # bytes of either file: a hundred thousand shards take a tenth of it


def read_record(folder: Path | str, form: str, network: Network | None = None) -> dict[str, Any]:
    """The contents of `dataset.json` of a finished data set of format `form`; ValueError says what is there instead.

    FileNotFoundError where a folder has none; AddressError where an address cannot be read.
    """
    path = join(folder, DATASET)
    name, here = name_of(path), name_of(folder)
    try:
        record = json.loads(read_address(path, MAX_RECORD, network).decode("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} is missing: {here} is no finished data set, make it first") from None
    except (ValueError, RecursionError) as error:
        advice = f"remove {here}, then make the data set again" if is_local(folder) else "it has to be uploaded again"
        raise ValueError(f"{name} cannot be read ({error}): {advice}") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != form:
        raise ValueError(f"{name} describes {found!r}, not {form!r}: name the folder of the other step")
    return record
