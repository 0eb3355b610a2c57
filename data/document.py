"""Documents: interleaved text and pictures as they travel between sources, shards, tokenizers and the loader.

Both forms are written in docs/data-format.md. `Document` holds text and encoded pictures; `TokenDocument` holds the
codes that the tokenizers made of them. One document is one WebDataset sample: `<key>.json` and its other members.

n codes of a text, h x w codes of a picture.
"""

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MEDIA = ("image", "audio", "video")  # modalities whose content is a member file; text is written into the JSON
RESERVED = ("segments", "source", "license")  # JSON keys of a document that are not fields
CODES_MEMBER = "codes.npy"

_KEY = re.compile(r"(?:[^/\\\x00-\x1f]+/)*[^/.\\\x00-\x1f]+")
_SUFFIX = re.compile(r"\.[a-z0-9]+")
_PLAIN_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '<u(?P<size>[24])', 'fortran_order': False, "
    rb"'shape': \((?P<count>[0-9]{1,9}),\), \} *\n",
    re.DOTALL,
)


def check_key(key: str) -> str:
    """Return `key` if it can name a WebDataset sample: relative, no `..`, no dot in its last part."""
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} cannot be a sample's key: it must be a relative name without dots")
    return key


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a document: a text, or one encoded picture (a file's bytes, and its suffix with the dot).

    `alternatives` are other wordings of the same text, for instance in other languages; the loader draws one of all.
    """

    modality: str
    content: str | bytes
    alternatives: tuple[str, ...] = ()
    suffix: str = ""

    def __post_init__(self) -> None:
        if self.modality == "text":
            for text in (self.content, *self.alternatives):
                _check_text(text)
            if self.suffix:
                raise ValueError(f"a text segment has no suffix, got {self.suffix!r}")
        elif self.modality in MEDIA:
            if not isinstance(self.content, bytes) or not self.content:
                raise ValueError(f"the {self.modality} segment holds no bytes")
            if not _SUFFIX.fullmatch(self.suffix):
                raise ValueError(f"the {self.modality} segment needs a suffix such as .png, got {self.suffix!r}")
            if self.alternatives:
                raise ValueError("only text segments have alternatives")
        else:
            raise ValueError(f"unknown modality {self.modality!r}: one of text, {', '.join(MEDIA)}")

    @property
    def text(self) -> str:
        """The text of a text segment."""
        assert isinstance(self.content, str), f"{self.modality} segment has no text"
        return self.content

    @property
    def data(self) -> bytes:
        """The encoded file of a picture segment."""
        assert isinstance(self.content, bytes), f"{self.modality} segment has no bytes"
        return self.content


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"the text of a segment is {type(text).__name__}, not a string")
    if not text:
        raise ValueError("the text of a segment is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text of a segment is not Unicode: {error.reason} at {error.start}") from None


@dataclass(frozen=True, slots=True)
class Document:
    """Segments in reading order. `fields` may carry `concept`, `style`, `family`, or any other string."""

    key: str
    segments: tuple[Segment, ...]
    source: str
    license: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_key(self.key)
        if not self.segments:
            raise ValueError("the document has no segments")
        _check_fields(self.fields)

    def to_sample(self) -> dict[str, bytes]:
        """Members of the WebDataset sample by extension, the JSON first: `{"json": …, "1.png": …}`."""
        described: list[dict[str, Any]] = []
        members: dict[str, bytes] = {}
        for index, segment in enumerate(self.segments):
            if segment.modality == "text":
                entry: dict[str, Any] = {"text": segment.text}
                if segment.alternatives:
                    entry["alternatives"] = list(segment.alternatives)
            else:
                name = f"{index}{segment.suffix}"
                members[name] = segment.data
                entry = {segment.modality: name}
            described.append(entry)
        head = {"segments": described, "source": self.source, "license": self.license}
        return {"json": _json(head | dict(sorted(self.fields.items()))), **members}

    @classmethod
    def from_sample(cls, key: str, members: Mapping[str, bytes]) -> "Document":
        """The document of a sample; ValueError says what is wrong with it."""
        head = _head(members)
        segments: list[Segment] = []
        used = {"json"}
        for index, entry in enumerate(head["segments"]):
            modality, value = _described(index, entry)
            if modality == "text":
                alternatives = entry.get("alternatives", [])
                if not isinstance(alternatives, list):
                    raise ValueError(f"alternatives of segment {index} is not a list")
                segments.append(Segment("text", value, tuple(alternatives)))
                continue
            if value not in members:
                raise ValueError(f"segment {index} names {key}.{value}, which the sample does not hold")
            used.add(value)
            segments.append(Segment(modality, members[value], suffix="." + value.rpartition(".")[2].lower()))
        if unused := sorted(set(members) - used):
            raise ValueError(f"no segment names the member {key}.{unused[0]}")
        return cls(key, tuple(segments), _string(head, "source"), _string(head, "license"), _fields(head))


@dataclass(frozen=True, eq=False, slots=True)
class TokenSegment:
    """The codes of one segment: (n,) for text, (h, w) for a picture. Text may have alternatives, each (n',)."""

    modality: str
    codes: np.ndarray
    alternatives: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        for codes in (self.codes, *self.alternatives):
            if not np.issubdtype(codes.dtype, np.integer):
                raise ValueError(f"the codes of a {self.modality} segment are {codes.dtype}, not integers")
            small = codes.dtype in (np.uint16, np.uint32)  # as read from a shard, where looking takes time
            if not small and codes.size and (codes.min() < 0 or codes.max() > np.iinfo(np.uint32).max):
                raise ValueError(f"a code of the {self.modality} segment lies outside 0..{np.iinfo(np.uint32).max}")
            if 0 in codes.shape or codes.ndim == 0:
                raise ValueError(f"the {self.modality} segment holds no codes")
        if self.alternatives and (self.codes.ndim != 1 or any(a.ndim != 1 for a in self.alternatives)):
            raise ValueError("only segments of rank 1 have alternatives")


@dataclass(frozen=True, eq=False, slots=True)
class TokenDocument:
    """A document after the tokenizers. `source` and `license` are copied from the document it was made of."""

    key: str
    segments: tuple[TokenSegment, ...]
    fields: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        check_key(self.key)
        if not self.segments:
            raise ValueError("the document has no segments")
        _check_fields(self.fields)

    def to_sample(self) -> dict[str, bytes]:
        """Members by extension: the JSON, and all codes of all segments in one array (uint16, or uint32 if needed)."""
        described: list[dict[str, Any]] = []
        flat: list[np.ndarray] = []
        for segment in self.segments:
            parts = (segment.codes, *segment.alternatives)
            shape = {"counts": [len(p) for p in parts]} if segment.codes.ndim == 1 else {"grid": [*segment.codes.shape]}
            described.append({"modality": segment.modality, **shape})
            flat.extend(part.reshape(-1) for part in parts)
        codes = np.concatenate(flat)
        narrow = codes.max() <= np.iinfo(np.uint16).max
        array = io.BytesIO()
        np.save(array, codes.astype("<u2" if narrow else "<u4"), allow_pickle=False)
        head = {"segments": described, "source": self.source, "license": self.license}
        return {"json": _json(head | dict(sorted(self.fields.items()))), CODES_MEMBER: array.getvalue()}

    @classmethod
    def from_sample(cls, key: str, members: Mapping[str, bytes]) -> "TokenDocument":
        """The token document of a sample; ValueError says what is wrong with it."""
        head = _head(members)
        if CODES_MEMBER not in members:
            raise ValueError(f"the sample has no {key}.{CODES_MEMBER}")
        if unused := sorted(set(members) - {"json", CODES_MEMBER}):
            raise ValueError(f"a token document has no member {key}.{unused[0]}")
        codes = _load_codes(members[CODES_MEMBER])
        segments: list[TokenSegment] = []
        position = 0
        for index, entry in enumerate(head["segments"]):
            modality, shapes = _token_shapes(index, entry)
            parts = []
            for shape in shapes:
                size = math.prod(shape)
                if position + size > len(codes):
                    raise ValueError(f"segment {index} needs codes up to {position + size}, there are {len(codes)}")
                parts.append(codes[position : position + size].reshape(shape))
                position += size
            segments.append(TokenSegment(modality, parts[0], tuple(parts[1:])))
        if position != len(codes):
            raise ValueError(f"the segments describe {position} codes, there are {len(codes)}")
        return cls(key, tuple(segments), _fields(head), _string(head, "source"), _string(head, "license"))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _head(members: Mapping[str, bytes]) -> dict[str, Any]:
    if "json" not in members:
        raise ValueError("the sample has no .json member")
    try:
        head = json.loads(members["json"].decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"its .json member cannot be read: {error}") from None
    if not isinstance(head, dict) or not isinstance(head.get("segments"), list):
        raise ValueError('its .json member is not an object with a list "segments"')
    return head


def _described(index: int, entry: object) -> tuple[str, Any]:
    kinds = [name for name in ("text", *MEDIA) if isinstance(entry, dict) and name in entry]
    if not isinstance(entry, dict) or len(kinds) != 1:
        raise ValueError(f"segment {index} must have exactly one of text, {', '.join(MEDIA)}")
    allowed = {kinds[0], "alternatives"} if kinds[0] == "text" else {kinds[0]}
    if unknown := sorted(set(entry) - allowed):
        raise ValueError(f"segment {index} has the unknown key {unknown[0]!r}")
    if not isinstance(entry[kinds[0]], str):
        raise ValueError(f"{kinds[0]} of segment {index} is not a string")
    return kinds[0], entry[kinds[0]]


def _token_shapes(index: int, entry: object) -> tuple[str, list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = []
    if isinstance(entry, dict) and isinstance(entry.get("modality"), str):
        counts, grid = entry.get("counts"), entry.get("grid")
        if set(entry) == {"modality", "counts"} and isinstance(counts, list):
            shapes = [(count,) for count in counts]
        elif set(entry) == {"modality", "grid"} and isinstance(grid, list) and len(grid) > 1:
            shapes = [tuple(grid)]
    if not shapes or not all(type(size) is int and size > 0 for shape in shapes for size in shape):
        raise ValueError(f'segment {index} must be {{"modality", "counts": […]}} or {{"modality", "grid": […, …]}}')
    assert isinstance(entry, dict)
    return entry["modality"], shapes


def _plain_codes(data: bytes) -> np.ndarray | None:
    """The codes as `to_sample` writes them, without NumPy's way to a header, which takes longer than all else; or None.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    header = _PLAIN_HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(header["length"], "little"):
        return None
    size, count = int(header["size"]), int(header["count"])
    if len(data) != header.end() + size * count:
        return None
    return np.frombuffer(data, f"<u{size}", offset=header.end()).copy()  # the bytes cannot be written to


def _load_codes(data: bytes) -> np.ndarray:
    if (plain := _plain_codes(data)) is not None:
        return plain
    try:
        codes = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header, and asks for all the memory that it claims
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"its {CODES_MEMBER} cannot be read: {told}") from None
    if not isinstance(codes, np.ndarray) or codes.dtype not in (np.uint16, np.uint32) or codes.ndim != 1:
        raise ValueError(f"its {CODES_MEMBER} must be one row of uint16 or uint32")
    return codes


def _string(head: Mapping[str, Any], name: str) -> str:
    value = head.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is not a string")
    return value


def _fields(head: Mapping[str, Any]) -> dict[str, str]:
    return {name: _string(head, name) for name in head if name not in RESERVED}


def _check_fields(fields: Mapping[str, str]) -> None:
    for name, value in fields.items():
        if name in RESERVED or not isinstance(value, str):
            raise ValueError(f"the field {name!r} must be a string and not one of {', '.join(RESERVED)}")
