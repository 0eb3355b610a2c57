"""What every image tokenizer is: pixels to a grid of codes and back, an identity, and a folder of config and weights.

Dimensions: B batch, H W pixels, h w grid of codes (H / patch, W / patch).
"""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FAR = 10.0  # of a pixel: more than any standardisation makes of one
UNNAMED = "vqvae"  # the kind of a config.json that names none: that kind was there before there were others


class VectorQuantizer(Protocol):
    """The part of a tokenizer that has its codes, a module; see `Quantizer` for what is said here."""

    def compared(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]: ...

    def lookup(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]: ...

    def with_codes(self, codes: Int[Tensor, " n"]) -> Any: ...

    def put(self, codes: Int[Tensor, " n"], vectors: Float[Tensor, "n d"]) -> None: ...


class PixelTokenizer(nn.Module, ABC):
    """Pixels are float, red green blue, -1 (black) .. 1 (white); ids of codes are 0 .. codebook_size - 1.

    A kind of tokenizer has a class of its own, which gives what is abstract here and checks pixels where it takes them.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def patch(self) -> int:
        """Sides of pictures are multiples of this many pixels; in most tokenizers, those of one code."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of codes of a picture, in pixels. ValueError for one that it does not take."""
        return height // self.patch, width // self.patch

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width of what is decoded of a grid of codes. ValueError for one that it does not take."""
        return rows * self.patch, columns * self.patch

    @property
    @abstractmethod
    def codebook_size(self) -> int: ...

    @property
    def vector_quantizer(self) -> VectorQuantizer:
        """What vectors pass, all of a batch at once, and what makes codes of them. ValueError without one."""
        raise ValueError(f"an image tokenizer of kind {self.kind!r} has no codebook that could be changed")

    def _take(self, quantizer: Any) -> None:
        """Have this one in the place of `vector_quantizer`, in the settings too."""
        raise NotImplementedError

    def with_codes(self, codes: Int[Tensor, " n"]) -> Self:
        """The same tokenizer with these of its codes alone, in this order: code i is what `codes[i]` was.

        ValueError for fewer than two, or where codes are no entries of a table.
        """
        made = copy.deepcopy(self)
        made._take(self.vector_quantizer.with_codes(codes).train(self.training))
        return made

    @property
    def can_decode(self) -> bool:
        """Whether it has a decoder; some published ones have none."""
        return True

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `from_settings` makes the same tokenizer of, but for its weights; goes into config.json."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A tokenizer with fresh weights. KeyError, TypeError or ValueError for settings of something else."""

    @abstractmethod
    def _ids(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]: ...

    @abstractmethod
    def _pixels(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]: ...

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 height width"]) -> Int[Tensor, "b h w"]:
        """Pixels of any float type -> ids of codes, in eval mode whatever the mode: nothing of the tokenizer changes.

        Raises ValueError if a side is no multiple of `patch`, and for what cannot be pixels, as `check_values` says.
        """
        check_values(pixels)
        with self._evaluating():
            return self._ids(pixels.to(next(self.parameters()).dtype))

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Ids of codes -> pixels, clamped to -1 .. 1.

        Raises ValueError for an id outside the codebook, and for a grid that `size` does not take.
        """
        self.check_ids(ids, "b h w")
        self.size(*ids.shape[1:])
        with self._evaluating():
            return self._pixels(ids).clamp(-1, 1)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def check_pixels(self, pixels: Float[Tensor, "..."], axes: str = "b 3 height width") -> None:
        """ValueError if pixels do not have these axes, a side is no multiple of `patch`, or `grid` refuses them."""
        if pixels.ndim != len(axes.split()) or pixels.shape[-3] != 3:
            raise ValueError(f"pixels of shape {tuple(pixels.shape)} do not have the axes [{axes}]")
        height, width = pixels.shape[-2:]
        if height % self.patch or width % self.patch or not height * width:
            raise ValueError(
                f"a picture of {height} x {width} pixels: sides must be multiples of {self.patch}, and above 0"
            )
        self.grid(height, width)

    def check_ids(self, ids: Int[Tensor, "..."], axes: str) -> None:
        """ValueError if ids do not have these axes, or one lies outside the codebook."""
        if ids.ndim != len(axes.split()):
            raise ValueError(f"codes of shape {tuple(ids.shape)} do not have the axes [{axes}]")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size:
            raise ValueError(
                f"codes {int(ids.min())} .. {int(ids.max())} are not all in the codebook of {self.codebook_size}"
            )

    @property
    def identity(self) -> str:
        """SHA-256 in hex over the configuration and every weight: tokens belong to one identity."""
        return self.identity_with(sorted(self.state_dict().items()))

    def identity_with(self, weights: Iterable[tuple[str, Tensor]]) -> str:
        """The identity once these weights are loaded; they come in the order of their names, one at a time."""
        digest = hashlib.sha256(json.dumps(self._config(), sort_keys=True).encode())
        for name, tensor in weights:
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # numpy knows no bfloat16
            digest.update(name.encode() + content.numpy().tobytes())
        return digest.hexdigest()

    def _config(self) -> dict[str, Any]:
        return ({} if self.kind == UNNAMED else {"kind": self.kind}) | self.settings

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors into `folder`, which is made."""
        self.save_config(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, Path(folder) / WEIGHTS)

    def save_config(self, folder: Path | str) -> None:
        """Write config.json alone into `folder`, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self._config(), indent=2) + "\n")

    @classmethod
    def from_config(cls, folder: Path | str) -> Self:
        """The tokenizer that config.json in a folder describes, with fresh weights; ValueError as `from_pretrained`."""
        file = Path(folder) / CONFIG
        kind, settings = _read_config(file)
        if kind != cls.kind:
            raise ValueError(
                f"{file} is of an image tokenizer of kind {kind!r}, not {cls.kind!r}: "
                "load_image_tokenizer reads every kind"
            )
        try:
            return cls.from_settings(settings)
        except (TypeError, KeyError, AttributeError, ArithmeticError, ValueError) as fault:
            raise ValueError(f"{file} is not the configuration of an image tokenizer: {fault}") from None

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote, in eval mode and in the dtype of the file.

        ValueError names the file that is missing, damaged or of another kind of tokenizer.
        """
        folder = Path(folder)
        tokenizer = cls.from_config(folder)
        try:
            weights = load_file(folder / WEIGHTS)
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no image tokenizer: {WEIGHTS} is missing") from None
        except SafetensorError as fault:
            raise ValueError(f"{folder / WEIGHTS} does not hold the weights of {CONFIG}: {fault}") from None
        load_weights(tokenizer, weights, folder / WEIGHTS)
        return tokenizer.eval()


def load_image_tokenizer(folder: Path | str) -> PixelTokenizer:
    """The image tokenizer in a folder, of the class that its config.json names; ValueError as `from_pretrained`."""
    return image_tokenizer_class(folder).from_pretrained(folder)


def image_tokenizer_class(folder: Path | str) -> type[PixelTokenizer]:
    """The class that config.json in a folder names. ValueError if there is none."""
    from .image import ImageTokenizer  # here, for these files build on this one
    from .movqgan import MoVQGAN
    from .vqgan import VQGAN

    kinds: dict[str, type[PixelTokenizer]] = {each.kind: each for each in (ImageTokenizer, VQGAN, MoVQGAN)}
    file = Path(folder) / CONFIG
    kind, _ = _read_config(file)
    if kind not in kinds:
        raise ValueError(f"{file}: kind {kind!r} is none of {', '.join(kinds)}")
    return kinds[kind]


def check_values(pixels: Tensor) -> None:
    """ValueError for no pixels, for 8-bit ones, and for NaN, infinity or values far outside of -1 .. 1.

    Published models standardise pixels, some beyond 1.
    """
    if not len(pixels):
        raise ValueError(f"there are no pictures in pixels of shape {tuple(pixels.shape)}")
    if not pixels.is_floating_point():
        raise ValueError(f"pixels are {pixels.dtype}, and have to be floating-point numbers in -1 .. 1: see to_pixels")
    largest = float(pixels.abs().max()) if pixels.numel() else 0.0  # NaN if there is one
    if not largest <= FAR:
        raise ValueError(f"pixels reach {largest:g}, and have to be finite numbers in -1 .. 1: see to_pixels")


def _read_config(file: Path) -> tuple[str, dict[str, Any]]:
    """The kind, and the settings without it."""
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file.parent} holds no image tokenizer: {CONFIG} is missing") from None
    except ValueError as fault:  # of JSON, or of its encoding
        raise ValueError(f"{file} is not the configuration of an image tokenizer: {fault}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not the configuration of an image tokenizer: no object of settings")
    return str(settings.pop("kind", UNNAMED)), settings


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path | str, config: str = CONFIG) -> None:
    """Copy every weight into the module, which takes the dtype of the floating weights if they have one.

    ValueError names `source` and a tensor if one is missing, one too many, or of another shape than `config` says.
    """
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in weights]
    faults += [f"{name} has no place in it" for name in weights if name not in own]
    faults += [
        f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 1} more such faults" if len(faults) > 1 else ""
        raise ValueError(f"{source} does not hold the weights of {config}: {faults[0]}{more}")
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())
    module.load_state_dict(weights)
