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
from PIL.Image import Image
from torch import Tensor

from ..tokenizers.image import to_pixels
from ..tokenizers.preprocessing import Preprocessing
from ..tokenizers.published_text import PublishedText
from ..tokenizers.text import TextTokenizer
from ..tokenizers.vocabulary import TEXT
from .document import Document, Segment, TokenDocument, TokenSegment
from .pictures import buckets_of, decode, fit

IMAGE = "image"


class PictureTokenizer(Protocol):
    """What is asked of an image tokenizer; every `PixelTokenizer` is one."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def patch(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def encode(self, pixels: Tensor, /) -> Tensor:
        """float [B, 3, H, W], -1 .. 1 -> int64 [B, h, w]."""
        ...


class DocumentEncoder:
    """Encodes documents in their order.

    Arguments:
        text, image: the tokenizers; `image` stands on `device` already.
        resolution: pixels; pictures get about the area of a square with this side.
        max_ratio: of the longer to the shorter side of a picture; 1 crops all to squares.
        batch_size: B of the image tokenizer.
        workers: threads that decode and fit pictures.
        preprocessing: how a picture becomes pixels, in place of resolution and max_ratio.
    """

    def __init__(
        self,
        text: TextTokenizer | PublishedText,
        image: PictureTokenizer,
        resolution: int,
        max_ratio: float = 1.0,
        batch_size: int = 64,
        workers: int = 2,
        device: torch.device | str = "cpu",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if batch_size < 1 or workers < 1:
            raise ValueError(f"batch_size={batch_size} and workers={workers} must be at least 1")
        self.text, self.image, self.device = text, image, device
        self.batch_size, self.workers = batch_size, workers
        self.preprocessing = preprocessing
        self.buckets = [] if preprocessing else buckets_of(resolution, image.patch, max_ratio)

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
                        if len(equal) == self.batch_size:
                            self._fill(equal)
                            equal.clear()
                    drafts.append(draft)
                advance(len(chunk))
        for equal in waiting.values():
            if equal:
                self._fill(equal)
        return [draft.finish() for draft in drafts]

    def _pictures(self, document: Document) -> list[tuple[int, np.ndarray]]:
        """(segment, uint8 [H, W, 3] or preprocessed float [3, H, W]) of the pictures of a document."""
        fitted: list[tuple[int, np.ndarray]] = []
        for number, segment in enumerate(document.segments):
            if segment.modality == IMAGE:
                try:
                    fitted.append((number, self._ready(decode(segment.data, min_side=1))))
                except ValueError as error:
                    raise ValueError(f"sample {document.key!r}: segment {number}: {error}") from None
            elif segment.modality != TEXT:
                raise ValueError(f"sample {document.key!r}: there is no tokenizer for {segment.modality}")
        return fitted

    def _ready(self, picture: Image) -> np.ndarray:
        if self.preprocessing is not None:
            return self.preprocessing(picture).numpy()
        return fit(picture, self.buckets)

    @torch.inference_mode()
    def _fill(self, equal: Sequence["_Fitted"]) -> None:
        """Encode pictures of one size and put their codes in their places."""
        pictures = torch.from_numpy(np.stack([fitted.pixels for fitted in equal])).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            pixels = pictures if self.preprocessing else to_pixels(pictures)
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
    """A picture on its way to the tokenizer, as `_ready` made it, and its place."""

    draft: _Draft
    segment: int
    pixels: np.ndarray
