"""The published languages as values: which ids a model uses, and how it writes a picture or a video with them.

| format     | paper                            | a block                                                   |
| ---------- | -------------------------------- | --------------------------------------------------------- |
| chameleon  | https://arxiv.org/abs/2405.09818 | boi, 1,024 codes, eoi                                     |
| lumina     | https://arxiv.org/abs/2408.02657 | boi, a token for H, one for W, rows with eol, eoi         |
| emu3       | https://arxiv.org/abs/2409.18869 | boi H*W img, rows with eol, eof eoi                       |
| emu3_video | the same                         | boi H*W*T*rate img, frames of rows with eol, each eof; eoi|
| emu3_5     | https://arxiv.org/abs/2510.26583 | boi H*W img, rows with eol between them, eoi              |
| lwm        | https://arxiv.org/abs/2402.08268 | frames of 256 codes, each with eof, the last with eov     |
| seed       | https://arxiv.org/abs/2310.01218 | boi, 32 causal codes, eoi                                 |

Emu3's paper says that a video's size, rate and length are written as text, but its code for that is not public: the
order of the numbers is ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .grammar import BlockGrammar
from .vocabulary import TEXT, Range, Vocabulary

# Emu3's tokens by name; what it calls extra is used for the marks.
EMU3_NAMES = {
    "pad": "<|endoftext|>",
    "eol": "<|extra_200|>",
    "eof": "<|extra_201|>",
    "tms": "<|extra_202|>",
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "img": "<|image token|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
}
EMU3_CODE = re.compile(r"<\|visual token (\d+)\|>")

# Chameleon's, of which the first five are needed; `<image>` is transformers' placeholder.
CHAMELEON_NAMES = {
    "bos": "<s>",
    "pad": "<pad>",
    "eos": "</s>",
    "boi": "<racm3:break>",
    "eoi": "<eoss>",
    "eot": "<reserved08706>",
    "image": "<image>",
}
CHAMELEON_OPTIONAL = ("eot", "image")

# Tokens without a use of their own, whose ids transformers calls "<image>": its placeholder for codes.
IMAGE_PLACEHOLDER = CHAMELEON_NAMES["image"]
CHAMELEON_RESERVED, EMU3_RESERVED = "<reserved08707>", "<|extra_0|>"
LUMINA_EOL, LUMINA_NUMBER = "<reserved08799>", "<reserved{:05d}>"  # the number n of 32 pixels a side is 8800 + n
LUMINA_NUMBERS = range(1, 97)  # 3,072 pixels a side: beyond what it draws
CHAMELEON_CODE = re.compile("IMGIMG([A-J]+)Z")
_LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789")
_DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")


def chameleon_code_name(code: int) -> str:
    """The name of an image code in Chameleon's table of tokens.

    >>> chameleon_code_name(8191)
    'IMGIMGIBJBZ'
    """
    return f"IMGIMG{str(code).translate(_DIGITS)}Z"


def chameleon_vocabulary(names: Mapping[str, int], size: int | None = None) -> Vocabulary:
    """The vocabulary of a model of Chameleon's kind from its tokens (name -> id).

    Codes are found by name, in whatever order their ids are. size: number of ids, where it exceeds the named ones.
    ValueError for names that are not Chameleon's, in one line.
    """
    codes = {
        int(found[1].translate(_LETTERS)): id_
        for name, id_ in names.items()
        if (found := CHAMELEON_CODE.fullmatch(name))
    }
    image = _range("Chameleon", "IMGIMG…Z", codes)
    specials = _specials("Chameleon", names, CHAMELEON_NAMES, CHAMELEON_OPTIONAL)
    return Vocabulary((Range(TEXT, 0, _size("Chameleon", names, size)), image), specials)


def lumina_vocabulary(names: Mapping[str, int], size: int | None = None) -> Vocabulary:
    """Chameleon's, with Lumina-mGPT's mark of a row's end and its numbers "1", "2", … of sizes as specials."""
    chameleon = chameleon_vocabulary(names, size)
    numbers = {str(number): LUMINA_NUMBER.format(8_800 + number) for number in LUMINA_NUMBERS}
    specials = _specials("Lumina-mGPT", names, {"eol": LUMINA_EOL, "1": numbers["1"], **numbers}, tuple(numbers)[1:])
    return Vocabulary(chameleon.ranges, {**chameleon.specials, **specials})


def emu3_vocabulary(names: Mapping[str, int], size: int | None = None) -> Vocabulary:
    """The vocabulary of a model of Emu3's kind from its tokens (name -> id); text is what lies before its specials.

    size: number of ids, which the codes must fill. ValueError for names that are not Emu3's, in one line.
    """
    codes = {int(found[1]): id_ for name, id_ in names.items() if (found := EMU3_CODE.fullmatch(name))}
    image = _range("Emu3", "<|visual token …|>", codes)
    specials = _specials("Emu3", names, EMU3_NAMES, ("tms",))
    first = min(*specials.values(), image.start)
    vocabulary = Vocabulary((Range(TEXT, 0, first), image), specials)
    if _size("Emu3", names, size) != vocabulary.size:
        raise ValueError(f"not the tokens of Emu3: {size} ids, but the last code has the id {vocabulary.size - 1}")
    return vocabulary


def _range(model: str, pattern: str, codes: Mapping[int, int]) -> Range:
    """The ids of the codes 0 .. as a range, with a table where they do not rise with the code."""
    if not codes:
        raise ValueError(f"not the tokens of {model}: none is named {pattern}; take the file of the model itself")
    if sorted(codes) != list(range(len(codes))):
        lacking = next(code for code in range(len(codes)) if code not in codes)
        raise ValueError(
            f"not the tokens of {model}: {len(codes)} are named {pattern}, but code {lacking} is not among them"
        )
    ids = np.array([codes[code] for code in range(len(codes))])
    start = int(ids.min())
    if int(ids.max()) - start + 1 != len(ids) or len(set(ids.tolist())) != len(ids):
        raise ValueError(
            f"not the tokens of {model}: the ids of {pattern} are not one run, but lie in {start} .. {ids.max()}"
        )
    rising = bool((ids == start + np.arange(len(ids))).all())
    return Range("image", start, len(ids), None if rising else tuple((ids - start).tolist()))


def _specials(
    model: str, names: Mapping[str, int], wanted: Mapping[str, str], optional: tuple[str, ...]
) -> dict[str, int]:
    """Ids of the specials that a model's names give."""
    for special, name in wanted.items():
        if name not in names and special not in optional:
            raise ValueError(
                f"not the tokens of {model}: {name} ({special}) is missing; take the file of the model itself"
            )
    return {special: names[name] for special, name in wanted.items() if name in names}


def _size(model: str, names: Mapping[str, int], size: int | None) -> int:
    """Number of ids."""
    named = max(names.values()) + 1
    if size is not None and size < named:
        raise ValueError(f"not the tokens of this {model}: they go up to {named - 1}, the model has {size} ids")
    return size or named


@dataclass(frozen=True)
class Published:
    """A published language: its vocabulary, how it writes blocks, and the ids of the digits in its text."""

    vocabulary: Vocabulary
    grammars: Mapping[str, BlockGrammar]
    digit_ids: Mapping[str, int]


_EMU3_SPECIALS = {"pad": 151_643, "eol": 151_846, "eof": 151_847, "tms": 151_848, "bos": 151_849, "eos": 151_850}
_EMU3_SPECIALS |= {"img": 151_851, "boi": 151_852, "eoi": 151_853}
_EMU3_DIGITS = {"*": 9} | {str(digit): 15 + digit for digit in range(10)}  # single bytes of Qwen's table: "!" is 0
_CHAMELEON_SPECIALS = {"bos": 0, "pad": 1, "eos": 2, "eoi": 8_196, "boi": 8_197, "eot": 8_710, "image": 8_711}
_LWM_FRAMES = {"eof": 32_000 + 8_192, "eov": 32_000 + 8_193}

CHAMELEON_GRAMMAR = BlockGrammar(
    size=None, separator=None, content=None, row_end=None, frame_end=None, fixed_size=(32, 32)
)
LUMINA_GRAMMAR = BlockGrammar(size="tokens", separator=None, size_unit=2, content=None, frame_end=None)
EMU3_GRAMMAR = BlockGrammar()
EMU3_VIDEO_GRAMMAR = BlockGrammar(rank=3, rate=8)
EMU3_5_GRAMMAR = BlockGrammar(last_row_end=False, frame_end=None)
LWM_GRAMMAR = BlockGrammar(
    rank=3,
    begin=None,
    size=None,
    separator=None,
    content=None,
    row_end=None,
    last_frame_end="eov",
    end=None,
    fixed_size=(None, 16, 16),
)
SEED_GRAMMAR = BlockGrammar(
    rank=1, size=None, separator=None, content=None, row_end=None, frame_end=None, fixed_size=(32,)
)

EMU3 = Vocabulary((Range(TEXT, 0, 151_643), Range("image", 151_854, 32_768)), _EMU3_SPECIALS)
EMU3_VIDEO = Vocabulary((Range(TEXT, 0, 151_643), Range("video", 151_854, 32_768)), _EMU3_SPECIALS)
EMU3_5 = Vocabulary((Range(TEXT, 0, 151_643), Range("image", 151_854, 131_072)), _EMU3_SPECIALS)
CHAMELEON = Vocabulary((Range(TEXT, 0, 65_536), Range("image", 4, 8_192)), _CHAMELEON_SPECIALS)
LUMINA = Vocabulary(
    CHAMELEON.ranges, {**_CHAMELEON_SPECIALS, "eol": 8_803, **{str(n): 8_804 + n for n in LUMINA_NUMBERS}}
)
LWM = Vocabulary((Range(TEXT, 0, 32_000), Range("video", 32_000, 8_192)), {"bos": 1, "eos": 2, **_LWM_FRAMES})
SEED = Vocabulary(
    (Range(TEXT, 0, 32_000), Range("image", 32_000, 8_192)), {"bos": 1, "eos": 2, "boi": 40_192, "eoi": 40_193}
)

PUBLISHED = {
    "chameleon": Published(CHAMELEON, {"image": CHAMELEON_GRAMMAR}, {}),
    "lumina": Published(LUMINA, {"image": LUMINA_GRAMMAR}, {}),
    "emu3": Published(EMU3, {"image": EMU3_GRAMMAR}, _EMU3_DIGITS),
    "emu3_video": Published(EMU3_VIDEO, {"video": EMU3_VIDEO_GRAMMAR}, _EMU3_DIGITS),
    "emu3_5": Published(EMU3_5, {"image": EMU3_5_GRAMMAR}, _EMU3_DIGITS),
    "lwm": Published(LWM, {"video": LWM_GRAMMAR}, {}),
    "seed": Published(SEED, {"image": SEED_GRAMMAR}, {}),
}
