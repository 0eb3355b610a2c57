"""Functions run by several processes that meet as torchrun's do, over gloo."""

import os
import socket
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from omnigram.train.world import leave_world


def run_distributed(function: Callable[..., None], size: int, *arguments: Any) -> None:
    """Call a function of a module in `size` processes; an error of one of them is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_process, (size, port, function, arguments), nprocs=size)


def _process(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and Lightning among themselves
        try:
            function(*arguments)
        finally:
            leave_world()
