"""WebDataset shards of captioned pictures, or of our own interleaved documents, from disk, the web or a command.

A sample is either `<key>.json` with "segments" and its members (docs/data-format.md), or one picture and its caption:
`<key>.jpg` with `<key>.txt`, or with a caption inside `<key>.json`. Addresses are a path or pattern
(`cc-{000..099}.tar`, `*.tar`), `https://…`, `s3://…`, `gs://…`, `hf://…` and what else fsspec knows, `pipe:COMMAND`.
"""

import glob
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from webdataset.shardlists import expand_urls

from ..address_errors import AddressError
from ..addresses import is_local, local_path, name_of, open_address
from ..archive import CutShardError, Found, ShardError, archive_samples
from ..document import IMAGE_SUFFIXES, Document, Segment, check_key
from ..pictures import MAX_PIXELS
from ..remote import BUFFER, Network
from . import Sample, Source
from .folder import MAX_CAPTION, check_caption

CAPTION_EXTENSIONS = ("txt", "caption", "text")


class WebDatasetSource(Source):
    """One document a sample, in the order of the shards. A document's key is `<shard>/<key of the sample>`.

    A shard that is missing or not delivered stops the run with its name. A broken sample is skipped, and of a shard
    that is cut short or damaged what comes behind that; both are counted. A key that its shard has twice gets a number.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        caption_key: str = "caption",
        license: str = "unknown",
        attribution: str = "",
        max_caption: int = MAX_CAPTION,
        max_pixels: int = MAX_PIXELS,
        max_skipped: float = 0.01,
        network: Network | None = None,
    ):
        super().__init__(max_skipped=max_skipped, max_pixels=max_pixels)
        self.network = network
        self.caption_key, self.license, self.attribution = caption_key, license, attribution
        self.max_caption = max_caption
        self.urls = _expand([urls] if isinstance(urls, str) else urls)
        names = [_stem(url) for url in self.urls]
        self._names = names if len(set(names)) == len(names) else [f"{i:06d}" for i in range(len(names))]

    def fingerprint(self) -> Any:
        """The addresses, with size and time of those that are files."""
        return [[url, *_status(url)] for url in self.urls]

    def samples(self) -> Iterator[Sample]:
        for url, name in zip(self.urls, self._names, strict=True):
            taken: dict[str, int] = {}
            try:
                for found in _read(url, self.network):
                    key = _unique(found.key, taken)
                    load = lambda key=key, found=found, name=name: self._document(name, key, found)  # noqa: E731 (binds this turn of the loop)
                    yield Sample(f"{name}/{key}", load)
            except CutShardError as error:
                self.lose_rest_of(name_of(url), error.reason, error.detail, len(self.urls))
            else:
                if not taken:
                    warnings.warn(f"the shard {name_of(url)} holds no samples", stacklevel=2)

    def _document(self, shard: str, key: str, found: Found) -> Document:
        if found.fault:
            raise ValueError(found.fault)
        members, full = found.members, f"{shard}/{_checked(key)}"
        head = _json_object(members.get("json"))
        if "segments" in head:
            document = Document.from_sample(full, members)
            origin, terms = document.source or shard, document.license or self.license
            return Document(full, document.segments, origin, terms, document.fields)
        pictures = [name for name in members if f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES]
        if not pictures:
            raise ValueError("no picture")
        caption = Segment("text", check_caption(self._caption(members, head), self.max_caption))
        picture = Segment("image", members[pictures[0]], suffix="." + pictures[0].rpartition(".")[2])
        terms = head.get("license")
        return Document(full, (caption, picture), shard, terms if isinstance(terms, str) else self.license)

    def _caption(self, members: dict[str, bytes], head: dict[str, Any]) -> str | bytes:
        for extension in CAPTION_EXTENSIONS:
            if extension in members:
                return members[extension]
        caption = head.get(self.caption_key, head.get("text"))
        if not isinstance(caption, str):
            raise ValueError("no caption")
        return caption


def _checked(key: str) -> str:
    """The key. ValueError, in the same words for all, for a name that can be none; the sample is named beside them."""
    try:
        return check_key(key)
    except ValueError:
        raise ValueError("its name cannot be a sample's key: it must be a relative name without dots") from None


def _expand(patterns: Sequence[str]) -> list[str]:
    """Addresses of all shards; FileNotFoundError names a path or pattern that finds none."""
    urls: list[str] = []
    for pattern in patterns:
        for url in expand_urls(pattern):
            if not is_local(url):
                urls.append(url)
                continue
            path = str(local_path(url))
            found = [path] if Path(path).is_file() else sorted(glob.glob(path))
            if not found:
                raise FileNotFoundError(f"data.source.urls: the shard {path} is missing")
            urls.extend(found)
    if not urls:
        raise ValueError("data.source.urls names no shard")
    return urls


def _stem(url: str) -> str:
    """Name of a shard: its file name up to the first dot."""
    if url.startswith("pipe:"):
        return "pipe"
    return Path(urlparse(url).path).name.partition(".")[0] or "shard"


def _status(url: str) -> list[int]:
    if not is_local(url):
        return []
    status = Path(url).stat()
    return [status.st_size, status.st_mtime_ns]


def _unique(key: str, taken: dict[str, int]) -> str:
    """The key, or a name made of it where a sample of the shard has it already."""
    taken[key] = taken.get(key, 0) + 1
    return key if taken[key] == 1 else _unique(f"{key}__{taken[key]}", taken)


def _read(url: str, network: Network | None) -> Iterator[Found]:
    """The samples of a shard at any address. ShardError or AddressError names it."""
    try:
        with open_address(url, network) as stream:
            yield from archive_samples(stream, name_of(url))
            while stream.read(BUFFER):  # a command tells only at its end whether it failed
                pass
    except AddressError:
        raise
    except OSError as error:
        raise ShardError(f"the shard {name_of(url)} cannot be read: {error.strerror or error}") from None


def _json_object(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json member cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}
