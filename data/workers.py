"""Processes that make batches, each of a stream of its own; the batches are taken from them in turn.

A process has a pipe to itself and nothing that others share, so one that is killed leaves the others whole and is
noticed at once. What fills the pipe is what is made ahead. Batches cross it as arrays; they need no shared memory.
"""

import contextlib
import multiprocessing
import multiprocessing.util
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..tokenizers.document_grammar import DocumentGrammar
from .mixture import Mixture
from .packing import PackedBatch
from .stream import LoaderConfig, PackedStream
from .stream_state import State


class Workers:
    """`next_batch()` of several streams in turn, with the state of all of them after it.

    Arguments:
        states: of the streams, the one whose turn is next first.
        streams: number of each stream, in the same order.
        world: streams of all ranks.
    """

    def __init__(
        self,
        mixture: Mixture,
        grammar: DocumentGrammar,
        config: LoaderConfig,
        streams: Sequence[int],
        world: int,
        states: Sequence[State | None],
    ) -> None:
        self._running: deque[tuple[BaseProcess, Connection, int]] = deque()
        self._states = dict(zip(streams, states, strict=True))
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and devices
        for stream, state in zip(streams, states, strict=True):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (theirs, mixture, grammar, config, stream, world, state)
            process = context.Process(target=_work, args=arguments, name=f"omnigram-loader-{stream}", daemon=True)
            with _signals_held_back():
                process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._running.append((process, ours, stream))
        processes = [process for process, _, _ in self._running]
        self._finalize = multiprocessing.util.Finalize(self, _end, args=(processes,), exitpriority=1)

    def next_batch(self) -> PackedBatch:
        """The batch of the stream whose turn it is.

        What its process raised is raised; ChildProcessError if it ended otherwise.
        """
        process, pipe, stream = self._running[0]
        try:
            made = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join(5)
            raise ChildProcessError(_obituary(process, stream)) from None
        if isinstance(made, BaseException):
            raise made
        arrays, self._states[stream] = made
        self._running.rotate(-1)
        state = {"streams": [self._states[stream] for _, _, stream in self._running]}
        return PackedBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, state=state)

    def close(self) -> None:
        """End the processes; who waits for a batch is told so."""
        self._finalize()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """What a terminal or a scheduler sends to all processes is left to this one, which saves and then ends the others.

    A process that is started inherits that these signals are blocked, from its first instruction on.
    """
    resource_tracker.ensure_running()  # it would unblock them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Sequence[BaseProcess]) -> None:
    """They hold nothing that is needed again, so there is nothing to wait for."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _obituary(process: BaseProcess, stream: int) -> str:
    code = process.exitcode
    how = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
    advice = (
        ", for lack of memory perhaps: lower loader.workers or loader.group_shards" if code == -signal.SIGKILL else ""
    )
    return f"worker {stream} of the loader (process {process.pid}) {how}{advice}; the same command goes on from here"


def _work(pipe: Connection, *stream: Any) -> None:
    """What a process does, until nobody reads its pipe any longer."""
    torch.set_num_threads(1)
    made: PackedStream | None = None
    while True:
        try:
            made = made or PackedStream(*stream)
            message = _message(made.next_batch())
        except Exception as error:  # whatever it is, the process that trains raises it
            message = pickle.dumps(_sendable(error))
            made = None
        try:
            pipe.send_bytes(message)
        except OSError:
            return
        if made is None:
            return


def _message(batch: PackedBatch) -> bytes:
    arrays = {name: value.numpy() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return pickle.dumps((arrays, batch.state), protocol=pickle.HIGHEST_PROTOCOL)


def _sendable(error: Exception) -> Exception:
    """The error itself, or of its kind, if it cannot be pickled."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if str(again) == str(error):
            return error
    except Exception:  # of any kind, by what the error holds
        pass
    kind = next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), None)
    return kind(str(error)) if kind else RuntimeError("".join(traceback.format_exception(error)))
