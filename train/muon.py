"""Muon, with the matrices of one shape orthogonalised together, and in the type that the machine multiplies fastest.

Muon: https://kellerjordan.github.io/posts/muon/. torch's optimizer takes one matrix after the other, and in bfloat16
everywhere: on a CPU without instructions for it that is four to five times slower than float32, and the small matrices
of a small decoder cost more in calls than in arithmetic. The update is torch's, and so is the state.
Dimensions: M matrices of one shape, R rows, C columns, R <= C.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

TOGETHER = 2**24  # numbers of the matrices that are orthogonalised at once: 64 MiB of float32


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum, its updates scaled to the length of AdamW's.

    https://arxiv.org/abs/2502.16982, section 2.2.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, ns_steps: int) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of the matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            for together in _of_one_shape(matrices):
                self._update(together, group)
        return loss

    def _update(self, matrices: list[Tensor], group: dict[str, object]) -> None:
        lr, momentum, decay = (float(group[name]) for name in ("lr", "momentum", "weight_decay"))  # pyright: ignore[reportArgumentType]
        towards = []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            towards.append(_wide(matrix.grad.lerp(mean, momentum)).to(_product_type(matrix.device)))
        length = 0.2 * max(matrices[0].shape) ** 0.5  # of AdamW's usual update, for orthogonal rows
        stack = torch.stack(towards) if len(towards) > 1 else towards[0][None]
        even = orthogonalised(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])  # pyright: ignore[reportArgumentType]
        for matrix, update in zip(matrices, even, strict=True):
            matrix.mul_(1 - lr * decay).add_(update.T if _tall(matrix) else update, alpha=-lr * length)


def orthogonalised(
    x: Float[Tensor, "m r c"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "m r c"]:
    """So many Newton-Schulz iterations, which bring every singular value of each matrix near 1."""
    a, b, c = coefficients
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _of_one_shape(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """The matrices by shape, a tall one with wide ones; not too many at once, and those of FSDP2 one by one."""
    shapes: dict[object, list[Tensor]] = {}
    for index, matrix in enumerate(matrices):
        key = index if isinstance(matrix, DTensor) else (tuple(sorted(matrix.shape)), matrix.dtype, matrix.device)
        shapes.setdefault(key, []).append(matrix)
    for alike in shapes.values():
        most = max(1, TOGETHER // alike[0].numel())
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def _tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if _tall(matrix) else matrix


def _product_type(device: torch.device) -> torch.dtype:
    """bfloat16, but on a CPU that only emulates it."""
    quick = device.type != "cpu" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if quick else torch.float32
