"""WebDataset shards of captioned pictures, or of our own interleaved documents, from disk, the web or a command.

A sample is either `<key>.json` with "segments" and its members (docs/data-format.md), or one picture and its caption:
`<key>.jpg` with `<key>.txt`, or with a caption inside `<key>.json`. Addresses are webdataset's: a path or pattern
(`cc-{000..099}.tar`, `*.tar`), `https://…`, `hf://…`, `pipe:COMMAND`.
"""

import glob
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlparse

from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from ..document import IMAGE_SUFFIXES, Document, Segment, check_key
from ..pictures import MAX_PIXELS
from ..shards import ShardError, archive_samples, open_archive
from . import Sample, Source
from .folder import MAX_CAPTION, check_caption

CAPTION_EXTENSIONS = ("txt", "caption", "text")


class WebDatasetSource(Source):
    """One document a sample, in the order of the shards. A document's key is `<shard>/<key of the sample>`.

    A shard that is missing, cut short or not delivered stops the run with its name; a broken sample is skipped.
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
    ):
        super().__init__(max_skipped=max_skipped, max_pixels=max_pixels)
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
            for key, members in _read(url):
                load = lambda key=key, members=members, name=name: self._document(name, key, members)  # noqa: E731 (binds this turn of the loop)
                yield Sample(f"{name}/{key}", load)

    def _document(self, shard: str, key: str, members: dict[str, bytes]) -> Document:
        full = f"{shard}/{check_key(key)}"
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


def _expand(patterns: Sequence[str]) -> list[str]:
    """Addresses of all shards; FileNotFoundError names a path or pattern that finds none."""
    urls: list[str] = []
    for pattern in patterns:
        for url in expand_urls(pattern):
            if not _is_local(url):
                urls.append(url)
                continue
            path = url.removeprefix("file://").removeprefix("file:")
            found = [path] if Path(path).is_file() else sorted(glob.glob(path))
            if not found:
                raise FileNotFoundError(f"data.source.urls: the shard {path} is missing")
            urls.extend(found)
    if not urls:
        raise ValueError("data.source.urls names no shard")
    return urls


def _is_local(url: str) -> bool:
    return urlparse(url).scheme in ("", "file")


def _stem(url: str) -> str:
    """Name of a shard: its file name up to the first dot."""
    if url.startswith("pipe:"):
        return "pipe"
    return Path(urlparse(url).path).name.partition(".")[0] or "shard"


def _status(url: str) -> list[int]:
    if not _is_local(url):
        return []
    status = Path(url).stat()
    return [status.st_size, status.st_mtime_ns]


def _read(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of a shard at any address; ShardError names the address."""
    try:
        stream = gopen(url, "rb")
    except Exception as error:  # the readers of hf:// and others raise their own kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ShardError(f"the shard {url} cannot be opened: {reason}") from None
    try:
        with open_archive(stream=cast(IO[bytes], stream)) as archive:
            yield from archive_samples(archive, url)
        stream.close()  # raises when the command that delivered it failed
    except (OSError, tarfile.TarError, ShardError) as error:
        with suppress(OSError):
            stream.close()
        code = getattr(stream, "status", None)
        if code:  # a failed command explains more than the archive it did not deliver
            raise ShardError(f"the shard {url} cannot be read: its command ended with exit code {code}") from None
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"the shard {url} cannot be read: {error}") from None
    finally:
        with suppress(OSError):
            stream.close()


def _json_object(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json member cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}
