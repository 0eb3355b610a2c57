"""Published accelerators: the rate of their dense bfloat16 products, which MFU is a share of, and their memory.

Rates are the vendors', without sparsity: the sheets of H100, H200, B200 and L40S print twice as much, with it.
A100: https://www.nvidia.com/en-us/data-center/a100/
H100: https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (SXM)
H200: https://www.nvidia.com/en-us/data-center/h200/
B200: https://www.nvidia.com/en-us/data-center/hgx/ (a GPU of eight)
L40S: https://www.nvidia.com/en-us/data-center/l40s/
MI300X: https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html
"""

import difflib
from typing import NamedTuple


class Accelerator(NamedTuple):
    """peak: operations a second of dense bfloat16 products; memory: the sheet's number, taken for GiB."""

    peak: float
    memory: float


ACCELERATORS = {
    "a100": Accelerator(312e12, 80),
    "a100_40gb": Accelerator(312e12, 40),
    "h100": Accelerator(989e12, 80),
    "h200": Accelerator(989e12, 141),
    "b200": Accelerator(2250e12, 180),
    "l40s": Accelerator(362e12, 48),
    "mi300x": Accelerator(1307e12, 192),
}


def accelerator(name: str) -> Accelerator:
    """The accelerator of a name; ValueError, with the nearest, for an unknown one."""
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    near = difflib.get_close_matches(name.lower(), ACCELERATORS, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"accelerator={name} is unknown: {guess}There is {', '.join(ACCELERATORS)}; of others give peak= and memory="
    )
