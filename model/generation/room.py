"""How large blocks of free size may be, so that as many as are asked for fit behind a prompt."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from .prompts import Block, Piece
from .sampler import Sampler


def most_codes(
    sampler: Sampler, segments: Sequence[Piece], negative: str, blocks: int, max_tokens: int | None, modality: str
) -> int:
    """How many codes each of `blocks` blocks may have, whatever its sides, so that all fit behind the segments.

    negative, max_tokens: of the prompt. ValueError if not even the smallest blocks fit.
    """
    write, block = sampler.writer.write, sampler.grammar.blocks[modality]
    given, begun, rest = len(write(segments)), 0, 0
    if segments and isinstance(last := segments[-1], Block) and last.size is not None:
        begun = given - len(write(segments[:-1]))
        rest = sampler.grammar.blocks[last.modality].length(*last.size) - begun
    given = max(given, len(write([negative] if negative else ())) + begun)
    left = sampler.context - given
    room = left if max_tokens is None else min(left, max_tokens)
    share = (room - rest - 1) // blocks  # 1: eos

    def tokens(codes: int) -> int:
        return block.automaton(max_codes=codes).max_tokens

    spec = block.grammar
    least = math.prod(side or block.sides[0] for side in spec.fixed_size or (0,) * spec.rank)
    counts = range(least, min(share, block.max_side**spec.rank) + 1)
    if fitting := bisect_right(counts, share, key=tokens):
        return counts[fitting - 1]
    needed = rest + blocks * tokens(least) + 1
    asked = f"blocks={blocks} of {modality} need {needed} or more"
    if room < left:
        raise ValueError(f"max_tokens={max_tokens}, and {asked}: raise it, or ask for fewer blocks")
    raise ValueError(
        f"a prompt of {given} tokens leaves {left} of the context of {sampler.context}, and {asked}: "
        "shorten it, or ask for fewer blocks"
    )
