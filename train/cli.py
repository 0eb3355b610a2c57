"""The command `omnigram`: the steps of the road, and what a trained model is asked for.

A user's mistake is one line on stderr and exit code 2, an interruption one line and 130, SIGTERM while training one
line and 75, on which schedulers can requeue; OMNIGRAM_DEBUG=1 shows the traceback. Each step prints the folder it made,
alone, on stdout. Heavy modules are imported by the commands that need them, so that `omnigram --help` answers at once.
"""

import argparse
import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from .codebook_commands import add_codebook_commands
from .comparison_commands import add_comparison_commands
from .plan_command import add_plan_command
from .report_command import add_report_command
from .step_commands import STEPS, add_step_commands
from .termination import REQUEUE, Terminated
from .warned import warn_in_one_line

DEBUG = "OMNIGRAM_DEBUG"
FAULTY_INPUT, INTERRUPTED = 2, 128 + signal.SIGINT
# what to do where memory runs out; training and evaluation say it themselves, by what holds most
LOWER = {
    **dict.fromkeys(("tokens", "pretrain", "sweep", "through-decoder"), ": lower tokens.batch_size"),
    **dict.fromkeys(("sample", "complete", "joint", "caption"), ": lower --batch-size"),
}


class UsageError(ValueError):
    """The command line itself cannot be meant."""


class Parser(argparse.ArgumentParser):
    """Tells its errors as exceptions, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    warn_in_one_line()
    command = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _interruptible():
            return run(command)
    except KeyboardInterrupt as interruption:
        if os.environ.get(DEBUG):
            raise
        terminated = isinstance(interruption, Terminated)
        how = "terminated" if terminated else "interrupted"
        print(f"omnigram: {how}{_after(command, interruption)}", file=sys.stderr)
        return REQUEUE if terminated else INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        if os.environ.get(DEBUG):
            raise
        print(f"omnigram: {one_line(error)}", file=sys.stderr)
        return FAULTY_INPUT
    except (RuntimeError, MemoryError) as error:
        from .out_of_memory import is_out_of_memory

        if os.environ.get(DEBUG) or not is_out_of_memory(error):
            raise
        print(f"omnigram: out of memory{LOWER.get(command[0], '')}", file=sys.stderr)
        return FAULTY_INPUT


def _after(command: Sequence[str], interruption: KeyboardInterrupt) -> str:
    """What an interruption leaves: what it says itself, or of a step that it can be gone on with."""
    resumes = bool(command) and command[0] in (*STEPS, "sweep", "through-decoder")
    left = "the same command goes on from here" if resumes else str(interruption)
    return f"; {left}" if left else ""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt, also where C++ swallowed it and failed in its own way for it."""
    came = False

    def note(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # whoever started us wants it otherwise
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:  # of any kind, by what the interrupt broke
        if not came:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(arguments: list[str]) -> int:
    """`main`, with mistakes as exceptions."""
    parser, commands = make_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = " or ".join(difflib.get_close_matches(arguments[0], commands))
        guess = f"did you mean {near}?" if near else f"choose of {', '.join(commands)}"
        raise UsageError(f"unknown command {arguments[0]!r}: {guess}")
    options, rest = parser.parse_known_args(arguments)
    options.arguments = arguments[1:]  # for the record of what is drawn
    if "act" not in options:
        parser.print_help()
        return 0
    flags = [text for text in rest if text.startswith("-")]
    if flags or (rest and not hasattr(options, "overrides")):
        unknown = (flags or rest)[0]
        known = [flag for action in commands[options.command]._actions for flag in action.option_strings]
        near = " or ".join(difflib.get_close_matches(unknown.partition("=")[0], known))
        guess = f"did you mean {near}?" if near else f"see omnigram {options.command} --help"
        raise UsageError(f"unknown option {unknown!r} of {options.command}: {guess}")
    if rest:  # overrides behind an option
        options.overrides += rest
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def one_line(error: BaseException) -> str:
    """The message of an error, without the system's number before it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def make_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    from .conversion_commands import add_conversion_commands
    from .picture_commands import add_picture_commands
    from .words_commands import add_words_commands

    parser = Parser(
        prog="omnigram",
        description="Train discrete-token omni-modal models: pictures become codes, and one decoder\n"
        "reads and writes them with text. Each step makes what it needs and lacks:\n"
        "`omnigram pretrain` alone goes the whole road.",
        epilog="examples:\n  omnigram pretrain\n  omnigram pretrain model=micro trainer.max_steps=200\n"
        '  omnigram sample "a red apple" --style openmoji -n 8 --out apple.png\n  omnigram caption apple.png\n'
        '  omnigram score "a red apple, openmoji" apple.png',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    added = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, summary: str, examples: Sequence[str], act: Callable[[argparse.Namespace], int]) -> Parser:
        command = added.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="examples:\n" + "\n".join(f"  omnigram {name} {example}".rstrip() for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(act=act)
        return command

    add_step_commands(add)
    add_picture_commands(add)
    add_words_commands(add)
    add_conversion_commands(add)
    add_codebook_commands(add)
    add_comparison_commands(add)
    add_plan_command(add)
    add_report_command(add)
    checked = add("validate", "check a data set, or one shard, against docs/data-format.md", ("datasets/emoji",), check)
    checked.add_argument("path", metavar="PATH", help="folder of a data set, or a .tar file")
    add("version", "the version of this program and of what it stands on", ("",), tell_versions)
    return parser, dict(added.choices)


def check(options: argparse.Namespace) -> int:
    """Validate a data set; exit code 1 when it has faults."""
    from ..data.validate import validate

    report = validate(options.path)
    for fault in report.faults:
        print(fault)
    print(f"{options.path}: {report}")
    return 0 if report.valid else 1


def tell_versions(options: argparse.Namespace) -> int:
    """What a report of a problem should begin with."""
    from ..data.artefact import provenance

    found = provenance()
    versions = {"omnigram": _version(), **{k: v for k, v in found["versions"].items() if k != "omnigram"}}
    for name, version in {**versions, "revision": found["revision"], "platform": found["platform"]}.items():
        print(f"{name:<14} {version or 'no checkout'}")
    return 0


def _version() -> str:
    from .. import __version__

    return __version__


if __name__ == "__main__":
    sys.exit(main())
