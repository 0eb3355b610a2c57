"""What the machine itself does: the rate of a matrix product, and the most memory that was taken."""

import resource
import sys
import time

import torch

SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough that a product reaches the machine's rate
SECONDS = 0.5


def product_rate(device: torch.device, dtype: torch.dtype, side: int | None = None, seconds: float = SECONDS) -> float:
    """Floating-point operations a second of a square matrix product: the best of as many as fit into `seconds`.

    Whatever else runs on the machine only slows a product down, so that the best is nearest to what there is.
    """
    side = side or SIDES.get(device.type, SIDES["cpu"])
    generator = torch.Generator(device).manual_seed(0)  # training draws from the global one
    first, second = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(first)
    torch.mm(first, second, out=out)  # loads kernels, chooses among them
    rate, end = 0.0, time.perf_counter() + seconds
    while True:
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(first, second, out=out)
        _wait_for(device)
        now = time.perf_counter()
        rate = max(rate, 2.0 * side**3 / (now - start))
        if now >= end:
            return rate


def dtype_of(precision: str) -> torch.dtype:
    """Of the matrix products under Lightning's word for a precision."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU since training began; of this whole process, since it began, on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB
