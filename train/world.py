"""The processes that train together, one a device: who this one is, and what the first of them does for all.

torchrun and Slurm's srun start the same command once for every device. All of them read the same configuration; the
first one alone makes what is lacking, holds the run's folder and writes in it, and the others wait for it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

STEP_PATIENCE = timedelta(hours=1)  # for a rank that validates or draws while the others wait at the next step
PATIENCE = timedelta(days=7)  # for a rank that makes tokenizers and tokens before the first step
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

T = TypeVar("T")


class LostRankError(OSError):
    """Another process of the run has ended."""


class OtherRankError(ValueError):
    """The first process of the run could not go on, and has said why."""


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size`; on this machine `local_rank` of `local_size`.

    Each `tensor` ranks that follow one another take the same rows of a batch and share the matrices of the decoder.
    control and checkpoints are process groups of their own, for what takes long and for what a thread does.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    tensor: int = 1
    control: Any = None
    checkpoints: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of a batch this rank takes."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """Parts into which a batch is dealt."""
        return self.size // self.tensor

    def lead(self, work: Callable[[], T]) -> T:
        """What the first rank makes (it has to pickle), on all ranks. OtherRankError where it raised something."""
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        try:
            if self.is_first:
                told = [(True, work())]
        except BaseException as error:
            told = [(False, " ".join(str(error).split()) or type(error).__name__)]
            raise
        finally:
            self._communicate(lambda: dist.broadcast_object_list(told, src=0, group=self.control))
        made, value = told[0]
        if not made:
            raise OtherRankError(f"rank {self.rank} stops, as the first rank did: {value}")
        return value

    def gather(self, value: T) -> list[T]:
        """The values of the first rank of each part (they have to pickle), on all ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._communicate(lambda: dist.all_gather_object(values, value, group=self.control))
        return values[:: self.tensor]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the parts of a batch, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
            if self.tensor > 1:
                tensor.copy_(tensor / self.tensor)  # each part was counted by so many
        return tensor

    def most(self, tensor: torch.Tensor) -> torch.Tensor:
        """The greatest of all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, alike but for their lengths, one after the other along the first axis.

        Without gradients.
        """
        if self.size == 1:
            return tensor
        own = torch.tensor([len(tensor)], device=tensor.device)
        lengths = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(lengths, own)
        longest = int(max(lengths))
        padded = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])

    def copy_from_first(self, module: torch.nn.Module) -> None:
        """Give the module the weights and buffers that it has on the first rank."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def average_gradients(self, module: torch.nn.Module) -> None:
        """Over all ranks, of a module whose parameters are whole on each."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _communicate(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except RuntimeError as error:
            raise lost_rank(error, self) or error from error


def lost_rank(error: RuntimeError, world: World) -> LostRankError | None:
    """What an error of a collective means; None for an error of another kind."""
    kinds = (dist.DistError, dist.DistBackendError, dist.DistNetworkError)
    if world.size == 1 or not (isinstance(error, kinds) or any(sign in str(error) for sign in LOST)):
        return None
    if "timed out" in str(error).lower():
        return LostRankError(f"rank {world.rank} waited too long for the others: {str(error).splitlines()[0]}")
    return LostRankError(f"rank {world.rank} lost the others: one of the {world.size} processes has ended")


def join_world(device: torch.device, tensor: int = 1) -> World:
    """Meet the other processes that torchrun or srun has started; a world of one where there are none.

    ValueError for more processes on a machine than it has GPUs, or a number that groups of `tensor` do not divide.
    """
    environment = None
    try:
        if TorchElasticEnvironment.detect():
            environment = TorchElasticEnvironment()
        elif SLURMEnvironment.detect():
            environment = SLURMEnvironment(auto_requeue=False)  # which the exit code asks for
    except RuntimeError as error:  # of Lightning, which needs to know the tasks of a node
        raise ValueError(
            f"give srun --ntasks-per-node in the place of --ntasks ({' '.join(str(error).split())})"
        ) from None
    size = 1 if environment is None else environment.world_size()
    if size % tensor:
        raise ValueError(f"{size} processes do not come in groups of trainer.tensor_parallel={tensor}: start others")
    if environment is None or size == 1:
        return World()
    rank, local_rank = environment.global_rank(), environment.local_rank()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or size)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}: "
                "start as many processes as there are GPUs, or set device=cpu"
            )
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=STEP_PATIENCE, store=_store())
        except RuntimeError as error:
            raise LostRankError(
                f"rank {rank} could not meet the other {size - 1}: {' '.join(str(error).split())}"
            ) from None
        _GROUPS["control"] = dist.new_group(backend="gloo", timeout=PATIENCE)
        _GROUPS["checkpoints"] = dist.new_group(backend="gloo", timeout=STEP_PATIENCE)
    return World(rank, size, local_rank, local_size, tensor, **_GROUPS)


def _store() -> Any:
    """Where torchrun's processes meet: after a restart elsewhere than before it, where addresses of the dead stand.

    None leaves it to torch, where none of them has died.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not restarts:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = dist.TCPStore(host, port, None, False, STEP_PATIENCE)  # pyright: ignore[reportPrivateImportUsage]
    return dist.PrefixStore(f"restart-{restarts}", agent)  # pyright: ignore[reportPrivateImportUsage]


def is_first() -> bool:
    """Whether this process speaks for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def leave_world() -> None:
    """Part from the other processes, before this one ends."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _GROUPS.clear()


_GROUPS: dict[str, Any] = {}  # of this process
