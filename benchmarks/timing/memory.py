"""How far the memory of a process grows while it works, in a process that does nothing else.

The high-water mark of resident memory is Linux's; elsewhere there is no figure.
"""

import multiprocessing
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args, **kwargs).result()


def growths(works: Iterable[Callable[[], object]]) -> list[float | None]:
    """MiB that each piece of work needs at its peak on top of what was held before the first; the smallest first."""
    if not CLEAR.exists():
        return [None for _ in works]
    before = _resident("VmRSS")
    peaks: list[float | None] = []
    for work in works:
        CLEAR.write_text("5")  # the mark begins anew
        work()
        peaks.append(_resident("VmHWM") - before)
    return peaks


def _resident(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
