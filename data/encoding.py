"""Documents -> token documents: text by the text tokenizer, pictures fitted to a bucket and encoded in equal batches.

B pictures of one size H x W in a batch, h x w codes of each.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..tokenizers.image import to_pixels
from ..tokenizers.published_text import PublishedText
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import TEXT
from .document import Document, Segment, TokenDocument, TokenSegment
from .fitting import Fitting
from .pictures import decode

IMAGE = "image"
BATCH_PIXELS = 64 * 64 * 64  # most pixels encoded at once, one picture at least


class PictureTokenizer(Protocol):
    """What is asked of an image tokenizer; every `PixelTokenizer` is one."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def patch(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def encode(self, pixels: Tensor, /) -> Tensor:
        """float [B, 3, H, W] -> int64 [B, h, w]."""
        ...


class DocumentEncoder:
    """Encodes documents in their order.

    Arguments:
        text, image: the tokenizers; `image` stands on `device` already.
        fitting: how a picture becomes what `image` takes.
        batch_size: most pictures encoded at once; of large ones fewer, so that they have BATCH_PIXELS pixels at most.
        workers: threads that decode and fit pictures.
    """

    def __init__(
        self,
        text: TextTokenizer | PublishedText,
        image: PictureTokenizer,
        fitting: Fitting,
        batch_size: int = 64,
        workers: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or workers < 1:
            raise ValueError(f"batch_size={batch_size} and workers={workers} must be at least 1")
        self.text, self.image, self.fitting, self.device = text, image, fitting, device
        self.batch_size, self.workers = batch_size, workers
        _ = fitting.buckets  # said before anything is read

    def to(self, device: torch.device | str) -> "DocumentEncoder":
        """The same, with its image tokenizer on `device`; a module is moved, not copied."""
        image = self.image.to(device) if isinstance(self.image, torch.nn.Module) else self.image
        return DocumentEncoder(self.text, image, self.fitting, self.batch_size, self.workers, device)

    def encode(
        self, documents: Iterable[Document], advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenDocument]:
        """All documents encoded; of their pictures no more are held than batches need.

        `advance` hears how many more documents were read. ValueError names the document that cannot be encoded.
        """
        drafts: list[_Draft] = []
        waiting: defaultdict[tuple[int, ...], list[_Fitted]] = defaultdict(list)  # by the shape of the picture
        source = iter(documents)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="omnigram-pictures") as pool:
            while chunk := list(islice(source, self.batch_size)):
                for document, pictures in zip(chunk, pool.map(self._pictures, chunk), strict=True):
                    draft = _Draft(document, [self._words(segment) for segment in document.segments])
                    for index, pixels in pictures:
                        equal = waiting[pixels.shape]
                        equal.append(_Fitted(draft, index, pixels))
                        if len(equal) == min(self.batch_size, max(1, 3 * BATCH_PIXELS // pixels.size)):
                            self._fill(equal)
                            equal.clear()
                    drafts.append(draft)
                advance(len(chunk))
        for equal in waiting.values():
            if equal:
                self._fill(equal)
        return [draft.finish() for draft in drafts]

    def _pictures(self, document: Document) -> list[tuple[int, np.ndarray]]:
        """(segment, what the tokenizer takes) of the pictures of a document."""
        fitted: list[tuple[int, np.ndarray]] = []
        for number, segment in enumerate(document.segments):
            if segment.modality == IMAGE:
                try:
                    fitted.append((number, self.fitting.ready(decode(segment.data, min_side=1))))
                except ValueError as error:
                    raise ValueError(f"sample {document.key!r}: segment {number}: {error}") from None
            elif segment.modality != TEXT:
                raise ValueError(f"sample {document.key!r}: there is no tokenizer for {segment.modality}")
        return fitted

    @torch.inference_mode()
    def _fill(self, equal: Sequence["_Fitted"]) -> None:
        """Encode pictures of one size and put their codes in their places."""
        pictures = torch.from_numpy(np.stack([fitted.pixels for fitted in equal])).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            pixels = pictures if pictures.is_floating_point() else to_pixels(pictures)
            codes = self.image.encode(pixels).cpu().numpy()
        for fitted, grid in zip(equal, codes, strict=True):
            fitted.draft.segments[fitted.segment] = TokenSegment(IMAGE, grid)

    def _words(self, segment: Segment) -> TokenSegment | None:
        if segment.modality != TEXT:
            return None
        first, *others = (np.array(self.text.encode(text), np.int64) for text in (segment.text, *segment.alternatives))
        return TokenSegment(TEXT, first, tuple(others))


class _Draft:
    """A token document whose pictures are still to come; it does not keep the encoded files."""

    def __init__(self, document: Document, segments: list[TokenSegment | None]) -> None:
        self.key, self.fields = document.key, document.fields
        self.source, self.license = document.source, document.license
        self.segments = segments

    def finish(self) -> TokenDocument:
        segments = tuple(segment for segment in self.segments if segment is not None)
        assert len(segments) == len(self.segments), "every picture was encoded"
        return TokenDocument(self.key, segments, self.fields, self.source, self.license)


class _Fitted(NamedTuple):
    """A picture on its way to the tokenizer, as the fitting made it, and its place."""

    draft: _Draft
    segment: int
    pixels: np.ndarray
