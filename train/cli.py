"""The command `omnigram`: the steps of the road, and what a trained model is asked for.

A user's mistake is one line on stderr and exit code 2, an interruption one line and 130; OMNIGRAM_DEBUG=1 shows the
traceback. Each step prints the folder it made, alone, on stdout. Heavy modules are imported by the commands that need
them, so that `omnigram --help` answers at once.
"""

import argparse
import contextlib
import difflib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

DEBUG = "OMNIGRAM_DEBUG"
FAULTY_INPUT, INTERRUPTED = 2, 128 + signal.SIGINT
SWEEP = "model=nano,micro,small"  # where no model is named
SWEEPS = Path("runs/sweep")
MEASURING = ("evaluate.run=", "device=", "threads=", "evaluation.")  # what `evaluate` takes

# command: module, function, what it does, examples
STEPS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "data": (
        "shards",
        "make_shards",
        "pictures and words -> shards of documents",
        (
            "",
            "data.source.languages=[en,de,ja] data.name=emoji3",
            "data=folder data.source.path=/my/pictures data.name=mine",
        ),
    ),
    "tokenizer": (
        "tokenizer",
        "make_tokenizer",
        "shards -> a text tokenizer and an image tokenizer",
        ("", "tokenizer=movqgan", "tokenizer.trainer.max_steps=200 -m tokenizer.quantizer.codebook_size=512,1024"),
    ),
    "tokens": (
        "tokens",
        "make_tokens",
        "shards and tokenizers -> shards of tokens",
        ("", "data=folder data.source.path=/my/pictures data.name=mine"),
    ),
    "pretrain": (
        "pretrain",
        "pretrain",
        "tokens -> a trained decoder, with its export and a page of samples",
        ("", "model=micro trainer.max_steps=200", "experiment=tiny", "-m model=nano,micro seed=0,1"),
    ),
    "evaluate": (
        "evaluate",
        "evaluate",
        "measure a finished run again",
        ("", "evaluate.run=runs/tokenizer/latest", "evaluation.queries=1000"),
    ),
}


class UsageError(ValueError):
    """The command line itself cannot be meant."""


class Parser(argparse.ArgumentParser):
    """Tells its errors as exceptions, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    warnings.formatwarning = lambda message, *_, **__: f"omnigram: warning: {' '.join(str(message).split())}\n"
    command = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _interruptible():
            return run(command)
    except KeyboardInterrupt as interruption:
        if os.environ.get(DEBUG):
            raise
        print(f"omnigram: interrupted{_after(command, interruption)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        if os.environ.get(DEBUG):
            raise
        print(f"omnigram: {one_line(error)}", file=sys.stderr)
        return FAULTY_INPUT


def _after(command: Sequence[str], interruption: KeyboardInterrupt) -> str:
    """What an interruption leaves: what it says itself, or of a step that it can be gone on with."""
    resumes = bool(command) and command[0] in (*STEPS, "sweep")
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

    for name, (_, _, summary, examples) in STEPS.items():
        step = add(name, summary, examples, run_step)
        _take_overrides(step)
        step.add_argument("-m", "--multirun", action="store_true", help="run every combination of key=a,b values")
    sweep = add("sweep", "pre-train each of several configurations, then compare them", ("", SWEEP), run_sweep)
    _take_overrides(sweep)
    add_picture_commands(add)
    add_words_commands(add)
    add_conversion_commands(add)
    checked = add("validate", "check a data set, or one shard, against docs/data-format.md", ("datasets/emoji",), check)
    checked.add_argument("path", metavar="PATH", help="folder of a data set, or a .tar file")
    add("version", "the version of this program and of what it stands on", ("",), tell_versions)
    return parser, dict(added.choices)


def _take_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="group=option or key=value, as --show-config lists them"
    )
    command.add_argument("--show-config", action="store_true", help="print the configuration as YAML, do nothing")


def run_step(options: argparse.Namespace) -> int:
    """One of the five steps, for every combination of the overrides."""
    from .compose import compose_each

    module, function, _, _ = STEPS[options.command]
    combinations = compose_each(options.overrides, options.multirun)
    if options.show_config:
        return _show(config for _, config in combinations)
    if options.command == "evaluate":
        for override in options.overrides:
            if not override.lstrip("+").startswith(MEASURING):
                raise ValueError(
                    f"{override} has no effect on a run that is finished: `evaluate` takes {', '.join(MEASURING)}…"
                )
    step = getattr(import_module(f".{module}", __package__), function)
    for overrides, config in combinations:
        if options.multirun:
            print(f"omnigram {options.command} {' '.join(overrides)}", file=sys.stderr)
        made = step(config)
        if isinstance(made, Path):
            print(made, flush=True)
    return 0


def run_sweep(options: argparse.Namespace) -> int:
    """Pre-train every combination, then one table and one plot of them."""
    from .compose import compose_each

    named = any(override.split("=")[0] == "model" for override in options.overrides)
    combinations = compose_each([*([] if named else [SWEEP]), *options.overrides], multirun=True)
    first, *others = (config for _, config in combinations)
    for part in ("data", "tokenizer", "tokens") if first.tokens.tokenizer else ("data", "tokenizer", "tokens", "seed"):
        if any(config[part] != first[part] for config in others):
            raise ValueError(
                f"a sweep compares decoders on the same tokens, but {part} differs: "
                "run these by `omnigram pretrain -m`, or name one run of tokenizers in tokens.tokenizer="
            )
    if options.show_config:
        return _show(config for _, config in combinations)
    from ..data.artefact import identity
    from .pretrain import pretrain
    from .runs import point_latest
    from .sweep import summarise_sweep

    runs: list[Path] = []
    for overrides, config in combinations:
        print(f"omnigram pretrain {' '.join(overrides)}", file=sys.stderr)
        runs.append(pretrain(config))
    folder = summarise_sweep(runs, SWEEPS / identity([run.name for run in runs])[:8])
    point_latest(folder)
    print(folder, flush=True)
    return 0


def _show(configs: "Iterable[DictConfig]") -> int:
    from omegaconf import OmegaConf

    print("---\n".join(OmegaConf.to_yaml(config) for config in configs), end="")
    return 0


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
