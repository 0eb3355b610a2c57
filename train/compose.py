"""Hydra overrides -> the one configuration of the whole road; what it does not know is refused in one line.

The group options, keys and kinds of values are those of `pkg://omnigram.conf` and nothing else: `model=micro` chooses a
file of a group, `trainer.max_steps=200` changes a key that is there, and near names are told for one that is not.
"""

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from .limits import check_limits, shown

CONF, ROOT = "omnigram.conf", "config"
FILLED_IN_LATER = "model.vocab_size"  # by a step, from what the step before it made
OPEN = ("model.", "data.source.", "mixture.")  # a constructor knows what these hold: keys may be added and left out
NULLABLE = (
    "tokenizer.discriminator",
    "tokenizer.discriminator.guard_ratio",
    "tokenizer.optimizer.muon_learning_rate",
    "optimizer.muon_learning_rate",
)
FILLED = "mixture"  # empty in the files: what it is given is added to it
OPTIONAL = ("loader.kinds.", "loss.weights.")  # may be left out
DISCRIMINATOR = (  # the fields of AdversaryConfig
    *("channels", "layers", "learning_rate", "lecam", "weight", "max_weight"),
    *("start_step", "warmup_steps", "start_below", "guard_ratio", "guard_steps"),
)


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """The options of each group, from the files that are there; a group in a group is `tokenizer/quantizer`."""
    return dict(sorted(_groups_in(files(CONF), "")))


def _groups_in(place: Traversable, before: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for folder in place.iterdir():
        if folder.is_dir():
            options = sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))
            if options:
                yield before + folder.name, tuple(options)
            yield from _groups_in(folder, f"{before}{folder.name}/")


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that the overrides describe. ValueError, in one line, for what is unknown or does not fit."""
    [(_, config)] = compose_each(overrides, multirun=False)
    return config


def compose_each(overrides: Sequence[str], multirun: bool) -> list[tuple[list[str], DictConfig]]:
    """Every combination of the overrides' values, with its own overrides; all are checked before any is returned.

    Without `multirun` there is one combination, and `model=nano,micro` is refused.
    """
    parsed = [_parse(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            raise ValueError(
                f"{override.input_line} names several values: add -m to run one after the other, "
                f"or write {override.get_key_element()}=[…] for a list"
            )
    combinations = [list(combination) for combination in itertools.product(*(_values(o) for o in parsed))]
    return [(combination, _compose(combination)) for combination in combinations]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        assert override.input_line is not None
        return [override.input_line]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _parse(text: str) -> Override:
    if text.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0] == "hydra":
        raise ValueError(f"{text}: settings of Hydra itself have no effect here, leave it out")
    if not text.startswith("~") and "=" not in text:
        raise ValueError(f"{text!r} is no setting: write key=value, or group=option, as in model=micro")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).removeprefix(f"Error parsing override {text!r}").strip().splitlines()[0]
        reason = reason.partition(" expecting")[0]
        key = text.partition("=")[0]
        raise ValueError(f"{text!r} cannot be read ({reason}): quote the value, \"{key}='…'\"") from None


def _compose(overrides: list[str]) -> DictConfig:
    parsed = [_parse(text) for text in overrides]
    chosen = [override for override in parsed if override.key_or_group in groups()]
    for override in chosen:
        _check_option(override)
    config, choices = _hydra([override.input_line or "" for override in chosen])
    changes = [override for override in parsed if override not in chosen]
    for override in changes:
        _check_key(override, config)
    if changes:
        config, choices = _hydra([f"++{text}" if text.startswith(f"{FILLED}=") else text for text in overrides])
    with open_dict(config):  # runs are named after the model that was asked for
        config.model_name = config.get("model_name") or choices.get("model")
    _check_whole(config, choices)
    return config


def _hydra(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The composed configuration, and which option of each group is in it."""
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            config = compose(ROOT, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, OSError) as error:
        raise ValueError(" ".join(str(error).partition("Config search path")[0].split())) from None
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def _check_option(override: Override) -> None:
    group, options = override.key_or_group, groups()[override.key_or_group]
    if override.is_delete():
        raise ValueError(f"{override.input_line}: {group} cannot be left out, choose of {', '.join(options)}")
    value = override.value()
    if override.is_add():
        raise ValueError(f"{override.input_line}: {group} is there already: write {group}={value}")
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in options:
            near = _or(difflib.get_close_matches(str(name), options, cutoff=0.5))
            guess = f"did you mean {near}? " if near else ""
            raise ValueError(f"unknown {group} {name!r}: {guess}There is {', '.join(options)}")


def _check_key(override: Override, base: DictConfig) -> None:
    """ValueError unless the key is in the configuration and the value is of the kind that is there."""
    key = override.key_or_group
    paths = dict(_paths(base))
    adds = override.is_add() or override.is_force_add()
    if key.startswith(OPEN) and (override.is_delete() or (adds and key not in paths)):
        return
    if key not in paths:
        near = _or(_near(key, [*paths, *groups()]))
        parent = key.rpartition(".")[0]
        siblings = [path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == parent]
        there = f"{parent or 'the configuration'} holds {', '.join(siblings)}" if siblings else "see --show-config"
        if elsewhere := _or(_options_with(key)):
            there = f"it belongs to {elsewhere}, which is not chosen"
        raise ValueError(f"unknown key {key!r}: " + (f"did you mean {near}?" if near and not elsewhere else there))
    if override.is_delete():
        if key.startswith(OPTIONAL):
            return
        raise ValueError(f"{override.input_line}: {key} cannot be left out, give it another value")
    value = override.value()
    if value is None and paths[key] is not None and key not in NULLABLE and not key.startswith(OPEN):
        raise ValueError(
            f"{override.input_line}: {key} cannot be null, give it a value as in {key}={shown(paths[key])}"
        )
    fault = _misfit(paths[key], value)
    if fault:
        raise ValueError(f"{override.input_line}: {key} {fault}, as in {key}={shown(paths[key])}")


def _options_with(key: str) -> list[str]:
    """Options of the key's group whose files hold it, as one writes them."""
    group, _, name = key.partition(".")
    texts = {
        option: (files(CONF) / group / f"{option}.yaml").read_text(encoding="utf-8")
        for option in groups().get(group, ())
    }
    return [
        f"{group}={option}" for option, text in texts.items() if re.search(rf"^{re.escape(name)}:", text, re.MULTILINE)
    ]


def _paths(node: DictConfig, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value; interpolations and missing values as they are written."""
    for name in node:
        key = f"{before}{name}"
        if OmegaConf.is_interpolation(node, str(name)) or OmegaConf.is_missing(node, str(name)):
            yield key, None
            continue
        value = node[name]
        yield key, value
        if isinstance(value, DictConfig):
            yield from _paths(value, f"{key}.")


def _near(key: str, known: list[str]) -> list[str]:
    """Known keys like this one: a slip in the whole, or the right last word in another place."""
    last = key.rpartition(".")[2]
    elsewhere = [path for path in known if path.rpartition(".")[2] == last]
    slips = difflib.get_close_matches(key, known, n=2, cutoff=0.9)
    words = {path.rpartition(".")[2] for path in known}
    likely = difflib.get_close_matches(last, words, n=1, cutoff=0.8)
    moved = [path for path in known if likely and path.rpartition(".")[2] == likely[0]]
    beside = [path for path in moved if path.rpartition(".")[0] == key.rpartition(".")[0]]
    return list(dict.fromkeys(beside[:1] or [*elsewhere, *slips, *moved]))[:3]


def _misfit(old: Any, new: Any) -> str | None:
    """What is wrong with a value in the place of `old`; None if nothing can be said."""
    if old is None or new is None or (isinstance(new, str) and "${" in new):
        return None
    if OmegaConf.is_dict(old):
        return None if isinstance(new, dict) else "has parts, which are written {part:value}"
    if OmegaConf.is_list(old):
        if not isinstance(new, list):
            return "takes a list"
        faults = (_misfit(old[0], element) for element in new) if old else iter(())
        return next((f"takes a list, of which each {fault}" for fault in faults if fault), None)
    if isinstance(new, dict | list):
        return None if isinstance(old, str) else "takes a single value"
    if isinstance(old, bool):
        return None if isinstance(new, bool) else "is true or false"
    if isinstance(old, int):
        return None if isinstance(new, int) and not isinstance(new, bool) else "is a whole number"
    if isinstance(old, float):
        return None if isinstance(new, int | float) and not isinstance(new, bool) else "is a number"
    return None


def _check_whole(config: DictConfig, choices: dict[str, Any]) -> None:
    """ValueError for a value that the user must give, and for a reference to nothing."""
    missing = [key for key, _ in _paths(config) if OmegaConf.is_missing(*_place(config, key))]
    missing = [key for key in missing if key != FILLED_IN_LATER]
    if missing:
        group = missing[0].partition(".")[0]
        chosen = f"{group}={choices[group]}" if group in choices else "the configuration"
        raise ValueError(f"{chosen} needs {' and '.join(f'{key}=…' for key in missing)}: add what it should be")
    for key, value in _paths(config):
        check_limits(key, value)
    discriminator = config.tokenizer.discriminator
    if discriminator is not None and sorted(discriminator) != sorted(DISCRIMINATOR):
        raise ValueError(f"tokenizer.discriminator takes {', '.join(DISCRIMINATOR)}: see tokenizer=movqgan")
    for key in ("data.name", "tokenizer.name"):
        name = str(OmegaConf.select(config, key))
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"{key}={name} names a folder: write it without / and not with a dot first")
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from None


T = TypeVar("T")


def build(config: DictConfig, key: str, kind: type[T], **more: Any) -> T:
    """What the `_target_` of a part of the configuration makes of it, and of `more`.

    ValueError or OSError, in one line, for settings that it does not take, or if it is no `kind`.
    """
    node = OmegaConf.select(config, key)
    try:
        made = instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, OSError) or (isinstance(cause, ValueError) and key in str(cause)):
            raise cause from None
        reason = " ".join(str(cause or error).split())  # Hydra writes paragraphs
        if isinstance(cause, ValueError):
            raise ValueError(f"{key}: {reason}") from None
        raise ValueError(f"{key}: {node.get('_target_')} cannot be made: {reason}") from None
    if not isinstance(made, kind):
        raise ValueError(f"{key}: {node.get('_target_')} is no {kind.__name__}")
    return made


def _place(config: DictConfig, key: str) -> tuple[DictConfig, str]:
    parent, _, last = key.rpartition(".")
    return (OmegaConf.select(config, parent) if parent else config), last


def _or(names: list[str]) -> str:
    return " or ".join(names)
