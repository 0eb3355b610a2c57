"""What runs in each rank of a Slurm job; light, for it stays in memory beside the command that it runs."""

import signal
import subprocess
import sys
from dataclasses import dataclass

from .termination import REQUEUE


@dataclass
class RunCommand:
    """What runs in each rank of a job: the command, as a child, for submitit takes SIGTERM of its own process.

    The last line that the command writes on stdout, its folder, is the result. It leaves by the command's exit code.
    """

    command: list[str]

    def __call__(self) -> str:
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        made = ""
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            made = line.strip() or made
        code = process.wait()
        if code == -signal.SIGTERM:  # a step that does not train died of it, and can go on as well
            sys.exit(REQUEUE)
        if code:
            sys.exit(code if code > 0 else 128 - code)
        return made
