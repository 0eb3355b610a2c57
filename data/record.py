"""`dataset.json`: what a finished data set says of itself, and what its files are called (docs/data-format.md)."""

import json
from pathlib import Path
from typing import Any

DATASET, VOCABULARY = "dataset.json", "vocabulary.json"
DOCUMENTS, TOKENS = "omnigram-documents", "omnigram-tokens"  # the two formats
FORMAT_VERSION = 1


def read_record(folder: Path | str, form: str) -> dict[str, Any]:
    """The contents of `dataset.json` of a finished data set of format `form`; ValueError says what is there instead."""
    path = Path(folder) / DATASET
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {folder} is no finished data set, make it first") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): remove {folder}, then make the data set again") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != form:
        raise ValueError(f"{path} describes {found!r}, not {form!r}: name the folder of the other step")
    return record
