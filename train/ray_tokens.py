"""The engine `ray` of `make tokens`: shards encoded by workers on all machines of a Ray cluster, with Ray Data.

https://docs.ray.io/en/latest/data/data.html

Each input shard is a row of a Ray data set, and a task of its own; each worker holds the tokenizers once. What travels
are names and records: shards are read and written where they lie, so every machine has to see the same folders under
the same paths. A worker that dies is replaced, and its shard is done by another one.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..data.encoding import DocumentEncoder
from ..data.shards import ShardError
from .machine import choose_device
from .token_shards import Advance, Shard, ShardWork

# before Ray is imported: it is to send no statistics, C++ is not to write to our terminal, and workers on a machine
# that others use as well are to get as much of it as the engine `local` would
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}


class RayEngine:
    """Carries shards out on the cluster of `RAY_ADDRESS`, or without one on all cores of this machine.

    Arguments:
        device: auto, cpu or cuda, for the tokenizers of the workers; auto is a GPU each where the cluster has any.
        processes: workers, or None for one for each GPU, or else for each CPU.

    ValueError where Ray is not installed, or for an unknown device.
    """

    def __init__(self, device: str, processes: int | None = None) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray.data  # pyright: ignore[reportMissingImports] - an extra
        except ImportError:
            raise ValueError(
                "tokens.engine=ray needs a package that is not installed: pip install 'omnigram[ray]', "
                "or set tokens.engine=local"
            ) from None
        self.ray = ray
        self.device, self.processes = device, processes
        if device != "cuda":  # which this machine need not have
            choose_device(device, "tokens.device")

    def __call__(
        self, work: ShardWork, shards: Sequence[Shard], encoder: DocumentEncoder, advance: Advance
    ) -> Iterator[dict[str, Any]]:
        """The records of all shards, each as soon as its shard is there. ShardError for the first that is faulty."""
        if not shards:
            return
        here = replace(work, source=work.source.absolute(), folder=work.folder.absolute())
        # on stdout, where only the folder of tokens belongs, Ray tells of workers that died or that it ended itself
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), self._cluster() as gpu:
            rows = [{"shard": json.dumps(dict(shard))} for shard in shards]
            encoded = self.ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                EncodeShard,  # pyright: ignore[reportArgumentType] - Ray makes one in each worker
                fn_constructor_args=(here, self.ray.put(encoder), "cuda" if gpu else "cpu"),
                compute=self.ray.data.ActorPoolStrategy(size=min(len(rows), self._workers(gpu))),
                num_cpus=1,
                num_gpus=1 if gpu else 0,
            )
            for row in encoded.iter_rows():
                if row["fault"]:
                    raise ShardError(row["fault"])
                record = json.loads(row["record"])
                advance(record["documents"])
                yield record

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[bool]:
        """A connection to the cluster; whether its workers get a GPU each."""
        dashboard = None if "RAY_ADDRESS" in os.environ else False  # else Ray starts one
        try:
            with _silent():
                self.ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises just that where a busy machine needs more than its 30 seconds
            self.ray.shutdown()
            raise ConnectionError(
                f"Ray does not start ({' '.join(str(error).split())}): run the same command again, "
                "or set tokens.engine=local"
            ) from error
        try:
            context = self.ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False  # the bar is ours
            for handler in logging.getLogger("ray.data").handlers:
                if handler.name == "console":  # the other one writes to a file of Ray's
                    handler.setLevel(logging.CRITICAL)
            gpus = self.ray.cluster_resources().get("GPU", 0)
            if self.device == "cuda" and not gpus:
                raise ValueError("tokens.device=cuda: the Ray cluster has no GPU; set tokens.device=auto or cpu")
            yield self.device != "cpu" and bool(gpus)
        finally:
            self.ray.shutdown()

    def _workers(self, gpu: bool) -> int:
        return self.processes or max(1, int(self.ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))


class EncodeShard:
    """A worker: the tokenizers on its device, and a shard at a time. A faulty shard is a row, not an exception."""

    def __init__(self, work: ShardWork, encoder: Any, device: str) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        torch.set_flush_denormal(True)
        self.work = work
        held: Any = ray.get(encoder)
        self.encoder: DocumentEncoder = held.to(device)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            record = self.work.done(json.loads(row["shard"]), self.encoder)
        except (ValueError, OSError) as error:
            return {"record": "", "fault": str(error) or type(error).__name__}
        return {"record": json.dumps(record), "fault": ""}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what C++ writes on stderr as it starts, whatever its log level; faults come as exceptions."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
