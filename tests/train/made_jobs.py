"""Jobs whose command is a few lines of Python, launched as a configuration says."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from omnigram.train.compose import build, compose_config
from omnigram.train.launching import Job, Launcher


@dataclass(frozen=True)
class Scripted(Job):
    script: str = ""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.script]


def launch(scripts: Sequence[str], overrides: Sequence[str], step: str = "evaluate") -> list[str]:
    """What the launcher of the overrides yields; the jobs differ by their seeds."""
    config = compose_config(overrides)
    jobs = [Scripted(step, (f"seed={number}",), config, script) for number, script in enumerate(scripts)]
    return [str(path) for path in build(config, "launcher", Launcher).launch(jobs)]
