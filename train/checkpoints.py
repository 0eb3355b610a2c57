"""Checkpoints of a training run: written while training goes on, whole or absent, and read by any number of ranks.

`checkpoints/step-00000500/` holds what torch.distributed.checkpoint writes (`.metadata` and a file a rank: weights and
states of the optimizers by their names, so that other ranks, and one process alone, find their parts) and
`checkpoint.json`: the step, the state of the data on each rank, those of the callbacks, and the sizes of the files. It
is written last, and then the folder gets its name: a folder `step-*` is whole.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from ..data.artefact import PARTIAL, atomic_write, plain_errors, sync_folder
from .steps import StepModule
from .world import World

MANIFEST = "checkpoint.json"
NAME = "step-{:08d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps that is whole. They are written whole or not at all, but disks fail."""
    for path in reversed(_checkpoints(folder)):
        fault = _fault(path)
        if fault is None:
            return path
        warnings.warn(f"{path} is damaged and is passed over: {fault}", stacklevel=2)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """All that have the name of one, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def load_step(path: Path | None) -> int:
    """Steps that a checkpoint has behind it, by its name; 0 for none."""
    return 0 if path is None else int(path.name.removeprefix("step-"))


def load_model(path: Path, module: StepModule) -> None:
    """The weights and counts of a checkpoint, without the optimizers, in a module that is not to be trained on."""
    state = {"model": get_model_state_dict(module)}
    with _plain_faults(path):
        load(state, checkpoint_id=path, no_dist=True)
    module.load_state_dict(state["model"])
    module.resumed_states = _manifest(path)["data_states"]


def load_callbacks(path: Path, callbacks: Sequence[Callback]) -> None:
    """Give the callbacks the states that they left in a checkpoint, where they left one."""
    states: Mapping[str, Any] = _manifest(path)["callbacks"]
    for callback in callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])


def _load(path: Path, module: StepModule, world: World) -> None:
    optimizers: Any = module.optimizers(use_pl_optimizer=False)
    model, optimizer = get_state_dict(module, optimizers)
    state = {"model": model, "optimizers": optimizer}
    with _plain_faults(path):
        load(state, checkpoint_id=path, process_group=world.checkpoints, no_dist=world.size == 1)
    set_state_dict(module, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizers"])
    module.resumed_states = _manifest(path)["data_states"]


class Checkpoints(Callback):
    """Go on from a checkpoint, save every so many steps, and end the run after `max_steps` or on SIGTERM.

    Last of the callbacks: what a step leaves in curves and pictures is there before its checkpoint is. A checkpoint is
    copied when its step is done, and written by a thread while the next steps run; the next one waits for it.

    Arguments:
        start: the checkpoint to go on from.
        keep: the newest so many stay, and of the others every `keep_every`-th step (0: none).
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        max_steps: int,
        start: Path | None = None,
        world: World | None = None,
        keep: int = 2,
        keep_every: int = 0,
    ) -> None:
        if every < 1 or max_steps < 1:
            raise ValueError(f"checkpoint_every_n_steps={every} and max_steps={max_steps} must be 1 or more")
        if keep < 1 or keep_every < 0:
            raise ValueError(f"checkpoints kept: {keep} must be 1 or more, every {keep_every} steps 0 or more")
        self.folder, self.every, self.max_steps, self.start = folder, every, max_steps, start
        self.world, self.keep, self.keep_every = world or World(), keep, keep_every
        self._writing: tuple[int, dict[str, Any], Future[Any]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StepModule)
        if self.start is not None:
            _load(self.start, pl_module, self.world)
            load_callbacks(self.start, trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        if self.world.is_first:
            for left in self.folder.glob(f".*{PARTIAL}"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StepModule)

        def note(*_: Any) -> None:  # Lightning's own would talk to the other ranks from within the handler
            pl_module.asked_to_stop = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, note)  # until Lightning, in the end, puts back what was there before it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepModule)
        step = pl_module.step
        ends = step >= self.max_steps or pl_module.stopping
        if step % self.every == 0 or ends:
            self._begin(trainer, pl_module)
        if ends or (self._writing is not None and self._writing[2].done()):
            self._finish()
        if ends:
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What is being written is of a sound step: let it become whole."""
        with contextlib.suppress(Exception):
            self._finish()

    def _partial(self, step: int) -> Path:
        return self.folder / f".{NAME.format(step)}{PARTIAL}"

    def _begin(self, trainer: Trainer, module: StepModule) -> None:
        """Copy everything of this step, and have a thread write the copy."""
        self._finish()
        partial, alone = self._partial(module.step), self.world.size == 1
        model, optimizer = get_state_dict(module, module.optimizers(use_pl_optimizer=False))  # pyright: ignore[reportArgumentType]
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        left = {callback.state_key: state for callback in callbacks if (state := callback.state_dict())}
        manifest = {"step": module.step, "data_states": self.world.gather(module.data_state), "callbacks": left}
        writing: Any = async_save(
            {"model": model, "optimizers": optimizer},
            storage_writer=FileSystemWriter(partial),
            process_group=self.world.checkpoints,
            no_dist=alone,
        )
        self._writing = (module.step, manifest, writing)

    def _finish(self) -> None:
        """Wait until what is being written is there, then give it its name and drop what is not kept."""
        if self._writing is None:
            return
        (step, manifest, writing), self._writing = self._writing, None
        partial, path = self._partial(step), self.folder / NAME.format(step)
        with plain_errors(path):
            try:
                with _plain_faults(path, "cannot be written"):
                    writing.result()
                if not self.world.is_first:
                    return
                files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
                if lacking := _written(partial) - files.keys():
                    raise ValueError(
                        f"the checkpoint {path} lacks {min(lacking)}, which another rank wrote: all machines have to "
                        f"see one folder {self.folder}, as on a shared file system"
                    )
                atomic_write(partial / MANIFEST, json.dumps({**manifest, "files": files}))
                if path.exists():  # damaged, or it would have been gone on from
                    shutil.rmtree(path)
                os.replace(partial, path)
                sync_folder(self.folder)
            finally:
                if self.world.is_first:
                    shutil.rmtree(partial, ignore_errors=True)
        there = _checkpoints(self.folder)
        later = [other for other in there if load_step(other) > step]  # damaged, or the run had gone on from them
        for old in there[: -self.keep - len(later)] + later:
            if old in later or not self.keep_every or load_step(old) % self.keep_every:
                gone = self._partial(load_step(old))  # no half of it is left under its name
                os.replace(old, gone)
                shutil.rmtree(gone)


@contextlib.contextmanager
def _plain_faults(path: Path, what: str = "does not fit this run") -> Iterator[None]:
    """The first rank's error where torch wraps those of all ranks in one of its own; a misfit is a ValueError."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, OSError):
            raise cause from None
        raise ValueError(f"the checkpoint {path} {what}: {' '.join(str(cause).split())}") from None


def _written(folder: Path) -> set[str]:
    """The files that all ranks together have written, by the metadata of torch.distributed.checkpoint."""
    stored = FileSystemReader(folder).read_metadata().storage_data or {}
    return {place.relative_path for place in stored.values()}


def _manifest(path: Path) -> Mapping[str, Any]:
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def _fault(path: Path) -> str | None:
    """What a checkpoint lacks; None for a whole one."""
    try:
        files: Mapping[str, int] = _manifest(path)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} has not its {size:,} bytes"
    return None
