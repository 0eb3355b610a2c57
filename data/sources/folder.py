"""A folder of pictures with captions, as most people have it.

Captions are looked for in this order: a table (`captions` names it, else captions.* or metadata.* of .csv, .tsv or
.jsonl in the folder), a text file beside each picture (cat.jpg, cat.txt), and as last resort the file names.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..archive import MAX_SAMPLE, MAX_TEXT
from ..artefact import identity
from ..document import IMAGE_SUFFIXES, Document, Segment
from ..pictures import MAX_PIXELS
from . import Sample, Source

TABLES = [f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in (".csv", ".tsv", ".jsonl")]
FILE_COLUMNS = ("file_name", "file", "filename", "image", "path")
CAPTION_COLUMNS = ("caption", "text")
MAX_CAPTION = 4096  # characters


class FolderSource(Source):
    """One document a picture: its caption, then the picture. Sub-folders are searched and give the family."""

    def __init__(
        self,
        path: str | Path,
        captions: str | Path | None = None,
        license: str = "unknown",
        attribution: str = "",
        max_caption: int = MAX_CAPTION,
        max_pixels: int = MAX_PIXELS,
        max_skipped: float = 0.01,
    ):
        super().__init__(max_skipped=max_skipped, max_pixels=max_pixels)
        self.path, self.license, self.attribution, self.max_caption = Path(path), license, attribution, max_caption
        if not self.path.is_dir():
            raise FileNotFoundError(f"data.source.path={path} is no folder")
        relative = sorted(
            file.relative_to(self.path).as_posix()
            for file in self.path.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        self._files = [name for name in relative if not any(part.startswith(".") for part in name.split("/"))]
        if not self._files:
            raise ValueError(f"data.source.path={path} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
        self._keys = _keys(self._files)
        self._table_path = self._find_table(captions)
        self._table: dict[str, str] | None = None
        if self._table_path is not None:
            self._table = _read_table(self._table_path, self.path)
            if missing := sorted(set(self._table) - set(self._files)):
                self.notes.append(f"{self._table_path} names {len(missing)} files that are no pictures of the folder")
        self._named = self._table is None and not any(self._sidecar(name).exists() for name in self._files)
        if self._named:
            self.notes.append(f"no captions in {self.path} (no table, no .txt files): the file names serve as captions")

    def length(self) -> int:
        return len(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def fingerprint(self) -> Any:
        """How many pictures, and a hash of the names, sizes and times of them and of their captions."""
        files = [self.path / name for name in self._files]
        if self._table_path is not None:
            files.append(self._table_path)
        elif not self._named:
            files += [sidecar for name in self._files if (sidecar := self._sidecar(name)).exists()]
        known = [[os.path.relpath(f, self.path), (status := f.stat()).st_size, status.st_mtime_ns] for f in files]
        return {"pictures": len(self._files), "files": identity(known)}

    def samples(self) -> Iterator[Sample]:
        for name, key in zip(self._files, self._keys, strict=True):
            yield Sample(key, lambda name=name, key=key: self._document(name, key))

    def _document(self, name: str, key: str) -> Document:
        file = self.path / name
        caption = check_caption(self._caption(name), self.max_caption)
        try:
            picture = Segment("image", _read(file, MAX_SAMPLE), suffix=file.suffix.lower())
        except OSError as error:
            raise ValueError(f"the file cannot be read: {error.strerror}") from None
        folder = name.rpartition("/")[0]
        fields = {"family": folder} if folder else {}
        return Document(key, (Segment("text", caption), picture), self.path.name, self.license, fields)

    def _caption(self, name: str) -> str | bytes:
        if self._table is not None:
            if name not in self._table:
                raise ValueError("no caption")
            return self._table[name]
        if self._named:
            return Path(name).stem.replace("-", " ").replace("_", " ")
        try:
            return _read(self._sidecar(name), MAX_TEXT)
        except FileNotFoundError:
            raise ValueError("no caption") from None
        except OSError as error:
            raise ValueError(f"its caption cannot be read: {error.strerror}") from None

    def _sidecar(self, name: str) -> Path:
        return (self.path / name).with_suffix(".txt")

    def _find_table(self, captions: str | Path | None) -> Path | None:
        if captions is not None:
            for path in (Path(captions), self.path / captions):
                if path.is_file():
                    return path
            raise FileNotFoundError(f"data.source.captions={captions} is no file")
        return next((self.path / name for name in TABLES if (self.path / name).is_file()), None)


def _read(file: Path, most: int) -> bytes:
    """The contents of a file; ValueError for one that is larger than any picture or caption is."""
    if file.stat().st_size > most:
        raise ValueError(f"the file has more than {most:,} bytes")
    return file.read_bytes()


def check_caption(caption: str | bytes, max_caption: int) -> str:
    """The caption on its own, without surrounding space; ValueError when it cannot serve."""
    if isinstance(caption, bytes):
        try:
            caption = caption.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("caption is not UTF-8") from None
    caption = caption.strip()
    if not caption:
        raise ValueError("empty caption")
    if len(caption) > max_caption:
        raise ValueError(f"caption longer than {max_caption} characters")
    return caption


def _keys(files: list[str]) -> list[str]:
    """A sample key for each relative path: the path without suffix, dots written as `_`, the suffix where two agree."""
    plain = [_undotted(name.rpartition(".")[0]) for name in files]
    times = Counter(plain)
    keys = [key if times[key] == 1 else _undotted(name) for key, name in zip(plain, files, strict=True)]
    taken: Counter[str] = Counter()
    for index, key in enumerate(keys):
        taken[key] += 1
        if taken[key] > 1:
            keys[index] = f"{key}__{taken[key]}"
    return keys


def _undotted(name: str) -> str:
    return "".join("_" if c == "." or c == "\\" or ord(c) < 32 else c for c in name)


def _read_table(path: Path, folder: Path) -> dict[str, str]:
    """Relative path of a picture -> caption; ValueError names the line that cannot be read."""
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    rows.append(_row(line, number))
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"the captions in {path} cannot be read: {error}") from None
    columns = list(rows[0]) if rows else []
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    caption_column = next((name for name in CAPTION_COLUMNS if name in columns), None)
    if file_column is None or caption_column is None:
        wanted = f"one of {', '.join(FILE_COLUMNS)} and one of {', '.join(CAPTION_COLUMNS)}"
        raise ValueError(f"{path} has the columns {columns}; needed are {wanted}")
    base = path.parent
    table: dict[str, str] = {}
    for row in rows:
        file, caption = row.get(file_column), row.get(caption_column)
        if isinstance(file, str) and isinstance(caption, str):
            table[_relative(file, base, folder)] = caption
    return table


def _row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row


def _relative(file: str, base: Path, folder: Path) -> str:
    """`file` of a table, relative to the folder of pictures; the table may name it from its own place instead."""
    for start in (folder, base):
        path = start / file
        if path.is_file():
            try:
                return path.resolve().relative_to(folder.resolve()).as_posix()
            except ValueError:
                continue
    return Path(file).as_posix()
